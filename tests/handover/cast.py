"""Managed processes that hand over to each other (``apps/hands.py``), and the peers of the connections that move."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sockshare.cli.stage import Stage, free_port, wait_until

APPS = Path(__file__).resolve().parents[1] / "support" / "apps"
PATIENCE = 15.0  # s

INI = """\
[socket:web]
host = 127.0.0.1
port = {port}

[plugin:sockshare]
use = circus_sockshare.SockShare
use_sockets = True
runtime_dir = {runtime}
logfile = {directory}/sockshare.log
"""
WATCHER = """
[watcher:{name}]
cmd = {python} {apps}/hands.py
numprocesses = {count}
copy_env = True
stderr_stream.class = FileStream
stderr_stream.filename = {directory}/{name}.err
{keys}
"""


class Actor:
    """One managed process."""

    def __init__(self, stage: Stage, pid: int) -> None:
        self.pid = pid
        self._path = f"{stage.directory}/hands-{pid}"
        wait_until(lambda: os.path.exists(self._path), PATIENCE, f"process {pid} listens")
        self._strings: list[socket.socket] = []
        self._threads = ThreadPoolExecutor(8)

    def do(self, name: str, /, **fields: Any) -> Any:
        """The answer; AssertionError if it could not do it."""
        answer = self._ask(name, fields)
        assert "ok" in answer, f"{name}: {answer}"
        return answer["ok"]

    def error(self, name: str, /, **fields: Any) -> str:
        """Why it can't."""
        answer = self._ask(name, fields)
        assert "error" in answer, f"{name}: {answer}"
        return str(answer["error"])

    def begin(self, name: str, /, **fields: Any) -> Future[dict[str, Any]]:
        """The whole answer, later."""
        return self._threads.submit(self._ask, name, fields)

    def _ask(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as string:
            string.settimeout(60)
            string.connect(self._path)
            with string.makefile("rw") as stream:
                stream.write(json.dumps({"do": name, **fields}) + "\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline() or '{"error": "it has died"}')
                return answer

    def close(self) -> None:
        """Wait for what was begun."""
        self._threads.shutdown()


class Peers:
    """The other ends of the connections."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []

    def connection(self, actor: Actor) -> tuple[int, socket.socket]:
        """A connection that *actor* has, by its number there, and its peer."""
        number = actor.do("connect", port=self.port)
        peer, _ = self._listener.accept()
        peer.settimeout(PATIENCE)
        self._open.append(peer)
        return number, peer

    def close(self) -> None:
        """All."""
        for sock in (self._listener, *self._open):
            sock.close()


class Cast:
    """A circusd with programs of actors."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.peers = Peers()
        self._actors: dict[int, Actor] = {}

    def actors(self, program: str, count: int = 1) -> list[Actor]:
        """Those that the program has now, when there are *count*."""

        def found() -> list[int]:
            pids = self.stage.pids(program)
            return pids if len(pids) == count else []

        pids = wait_until(found, PATIENCE, f"{program} has {count} processes", 0.05)
        for pid in pids:
            if pid not in self._actors:
                self._actors[pid] = Actor(self.stage, pid)
        return [self._actors[pid] for pid in pids]

    def close(self) -> None:
        """Let go of all strings."""
        self.peers.close()
        for actor in self._actors.values():
            actor.close()


@contextmanager
def cast(**programs: tuple[int, str]) -> Iterator[Cast]:
    """A cast of *programs*: how many processes, and more keys of their section."""
    with Stage() as stage:
        stage.environment["APP_DIRECTORY"] = str(stage.directory)
        text = INI.format(port=free_port(), runtime=stage.runtime, directory=stage.directory)
        for name, (count, keys) in programs.items():
            text += WATCHER.format(
                name=name, count=count, keys=keys, python=sys.executable, apps=APPS, directory=stage.directory
            )
        stage.write(text)
        stage.start()
        wait_until(stage.runtime.exists, PATIENCE, "the broker is coming", 0.05)
        found = Cast(stage)
        try:
            yield found
        finally:
            found.close()
            if sys.exc_info()[0] is not None:
                print(stage.tail(stage.directory / "sockshare.log", 40))
                for name in programs:
                    print(stage.tail(stage.directory / f"{name}.err", 40))


def heard(peer: socket.socket) -> str:
    """Everything that comes until the end of the connection."""
    return b"".join(iter(lambda: peer.recv(65536), b"")).decode()
