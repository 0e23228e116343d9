"""Gates and cold standbys under real managers: what outlives the broker, what outlives the host, and what is left."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.registration.scenes import Scene, holders, in_line, staged
from tests.support.circusd import APPS, Circusd, descriptors, is_running, wait_until
from tests.support.oracle import Oracle
from tests.support.supervisord import Supervisord

MANAGERS = ("circus", "supervisord")
STANDBY = f"{sys.executable} -m sockshare exec --registration -- {sys.executable} {APPS}/taking.py epoll"


@contextmanager
def asking(scene: Scene, *, cut: int = 0) -> Iterator[Counter[int]]:
    """Some 50 requests a second inside the block, one after the other; who answered them. None fails, but at most *cut*
    of those that had been accepted by one that is killed."""
    answers: Counter[int] = Counter()
    failures: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.02):
            try:
                answers[scene.ask()] += 1
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()
    assert len(failures) <= cut, failures
    assert all(isinstance(failure, ConnectionResetError) for failure in failures), failures


def gone(pids: set[int]) -> bool:
    """Whether none of *pids* runs."""
    return not any(is_running(pid) for pid in pids)


def new_broker(scene: Scene, old: int) -> None:
    wait_until(lambda: scene.stage.broker() != old, 15, "a broker comes after it", 0.01)


def test_gates_are_brought_back_when_the_host_is_killed() -> None:
    """circus's plugin has the gates, and dies with its broker: the holder serves on, no other does, and who is next
    in line has a gate that the next broker can open."""
    with staged("circus", "gated", processes=3) as stage:
        scene = Scene(stage)
        assert stage.process is not None
        first = scene.holder()
        with Oracle(scene.inode, stage.process.pid) as oracle:
            for _ in range(3):
                holder, host = scene.holder(), stage.host()
                line = set(in_line(stage))
                with asking(scene) as answers:
                    stage.kill(host)
                    wait_until(lambda host=host: stage.host() not in (0, host), 15, "a host comes after it", 0.01)  # type: ignore[misc]
                    wait_until(
                        lambda line=line: set(in_line(stage)) == line and len(stage.status()["sockets"]) == 1,  # type: ignore[misc]
                        15,
                        "all are in line again",
                        0.02,
                    )
                    seen = answers.total()
                    wait_until(lambda answers=answers, seen=seen: answers.total() > seen + 10, 15, "served", 0.01)  # type: ignore[misc]
                assert set(answers) == {holder}
                assert holders(stage) == [holder]
                stage.kill(holder)
                assert scene.holder(holder) in line
                wait_until(lambda: len(in_line(stage)) == 3, 15, "all three are in line", 0.02)
            watch = oracle.stop()
        assert not watch.several()
        assert not is_running(first)


@pytest.mark.parametrize("manager", MANAGERS)
def test_no_descriptor_is_left_when_holders_and_brokers_come_and_go(manager: str) -> None:
    """Neither of a gate in the host, nor of a claim in the broker."""
    with staged(manager, "gated", processes=3) as stage:
        scene = Scene(stage)

        def rounds(count: int, *, brokers: bool) -> None:
            holder = 0
            for turn in range(count):
                holder = scene.holder(holder)
                if brokers and turn % 3 == 2:
                    broker = stage.broker()
                    stage.kill(broker)
                    new_broker(scene, broker)
                stage.kill(holder)
            scene.holder(holder)
            wait_until(lambda: len(in_line(stage)) == 3, 15, "all three are in line", 0.02)

        def settles(pid: int, count: int) -> None:
            wait_until(lambda: abs(descriptors(pid) - count) <= 1, 10, f"pid {pid} has {count} descriptors", 0.05)

        rounds(3, brokers=True)
        host = descriptors(stage.host())
        rounds(6, brokers=True)
        settles(stage.host(), host)
        rounds(3, brokers=False)
        broker = descriptors(stage.broker())
        rounds(6, brokers=False)
        settles(stage.broker(), broker)


def test_gates_survive_what_supervisord_closes_when_it_reloads() -> None:
    """`supervisorctl reload` closes every number that it does not know; ours stay, and whoever comes is in line."""
    with staged("supervisord", "gated", processes=3) as stage:
        assert isinstance(stage, Supervisord)
        scene = Scene(stage)
        before = {scene.holder()}
        kept = descriptors(stage.host())
        for _ in range(2):
            assert stage.ctl("reload").returncode == 0
            wait_until(partial(gone, before), 20, "they were stopped", 0.02)
            wait_until(lambda: stage.alive() and len(in_line(stage)) == 3, 30, "all are in line again", 0.05)
            holder = scene.holder(*before)
            assert scene.tally() == {holder: 10}
            stage.kill(holder)
            before = {holder, scene.holder(holder)}
            wait_until(lambda: len(in_line(stage)) == 3, 15, "all three are in line", 0.02)
        wait_until(lambda: abs(descriptors(stage.host()) - kept) <= 1, 10, f"{kept} descriptors", 0.05)


def runs(pid: int) -> bool:
    """Whether a process has become its program."""
    return b"taking.py" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0--\0")[0]


@contextmanager
def standbys(manager: str) -> Iterator[Circusd]:
    """Three processes behind ``exec --registration``."""
    key = "cmd" if manager == "circus" else "command"
    with staged(manager, "taking", processes=3, options={"watcher": {key: STANDBY}}) as stage:
        yield stage


@pytest.mark.parametrize("manager", MANAGERS)
def test_cold_standby_runs_when_the_holder_dies(manager: str) -> None:
    """One at a time runs its program; the next one becomes it when that is killed, together with the broker or not;
    what arrives meanwhile waits."""
    with standbys(manager) as stage:
        scene = Scene(stage)
        for turn in range(4):
            holder = scene.holder()
            assert holders(stage) == [holder]
            assert [pid for pid in stage.pids() if runs(pid)] == [holder]
            with asking(scene, cut=1) as answers:
                wait_until(lambda: answers.total() > 5, 10, "it serves")
                broker = stage.broker()
                if turn % 2:
                    stage.kill(broker)
                stage.kill(holder)
                following = scene.holder(holder)
                wait_until(lambda pid=following, answers=answers: answers[pid] > 5, 15, "the next one serves")  # type: ignore[misc]
            assert set(answers) == {holder, following}
            wait_until(lambda: len(in_line(stage)) == 3, 20, "all three are in line", 0.02)


def test_waiting_standby_ends_at_once_when_its_manager_stops_it() -> None:
    """It has nothing to finish; the holder serves on."""
    with standbys("circus") as stage:
        scene = Scene(stage)
        holder = scene.holder()
        waiting = next(pid for pid in stage.pids() if pid != holder)
        stage.kill(waiting, signal.SIGTERM)
        wait_until(lambda: not is_running(waiting), 3, "it has ended")
        assert scene.tally() == {holder: 10}
