"""Twenty hostile peers beside traffic and reloads: nothing fails, and what they took is given back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rehearsal import all_ready, assert_replaced, loaded, measure
from tests.hostile.peers import ADMITTED, peers
from tests.support.circusd import Circusd, circusd, resident, wait_until
from tests.support.load import Load, assert_answered_by_version, assert_none_failed, describe
from tests.support.supervisord import Supervisord, supervisord

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="starts peers of other users")

EVERY = 60.0  # s between reloads
ANSWERS_WITHIN = 0.1  # s, of supervisord's XML-RPC
SLACK = 12 * 1024  # KiB
SOAK = (pytest.mark.soak, pytest.mark.timeout(1200))


def unscheduled(task: str) -> float:
    """Seconds that a thread had work to do, and no processor (proc(5), schedstat)."""
    return int(Path(f"/proc/{task}/schedstat").read_text().split()[1]) / 1e9


class Pings:
    """The longest that the manager took for an answer, as it was and without the waits for a processor, which others
    had; one question every 50 ms."""

    def __init__(self, stage: Circusd) -> None:
        self.times: list[tuple[float, float]] = []
        self._stage = stage
        assert stage.process is not None
        self._manager = stage.process.pid
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        tasks = (f"{self._manager}", f"self/task/{threading.get_native_id()}")
        while not self._over.wait(0.05):
            waited = sum(map(unscheduled, tasks))
            began = time.monotonic()
            try:
                if isinstance(self._stage, Supervisord):
                    self._stage.rpc("supervisor.getState")
                else:
                    self._stage.call("numwatchers")
            except BaseException as error:
                self._failure = error
                return
            took = time.monotonic() - began
            self.times.append((took, took - (sum(map(unscheduled, tasks)) - waited)))

    def __enter__(self) -> Pings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def worst(self) -> tuple[float, float]:
        """The longest of both kinds, in seconds; raises what a question failed with."""
        if self._failure is not None:
            raise self._failure
        return max(took for took, _ in self.times), max(own for _, own in self.times)


@contextmanager
def staged(manager: str) -> Iterator[Circusd]:
    """A manager with ``web``, and a program of the uid whose peers the broker hears."""
    if manager == "circus":
        other = f"[watcher:other]\ncmd = /bin/sleep 100000\nuid = {ADMITTED}\n"
        with circusd("uvicorn", extra=other) as stage:
            yield stage
    else:
        other = "[program:other]\ncommand = /bin/sleep 100000\nuser = nobody\n"
        with supervisord("uvicorn", extra=other) as stage:
            yield stage


def deploy(stage: Circusd, version: str, load: Load) -> None:
    """One deploy: its reload is right, and from then on all answers are the new version's."""
    before = stage.pids()
    stage.deploy(version)
    reload = stage.reload()
    assert_replaced(stage, before, reload)
    ended = time.monotonic()
    measure(1.0)
    load_until_now.append((ended, time.monotonic(), version))


load_until_now: list[tuple[float, float, str]] = []


def memory(stage: Circusd) -> dict[str, int]:
    """KiB resident of the broker, and of what hosts it."""
    return {"broker": resident(stage.broker()), "host": resident(stage.host())}


@pytest.mark.parametrize("manager", ["circus", "supervisord"])
@pytest.mark.parametrize("minutes", [0, pytest.param(10, marks=SOAK, id="soak")])
def test_nothing_fails_beside_hostile_peers(manager: str, minutes: int) -> None:
    """0 failed at 40 requests/s, every reload right, XML-RPC never above 100 ms, memory back within 10 % afterwards."""
    load_until_now.clear()
    with staged(manager) as stage:
        all_ready(stage)
        with loaded(stage, "fresh:36", "keepalive:2x2") as load:
            for number in range(2):  # what a reload leaves in memory for good is there before it is measured
                deploy(stage, f"before{number}", load)
            before = memory(stage)
            with Pings(stage) as pings:
                with peers(str(stage.runtime)) as hostile:
                    assert len(hostile) == 20
                    began = time.monotonic()
                    measure(1.0)
                    for number in range(max(1, minutes)):
                        deploy(stage, f"v{number}", load)
                        if minutes:
                            measure(max(0.0, began + (number + 1) * EVERY - time.monotonic()))
                worst, own = pings.worst()
            deploy(stage, "after", load)
            result = load.stop()
        assert_none_failed(result)
        for start, end, version in load_until_now:
            assert_answered_by_version(result.between(start, end), version)
        print(
            f"\n{manager}: {describe(result)}; the manager's longest answer {worst * 1000:.0f} ms, without waits for a"
            f" processor {own * 1000:.0f} ms"
        )
        if isinstance(stage, Supervisord):
            assert own <= ANSWERS_WITHIN, f"{own * 1000:.0f} ms"
            # The short form runs beside other tests.
            assert worst <= (ANSWERS_WITHIN if minutes else 1.0), f"{worst * 1000:.0f} ms"
        after: dict[str, Any] = {}

        # Some seconds are too short for all that is returned a minute later: the short form bounds what stays.
        factor, slack, patience = (1.1, 0, 60) if minutes else (1.0, SLACK, 20)

        def is_back() -> bool:
            after.update(memory(stage))
            return all(after[name] <= before[name] * factor + slack for name in before)

        try:
            wait_until(is_back, patience, "memory is back", 1.0)
        except TimeoutError:
            raise AssertionError(f"KiB: {before} became {after} within {patience} s") from None
        print(f"KiB before {before}, afterwards {after}")
