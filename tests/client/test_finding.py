"""Which broker a process finds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockshare.client import finding
from sockshare.core.errors import NoBroker
from sockshare.kernel import meeting

from .host import TIMEOUT, Host

#: Runs its arguments as its child, under the name of circusd.
_CIRCUSD = """import subprocess, sys
print(__import__("os").getpid(), flush=True)
sys.stdin.readline()
sys.exit(subprocess.call(sys.argv[1:]))
"""


class Circusd:
    """A process that is called circusd, and runs a command when it is told to."""

    def __init__(self, directory: Path, host: Host, *command: str) -> None:
        script = directory / "circusd"
        script.write_text(_CIRCUSD)
        environment = host.environment()
        del environment["SOCKSHARE_ENDPOINT"]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, said


@contextmanager
def point(pid: int, target: Path) -> Iterator[str]:
    """A meeting point of manager *pid* that leads to *target*."""
    path = Path(meeting.points(pid)[-1])
    path.parent.mkdir(mode=0o711, exist_ok=True)
    path.symlink_to(target)
    try:
        yield str(path)
    finally:
        path.unlink()


@contextmanager
def circusd(directory: Path, host: Host, *command: str) -> Iterator[Circusd]:
    started = Circusd(directory, host, *command)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


def test_child_waits_for_the_broker_of_its_own_circusd(host: Host, tmp_path: Path) -> None:
    """A child that circusd started before its plugin waits, says for whom, and then goes on."""
    host.start()
    with circusd(tmp_path, host, sys.executable, "-m", "sockshare", "exec", "--", "true") as manager:
        manager.go()
        assert manager.process.stderr is not None
        said = manager.process.stderr.readline()
        assert said == f"sockshare: waiting for the broker of circusd (pid {manager.pid}) ...\n"
        with point(manager.pid, host.directory):
            assert manager.end() == (0, "")


def test_child_finds_the_broker_at_once_when_it_is_there(host: Host, tmp_path: Path) -> None:
    """Nothing is said, and the command's environment has the endpoint."""
    host.start()
    code = "import os, sys; sys.stderr.write(os.environ['SOCKSHARE_ENDPOINT'])"
    command = (sys.executable, "-m", "sockshare", "exec", "--", sys.executable, "-c", code)
    with circusd(tmp_path, host, *command) as manager, point(manager.pid, host.directory) as path:
        manager.go()
        assert manager.end() == (0, path)


def test_broker_of_another_manager_is_never_taken(host: Host, tmp_path: Path) -> None:
    """Below a circusd that has no broker another one's is not taken, though it runs for the same user."""
    host.start()
    code = "import sockshare; sockshare.attach(timeout=0.7)"
    with point(os.getpid(), host.directory), circusd(tmp_path, host, sys.executable, "-c", code) as manager:
        manager.go()
        status, said = manager.end()
    assert status == 1
    assert f"NoBroker: can't find a broker: circusd (pid {manager.pid}) runs none" in said


def test_meeting_point_tells_a_manager_of_another_name(host: Host) -> None:
    """A program that embeds circus is known by its meeting point."""
    host.start()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            before = finding.nearest(child.pid)
            assert before is None or before.pid != os.getpid()
            with point(os.getpid(), host.directory):
                found = finding.nearest(child.pid)
                assert found is not None
                assert found.pid == os.getpid()
        finally:
            child.kill()


def test_commands_are_told_to_choose_when_several_brokers_run(host: Host, tmp_path: Path) -> None:
    """The error lists them and says how to choose; deserted meeting points don't count."""
    host.start()
    other = Host(tmp_path / "other")
    third = tmp_path / "third"
    third.mkdir()
    try:
        other.start()
        with (
            subprocess.Popen(["sleep", "60"]) as one,
            subprocess.Popen(["sleep", "60"]) as two,
            subprocess.Popen(["sleep", "60"]) as three,
        ):
            try:
                with (
                    point(one.pid, host.directory) as here,
                    point(two.pid, other.directory) as there,
                    point(three.pid, third) as deserted,
                ):
                    running = finding.running()
                    with pytest.raises(NoBroker) as raised:
                        finding.find(command=True, timeout=1.0)
            finally:
                for process in (one, two, three):
                    process.kill()
    finally:
        other.close()
    assert {here, there} <= set(running)
    assert deserted not in running
    assert here in str(raised.value)
    assert "use --endpoint" in str(raised.value)


def test_command_does_not_wait_when_its_endpoint_is_no_directory(tmp_path: Path) -> None:
    """A misspelt --endpoint is said at once."""
    with pytest.raises(NoBroker, match="no such directory"):
        finding.find(str(tmp_path / "nowhere"), command=True, timeout=60.0)
