"""A process of another uid that says to the broker what a test wants it to; see `tests.support.lone`."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from tests.support import door


class Peer:
    """One method a request."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._dialogue: door.Dialogue | None = None

    @property
    def dialogue(self) -> door.Dialogue:
        # Who is filtered out connects all the same, again and again: not before it is asked to.
        self._dialogue = self._dialogue or door.Dialogue(self.directory)
        return self._dialogue

    def uid(self) -> int:
        """Our uid."""
        return os.getuid()

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Any request of the dialogue."""
        return self.dialogue.ask(op, **fields)

    def ticket(self, socket: str) -> str:
        """A ticket for ourselves."""
        return str(self.dialogue.ask("ticket", socket=socket)["ticket"])

    def redeem(self, ticket: str) -> door.Reply:
        """Show a ticket."""
        return door.redeem(self.directory, [bytes.fromhex(ticket)])

    def visit(self, packet: str) -> door.Reply:
        """Say *packet* at the door."""
        with door.knock(self.directory) as sock:
            sock.send(packet.encode())
            return door.read(sock)

    def claim(self, socket: str, key: str) -> int:
        """Claim a registration, and take its gate; the epoch under which it is held."""
        number = self.dialogue.send("claim", socket=socket, key=key)
        while True:
            answer: dict[str, Any] = json.loads(self.dialogue.socket.recv())
            event = answer.get("event") or {}
            if answer.get("id") != number:
                continue
            assert "event" in answer, answer
            if isinstance(event.get("gate"), str):
                assert self.redeem(event["gate"]).granted
            if event.get("registration") == "held":
                return int(event["epoch"])

    def greeted(self) -> bool:
        """Whether ZeroMQ speaks to us: its greeting comes first (ZMTP), and who is filtered out is hung up on."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(door.TIMEOUT)
            sock.connect(f"{self.directory}/broker")
            try:
                return bool(sock.recv(1))
            except ConnectionResetError:
                return False


uid, gid, groups = json.loads(sys.argv[2])
# After the imports: another user need not be able to read them.
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
peer = Peer(sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    try:
        said: Any = {"ok": getattr(peer, request.pop("do"))(**request)}
    except Exception as error:  # the test shows it
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), flush=True)
