"""circus's own commands on a watcher with our hook: lossless where one replaces another, and as ever elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.rehearsal import BETWEEN, QUIET, all_ready, assert_shape, loaded, measure, shape
from tests.support.circusd import Circusd, is_running, wait_until
from tests.support.load import (
    Load,
    Result,
    assert_answered_by_old_ones,
    assert_answered_by_version,
    assert_no_later,
    assert_none_failed,
)

Circusds = Callable[..., Circusd]
SOAK = (pytest.mark.soak, pytest.mark.timeout(900))
HOOK = {
    "hooks.before_signal": "circus_sockshare.hooks.before_signal",
    "graceful_timeout": "40",
    "sockshare.ready_timeout": "5",
}


def hooked(
    circusd: Circusds, program: str = "uvicorn", *, watcher: dict[str, str] | None = None, **options: Any
) -> Circusd:
    """A started stage whose watcher has the hook, all of it ready."""
    stage = circusd(program, watcher={**HOOK, **(watcher or {})}, **options)
    all_ready(stage)
    return stage


def command(stage: Circusd, name: str, **properties: Any) -> dict[str, Any]:
    """What circusd answers when *name* is over, as ``circusctl NAME web --waiting`` would show it."""
    answer = stage.call(name, name="web", waiting=True, timeout=90, **properties)
    assert answer["status"] == "ok", answer
    return answer


def last(stage: Circusd) -> dict[str, Any]:
    """How the last replacement ended, by the broker's word."""
    wait_until(lambda: stage.status()["programs"][0]["reload"]["state"] == "idle", 10, "no reload runs", 0.05)
    found: dict[str, Any] = stage.status()["programs"][0]["reload"].get("last", {})
    return found


def logged(stage: Circusd, words: str) -> bool:
    """Whether circusd's log has *words*."""
    return words in stage.log.read_text()


def assert_new(stage: Circusd, before: list[int]) -> None:
    """Other processes, as many as before; none of *before* is left."""
    now = stage.pids()
    assert len(now) == len(before), f"{before} became {now}"
    assert not set(now) & set(before), f"{before} became {now}"
    assert not any(map(is_running, before)), f"of {before} some run"
    assert stage.numprocesses() == len(before)


def reload_often(stage: Circusd, load: Load, times: int, **properties: Any) -> tuple[Result, float]:
    """Deploy and ``circusctl reload web`` so often; the load's result, and when the first began."""
    began = time.monotonic()
    windows: list[tuple[float, float, str]] = []
    for number in range(times):
        version, before = f"r{number}", stage.pids()
        stage.deploy(version)
        command(stage, "reload", **properties)
        ended = time.monotonic()
        assert_new(stage, before)
        measure(BETWEEN)
        windows.append((ended, time.monotonic(), version))
    result = load.stop()
    for start, end, version in windows:
        assert_answered_by_version(result.between(start, end), version)
    return result, began


@pytest.mark.parametrize(
    ("program", "numprocesses", "times", "seconds", "sequential"),
    [
        pytest.param("uvicorn", 1, 1, 2.0, False, id="uvicorn-1"),
        pytest.param("uvicorn", 2, 1, 0.5, True, id="uvicorn-2-sequential"),
        pytest.param("threaded", 1, 1, 0.5, False, id="threaded-1"),
        pytest.param("uvicorn", 1, 20, 2.0, False, id="uvicorn-1-soak", marks=SOAK),
        pytest.param("uvicorn", 2, 20, 2.0, False, id="uvicorn-2-soak", marks=SOAK),
        pytest.param("uvicorn", 2, 20, 2.0, True, id="uvicorn-2-sequential-soak", marks=SOAK),
        pytest.param("uvicorn", 1, 20, 2.0, True, id="uvicorn-1-sequential-soak", marks=SOAK),
        pytest.param("gthread", 2, 20, 2.0, False, id="gthread-2-soak", marks=SOAK),
        pytest.param("plain", 1, 20, 1.0, False, id="plain-1-soak", marks=SOAK),
        pytest.param("threaded", 1, 20, 0.5, False, id="threaded-1-soak", marks=SOAK),
    ],
)
def test_nothing_is_lost_or_late_across_circus_reloads(
    circusd: Circusds, program: str, numprocesses: int, times: int, seconds: float, sequential: bool
) -> None:
    """`circusctl reload web`, also one by one: 0 failed, none 250 ms later than at rest, and all is as before."""
    stage = hooked(circusd, program, numprocesses=numprocesses, import_seconds=seconds)
    before = shape(stage)
    with loaded(stage, "fresh:200", "keepalive:4x10", "slow:5") as load:
        measure(QUIET)
        result, began = reload_often(stage, load, times, sequential=sequential)
    assert last(stage)["result"] == "ok"
    for kind in ("fresh", "keepalive", "slow"):
        assert_none_failed(result.of(kind), since=began, at_least=10)
    assert_no_later(result.between(began), result.between(0, began), since=began)
    assert_shape(stage, before)


@pytest.mark.parametrize(
    ("fault", "sequential"),
    [
        ("exit_at_import", False),
        ("hang_at_import", False),
        ("exit_after_ready", True),
        *(
            pytest.param(fault, sequential, marks=SOAK)
            for fault in ("exit_at_import", "hang_at_import", "ready_then_exit", "ready_then_hang", "exit_after_ready")
            for sequential in (False, True)
        ),
    ],
)
def test_old_ones_stay_when_new_ones_fail(circusd: Circusds, fault: str, sequential: bool) -> None:
    """A broken version under `circusctl reload`: the same pids serve, nobody sees the new one, the next one works."""
    stage = hooked(circusd, numprocesses=2, watcher={"sockshare.ready_timeout": "2"})
    before, pids = shape(stage), stage.pids()
    stage.deploy("broken", fault)
    with loaded(stage, "fresh:100", "keepalive:2x5") as load:
        began = time.monotonic()
        answer = command(stage, "reload", sequential=sequential)
        assert answer["info"]["stopped"] == []
        assert stage.pids() == pids
        measure(1.2)  # circus's own check passes by, and finds nothing to do
        result = load.stop()
    assert stage.pids() == pids
    assert last(stage)["result"] == "rolled_back"
    assert_none_failed(result, since=began)
    assert_answered_by_old_ones(result, pids)
    assert_shape(stage, before)
    stage.deploy("good")
    command(stage, "reload")
    assert_new(stage, pids)
    assert last(stage)["result"] == "ok"


def test_nothing_is_lost_when_numprocesses_changes(circusd: Circusds) -> None:
    """`incr` and `decr`, also at once, when the one that stays has only just begun to start."""
    stage = hooked(circusd, numprocesses=1, import_seconds=1.0)
    [old] = stage.pids()
    with loaded(stage, "fresh:200", "keepalive:4x10", "slow:5") as load:
        measure(QUIET)
        began = time.monotonic()
        command(stage, "incr")
        command(stage, "decr")  # circus picks the oldest
        [new] = stage.pids()
        assert new != old
        command(stage, "incr", nb=2)
        all_ready(stage)
        measure(1.0)
        command(stage, "decr", nb=2)
        measure(BETWEEN)
        result = load.stop()
    assert len(stage.pids()) == 1
    assert new not in stage.pids()
    assert_none_failed(result, since=began, at_least=100)
    assert_no_later(result.between(began), result.between(0, began), since=began)


def test_nothing_is_lost_when_processes_reach_max_age(circusd: Circusds) -> None:
    """Each has another one beside it before it goes, where circus's own has a moment with none."""
    stage = hooked(circusd, numprocesses=1, import_seconds=1.0, watcher={"max_age": "4", "max_age_variance": "0"})
    [first] = stage.pids()
    with loaded(stage, "fresh:200", "keepalive:4x10") as load:
        measure(1.0)
        began = time.monotonic()
        wait_until(lambda: first not in stage.pids() and len(stage.pids()) == 1, 20, "it is replaced", 0.05)
        measure(BETWEEN)
        result = load.stop()
    assert_none_failed(result, since=began, at_least=100)
    assert_no_later(result.between(began), result.between(0, began), since=began)


def test_old_one_stays_when_its_successor_fails_at_max_age(circusd: Circusds) -> None:
    """And it is left alone then for a while: circusd has other work than to start broken processes."""
    stage = hooked(circusd, numprocesses=1, watcher={"max_age": "3", "max_age_variance": "0"})
    pids = stage.pids()
    stage.deploy("broken", "exit_at_import")
    wait_until(lambda: "rolled_back" in str(last(stage)), 15, "it was tried", 0.1)
    measure(2.5)  # two checks of circus's
    assert stage.pids() == pids
    assert stage.log.read_text().count("is held back") == 1
    assert stage.ask(stage.port) == "v1"


@pytest.mark.parametrize("name", ["stop", "restart", "quit", "kill"])
def test_stop_is_not_held_back(circusd: Circusds, name: str) -> None:
    """What is meant to stop stops at once: the hook is for what is replaced."""
    stage = hooked(circusd, numprocesses=2, watcher={"sockshare.ready_hold": "4"})
    pids = stage.pids()
    began = time.monotonic()
    properties: dict[str, Any] = {} if name == "quit" else {"name": "web"}
    stage.call(name, waiting=name != "quit", timeout=20, **properties)
    wait_until(lambda: not any(map(is_running, pids)), 3, "they have ended", 0.02)
    assert time.monotonic() - began < 3
    assert not logged(stage, "held back")
    if name in ("restart", "kill"):
        wait_until(lambda: len(stage.pids()) == 2, 10, "they are started anew", 0.05)


@pytest.mark.parametrize("how", ["quit", "SIGTERM"])
def test_circusd_ends_at_once_when_it_holds_a_process(circusd: Circusds, how: str) -> None:
    """circus refuses to end while it runs a command, a signal without a word: not for as long as an app takes."""
    stage = hooked(circusd, numprocesses=1, import_seconds=0.0)
    stage.deploy("v2", import_seconds=4.0)
    stage.call("reload", name="web")
    wait_until(lambda: logged(stage, "held back"), 5, "it is held")
    assert stage.process is not None
    if how == "quit":
        assert stage.call("quit")["status"] == "ok"
    else:
        stage.process.send_signal(signal.SIGTERM)
    stage.process.wait(3)
    wait_until(lambda: not stage.family(), 2, "nothing is left")


def test_kill_means_the_process_that_is_held(circusd: Circusds) -> None:
    """`circusctl kill` of a process that waits for its successor ends it; the successor takes over when it is ready."""
    stage = hooked(circusd, numprocesses=1, import_seconds=1.5)
    [old] = stage.pids()
    stage.deploy("v2")
    stage.call("reload", name="web")
    wait_until(lambda: logged(stage, "held back"), 5, "it is held")
    stage.call("kill", name="web", pid=old, waiting=True)
    wait_until(lambda: not is_running(old), 3, "it is gone")
    with loaded(stage, "fresh:50") as load:  # what comes now is queued until the new one is there
        wait_until(lambda: stage.ask(stage.port) == "v2", 10, "the new one serves", 0.05)
        result = load.stop()
    assert_none_failed(result)
    stage.settled()
    assert len(stage.pids()) == 1


@pytest.mark.parametrize("away", ["stopped", "no sockets", "mistake"])
def test_reload_is_circus_own_when_broker_has_no_part_in_it(circusd: Circusds, away: str) -> None:
    """No broker, a watcher that names no sockets, a configuration with mistakes: the signal goes out at once."""
    other = (
        f"\n[watcher:other]\ncmd = {sys.executable} -c 'import signal; signal.pause()'\ngraceful_timeout = 62\n"
        f"hooks.before_signal = {HOOK['hooks.before_signal']}\n"
    )
    stage = circusd(
        "uvicorn",
        leave=True,
        extra=other,
        watcher={**HOOK, **({"sockshare.ready_hold": "soon"} if away == "mistake" else {})},
    )
    stage.start()
    if away != "mistake":
        all_ready(stage)
    else:
        wait_until(lambda: stage.sockshare("status").returncode == 2, 20, "the broker refuses", 0.1)
    if away == "stopped":
        stage.call("stop", name="plugin:sockshare", waiting=True)
    before = stage.pids("other")
    began = time.monotonic()
    assert stage.call("reload", name="other", waiting=True, timeout=30)["status"] == "ok"
    assert time.monotonic() - began < 2
    assert len(stage.pids("other")) == 1
    assert stage.pids("other") != before


def test_signal_goes_out_when_broker_does_not_answer(circusd: Circusds) -> None:
    """A broker that is stopped delays a reload by 10 s, and is not waited for longer."""
    stage = hooked(circusd, numprocesses=1)
    pids, broker = stage.pids(), stage.broker()
    assert stage.kill(broker, signal.SIGSTOP)
    began = time.monotonic()
    try:
        # The new process can't get its socket from that broker, so the old one had better stay as long as it can.
        stage.call("reload", name="web", waiting=True, timeout=30)
        assert 9 < time.monotonic() - began < 13
        assert logged(stage, "no broker took it up")
        assert not any(map(is_running, pids))
    finally:
        stage.kill(broker, signal.SIGCONT)
    all_ready(stage)


STEPS = ("start", "ready", "hold", "switch", "quiesce", "stops pid")


@pytest.mark.parametrize("victim", ["broker", "host"])
@pytest.mark.parametrize("step", [*STEPS[:1], STEPS[3], *(pytest.param(step, marks=SOAK) for step in STEPS)])
def test_reload_ends_well_when_one_of_ours_is_killed(circusd: Circusds, victim: str, step: str) -> None:
    """Broker or host, at each step of circus's own reload: 0 failed, the old one or the new one, and the next works."""
    stage = hooked(circusd, numprocesses=1, import_seconds=0.5)
    [old] = stage.pids()
    stage.deploy("v2")
    with loaded(stage, "fresh:100", "keepalive:2x5", "slow:2") as load:
        measure(0.5)
        began = time.monotonic()
        stage.call("reload", name="web")
        words = step if step == "stops pid" else f"reload: {step}"
        wait_until(lambda: words in stage.sockshare_log.read_text(), 10, f"it comes to {step}", 0.002)
        assert stage.kill(stage.broker() if victim == "broker" else stage.host())

        def is_over() -> bool:
            if len(stage.pids()) != 1 or stage.sockshare("status").returncode:
                return False
            return stage.call("listsockets").get("status") == "ok" and not busy(stage)

        wait_until(is_over, 30, "one process is left", 0.1)
        measure(1.5)
        [now] = stage.pids()
        assert stage.ask(stage.port) == ("v1" if now == old else "v2")
        result = load.stop()
    assert_none_failed(result, since=began)
    all_ready(stage)
    stage.deploy("v3")
    command(stage, "reload")
    assert_new(stage, [now])
    assert stage.ask(stage.port) == "v3"


def busy(stage: Circusd) -> bool:
    """Whether circusd holds a process of the watcher's."""
    facts = stage.call("sockshare", op="processes")["watchers"]["web"]
    return any(one["held"] or one["stopping"] for one in facts["processes"])


def test_sockshare_reload_works_beside_the_hook(circusd: Circusds) -> None:
    """Its own stop signal is not held back; and each of the two keeps out of the other's way."""
    stage = hooked(circusd, numprocesses=1, import_seconds=1.0)
    pids = stage.pids()
    assert stage.reload().status == 0
    assert_new(stage, pids)
    assert not logged(stage, "held back")
    pids = stage.pids()
    stage.call("reload", name="web")
    wait_until(lambda: logged(stage, "held back"), 5, "it is held")
    refused = stage.reload()
    assert refused.status == 1, refused
    assert "running already" in refused.stderr
    wait_until(lambda: stage.pids() != pids and len(stage.pids()) == 1, 20, "circus's is over", 0.1)
    pids = stage.pids()
    with stage.command("reload", "web", "--json") as ours:
        assert ours.stdout is not None
        assert '"start"' in ours.stdout.readline()
        stage.call("reload", name="web", waiting=True, timeout=30)
        output, errors = ours.communicate(timeout=30)
    assert ours.returncode == 0, output + errors
    assert_new(stage, pids)
    assert os.path.exists(f"/proc/{stage.host()}")
