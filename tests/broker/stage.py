"""A real broker and a real host, without a manager: the host runs in a thread of the test, and knows the test's own
processes as those of the program `web`."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.life import COMMAND, Life
from sockshare.host.verbs import Answer, Configuration, Manager

ROOT = Path(__file__).resolve().parents[2]


class Processes:
    """The verbs: `managed` are the processes that the manager runs."""

    def __init__(self) -> None:
        self.managed: dict[int, str] = {}

    def whois(self, pid: int, answer: Answer) -> None:
        name = self.managed.get(pid)
        answer.give(process=None if name is None else {"program": "web", "process": name, "pid": pid})

    def processes(self, answer: Answer) -> None:
        listed = [{"pid": pid, "process": name, "started": 0.0} for pid, name in self.managed.items()]
        facts = {"numprocesses": len(listed), "active": True, "stderr": None, "stop_signal": 15, "stop_timeout": 10}
        answer.give(programs={"web": {**facts, "processes": listed}})

    def start(self, program: str, answer: Answer) -> None:
        answer.refuse("can't start: there is no manager here")

    def settle(
        self,
        program: str,
        retire: Sequence[int],
        known: Sequence[int],
        count: int,
        kill: bool,
        patience: float,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        answer.refuse("can't settle: there is no manager here")


def _listener() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    sock.setblocking(False)
    return sock


class Stage:
    """A host in a thread, and the broker that it starts again whenever one ends."""

    def __init__(
        self,
        sockets: int = 1,
        command: Sequence[str] = COMMAND,
        room: str | None = None,
        shared: Mapping[str, tuple[dict[str, Any], socket.socket]] | None = None,
    ) -> None:
        # Not a directory of pytest's: other users may come to this one.
        self.directory = directory = Path(tempfile.mkdtemp(prefix="sockshare-test-"))
        directory.chmod(0o711)
        # A file system of its own, of that size: only root can.
        self._mounted = room is not None
        if self._mounted:
            options = f"size={room},mode=711"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
        self._aside = tempfile.TemporaryDirectory(prefix="sockshare-test-")
        self.log = Path(self._aside.name) / "sockshare.log"
        (directory / meeting.NOTIFY).mkdir(0o711)
        self.verbs = Processes()
        if shared is None:
            shared = {f"web{number or ''}": ({}, _listener()) for number in range(sockets)}
        self.names = list(shared)
        self.sockets = [sock for _, sock in shared.values()]
        self._keys = [keys for keys, _ in shared.values()]
        self._command = command
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.host: Host
        self.life: Life
        self.call(self._open)

    def call(self, work: Callable[[], Any]) -> Any:
        """What *work* returns, done in the host's thread."""

        async def body() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(body(), self._loop).result(15)

    def _open(self) -> None:
        manager = Manager("supervisor", os.getpid(), os.geteuid(), "1-1")
        self.host = Host(self._loop, self.verbs, manager, str(self.directory), nonsense=lambda: self.life.kill())
        self.host.open()
        described: list[tuple[dict[str, Any], socket.socket]] = [
            ({"name": name, **keys}, sock)
            for name, keys, sock in zip(self.names, self._keys, self.sockets, strict=True)
        ]
        self.host.configure(Configuration([{"name": "web", "sockets": self.names}], [], described, []))
        output = str(self.log)
        self.life = Life(
            self._loop, started=self.host.serve, ended=self.host.drain, output=output, command=self._command
        )
        self.life.start()

    def close(self) -> None:
        """End everything."""

        def end() -> None:
            self.life.stop()
            self.host.close()

        self.call(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for sock in self.sockets:
            sock.close()
        if self._mounted:
            subprocess.run(["umount", str(self.directory)], check=True)
        shutil.rmtree(self.directory)
        self._aside.cleanup()

    @property
    def broker(self) -> int:
        """The broker's pid; 0 between two of them."""
        return self.life.pid or 0

    def said(self) -> str:
        """The broker's log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def sockshare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOCKSHARE_ENDPOINT": str(self.directory)}
        return subprocess.run(
            [sys.executable, "-m", "sockshare", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


@contextmanager
def stage(**options: Any) -> Iterator[Stage]:
    """A `Stage` that serves; nothing of it is left."""
    one = Stage(**options)
    try:
        until(lambda: "serving" in one.said(), "a broker serves")
        yield one
    finally:
        one.close()


@contextmanager
def hostile(one: Stage, what: str, *, count: int = 1, uid: int | None = None) -> Iterator[list[int]]:
    """The pids of so many hostile peers (tests/support/zmtp.py), which are connected; they have ended afterwards."""
    command = [sys.executable, "-m", "tests.support.zmtp", str(one.directory), what, "60", *([str(uid)] if uid else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    peers = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(count)]
    try:
        for peer in peers:
            assert peer.stdout is not None
            assert peer.stdout.readline() == b"connected\n"
        yield [peer.pid for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
            peer.communicate()


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """What *condition* returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return found
