"""latest, rotate, and a number of holders, kept on real processes."""

from __future__ import annotations

import random
import signal
from collections import Counter
from contextlib import suppress

import pytest

from tests.e2e.rehearsal import measure
from tests.registration.scenes import START_WINDOW, Scene, in_line, staged
from tests.support import ledger
from tests.support.circusd import behind_exec, command_of, wait_until
from tests.support.numbered import Pelting
from tests.support.oracle import Oracle

SOAK = (pytest.mark.soak, pytest.mark.timeout(900))
#: Connections a second, and the most to the least of them that a process may have.
RATE, EVEN = 200.0, 1.2
TWO_UNMODIFIED = f"""
[watcher:other]
cmd = {behind_exec("taking", command_of("taking"))}
numprocesses = 2
copy_env = True
sockshare.sockets = web
"""


@pytest.mark.parametrize("times", [16, pytest.param(500, marks=SOAK, id="soak")])
def test_each_registration_cancels_the_former_when_the_latest_counts(times: int) -> None:
    """Of two programs that use the library and two that know nothing, by turns; who uses the library is told."""
    options = {"numprocesses": 2, "extra": TWO_UNMODIFIED}
    with staged("circus", "turns", "latest", processes=4, waiting=False, options=options) as stage:
        wait_until(lambda: len(list(stage.directory.glob("told-*"))) == 2, 20, "two use the library", 0.05)
        wait_until(lambda: len(in_line(stage)) >= 2, 20, "two are in line", 0.05)
        scene = Scene(stage)
        library, unmodified = stage.pids(), stage.pids("other")
        holder, order = scene.holder(), random.Random(times)
        for turn in range(times):
            (pid,) = order.sample([one for one in (library, unmodified)[turn % 2] if one != holder], 1)
            before = told(scene, holder)
            scene.signal(pid, signal.SIGUSR2)
            assert scene.holder(holder) == pid
            if holder in library:
                wait_until(lambda: told(scene, holder) == before + 1, 5, f"{holder} is told, the {turn}th time")  # noqa: B023
            holder = pid
            if turn % 10 == 9:
                assert scene.tally(3) == {holder: 3}
        assert scene.facts()["violations"] == 0


def told(scene: Scene, pid: int) -> int:
    """How often a process was told that its registration is cancelled."""
    with suppress(FileNotFoundError):
        return (scene.stage.directory / f"told-{pid}").stat().st_size
    return 0


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=SOAK, id="soak")])
def test_rotation_spreads_evenly_and_stands_still_when_idle(seconds: float) -> None:
    """The most that one of four accepts is at most 1.2 times the least, in the best of three rounds (what else runs on
    the machine makes turns longer); never two; and nothing moves while nothing arrives."""
    ratios = []
    with staged("supervisord", "gated", "rotate") as stage:
        scene = Scene(stage)
        with Oracle(scene.inode, stage.host()) as oracle:
            before = accepted(scene)
            for _ in range(3):
                with Pelting(stage.port, "tcp", RATE) as load:
                    measure(seconds)
                    outcome = load.stop()
                assert outcome.failures() == []
                after = accepted(scene)
                counts = [count - before[pid] for pid, count in after.items()]
                ratios.append(max(counts) / max(min(counts), 1))
                print(f"\n{sum(counts)} connections: {sorted(counts)}, max/min {ratios[-1]:.3f}")
                assert sum(counts) == len(outcome.pieces)
                before = after
                if ratios[-1] <= EVEN:
                    break
            watch = oracle.stop()
        assert min(ratios) <= EVEN, ratios
        assert watch.several() == []
        moves = scene.facts()["moves"]
        measure(1.0)
        assert scene.facts()["moves"] == moves
        assert moves >= 10


def accepted(scene: Scene) -> Counter[int]:
    """How many connections each process has accepted so far."""
    return Counter({book.pid: len(book.entries) for book in ledger.read(scene.stage.directory)})


def test_as_many_hold_it_as_the_number_says() -> None:
    """Two of four; whoever of them dies is followed, and never are there three."""
    with staged("circus", "taking", "2") as stage:
        scene = Scene(stage)
        assert stage.process is not None
        with Oracle(scene.inode, stage.process.pid) as oracle:
            wait_until(lambda: len(scene.armed()) == 2, 10, "two hold it")
            for _ in range(3):
                before = scene.armed()
                scene.signal(before[0], signal.SIGKILL)
                wait_until(lambda: set(scene.armed()) - {before[0]} > {before[1]}, 10, "two hold it again")  # noqa: B023
            wait_until(lambda: len(in_line(stage)) == 4, 15, "all are in line again")
            other = next(pid for pid in in_line(stage) if pid not in scene.armed())
            assert scene.move(other) == "it holds the registration now"
            assert other in scene.armed()
            assert len(scene.armed()) == 2
            assert set(scene.tally(30)) <= set(scene.armed())
            watch = oracle.stop()
        assert watch.several(2, window=START_WINDOW) == []
