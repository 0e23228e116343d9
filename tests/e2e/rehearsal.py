"""Reloads under load, and what must be so after each of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sockshare.cli.stage import family
from tests.support.circusd import Circusd, Reload, descriptors, is_running, wait_until
from tests.support.load import Load, Result, assert_answered_by_version, describe
from tests.support.others import run_as

QUIET = 2.0  # s of load before anything is done, for the bound
BETWEEN = 0.3  # s of load after a reload that must be all the new version's


class Shape(NamedTuple):
    """What must be the same afterwards: circusd's counts, the processes, their descriptors at rest."""

    numprocesses: int
    pids: int
    family: int
    circusd: int
    host: int
    broker: int
    children: list[int]

    @classmethod
    def of(cls, stage: Circusd) -> Shape:
        assert stage.process is not None
        pids = stage.pids()
        return cls(
            stage.numprocesses(),
            len(pids),
            len(stage.family()),
            descriptors(stage.process.pid),
            descriptors(stage.host()),
            descriptors(stage.broker()),
            sorted(descriptors(pid) for pid in pids),
        )


def shape(stage: Circusd) -> Shape:
    """The shape, once it is the same twice in 0.2 s: connections that were just answered are still being closed, and a
    spare broker takes an interpreter's start until it is there."""
    wait_until(stage.spare_stands_by, 20, "a spare broker stands by", 0.05)
    seen: list[Shape] = []

    def is_still() -> bool:
        try:
            seen.append(Shape.of(stage))
        except OSError:  # a process ended while it was looked at
            seen.clear()
        return len(seen) > 1 and seen[-1] == seen[-2]

    wait_until(is_still, 10, "descriptors and processes settle", 0.2)
    return seen[-1]


def all_ready(stage: Circusd) -> None:
    """Return once every process of the program is ready, by the broker's word."""
    said = ""

    def is_ready() -> bool:
        nonlocal said
        done = stage.sockshare("status", "--json")
        said = f"status exited {done.returncode}: {done.stdout}{done.stderr}"
        if done.returncode:
            return False
        holders = [holder for sock in json.loads(done.stdout)["sockets"] for holder in sock["holders"]]
        return {holder["pid"] for holder in holders if holder["ready"]} == set(stage.pids())

    try:
        wait_until(is_ready, 20, "every process is ready", 0.1)
    except TimeoutError as error:
        raise AssertionError(f"{error}; {said}") from None


def assert_found_by_its_user(stage: Circusd, uid: int) -> None:
    """A manager that *uid* runs: its program and the user's commands find the broker, and it leaves nothing behind."""
    stage.start_as(uid)
    stage.wait_for_answer(stage.port)
    done = run_as(uid, "sockshare", "status", environment=stage.environment)
    assert done.returncode == 0, done.stderr
    stage.stop()
    assert not list(Path("/tmp").glob(f"sockshare-{uid}.*/*"))


def measure(seconds: float) -> None:
    """Let the load go on: a span of measurement, nothing waits for it."""
    time.sleep(seconds)


def assert_shape(stage: Circusd, before: Shape) -> None:
    """Everything is as *before*, within 5 s: circusd closes the pipe of a process that ended at its next check. (Of one
    that ended before, too: it may have fewer afterwards; and supervisord a connection less, whose last word was heard.)
    """
    last: list[Shape] = []

    def is_so() -> bool:
        last[:] = [shape(stage)]
        manager, host = max(last[0].circusd, before.circusd), max(last[0].host, before.host)
        return last[0]._replace(circusd=manager, host=host) == before

    try:
        wait_until(is_so, 5, "all is as before")
    except TimeoutError:
        raise AssertionError(f"{before} became {last[0]}") from None


@contextmanager
def loaded(stage: Circusd, *kinds: str) -> Iterator[Load]:
    """Load on the stage; on a failure inside, what it had come to is part of the report."""
    with Load(stage.port, *kinds) as load:
        try:
            yield load
        except AssertionError as error:
            raise AssertionError(f"{error}\nload until then:\n{describe(load.stop())}") from error


def assert_replaced(stage: Circusd, before: list[int], reload: Reload) -> None:
    """Exit status 0 means: nothing of *before* runs, as many others do, and circusd knows them."""
    assert reload.status == 0, reload
    left = [pid for pid in before if is_running(pid)]
    assert not left, f"{left} of {before} still run after {reload}"
    now = stage.pids()
    assert len(now) == len(before), f"{before} became {now} after {reload}"


def assert_as_before(stage: Circusd, before: list[int], reload: Reload) -> None:
    """A failed reload left the same processes, and no other."""
    assert stage.pids() == before, f"{before} became {stage.pids()} after {reload}"
    assert all(is_running(pid) for pid in before), f"of {before} not all run after {reload}"


def reload_often(stage: Circusd, load: Load, times: int) -> float:
    """Deploy and reload so often while *load* goes on; return when the first began."""
    began = time.monotonic()
    windows: list[tuple[float, float, str]] = []
    workers: set[int] = set()
    for number in range(times):
        version, before = f"r{number}", stage.pids()
        stage.deploy(version)
        reload = stage.reload()
        assert_replaced(stage, before, reload)
        measure(BETWEEN)
        windows.append((reload.ended, time.monotonic(), version))
        workers |= {pid for pid in family(stage.mark) if stage.belongs(pid, stage.pids())}
    result: Result = load.stop()
    for start, end, version in windows:
        answers = result.between(start, end)
        assert_answered_by_version(answers, version)
        strangers = {pid for _, pid in answers.answered_by} - workers
        assert not strangers, f"{strangers} answered, {workers} are the program's"
    return began
