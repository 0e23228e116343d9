"""``sockshare demo`` shows on any machine what the other tests prove."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockshare.cli.stage import MARK, kill, wait_until
from tests.support.circusd import is_running


@pytest.fixture
def home() -> Iterator[Path]:
    """A temporary directory with a short name: the demo's sockets have their paths below it."""
    path = Path(tempfile.mkdtemp(prefix="sd-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, in *home*, without a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "sockshare", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(home), "COLUMNS": "160", "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_below(home: Path) -> list[int]:
    """What runs that was started with its temporary files in *home*; no zombies."""
    wanted = f"TMPDIR={home}".encode()
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0") and is_running(int(name)):
                found.append(int(name))
        except OSError:
            continue
    return found


def end(command: subprocess.Popen[str], home: Path) -> None:
    """Whatever the demo left, by its ids."""
    if command.poll() is None:
        command.kill()
    command.communicate()
    for mark in [path.name for path in home.iterdir() if path.is_dir()]:
        for pid in processes_below(home):
            kill(pid, mark)


@pytest.mark.soak  # .ci/run runs the command itself, from a fresh clone
def test_table_of_zeros_ends_the_demo(home: Path) -> None:
    """In under a minute, exit 0, no request failed in any act of sockshare, and nothing is left: process or file."""
    began = time.monotonic()
    command = start(home)
    try:
        output, _ = command.communicate(timeout=110)
        seconds = time.monotonic() - began
        assert command.returncode == 0, output
        assert "Traceback" not in output
        assert "\x1b" not in output, "colours without a terminal"
        rows = [line for line in output.splitlines() if re.search(r"│\s+\d+ │", line)]
        assert len(rows) == 8, output
        for row in rows[:-1]:  # the last one is circus alone
            assert re.findall(r"\d+", row.split("│", 2)[2])[1:5] == ["0"] * 4, output
        assert seconds < 60, f"{seconds:.0f} s\n{output}"
        assert not processes_below(home)
        assert not list(home.iterdir())
    finally:
        end(command, home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_demo_is_interrupted(home: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM in the middle: all processes end, the directory goes, no traceback."""
    command = start(home, "--no-compare")
    try:
        assert command.stdout is not None
        seen = ""
        for line in command.stdout:
            seen += line
            if "sockshare reload web" in line:
                break
        assert any(MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes() for pid in processes_below(home)), seen
        command.send_signal(number)
        output, _ = command.communicate(timeout=30)
        assert command.returncode != 0
        assert "Traceback" not in output, output
        wait_until(lambda: not processes_below(home), 5, "every process ended", 0.1)
        assert not list(home.iterdir())
    finally:
        end(command, home)
