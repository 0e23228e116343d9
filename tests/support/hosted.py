"""A manager that does nothing else: a host with a real broker, and processes that fork from one and serve its sockets.

``python -m tests.support.hosted DIRECTORY PROCESSES SOCKETS KIND`` prints a line of JSON once all of it is there, and
ends with its standard input. KIND is what a process does with its sockets: ``epoll``, or ``accept`` in a thread;
``idle``: nothing, so that nothing is to be seen of it; ``says``: at SIGUSR1 it tells the broker 3,000 times how it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.life import Life
from sockshare.host.verbs import Answer, Configuration, Manager
from sockshare.kernel.peers import ancestors
from tests.support.door import Dialogue

SAYS = 3000


def say(directory: Path) -> None:
    """Tell the broker so much that it does not fit into the link to a host that does not read."""
    signal.sigwait([signal.SIGUSR1])
    dialogue = Dialogue(str(directory))
    for number in range(1, SAYS + 1):
        dialogue.ask("ready", status=f"{number} {'x' * 200}")
    (directory / "said").touch()
    signal.pause()


def serve(kind: str, sockets: Sequence[socket.socket], directory: Path) -> None:
    """What one process does; it takes connections and keeps them."""
    if kind == "says":
        say(directory)
    if kind == "idle":
        signal.pause()
    kept: dict[int, socket.socket] = {}
    if kind == "accept":
        for sock in sockets:
            sock.setblocking(True)

        def accept(sock: socket.socket) -> None:
            while True:
                connection, _ = sock.accept()
                kept[connection.fileno()] = connection

        for sock in sockets:
            threading.Thread(target=accept, args=[sock], daemon=True).start()
        signal.pause()
    with select.epoll() as epoll:
        by_fd = {sock.fileno(): sock for sock in sockets}
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)
        while True:
            for fd, _ in epoll.poll():
                if fd in kept:  # what ends; nobody says anything
                    kept.pop(fd).close()
                    continue
                try:
                    connection, _ = by_fd[fd].accept()
                except BlockingIOError:
                    continue
                kept[connection.fileno()] = connection
                epoll.register(connection.fileno(), select.EPOLLIN)


class Verbs:
    """See `sockshare.host.verbs.Verbs`: one program, whose processes are our children."""

    def __init__(self, kind: str, sockets: Sequence[socket.socket], count: int, directory: Path) -> None:
        self._kind = kind
        self._directory = directory
        self._sockets = sockets
        self._count = count
        self.pids: dict[int, float] = {}
        for _ in range(count):
            self.fork()

    def fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                serve(self._kind, self._sockets, self._directory)
            finally:
                os._exit(1)
        self.pids[pid] = time.time()
        return pid

    def whois(self, pid: int, answer: Answer) -> None:
        mine = next((one for one in (pid, *ancestors(pid)) if one in self.pids), None)
        answer.give(process=None if mine is None else {"program": "web", "process": f"web:{mine}", "pid": mine})

    def processes(self, answer: Answer) -> None:
        listed = [{"pid": pid, "process": f"web:{pid}", "started": since} for pid, since in self.pids.items()]
        facts = {"numprocesses": self._count, "active": True, "stderr": None, "stop_signal": 15, "stop_timeout": 5.0}
        answer.give(programs={"web": {**facts, "processes": listed}})

    def start(self, program: str, answer: Answer) -> None:
        pid = self.fork()
        answer.give(pid=pid, process=f"web:{pid}")

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
        for pid in retire:
            if self.pids.pop(pid, None) is not None:
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
        answer.give(retired=list(retire), stopped=False)


async def main(directory: Path, count: int, number: int, kind: str) -> None:
    """Until there is nothing more to read."""
    (directory / meeting.NOTIFY).mkdir(parents=True, exist_ok=True)
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in range(number)]
    for sock in sockets:
        sock.setblocking(kind == "accept")
    verbs = Verbs(kind, sockets, count, directory)
    loop = asyncio.get_running_loop()
    manager = Manager("circus", os.getpid(), os.geteuid(), "1-1")
    host = Host(loop, verbs, manager, str(directory), nonsense=lambda: life.kill(), begun=lambda: life.begun())
    host.open()
    names = [f"s{at}" for at in range(number)]
    ready = "hold" if kind == "idle" else "auto"
    program = {"name": "web", "sockets": names, "ready": ready, "ready_hold": 0.1, "quiesce": 0.1, "drain_timeout": 5}
    shared: list[tuple[dict[str, Any], socket.socket]] = [
        ({"name": name, "blocking": kind == "accept"}, sock) for name, sock in zip(names, sockets, strict=True)
    ]
    host.configure(Configuration([program], [], shared, [0]))
    life = Life(loop, started=host.serve, ended=host.drain, output=str(directory / "log"))
    life.start()
    try:
        print(
            json.dumps(
                {
                    "broker": life.pid,
                    "pids": list(verbs.pids),
                    "ports": [sock.getsockname()[1] for sock in sockets],
                }
            ),
            flush=True,
        )
        ended = asyncio.Event()
        loop.add_reader(0, ended.set)
        await ended.wait()
    finally:
        life.stop()
        host.close()
        for pid in verbs.pids:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
