"""A holder that is stopped, or hangs: who waits is served by the next, and what the old one does when it goes on."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median

import pytest

from tests.registration.scenes import STALL_TIMEOUT, Scene, staged, state
from tests.support import ledger
from tests.support.circusd import wait_until

CLIENTS = 8


@pytest.fixture(scope="module", params=["gated", "taking"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A circusd with three processes, in gate mode or in suspend mode."""
    with staged("circus", request.param, processes=3) as stage:
        yield Scene(stage)


def waits(pid: int) -> None:
    """Return once it waits for events: until then it takes what comes, whoever may have it."""
    wait_until(lambda: state(pid) == "S", 5, f"pid {pid} waits")


@contextmanager
def stopped(scene: Scene, *pids: int) -> Iterator[None]:
    """*pids* are stopped while they wait, and go on when the block is left."""
    try:
        for pid in pids:
            waits(pid)
            scene.signal(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            scene.stage.kill(pid, signal.SIGCONT)


def taken(scene: Scene, pid: int) -> int:
    """How many connections a process has accepted so far."""
    return next((len(book.entries) for book in ledger.read(scene.stage.directory) if book.pid == pid), 0)


def ask_at_once(scene: Scene, count: int = CLIENTS) -> tuple[Counter[int], list[float]]:
    """So many requests at the same time: who answered them, and how long each took."""

    def ask(_: int) -> tuple[int, float]:
        began = time.monotonic()
        return scene.ask(), time.monotonic() - began

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(ask, range(count)))
    return Counter(pid for pid, _ in answers), [seconds for _, seconds in answers]


def test_waiting_requests_are_served_by_the_next_within_the_stall_timeout_and_100_ms(scene: Scene) -> None:
    """And the one that was waiting in its epoll when it was stopped takes none of them when it goes on."""
    longest = []
    for _ in range(3):
        holder = scene.holder()
        before = taken(scene, holder)
        with stopped(scene, holder):
            answered, seconds = ask_at_once(scene)
            assert holder not in answered
            assert len(answered) == 1
            longest.append(max(seconds))
        assert scene.tally(5).keys() == answered.keys()
        waits(holder)
        assert taken(scene, holder) == before
    print(f"\nserved {', '.join(f'{(one - STALL_TIMEOUT) * 1000:.0f}' for one in longest)} ms after the stall time-out")
    assert median(longest) <= STALL_TIMEOUT + 0.1, longest


def test_event_names_the_process_and_its_state_when_it_stalls(scene: Scene) -> None:
    """Who, and T for stopped; `status` counts it."""
    before, holder = scene.facts()["stalls"], scene.holder()
    with stopped(scene, holder):
        scene.ask()
        said = [line for line in scene.log().splitlines() if f"(pid={holder}) has not taken what waits" in line]
        assert any("web: web:" in line and "its state is T (stopped)" in line for line in said), scene.log()
        assert scene.facts()["stalls"] == before + 1
        (new,) = [one for one in scene.facts()["holders"] if one["standing"] == "held"]
        assert new["pid"] != holder


def test_registration_does_not_move_back_by_itself_when_the_stopped_one_goes_on(scene: Scene) -> None:
    """It waits in line, and gets it in its turn."""
    holder = scene.holder()
    with stopped(scene, holder):
        new = scene.ask()
    assert scene.tally(20) == {new: 20}
    assert scene.armed() == [new]


def test_one_that_was_stopped_between_its_event_and_its_accept_takes_what_that_event_was(scene: Scene) -> None:
    """With a gate at most one connection; by an event of its own at most the batch that waited at that moment."""
    holder = scene.holder()
    (scene.stage.directory / f"halt-{holder}").touch()
    before = taken(scene, holder)
    answered, _ = ask_at_once(scene)
    try:
        assert state(holder) == "T"
        assert holder not in answered
        assert taken(scene, holder) == before
    finally:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask_at_once, scene)
            scene.stage.kill(holder, signal.SIGCONT)
            late, _ = asked.result()
    waits(holder)
    assert late[holder] <= (1 if scene.stage.program == "gated" else CLIENTS)
    assert holder not in scene.tally(20)


def test_registration_goes_round_when_one_after_the_other_hangs(scene: Scene) -> None:
    """Who hung once may have it again if the others hang now, however often: somebody who runs is found."""
    for _ in range(5):
        holder = scene.holder()
        with stopped(scene, holder):
            assert scene.ask() != holder


def test_one_that_runs_is_found_among_many_that_hang(scene: Scene) -> None:
    """All but one are stopped, the one that stalled first goes on: it has it within as many stall time-outs."""
    first = scene.holder()
    with stopped(scene, first):
        second = scene.ask()
        with stopped(scene, second):
            third = scene.ask()
            scene.stage.kill(first, signal.SIGCONT)
            with stopped(scene, third):
                assert len({first, second, third}) == 3
                assert scene.ask() == first


def test_cold_standby_that_takes_longer_to_start_than_a_stall_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the registration and does not take, as it starts: it is neither passed over nor stopped. Once it has come
    to the socket, it is followed when it hangs as anybody is."""
    monkeypatch.setenv("TAKING_START", "1.2")
    with staged("circus", "standby", processes=2) as stage:
        scene, before = Scene(stage), stage.pids()
        assert scene.ask() == scene.holder()
        assert "has not taken" not in scene.log()
        holder = scene.holder()
        with stopped(scene, holder):
            assert scene.ask() != holder
        assert scene.log().count("has not taken") == 1
        assert stage.pids() == before
