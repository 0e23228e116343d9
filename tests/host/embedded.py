"""A host in an asyncio loop, with a real child for its broker, which reports and is ordered about over the link."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.life import Life
from sockshare.host.verbs import Answer, Configuration, Manager

#: A broker that does nothing.
SLEEPER = (sys.executable, "-S", "-E", "-c", "import signal; signal.pause()")
STUB = (sys.executable, str(Path(__file__).parent / "apps" / "stub.py"))


class Orders:
    """The verbs: `start` brings a stub's report and waits for an order; the others do what a test put there."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[tuple[dict[str, Any], Answer]] = asyncio.Queue()

    def start(self, program: str, answer: Answer) -> None:
        self.reports.put_nowait((json.loads(program), answer))

    def whois(self, pid: int, answer: Answer) -> None:
        raise RuntimeError("a defect of the plugin")

    def processes(self, answer: Answer) -> None:
        answer.refuse("can't learn what runs: circusd is busy")

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
        answer.give(retired=list(retire), seen=[program, list(known), count, kill, patience])

    async def report(self) -> tuple[dict[str, Any], Answer]:
        """The next report of a stub."""
        return await asyncio.wait_for(self.reports.get(), 10)


class Embedded:
    """The host, its broker's life and the verbs."""

    def __init__(self, directory: Path, shared: socket.socket, command: Sequence[str]) -> None:
        self.directory = directory
        self.verbs = Orders()
        self.started: list[float] = []
        self.absent: list[str | None] = []
        loop = asyncio.get_running_loop()
        self.host = Host(
            loop,
            self.verbs,
            Manager("circus", os.getpid(), os.geteuid(), "1-1"),
            str(directory),
            nonsense=lambda: self.life.kill(),
            begun=lambda: self.life.begun(),
        )
        self.host.open()
        self.host.configure(self.configuration(shared))
        self.life = Life(loop, started=self._started, ended=self.host.ended, command=command, absent=self.absent.append)

    @staticmethod
    def configuration(shared: socket.socket, mistakes: Sequence[str] = ()) -> Configuration:
        """One program, one socket."""
        return Configuration([{"name": "web", "sockets": ["web"]}], list(mistakes), [({"name": "web"}, shared)], [0])

    def _started(self, sock: socket.socket) -> None:
        self.started.append(asyncio.get_running_loop().time())
        self.host.serve(sock)

    def kill(self) -> None:
        """SIGKILL the broker."""
        assert self.life.pid is not None
        os.kill(self.life.pid, signal.SIGKILL)


@asynccontextmanager
async def embedded(directory: Path, shared: socket.socket, command: Sequence[str] = STUB) -> AsyncIterator[Embedded]:
    """A host that runs in *directory*; it and its broker are gone afterwards."""
    (directory / meeting.NOTIFY).mkdir(parents=True, exist_ok=True)
    one = Embedded(directory, shared, command)
    one.life.start()
    try:
        yield one
    finally:
        one.life.stop()
        one.host.close()
