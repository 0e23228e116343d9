"""A real broker, and peers of other uids and other programs that ask it for what they may not have."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.life import Life
from sockshare.host.verbs import Answer, Configuration, Manager
from sockshare.kernel import listeners

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has processes of other uids")

ADMITTED, FOREIGN = 65533, 65534
PATIENCE = 20.0

PEER = """\
import json, os, sys, time
from sockshare.client.dialogue import Dialogue
os.setuid(int(sys.argv[2]))  # now: the interpreter may be where only root comes to
dialogue = Dialogue(sys.argv[1])
for line in sys.stdin:
    seconds, op, fields = json.loads(line)
    try:
        answer = dialogue.ask(op, deadline=time.monotonic() + seconds, **fields)
    except Exception as error:
        answer = {"refused": type(error).__name__, "why": str(error)}
    print(json.dumps(answer), flush=True)
dialogue.close()
"""


class Verbs:
    """Tells of the processes that a test has put there."""

    def __init__(self) -> None:
        self.of: dict[int, str] = {}

    def whois(self, pid: int, answer: Answer) -> None:
        program = self.of.get(pid)
        answer.give(process=program and {"program": program, "process": f"{program}:1", "pid": pid})

    def processes(self, answer: Answer) -> None:
        facts = {
            program: {
                "numprocesses": 1,
                "active": True,
                "stderr": None,
                "stop_signal": 15,
                "stop_timeout": 1.0,
                "processes": [{"pid": pid, "process": f"{program}:1", "started": 0.0}],
            }
            for pid, program in self.of.items()
        }
        answer.give(programs=facts)

    def start(self, program: str, answer: Answer) -> None:
        answer.refuse("can't start anything here")

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
        answer.refuse("can't stop anything here")


class Peer:
    """A process of its own that asks."""

    def __init__(self, directory: Path, uid: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PEER, str(directory), str(uid)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    async def ask(self, op: str, within: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """What it was answered."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([within, op, fields]) + "\n")
        self._process.stdin.flush()
        line = await asyncio.to_thread(self._process.stdout.readline)
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def refused(self, op: str, within: float = PATIENCE, **fields: object) -> str:
        """As what it was refused."""
        return str((await self.ask(op, within, **fields)).get("refused"))

    def end(self) -> None:
        with self._process:
            self._process.kill()


class Stage:
    """A host with its broker, in a directory that everybody may pass through."""

    def __init__(self, directory: Path, shared: Configuration) -> None:
        self.directory = directory
        self.verbs = Verbs()
        self.peers: list[Peer] = []
        loop = asyncio.get_running_loop()
        manager = Manager("supervisor", os.getpid(), os.geteuid(), "1-1")
        self.host = Host(loop, self.verbs, manager, str(directory))
        self.host.open()
        self.host.configure(shared)
        self.life = Life(loop, started=self.host.serve, ended=self.host.drain)
        self.life.start()

    def peer(self, uid: int = 0, program: str = "") -> Peer:
        """A process, of *program* if that is named."""
        found = Peer(self.directory, uid)
        self.peers.append(found)
        if program:
            self.verbs.of[found.pid] = program
        return found


def play(body: Callable[[Stage], Awaitable[None]]) -> None:
    """Run *body* beside a broker of two programs with a socket each, of which `ADMITTED` is the user."""

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="sockshare-") as scratch:
            os.chmod(scratch, 0o711)
            directory = Path(scratch)
            (directory / meeting.NOTIFY).mkdir()
            names = ("web", "db")
            socks = [listeners.make(str(directory / f"{name}.sock"), 1) for name in names]
            configuration = Configuration(
                [{"name": name, "sockets": [name]} for name in names],
                [],
                [({"name": name}, sock) for name, sock in zip(names, socks, strict=True)],
                [0, ADMITTED],
            )
            stage = Stage(directory, configuration)
            try:
                await body(stage)
            finally:
                for peer in stage.peers:
                    peer.end()
                stage.life.stop()
                stage.host.close()
                for sock in socks:
                    sock.close()

    asyncio.run(main())


def test_who_may_not_command_changes_nothing() -> None:
    """Each command is refused to another uid, and its own program's too; root is not refused."""

    async def body(stage: Stage) -> None:
        other, root = stage.peer(ADMITTED, "web"), stage.peer()
        key = "0" * 32
        commands: dict[str, dict[str, Any]] = {
            "reload": {"program": "web", "key": key},
            "cancel": {"program": "web", "key": key},
            "move": {"socket": "web", "process": "web:1"},
            "quiesce": {"process": "web:1"},
            "wake": {"process": "web:1"},
        }
        for op, fields in commands.items():
            assert await other.refused(op, **fields) == "NotPermitted", op
            assert await root.refused(op, **{**fields, "program": "none", "process": "none"}) != "NotPermitted", op

    play(body)


def test_uid_of_no_program_is_not_heard() -> None:
    """Its messages don't reach us; those of a program's user do."""

    async def body(stage: Stage) -> None:
        assert "status" in await stage.peer(ADMITTED).ask("status")
        assert await stage.peer(FOREIGN).refused("status", 0.5) == "NoBroker"

    play(body)


def test_socket_is_for_those_that_name_it() -> None:
    """Neither by asking for it, nor by having a sibling ask, nor by a ticket for a stranger."""

    async def body(stage: Stage) -> None:
        web, db, none = stage.peer(program="web"), stage.peer(program="db"), stage.peer()
        assert (await web.ask("ticket", socket="web"))["socket"] == "web"
        assert await web.refused("ticket", socket="db") == "NotPermitted"
        assert await db.refused("ticket", socket="web", pid=web.pid) == "NotPermitted"
        assert await web.refused("ticket", socket="web", pid=db.pid) == "NotPermitted"
        assert await web.refused("ticket", socket="web", pid=none.pid) == "NotPermitted"
        assert await none.refused("ticket", socket="web") == "NotPermitted"
        assert await none.refused("inherit") == "NotPermitted"

    play(body)
