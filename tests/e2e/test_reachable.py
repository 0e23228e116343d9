"""A shared socket that clients don't reach is a problem in `status`, `doctor` and the reload's exit, and is mended
where that takes nothing from anybody; under real managers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.rehearsal import loaded, measure
from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.load import assert_none_failed
from tests.support.supervisord import supervisord

HASTY = {"sockshare.ready_hold": "0.1", "sockshare.quiesce": "0"}


def answers(address: str | tuple[str, int]) -> int:
    """The pid of the process that answers at *address*; 0: none does."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(2)
        try:
            sock.connect(address)
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            digits = re.findall(rb"[0-9]+", sock.makefile("rb").read())
            return int(digits[-1]) if digits else 0
        except OSError:
            return 0


@contextmanager
def staged(manager: str, program: str, path: Path, **keys: str) -> Iterator[Circusd]:
    """A manager whose program has the sockets `web` (TCP) and `path` (unix)."""
    with ExitStack() as stack:
        stage: Circusd
        watcher = {**HASTY, "sockshare.sockets": "web path", **{f"sockshare.{key}": keys[key] for key in keys}}
        if manager == "circus":
            stage = stack.enter_context(
                circusd(program, watcher=watcher, extra=f"[socket:path]\npath = {path}\n", leave=True)
            )
        else:
            stage = stack.enter_context(
                supervisord(program, watcher=watcher, extra=f"[sockshare:path]\nsocket = unix://{path}\n", leave=True)
            )
        stage.environment["APP_PATH"] = str(path)
        stage.up()
        wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "all is ready", 0.05)
        yield stage
        stage.stop()
        assert not list(path.parent.iterdir())


@pytest.fixture
def path() -> Iterator[Path]:
    """A path short enough for a socket, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        yield Path(directory) / "web.sock"


IMPOSTOR = """
import os, socket, sys
os.unlink(sys.argv[1])
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("bound", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_path_and_port_are_reached_whatever_is_done_to_them(manager: str, path: Path) -> None:
    """A path that only its owner may connect to is noted; one that was removed is there again at once; one that is
    another's is said until that ends; a listener that the old process of a reload shuts down is revived, and the
    reload's last line says so."""
    with staged(manager, "shutter", path) as stage:
        pid = answers(str(path))
        assert pid in stage.pids()
        path.chmod(0o666)
        assert "may connect to it" not in stage.sockshare("doctor").stdout
        path.chmod(0o700)
        done = stage.sockshare("doctor")
        assert (done.returncode, stage.sockshare("status").returncode) == (0, 0)
        assert re.search(rf"only root and .* may connect to it: {path} has mode 0700", done.stdout), done
        path.unlink()
        assert wait_until(lambda: answers(str(path)), 3, "it is published again", 0.01) == pid
        assert stage.sockshare("status").returncode == 0
        done = stage.sockshare("doctor")
        assert done.returncode == 0
        assert f"socket path: {path} is gone; published again" in done.stdout

        command = [sys.executable, "-c", IMPOSTOR, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as impostor:
            assert impostor.stdout is not None
            impostor.stdout.readline()
            why = f"clients don't reach it: {path} is another socket of pid {impostor.pid} (python"
            done = wait_until(
                lambda: why in (done := stage.sockshare("doctor")).stdout and done, 5, "it is said whose it is", 0.05
            )
            assert done.returncode == 3
            assert stage.sockshare("status").returncode == 3
            reload = stage.reload()
            assert reload.status == 3
            assert f"clients don't reach path: {path} is another socket" in reload.reason
            assert answers(("127.0.0.1", stage.port)) in stage.pids()
            impostor.kill()
        wait_until(lambda: answers(str(path)) in stage.pids(), 5, "it is ours again", 0.05)

        (old,) = stage.pids()
        reload = stage.reload()
        assert reload.status == 0, reload
        said = f"web: it was shut down (shutdown(2)) as web{':' if manager == 'circus' else ''}"
        assert said in reload.reason, reload
        assert f"(pid {old}) " in reload.reason
        assert "revived" in reload.reason
        assert reload.names[-1] == "done"
        assert answers(("127.0.0.1", stage.port)) in stage.pids()
        assert stage.sockshare("status").returncode == 0


@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_program_that_binds_the_path_itself_is_told_and_the_path_is_ours_again(manager: str, path: Path) -> None:
    """A new version does: its reload fails, and the old one is reached by the path again; so it is after a restart."""
    with staged(manager, "shutter", path, ready_timeout="2") as stage:
        old = answers(str(path))
        binds = stage.directory / "binds"
        binds.touch()
        reload = stage.reload()
        assert reload.status == 6, reload
        assert "no sign of its event registration of path" in reload.reason
        assert answers(str(path)) == old
        taken = f"socket path: {path} is another socket of pid"
        done = stage.sockshare("doctor")
        assert f"{taken} {reload.steps[0]['pid']} (python" in done.stdout, done

        def restarted() -> int:
            (pid,) = stage.pids()
            os.kill(pid, signal.SIGKILL)
            new = wait_until(lambda: set(stage.pids()) - {pid}, 10, "it is restarted", 0.02)
            return int(*new)

        own = restarted()
        done = wait_until(
            lambda: f"{taken} {own} (" in (done := stage.sockshare("doctor")).stdout and done, 5, "it is said", 0.05
        )
        assert done.returncode == 3
        assert stage.sockshare("status").returncode == 3
        binds.unlink()
        new = restarted()
        wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "all is well", 0.1)
        assert answers(str(path)) == new


@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_socket_that_nothing_revives_is_a_problem_until_it_is_made_anew(manager: str, path: Path) -> None:
    """A unix listener that the old process shuts down: the reload fails, and the doctor's remedy works."""
    with staged(manager, "shutter-unix", path) as stage:
        assert answers(str(path))
        reload = stage.reload()
        assert reload.status == 3, reload
        (stage.directory / "calm").touch()
        wait_until(lambda: stage.sockshare("status").returncode == 3, 5, "it is a problem", 0.05)
        if manager == "circus":
            said = "it was shut down (shutdown(2))"
            assert said in reload.reason
            done = stage.sockshare("doctor")
            assert said in done.stdout
            assert "only circusd can make it anew: circusctl restart" in done.stdout
            stage.call("restart")
        else:
            assert "it is made anew" in reload.reason
            done = wait_until(
                lambda: "`sockshare reload web`" in (done := stage.sockshare("doctor")).stdout and done,
                5,
                "the doctor knows what to do",
                0.05,
            )
            assert stage.reload().status == 0
        assert done.returncode == 3
        wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "all is well", 0.1)
        assert answers(str(path)) in stage.pids()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx here")
@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_server_that_looks_for_its_socket_by_its_path_finds_it(manager: str, path: Path) -> None:
    """nginx compares what it has inherited with `listen unix:PATH`: after a reload too the path is ours. And what it
    has in hand is not cut: it is stopped by QUIT, though its section does not say so."""
    with staged(manager, "nginx", path) as stage:
        file = path.stat().st_ino
        first = answers(str(path))
        assert first
        with loaded(stage, "slow:8") as load:
            measure(1.2)  # requests of a second are under way at any time after it
            reload = stage.reload()
            assert reload.status == 0, reload
            assert_none_failed(load.stop(), since=reload.began, at_least=8)
        assert reload.steps[-1]["cost"]["cut"] == 0, reload
        assert any("nginx drains itself on QUIT" in str(step["reason"]) for step in reload.steps), reload
        assert answers(str(path)) not in (0, first)
        assert path.stat().st_ino == file


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
@pytest.mark.parametrize("manager", [circusd, supervisord])
def test_full_runtime_directory_is_a_problem_until_there_is_room(
    manager: Callable[..., AbstractContextManager[Circusd]],
) -> None:
    """A reload goes on all the same, from memory; afterwards all is well, and nothing has to be done for that."""
    with manager("uvicorn", leave=True) as stage:
        stage.runtime.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", "size=64k,mode=711", "tmpfs"]
        subprocess.run(["mount", *options, str(stage.runtime)], check=True)
        try:
            stage.up()
            wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "all is ready", 0.05)
            filler = stage.runtime / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            stage.deploy("v2")
            reload = stage.reload()
            assert reload.status == 0, reload
            assert stage.ask(stage.port) == "v2"
            done = stage.sockshare("doctor")
            assert done.returncode == 3, done
            assert f"can't write {stage.runtime}/journal.json: No space left on device; make room there" in done.stdout
            filler.unlink()
            wait_until(lambda: stage.sockshare("doctor").returncode == 0, 10, "it is over", 0.1)
            assert '"records"' in (stage.runtime / "journal.json").read_text()
        finally:
            stage.stop()
            subprocess.run(["umount", str(stage.runtime)], check=True)
