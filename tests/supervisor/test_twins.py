"""Reloads in the middle of which supervisord is told something else; groups, fcgi, logs."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.rehearsal import all_ready, assert_replaced
from tests.e2e.test_kills import reload_and
from tests.support.circusd import Reload, descriptors, is_running
from tests.support.supervisord import BROKER, Supervisord, supervisord, wait_until

Supervisords = Callable[..., Supervisord]


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """One process of a version that needs a moment to start."""
    with supervisord("uvicorn", import_seconds=0.7) as started:
        all_ready(started)
        yield started


def at_rest(stage: Supervisord, count: int = 1) -> None:
    """Return once supervisord has *count* processes in the group, all in their places, and no reload runs."""

    def is_so() -> bool:
        names = stage.processes()
        running = stage.status()["programs"][0]["reload"]["state"]
        return len(names) == count and not any("." in name for name in names) and running == "idle"

    wait_until(is_so, 20, "all is at rest", 0.1)


def during(stage: Supervisord, step: str, *arguments: str) -> Reload:
    """A reload, and `supervisorctl` *arguments* when it prints *step*."""
    return reload_and(stage, step, lambda _: stage.ctl(*arguments))


@pytest.mark.parametrize("step", ["start", "hold"])
def test_stopped_program_stays_stopped(stage: Supervisord, step: str) -> None:
    """`stop web` in mid-reload stops the old one and the new one; the command does not claim success."""
    reload = during(stage, step, "stop", "web")
    assert reload.status != 0, reload
    at_rest(stage)
    assert stage.processes()["web"]["statename"] == "STOPPED"
    assert not stage.pids()
    assert stage.ctl("start", "web").returncode == 0
    all_ready(stage)


def test_restarted_program_runs_once(stage: Supervisord) -> None:
    """`restart web` in mid-reload leaves one process, in its place."""
    before = stage.pids()
    during(stage, "start", "restart", "web")
    at_rest(stage)
    wait_until(lambda: len(stage.pids()) == 1, 10, "one runs", 0.1)
    assert stage.pids() != before
    all_ready(stage)


def test_updated_group_runs_once(stage: Supervisord) -> None:
    """`update` of the group in mid-reload leaves one process, of the new configuration."""
    marker = f"{time.monotonic()}"
    stage.sections["program:web"]["environment"] = f'MARKER="{marker}"'
    command = stage.configuration.read_text()
    stage.configure()
    assert stage.configuration.read_text() != command
    during(stage, "start", "update")
    at_rest(stage)
    wait_until(lambda: len(stage.pids()) == 1, 10, "one runs", 0.1)
    (pid,) = stage.pids()
    assert f"MARKER={marker}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    all_ready(stage)


def test_stopped_broker_undoes_when_it_is_started_again(stage: Supervisord) -> None:
    """`stop sockshare-broker` in mid-reload; the next one undoes what was begun, and the old one never noticed."""
    before = stage.pids()
    command = stage.command("reload", "web", "--json")
    assert command.stdout is not None
    try:
        assert '"start"' in command.stdout.readline()
        assert stage.ctl("stop", BROKER).returncode == 0
        assert len(stage.pids()) == 2
        assert stage.ctl("start", BROKER).returncode == 0
        output, errors = command.communicate(timeout=30)
    finally:
        command.kill()
        command.communicate()
    assert command.returncode in (5, 75), (output, errors)
    wait_until(lambda: stage.pids() == before, 10, "the old one is alone", 0.1)
    at_rest(stage)


def test_daemon_reload_in_the_middle_ends_both(stage: Supervisord) -> None:
    """`supervisorctl reload` in mid-reload: one process of each afterwards, on the same socket."""
    inode, before = stage.inode(), stage.pids()
    during(stage, "start", "reload")
    wait_until(lambda: stage.alive() and stage.pids() and stage.pids() != before, 20, "it runs again", 0.1)
    all_ready(stage)
    at_rest(stage)
    assert stage.inode() == inode
    stage.deploy("after")
    assert_replaced(stage, stage.pids(), stage.reload())


def test_killed_old_process_is_replaced_all_the_same(stage: Supervisord) -> None:
    """SIGKILL of the old one in mid-reload: exit 0, the new one is in its place, and it runs once."""
    (old,) = stage.pids()
    reload = reload_and(stage, "ready", lambda _: stage.kill(old))
    assert reload.status == 0, reload
    at_rest(stage)
    wait_until(lambda: len(stage.pids()) == 1, 10, "one runs", 0.1)
    all_ready(stage)


def test_shutdown_in_the_middle_ends_everything(supervisord: Supervisords) -> None:
    """SIGTERM in mid-reload leaves nothing running."""
    stage = supervisord("uvicorn", import_seconds=0.5)
    all_ready(stage)
    assert stage.process is not None
    process = stage.process
    reload_and(stage, "start", lambda _: process.send_signal(signal.SIGTERM))
    process.wait(15)
    assert not stage.family()


def test_two_programs_of_one_group_are_reloaded_apart(supervisord: Supervisords) -> None:
    """In a [group:] each program keeps its name for commands; `status` shows supervisord's own for processes."""
    stage = supervisord("plain", leave=True, watcher={"sockshare_ready_hold": "0.1", "sockshare_quiesce": "0"})
    stage.sections["program:other"] = {"command": "/bin/sleep 1000"}
    stage.extra = "[group:site]\nprograms = web,other\n"
    stage.configure()
    stage.up()
    wait_until(lambda: stage.sockshare("status").returncode == 0, 20, "it serves", 0.1)
    before = {name: one["pid"] for name, one in stage.processes("site").items()}
    reload = stage.reload()
    assert reload.status == 0, reload
    assert reload.steps[0]["process"] == "site:web"
    after = {name: one["pid"] for name, one in stage.processes("site").items()}
    assert after.keys() == before.keys() == {"web", "other"}
    assert after["web"] != before["web"]
    assert after["other"] == before["other"]
    assert stage.ctl("sockshare", "reload", "site:web").returncode == 0


FCGI = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sock = socket.socket(fileno=0)
sock.setblocking(True)
while True:
    connection, _ = sock.accept()
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"""


def test_fcgi_program_keeps_its_socket_across_a_reload(supervisord: Supervisords) -> None:
    """supervisord's own fcgi socket stays bound, for there is always a process of the group; ready is RUNNING."""
    stage = supervisord("plain", leave=True)
    script, path = stage.directory / "fcgi.py", stage.directory / "fcgi.sock"
    script.write_text(FCGI)
    stage.sections["fcgi-program:app"] = {
        "command": f"{sys.executable} {script}",
        "socket": f"unix://{path}",
        "sockshare_ready_hold": "0.2",
    }
    stage.configure()
    stage.up()
    wait_until(lambda: stage.pids("app"), 10, "it runs")
    inode, before = path.stat().st_ino, stage.pids("app")
    reload = stage.reload(program="app")
    assert reload.status == 0, reload
    assert stage.pids("app") != before
    assert path.stat().st_ino == inode
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        assert int(sock.recv(16)) in stage.pids("app")


WRITER = """
import itertools, os, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))  # to leave in the middle of a print would be our own loss
for number in itertools.count():
    if stop:
        sys.exit(0)
    os.write(1, f"{os.getpid()} {number} {'x' * 80}\\n".encode())  # in one piece: there are two writers for a while
    time.sleep(0.002)
"""


def test_no_log_line_is_lost_across_reloads_with_rotation(supervisord: Supervisords) -> None:
    """Old and new have one writer: of over 2,000 lines every one of each process is there, up to its last."""
    stage = supervisord("plain", leave=True)
    script, log = stage.directory / "writer.py", stage.directory / "w.log"
    script.write_text(WRITER)
    stage.sections["program:writer"] = {
        "command": f"{sys.executable} {script}",
        "stdout_logfile": str(log),
        "stdout_logfile_maxbytes": "20KB",
        "stdout_logfile_backups": "200",
        "sockshare_ready": "hold",
        "sockshare_ready_hold": "0.2",
        "sockshare_quiesce": "0",
    }
    stage.configure()
    stage.up()

    def lines() -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        try:
            texts = [path.read_text() for path in stage.directory.glob("w.log*")]
        except FileNotFoundError:
            return lines()  # it was rotated meanwhile
        for text in texts:
            for line in text.splitlines():
                assert line.count(" ") == 2, line
                pid, number, _ = line.split()
                found.setdefault(int(pid), []).append(int(number))
        return found

    wait_until(lambda: sum(map(len, lines().values())) > 200, 20, "it writes", 0.1)
    for _ in range(4):
        assert stage.reload(program="writer").status == 0
    wait_until(lambda: sum(map(len, lines().values())) > 2000, 20, "it has written", 0.1)
    assert stage.ctl("stop", "writer").returncode == 0
    found = lines()
    assert len(found) == 5
    for pid, numbers in found.items():
        assert sorted(numbers) == list(range(len(numbers))), f"pid {pid} lost some of {max(numbers)}"


def test_settle_leaves_no_descriptor(stage: Supervisord) -> None:
    """supervisord has as many descriptors after reloads, good and bad, as before."""
    all_ready(stage)
    assert stage.process is not None
    pid = stage.process.pid

    def still() -> int:
        seen = [-1]
        wait_until(lambda: seen.append(descriptors(pid)) or seen[-1] == seen[-2], 10, "it is still", 0.2)  # type: ignore[func-returns-value]
        return seen[-1]

    stage.deploy("good", import_seconds=0.1)
    assert stage.reload().status == 0
    at_rest(stage)
    before = still()
    for fault, status in ((None, 0), ("exit_at_import", 5), (None, 0)):
        stage.deploy("next", fault, import_seconds=0.1)
        assert stage.reload().status == status
    at_rest(stage)
    assert still() == before
    assert is_running(pid)
