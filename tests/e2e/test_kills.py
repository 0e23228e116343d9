"""Whatever is killed, whenever: traffic flows, and a reload ends as one of the two things it may end as."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rehearsal import all_ready, assert_as_before, assert_replaced, loaded, measure
from tests.support.circusd import Circusd, Reload, is_running, wait_until
from tests.support.circusd import circusd as managed_by_circus
from tests.support.load import (
    assert_answered_by_old_ones,
    assert_answered_by_version,
    assert_no_later,
    assert_none_failed,
)
from tests.support.supervisord import supervisord as managed_by_supervisord

Circusds = Callable[..., Circusd]
#: Becomes a command whose controlling terminal is its standard input (tty_ioctl(4)).
IN_TERMINAL = "import fcntl, os, sys, termios as t\nfcntl.ioctl(0, t.TIOCSCTTY, 0)\nos.execv(sys.argv[1], sys.argv[1:])"
SOAK = (pytest.mark.soak, pytest.mark.timeout(900))
STEPS = ("switch", "start", "quiesce", "hold", "ready", "drain", "stop")


def reload_and(stage: Circusd, step: str, act: Callable[[subprocess.Popen[str]], object]) -> Reload:
    """Run a reload and *act* when it prints *step* (or ends without)."""
    began = time.monotonic()
    command = stage.command("reload", "web", "--json")
    assert command.stdout is not None
    try:
        lines = []
        for line in command.stdout:
            lines.append(line)
            if f'"{step}"' in line:
                act(command)
                break
        output, errors = command.communicate(timeout=60)
        return Reload.read(command.returncode, "".join(lines) + output, errors, began)
    finally:
        if command.poll() is None:
            command.kill()
        command.communicate()


def new_broker(stage: Circusd, old: int) -> int:
    """The broker that came after *old*."""
    return int(wait_until(lambda: (broker := stage.broker()) != old and broker, 5, f"a broker comes after {old}"))


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=SOAK, id="soak")])
def test_nothing_fails_when_broker_is_killed(circusd: Circusds, kills: int) -> None:
    """SIGKILL at each step of a reload: 0 failed requests, exit 0 or 5, and what the status says is so."""
    stage = circusd("uvicorn", numprocesses=1)
    all_ready(stage)
    judged = []
    with loaded(stage, "fresh:150", "keepalive:4x5", "slow:2") as load:
        measure(1.0)
        began = time.monotonic()
        for number, step in enumerate(islice(cycle(STEPS), kills)):
            pids, broker, version = stage.pids(), stage.broker(), f"k{number}"
            stage.deploy(version)
            reload = reload_and(stage, step, lambda _, broker=broker: stage.kill(broker))  # type: ignore[misc]
            assert new_broker(stage, broker)
            assert reload.status in (0, 5), f"killed at {step}: {reload}"
            if reload.status == 0:
                assert_replaced(stage, pids, reload)
                measure(0.2)
                judged.append((reload.ended, time.monotonic(), version))
            else:
                assert_as_before(stage, pids, reload)
        result = load.stop()
    for kind in ("fresh", "keepalive", "slow"):
        assert_none_failed(result.of(kind), since=began)
    assert_no_later(result.between(began), result.between(0, began), since=began)
    for start, end, version in judged:
        assert_answered_by_version(result.between(start, end), version)


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=SOAK, id="soak")])
def test_broker_is_back_at_once_when_killed_at_rest(circusd: Circusds, kills: int) -> None:
    """Each death costs the traffic nothing, and the next one runs within 100 ms (150 here, with the polling)."""
    stage = circusd("uvicorn")
    all_ready(stage)
    spans = []
    with loaded(stage, "fresh:200") as load:
        for _ in range(kills):
            broker = stage.broker()
            killed = time.monotonic()
            assert stage.kill(broker)
            new_broker(stage, broker)
            spans.append(time.monotonic() - killed)
            stage.status()
        assert_none_failed(load.stop())
    assert sorted(spans)[len(spans) // 2] < 0.15, spans


def test_waiting_command_is_answered_after_broker_restarts(circusd: Circusds) -> None:
    """A client that waits for an answer of a broker that is killed gets it from the next one."""
    stage = circusd("uvicorn")
    broker = stage.broker()
    assert stage.kill(broker, signal.SIGSTOP)
    command = stage.command("status", "--json")
    try:
        # It has asked, or is about to: both must come out right, so nothing here has to know which.
        with suppress(subprocess.TimeoutExpired):
            command.wait(1.0)
        assert command.poll() is None, "a stopped broker cannot have answered"
        assert stage.kill(broker)
        output, errors = command.communicate(timeout=10)
    finally:
        if command.poll() is None:
            command.kill()
        command.communicate()
    assert command.returncode == 0, errors
    assert '"version": 1' in output


def test_nothing_fails_when_host_is_killed(circusd: Circusds) -> None:
    """circusd starts another one on the same sockets: traffic never notices, and reloads work again."""
    stage = circusd("uvicorn", numprocesses=2)
    all_ready(stage)
    host, pids = stage.host(), stage.pids()
    with loaded(stage, "fresh:200", "keepalive:4x5", "slow:2") as load:
        measure(0.5)
        killed = time.monotonic()
        assert stage.kill(host)
        wait_until(lambda: stage.host() not in (0, host), 10, "another host runs", 0.05)
        wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "status answers", 0.1)
        assert stage.pids() == pids
        all_ready(stage)
        stage.deploy("v2")
        assert_replaced(stage, pids, stage.reload())
        result = load.stop()
    assert_none_failed(result, since=killed)


@pytest.mark.parametrize("step", ["start", "ready"])
def test_old_one_serves_on_when_command_is_interrupted(circusd: Circusds, step: str) -> None:
    """Ctrl-C before the switch rolls back: exit 5, the same pids; of the new version there are at most three answers,
    which it gave before its registration was noticed (`UNNOTICED`)."""
    stage = circusd("uvicorn", import_seconds=0.5)
    all_ready(stage)
    pids = stage.pids()
    stage.deploy("v2")
    with loaded(stage, "fresh:100") as load:
        reload = reload_and(stage, step, lambda command: command.send_signal(signal.SIGINT))
        assert reload.status == 5, reload
        assert_as_before(stage, pids, reload)
        assert "Traceback" not in reload.stderr, reload
        measure(0.3)
        result = load.stop()
    assert_none_failed(result)
    assert_answered_by_old_ones(result, pids)


def state(stage: Circusd) -> str:
    """Of the last reload."""
    return str(stage.status()["programs"][0]["reload"]["state"])


@pytest.mark.parametrize("manager", [managed_by_circus, managed_by_supervisord], ids=["circus", "supervisor"])
def test_reload_that_is_interrupted_at_its_terminal_is_undone(manager: Callable[..., Any]) -> None:
    """Ctrl-C in a terminal, once: exit 5, the same pids, and no reload goes on. In the first moments of the command,
    nothing is begun, or it is undone; no traceback tells of it."""
    with manager("abrupt") as stage:
        all_ready(stage)
        pids, command = stage.pids(), [str(Path(sys.executable).with_name("sockshare")), "reload", "web"]
        environment = {**stage.environment, "SOCKSHARE_ENDPOINT": str(stage.runtime)}
        for moment in (0.0, 0.05, 0.1, 0.15, 0.2):
            with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as early:
                measure(moment)
                early.send_signal(signal.SIGINT)
                said = b"".join(early.communicate(timeout=30))
            assert early.returncode in (130, -signal.SIGINT, 5), (early.returncode, said)
            assert b"Abort" not in said, said
            assert b"Traceback" not in said, said
            wait_until(lambda: state(stage) == "idle", 10, "no reload goes on", 0.05)
            assert stage.pids() == pids

        ours, its = pty.openpty()
        words = [sys.executable, "-c", IN_TERMINAL, *command]
        with subprocess.Popen(
            words, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
        ) as last:
            os.close(its)
            shown = b""
            with open(ours, "rb+", buffering=0) as terminal, suppress(OSError):  # EIO: nobody has it any more
                while data := terminal.read(4096):
                    if b"start" in data and b"start" not in shown:
                        terminal.write(b"\x03")
                    shown += data
            assert last.wait(30) == 5, shown
        assert state(stage) == "idle"
        assert stage.pids() == pids


def test_one_generation_remains_when_command_is_killed(circusd: Circusds) -> None:
    """SIGKILL of the waiting command leaves the old version or the new one, never both."""
    stage = circusd("uvicorn", numprocesses=2, import_seconds=0.5)
    all_ready(stage)
    pids = stage.pids()
    stage.deploy("v2")
    with loaded(stage, "fresh:100") as load:
        reload_and(stage, "start", lambda command: command.kill())

        def is_at_rest() -> bool:
            now = stage.pids()
            alone = now == pids or not set(now) & set(pids)
            return alone and len(now) == 2 and stage.status()["programs"][0]["reload"]["state"] == "idle"

        wait_until(is_at_rest, 20, "one generation is left", 0.1)
        measured = time.monotonic()
        measure(0.5)
        result = load.stop()
    assert_none_failed(result)
    assert len({version for version, _ in result.between(measured).answered_by}) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_host_and_broker_end_with_circusd(circusd: Circusds, number: signal.Signals) -> None:
    """Neither outlives the manager, however it ends: the next one finds its port free."""
    stage = circusd("uvicorn")
    host, broker, pids = stage.host(), stage.broker(), stage.pids()
    assert stage.process is not None
    os.kill(stage.process.pid, number)
    stage.process.wait(20)
    wait_until(lambda: not is_running(host) and not is_running(broker), 5, "host and broker are gone")
    if number == signal.SIGTERM:  # a killed circusd leaves its children, as it always did
        assert not any(is_running(pid) for pid in pids)
        assert not stage.family()
