"""The examples run as they are: copied, on a free port, under a real supervisord, and reloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sockshare.cli.stage import START_TIMEOUT, Stage, free_port, wait_until
from tests.examples.test_circus_examples import Answer, ask_http, ask_udp

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "supervisor"


class Example(NamedTuple):
    """One directory: its program, how many processes, the file that has its version, and how to ask it."""

    directory: str
    program: str
    processes: int
    source: str
    ask: Callable[[int], Answer]


ALL = [
    Example("uvicorn", "web", 2, "app.py", ask_http),
    Example("gunicorn-gthread", "web", 1, "app.py", ask_http),
    Example("listen-fds", "web", 1, "server.py", ask_http),
    Example("registration", "consumer", 3, "consumer.py", ask_udp),
    Example("udp-echo", "echo", 1, "echo.py", ask_udp),
    Example("fcgi", "app", 1, "app.py", ask_http),
]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A place for a supervisord with this environment's commands in PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    with Stage({"PATH": path}) as stage:
        yield stage


def ctl(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`supervisorctl` as a user has it in PATH."""
    return subprocess.run(
        ["supervisorctl", "-c", "supervisord.conf", *arguments],
        cwd=stage.directory,
        env=stage.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def running(stage: Stage, program: str) -> set[str]:
    """The pids of the program's running processes, as `supervisorctl status` has them."""
    lines = [line.split() for line in ctl(stage, "status").stdout.splitlines()]
    mine = [words for words in lines if words[0].partition(":")[0] == program and words[1] == "RUNNING"]
    return {words[3].rstrip(",") for words in mine}


def test_every_example_is_tested() -> None:
    """A directory without a test would rot."""
    tested = {example.directory for example in ALL} | {"websocket-chat"}  # tests/handover
    assert tested == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}


@pytest.mark.parametrize("example", ALL, ids=[example.directory for example in ALL])
def test_new_version_answers_after_reload_of_example(stage: Stage, example: Example) -> None:
    """Started as its README says, an example answers; after a changed source and a reload only the new version does."""
    shutil.copytree(EXAMPLES / example.directory, stage.directory, dirs_exist_ok=True)
    configuration = stage.directory / "supervisord.conf"
    text, port = configuration.read_text(), free_port()
    assert text.count("127.0.0.1:8000") == 1
    configuration.write_text(text.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    with stage.log.open("ab") as log:
        stage.process = subprocess.Popen(
            ["supervisord", "-c", "supervisord.conf"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=stage.directory,
            env=stage.environment,
            start_new_session=True,
        )

    def first() -> Answer | None:
        assert stage.process is not None
        assert stage.process.poll() is None, stage.tail(stage.log)
        try:
            return example.ask(port)
        except OSError:
            return None

    assert wait_until(first, START_TIMEOUT, f"{example.directory} answers").version == "1"
    wait_until(lambda: len(running(stage, example.program)) == example.processes, START_TIMEOUT, "all run", 0.1)
    wait_until(lambda: ctl(stage, "sockshare", "status").returncode == 0, START_TIMEOUT, "all serve", 0.1)
    old = running(stage, example.program)

    source = stage.directory / example.source
    source.write_text(source.read_text().replace('VERSION = "1"', 'VERSION = "2"'))
    ran = ctl(stage, "sockshare", "reload", example.program)
    assert ran.returncode == 0, ran.stdout + ran.stderr + stage.tail(stage.log)

    assert {example.ask(port).version for _ in range(20)} == {"2"}
    new = running(stage, example.program)
    assert len(new) == example.processes
    assert not new & old
