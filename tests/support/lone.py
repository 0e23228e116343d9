"""A host with a real broker and no manager: the managed processes are whatever a test says they are.

As a program it takes a directory and a description (JSON: `programs`, `sockets`, `uids`, `uid` and `endpoint` of the
manager), and then lines of JSON on its standard input, each answered by one: ``{"enter": pid, "program", "process"}``
makes a process a managed one, ``{"broker": true}`` tells the broker's pid.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sockshare.cli.stage import wait_until
from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.life import COMMAND, Life
from sockshare.host.verbs import Answer, Configuration, Manager
from sockshare.kernel.meeting import find, name
from sockshare.kernel.peers import ancestors
from tests.support import door

ROOT = Path(__file__).resolve().parents[2]


class Verbs:
    """Knows who is managed; starts and stops nothing."""

    def __init__(self) -> None:
        self.managed: dict[int, dict[str, Any]] = {}

    def whois(self, pid: int, answer: Answer) -> None:
        answer.give(process=next((self.managed[one] for one in ancestors(pid) if one in self.managed), None))

    def processes(self, answer: Answer) -> None:
        programs: dict[str, Any] = {}
        for one in self.managed.values():
            facts = {"numprocesses": 1, "active": True, "stderr": None, "stop_signal": 15, "stop_timeout": 1.0}
            listed = programs.setdefault(one["program"], {**facts, "processes": []})["processes"]
            listed.append({"pid": one["pid"], "process": one["process"], "started": 1.0})
        answer.give(programs=programs)

    def start(self, program: str, answer: Answer) -> None:
        answer.refuse("can't start a process: there is no manager")

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
        answer.refuse("can't stop a process: there is no manager")


async def serve(directory: str, description: Mapping[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    verbs = Verbs()
    meeting.create(os.getpid(), directory)
    manager = Manager("circus", os.getpid(), description["uid"], name(os.getpid()), description.get("endpoint"))
    host = Host(loop, verbs, manager, directory, nonsense=lambda: life.kill())
    host.open()
    sockets: list[tuple[dict[str, Any], socket.socket]] = [
        (spec, socket.create_server(("127.0.0.1", 0))) for spec in description["sockets"]
    ]
    host.configure(Configuration(description["programs"], [], sockets, description["uids"]))
    life = Life(loop, started=host.serve, ended=host.drain, command=COMMAND, output=f"{directory}/log")
    life.start()
    try:
        print(json.dumps({"pid": os.getpid()}), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            if "enter" in order:
                pid = verbs.managed.setdefault(
                    order["enter"],
                    {"pid": order["enter"], "program": order["program"], "process": order["process"]},
                )["pid"]
                print(json.dumps({"pid": pid}), flush=True)
            else:
                print(json.dumps({"pid": life.pid}), flush=True)
    finally:
        life.stop()
        host.close()
        for _, sock in sockets:
            sock.close()
        meeting.remove(str(find(os.getpid())))


class Lone:
    """The host's process, as a test has it."""

    def __init__(self, directory: Path, **description: Any) -> None:
        self.directory = directory
        self.peers: list[Peer] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.lone", str(directory), json.dumps(description)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.pid = int(self._read()["pid"])
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the host has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._read()

    def broker(self) -> int:
        """The broker's pid; 0 between two of them."""
        return int(self._order(broker=True)["pid"] or 0)

    def peer(self, uid: int, *, gid: int | None = None, groups: Sequence[int] = ()) -> Peer:
        """A process of another user, which is no managed one."""
        peer = Peer(self.directory, uid, uid if gid is None else gid, groups)
        self.peers.append(peer)
        return peer

    def managed(self, program: str, uid: int) -> Peer:
        """A process of another user, which is one of *program*."""
        peer = self.peer(uid)
        self._order(enter=peer.pid, program=program, process=f"{program}:{len(self.peers)}")
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()


@contextmanager
def lone(directory: Path, **description: Any) -> Iterator[Lone]:
    """A :class:`Lone` whose broker answers; it and its peers are gone afterwards."""
    started = Lone(directory, **{"uid": 0, **description})
    try:
        wait_until(lambda: answers(str(directory)), 20, "the broker answers", 0.02)
        yield started
    finally:
        started.close()


def answers(directory: str) -> bool:
    try:
        return door.visit(directory, "H").text.startswith("+")
    except OSError:
        return False


class Peer:
    """A process that speaks to the broker as `tests.support.apps.peer` can, under another uid."""

    def __init__(self, directory: Path, uid: int, gid: int, groups: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.apps.peer", str(directory), json.dumps([uid, gid, list(groups)])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        try:
            assert self.do("uid") == uid
        except BaseException:
            self.close()
            raise

    def do(self, name: str, /, **fields: Any) -> Any:
        """What the peer's method *name* returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": name, **fields}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert "ok" in answer, f"{name}: {answer}"
        return answer["ok"]

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """An answer of the dialogue."""
        answer: dict[str, Any] = self.do("ask", op=op, **fields)
        return answer

    def refused(self, op: str, **fields: Any) -> str:
        """The name of the error that a request is answered with; empty if it is granted."""
        return str(self.ask(op, **fields).get("error", ""))

    def at_door(self, packet: str) -> door.Reply:
        """What the door answers to *packet*."""
        return door.Reply(*self.do("visit", packet=packet))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], json.loads(sys.argv[2])))
