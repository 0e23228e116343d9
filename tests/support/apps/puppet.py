"""A managed process that does what a test tells it to: it speaks the raw protocol as a member of its program.

It listens on ``puppet-PID`` in ``APP_DIRECTORY``; a request is one JSON line ``{"do": name, ...}``, the answer another.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.support import door

HOME = os.environ["APP_DIRECTORY"]
RUNTIME = os.environ["APP_RUNTIME"]


class Puppet:
    """One method a request."""

    def __init__(self) -> None:
        self.dialogue = door.Dialogue(RUNTIME)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Any request of the dialogue."""
        return self.dialogue.ask(op, **fields)

    def ticket(self) -> str:
        """A good ticket for this process."""
        return str(self.dialogue.ask("ticket", socket="web")["ticket"])

    def redeem(self, ticket: str, acknowledge: bool = True) -> door.Reply:
        """By this process."""
        return door.redeem(RUNTIME, [bytes.fromhex(ticket)], acknowledge)

    def redeem_as(self, ticket: str, uid: int | None = None) -> door.Reply:
        """By a child of this process."""
        return door.redeem_as(RUNTIME, [bytes.fromhex(ticket)], uid)

    def visit(self, packet: str) -> door.Reply:
        """Say *packet* at the door."""
        return door.visit(RUNTIME, packet)

    def visit_as_child(self, packet: str) -> door.Reply:
        """As `visit`, by a child of this process."""
        return door.in_child(lambda: door.visit(RUNTIME, packet))

    def redeem_all(self, tickets: list[str]) -> list[door.Reply]:
        """One after the other, each on a connection of its own."""
        return [self.redeem(ticket) for ticket in tickets]

    def replay(self, times: int) -> list[door.Reply]:
        """Redeem a ticket, and at once again, so often."""
        replies = []
        for _ in range(times):
            ticket = self.ticket()
            first = self.redeem(ticket)
            assert first.granted, first
            replies.append(self.redeem(ticket))
        return replies

    def round_trips(self, times: int) -> int:
        """Ask, redeem, acknowledge, close: so often; how many gave a descriptor."""
        return sum(self.redeem(self.ticket()).granted for _ in range(times))

    def leave(self, moment: str) -> int:
        """A child that is gone at *moment*."""
        script = Path(door.__file__)
        return subprocess.run([sys.executable, str(script), RUNTIME, moment], timeout=20, check=False).returncode

    def version(self) -> str:
        """What this process was deployed as."""
        return VERSION


behaviour = json.loads(Path(os.environ["APP_BEHAVIOUR"]).read_text())
VERSION: str = behaviour["version"]
time.sleep(behaviour.get("import", 0.0))
puppet = Puppet()
path = f"{HOME}/puppet-{os.getpid()}"
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
    listener.bind(path + ".new")
    listener.listen(8)
    os.rename(path + ".new", path)  # there only once it listens
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                request = json.loads(line)
                try:
                    answer: Any = {"ok": getattr(puppet, request.pop("do"))(**request)}
                except Exception as error:  # the test shows it
                    answer = {"error": f"{type(error).__name__}: {error}"}
                stream.write(json.dumps(answer) + "\n")
                stream.flush()
