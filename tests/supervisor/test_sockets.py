"""A socket stays bound through everything that happens to its programs, and to supervisord short of its end."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sockshare.cli.stage import free_port
from tests.e2e.rehearsal import all_ready, assert_replaced, loaded, measure
from tests.support.load import assert_none_failed
from tests.support.supervisord import Supervisord, listens, wait_until

Supervisords = Callable[..., Supervisord]
#: For tests in which nothing depends on how long a reload takes.
HASTY = {"sockshare_ready_hold": "0.1", "sockshare_quiesce": "0"}


def restart(stage: Supervisord) -> None:
    """`supervisorctl restart web`."""
    assert stage.ctl("restart", "web:*").returncode == 0


def kill(stage: Supervisord) -> None:
    """SIGKILL of the only process; supervisord starts another."""
    pids = stage.pids()
    for pid in pids:
        stage.kill(pid)
    wait_until(lambda: stage.pids() and not set(stage.pids()) & set(pids), 5, "another one runs")


def reload_daemon(stage: Supervisord) -> None:
    """`supervisorctl reload`: everything stops and starts again, in the same supervisord."""
    pids = stage.pids()
    assert stage.ctl("reload").returncode == 0
    wait_until(lambda: stage.alive() and stage.pids() and not set(stage.pids()) & set(pids), 20, "all runs again", 0.1)


def raise_backlog(stage: Supervisord) -> None:
    """`supervisorctl update` with another backlog."""
    stage.sections["sockshare:web"]["socket_backlog"] = "99"
    stage.configure()
    done = stage.ctl("update")
    assert done.returncode == 0, done.stdout
    wait_until(lambda: backlog(stage) == 99, 5, "the backlog is another one", 0.1)


def backlog(stage: Supervisord) -> int:
    return int(stage.status()["sockets"][0]["backlog"])


@pytest.mark.parametrize("act", [restart, kill, reload_daemon, raise_backlog])
def test_nothing_is_refused(supervisord: Supervisords, act: Callable[[Supervisord], None]) -> None:
    """Connections wait in the queue of the same socket; none is refused or reset."""
    stage = supervisord("uvicorn")
    all_ready(stage)
    inode = stage.inode()
    with loaded(stage, "fresh:50") as load:
        measure(0.3)
        act(stage)
        all_ready(stage)
        measure(0.3)
        result = load.stop()
    if act is kill:  # what it had in hand died with it
        assert not [record for record in result.failures if record.outcome == "refused"]
        assert len(result.failures) <= 2, result.failures
    else:
        assert not [record for record in result.failures if record.outcome != "reset"], result.failures
        assert len(result.failures) <= 1, result.failures  # uvicorn drops what it has accepted and not read
    assert stage.inode() == inode


def test_reread_changes_nothing_and_update_does(supervisord: Supervisords) -> None:
    """A new socket, and a changed address, are validated by `reread` and bound by `update`; the old inode stays."""
    stage = supervisord("uvicorn")
    all_ready(stage)
    inode, other = stage.inode(), stage.port + 1
    stage.sections["sockshare:api"] = {"socket": f"tcp://127.0.0.1:{other}"}
    stage.configure()
    done = stage.ctl("reread")
    assert "sockshare-broker: changed" in done.stdout, done.stdout
    assert not listens(other)
    assert [one["name"] for one in stage.status()["sockets"]] == ["web"]
    assert stage.ctl("update").returncode == 0
    wait_until(lambda: len(stage.status()["sockets"]) == 2, 5, "there are two sockets", 0.1)
    assert listens(other)
    assert stage.inode() == inode
    # Now it goes away again.
    del stage.sections["sockshare:api"]
    stage.configure()
    assert stage.ctl("update").returncode == 0
    wait_until(lambda: len(stage.status()["sockets"]) == 1, 5, "there is one socket", 0.1)
    assert not listens(other)
    assert stage.inode() == inode


def test_address_that_is_changed_is_served_by_the_reload(supervisord: Supervisords) -> None:
    """The process that runs goes on with the old one, which is no sign that a version serves the new one."""
    stage = supervisord("uvicorn")
    all_ready(stage)
    first, second = stage.port, free_port()
    pids = stage.pids()
    stage.sections["sockshare:web"]["socket"] = f"tcp://127.0.0.1:{second}"
    stage.configure()
    assert stage.ctl("update").returncode == 0
    wait_until(lambda: stage.status()["sockets"][0]["address"].endswith(f":{second}"), 5, "status shows it", 0.05)
    assert stage.ask(first) == "v1"
    doctor = stage.sockshare("doctor")
    assert (doctor.returncode, "run `sockshare reload web`" in doctor.stdout) == (3, True), doctor.stdout
    stage.deploy("crash", "exit_at_import", import_seconds=1.5)
    failed = stage.reload()
    assert (failed.status, "ready" in failed.names) == (3, False), failed
    assert failed.reason.endswith(", which stays, is not seen to serve web")
    assert stage.pids() == pids
    assert stage.ask(first) == "v1"
    stage.deploy("v2")
    assert stage.reload().status == 0
    assert stage.ask(second) == "v2"
    wait_until(lambda: not listens(first), 5, "nobody listens on the old one", 0.02)
    assert stage.sockshare("status").returncode == 0


def test_reread_refuses_an_address_that_is_taken(supervisord: Supervisords) -> None:
    """What could not be bound is said at once, and nothing is changed."""
    stage = supervisord("uvicorn")
    all_ready(stage)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        stage.sections["sockshare:api"] = {"socket": f"tcp://127.0.0.1:{taken.getsockname()[1]}"}
        stage.configure()
        done = stage.ctl("update")
    assert "[sockshare:api] socket: can't bind" in done.stdout
    assert done.returncode != 0
    assert stage.alive()
    assert [one["name"] for one in stage.status()["sockets"]] == ["web"]


def test_new_settings_take_effect_by_the_reload(supervisord: Supervisords) -> None:
    """After `reread`, `sockshare reload` starts the new command, and `update` finds nothing left to do."""
    stage = supervisord("uvicorn")
    all_ready(stage)
    before = stage.pids()
    stage.sections["program:web"] |= {"environment": 'COLOUR="blue"', "stopwaitsecs": "7"}
    stage.configure()
    assert "web: changed" in stage.ctl("reread").stdout
    with loaded(stage, "fresh:100") as load:
        assert_replaced(stage, before, stage.reload())
        assert_none_failed(load.stop())
    (pid,) = stage.pids()
    assert b"COLOUR=blue" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"SUPERVISOR_PROCESS_NAME=web" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    done = stage.ctl("update")
    assert done.stdout.strip() == "", done.stdout
    assert stage.pids() == [pid]


LISTENER = """
import os, signal, socket, sys
sock = socket.socket(fileno=3)
try:
    os.unlink(sock.getsockname())  # as servers do that think the path is theirs
except FileNotFoundError:
    pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sock.setblocking(True)
while True:
    connection, _ = sock.accept()
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"""


def test_unix_path_stays_when_a_child_unlinks_it(supervisord: Supervisords) -> None:
    """Owner and mode are as configured; the public path survives children, restarts and reloads, and goes at last."""
    stage = supervisord("udp", leave=True)
    path = stage.directory / "web.sock"
    script = stage.directory / "listener.py"
    script.write_text(LISTENER)
    stage.sections["sockshare:web"] = {
        "socket": f"unix://{path}",
        "socket_mode": "0640",
        "socket_owner": "nobody" if os.geteuid() == 0 else "",
        "blocking": "true",
    }
    stage.sections["program:web"]["command"] = f"{sys.executable} -m sockshare exec -- {sys.executable} {script}"
    stage.configure()
    stage.start()

    def answer() -> int:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            try:
                sock.connect(str(path))
                return int(sock.recv(16) or b"0")
            except OSError:
                return 0

    def published() -> os.stat_result | None:
        return path.stat() if path.exists() else None

    first = wait_until(answer, 20, "it answers", 0.05)
    found = wait_until(published, 5, "the path is there again", 0.005)
    assert stat.S_IMODE(found.st_mode) == 0o640
    if os.geteuid() == 0:
        assert found.st_uid == pwd.getpwnam("nobody").pw_uid
    assert stage.status()["sockets"][0]["address"] == f"unix://{path}"
    for act in (restart, reload_daemon):
        act(stage)
        assert wait_until(answer, 20, "it answers again", 0.05) != first
        assert wait_until(published, 5, "the path is there again", 0.005).st_ino == found.st_ino
    assert stage.reload().status == 0
    assert answer() in stage.pids()
    stage.stop()
    assert not path.exists()
    assert not list(stage.directory.glob("web.sock*"))


def test_http_servers_do_not_matter(supervisord: Supervisords) -> None:
    """With two servers there is one host; without any the sockets are there, and what is missing is said loudly."""
    inet = f"[inet_http_server]\nport = 127.0.0.1:{free_port()}\n"
    for servers in (inet, "[unix_http_server]\nfile = {directory}/s\n" + inet, ""):
        stage = supervisord("plain", servers=servers, watcher=HASTY)
        wait_until(lambda stage=stage: stage.sockshare("status").returncode == 0, 20, "it serves", 0.1)  # type: ignore[misc]
        reload = stage.reload()
        assert reload.status == 0, reload
        done = stage.sockshare("doctor")
        assert done.returncode == (0 if servers else 3), done
        said = [stage.log.read_text(), stage.sockshare("status").stdout, *stage.status()["warnings"], done.stdout]
        assert len(said) == (3 if servers else 4), said
        assert all(("there is no [unix_http_server]" in one) == (not servers) for one in said), said
        stage.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_low_port_is_bound_before_the_user_is_dropped(supervisord: Supervisords) -> None:
    """A port that only root may bind is shared by a supervisord that runs as nobody."""
    # Nobody may be unable to read this very interpreter: so what is needed is imported before, and a program is sleep.
    stage = supervisord("plain", leave=True, servers="")
    with socket.socket() as sock:
        for port in range(1001, 1023):
            if sock.connect_ex(("127.0.0.1", port)) != 0:
                break
    stage.sections["sockshare:web"]["socket"] = f"tcp://127.0.0.1:{port}"
    stage.sections["program:web"]["command"] = "/bin/sleep 1000"
    del stage.sections["rpcinterface:sockshare"]["runtime_dir"]
    stage.head = stage.head.replace("[supervisord]\n", "[supervisord]\nuser = nobody\n")
    stage.configure()
    stage.directory.chmod(0o777)
    stage.start()

    nobody = pwd.getpwnam("nobody").pw_uid
    wait_until(lambda: stage.log.exists() and "entered RUNNING" in stage.log.read_text(), 10, "all runs")
    assert stage.process is not None
    assert f"Uid:\t{nobody}" in Path(f"/proc/{stage.process.pid}/status").read_text()
    assert listens(port)


def test_supervisord_ends_like_any_other(supervisord: Supervisords) -> None:
    """SIGTERM leaves no process, no meeting point and no sockets behind."""
    stage = supervisord("uvicorn")
    all_ready(stage)
    assert stage.process is not None
    stage.process.send_signal(signal.SIGTERM)
    stage.process.wait(10)
    wait_until(lambda: not stage.family(), 3, "all have ended", 0.05)
    assert not listens(stage.port)
    assert {path.name for path in stage.runtime.iterdir()} <= {"notify"}


def test_queue_waits_for_a_late_start(supervisord: Supervisords) -> None:
    """A connection made while the program is stopped is answered by the next process."""
    stage: Any = supervisord("uvicorn")
    all_ready(stage)
    assert stage.ctl("stop", "web").returncode == 0
    with socket.create_connection(("127.0.0.1", stage.port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        began = time.monotonic()
        assert stage.ctl("start", "web").returncode == 0
        assert sock.recv(64).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 5
