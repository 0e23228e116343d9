"""A small broker of docs/protocol.md, run as a process, whose odd behaviours a test chooses.

``python pretender.py BEHAVIOUR`` where BEHAVIOUR is JSON: ``door`` and ``broker`` (listening descriptors), ``path``
(of the ZeroMQ endpoint), ``sockets`` (name: descriptor), and what to do oddly:

* ``state``, ``mistakes``, ``uid_known``: what the door says;
* ``exit_at``: dies as the killed do, at ``asked``, ``ticket`` (answered with it), ``redeem`` (before it answers);
* ``deaf``: operations that are not answered; ``errors``: operation to the error it is answered with;
* ``no_descriptor``: redeems with names only; ``most``: with so many sockets at most;
* ``refuse_tickets``: how many redeems are refused;
* ``garbage_door``, ``garbage_dialogue``: answered instead;
* ``events`` and ``final``: of a reload;
* ``await_cancel``: the final answer of a reload waits for a cancel; ``status``: the document;
* ``reloads``: the errors that reloads are answered with, in turn; ``findings``: what the doctor is told.

Each thing that happens is a line on stdout, for a test to wait for.
"""

from __future__ import annotations

import array
import json
import os
import secrets
import select
import signal
import socket
import struct
import sys
from typing import Any

import zmq


class Pretender:
    """The broker."""

    def __init__(self, behaviour: dict[str, Any]) -> None:
        self.behaviour = behaviour
        self.tickets: dict[bytes, tuple[str, int]] = {}
        self.shown: dict[int, list[bytes]] = {}
        self.peers: dict[int, socket.socket] = {}
        self.door = socket.socket(fileno=behaviour["door"])
        self.door.setblocking(False)
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.USE_FD, behaviour["broker"])
        self.router.bind(f"ipc://{behaviour['path']}")
        self.waiting: list[tuple[bytes, int]] = []
        self.refusals = int(behaviour.get("refuse_tickets", 0))

    def say(self, *words: object) -> None:
        print(*words, flush=True)

    def exit_at(self, moment: str) -> None:
        if self.behaviour.get("exit_at") == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self) -> None:
        """Serve until killed."""
        poll = select.poll()
        poll.register(self.door, select.POLLIN)
        self.watch(poll)
        poll.register(int(self.router.getsockopt(zmq.FD)), select.POLLIN)
        self.say("up")
        while True:
            while int(self.router.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                self.hear(self.router.recv_multipart())
            for fd, _ in poll.poll(1000):
                if fd == self.door.fileno():
                    peer, _ = self.door.accept()
                    self.peers[peer.fileno()] = peer
                    poll.register(peer, select.POLLIN)
                elif fd == 0:
                    self.obey(sys.stdin.readline())
                elif fd in self.peers and not self.stays(self.peers[fd]):
                    poll.unregister(fd)
                    self.shown.pop(fd, None)
                    self.peers.pop(fd).close()

    def watch(self, poll: select.poll) -> None:
        """What else a broker of another kind waits for."""

    def obey(self, line: str) -> None:
        """An order of the test."""

    def descriptor(self, name: str) -> int:
        """What a ticket for *name* is good for."""
        return int(self.behaviour["sockets"][name])

    def acknowledged(self, names: list[str]) -> None:
        """Somebody has it."""

    def hear(self, frames: list[bytes]) -> None:
        """One question."""
        route, request = frames[0], json.loads(frames[-1])
        op = request["op"]
        fields = {key: value for key, value in sorted(request.items()) if key not in ("v", "id", "op", "key")}
        self.say(op, json.dumps(fields))
        self.exit_at("asked")
        if op in self.behaviour.get("deaf", ()):
            return
        if "garbage_dialogue" in self.behaviour:
            self.router.send_multipart([route, self.behaviour["garbage_dialogue"].encode()])
            return
        if op in self.behaviour.get("errors", {}):
            self.answer(route, request, {"ok": False, **self.behaviour["errors"][op]})
            return
        pid = request.get("pid") or -1  # -1: whoever comes to the door with it
        if op == "attach":
            self.answer(route, request, {"ok": True, **self.names(), "sockets": list(self.behaviour["sockets"])})
        elif op == "ticket":
            if request["socket"] not in self.behaviour["sockets"]:
                error = {"error": "UnknownSocket", "message": "can't: no such socket; did you mean 'web'?", "exit": 4}
                self.answer(route, request, {"ok": False, **error})
                return
            self.answer(
                route, request, {"ok": True, "ticket": self.issue(request["socket"], pid).hex(), "socket": "web"}
            )
            self.exit_at("ticket")
        elif op == "inherit":
            names = request.get("sockets") or list(self.behaviour["sockets"])
            tickets = [{"socket": name, "ticket": self.issue(name, pid).hex(), "inode": 0} for name in names]
            self.answer(route, request, {"ok": True, **self.names(), "notify": "/run/notify", "tickets": tickets})
            self.exit_at("ticket")
        elif op == "status":
            self.answer(route, request, {"ok": True, "status": self.behaviour["status"]})
        elif op == "doctor":
            self.answer(route, request, {"ok": True, "findings": self.behaviour["findings"]})
        elif op == "programs":
            self.answer(
                route, request, {"ok": True, **{name: self.behaviour[name] for name in ("programs", "stopped")}}
            )
        elif op == "reload" and "reloads" in self.behaviour:
            self.answer(route, request, {"ok": False, **self.behaviour["reloads"].pop(0)})
        elif op == "reload":
            for event in self.behaviour.get("events", ()):
                self.answer(route, request, {"event": event})
            if self.behaviour.get("await_cancel"):
                self.waiting.append((route, request["id"]))
            else:
                self.answer(route, request, {"ok": True, **self.behaviour["final"]})
        elif op == "cancel":
            self.answer(route, request, {"ok": True})
            for waiting, number in self.waiting:
                self.answer(waiting, {"id": number}, {"ok": True, **self.behaviour["final"]})
        else:
            self.answer(route, request, {"ok": True})

    def names(self) -> dict[str, str]:
        return {"program": "web", "process": "web:1"}

    def answer(self, route: bytes, request: dict[str, Any], fields: dict[str, Any]) -> None:
        self.router.send_multipart([route, json.dumps({"id": request["id"], **fields}).encode()])

    def issue(self, name: str, pid: int) -> bytes:
        ticket = secrets.token_bytes(16)
        self.tickets[ticket] = (name, pid)
        return ticket

    def stays(self, peer: socket.socket) -> bool:
        """Whether a visitor of the door is still there after what it has said."""
        try:
            return self.visit(peer)
        except ConnectionError:  # it was out of patience
            return False

    def visit(self, peer: socket.socket) -> bool:
        """What a visitor of the door says; whether it stays."""
        packet = peer.recv(4096)
        if not packet:
            return False
        kind, tickets = packet[:1], [packet[at : at + 16] for at in range(1, len(packet), 16)]
        if "garbage_door" in self.behaviour:
            peer.send(self.behaviour["garbage_door"].encode())
        elif kind == b"H":
            peer.send(b"+" + json.dumps(self.hello()).encode())
        elif kind == b"I":  # it is an old one
            refusal = {"error": "ProtocolError", "message": "can't read what was said at the door", "exit": 1}
            peer.send(b"-" + json.dumps(refusal).encode())
        elif kind == b"S":  # it knows nobody: all need tickets
            refusal = {"error": "TicketRefused", "message": "can't: a ticket is needed", "exit": 7}
            peer.send(b"-" + json.dumps(refusal).encode())
        elif kind == b"A":
            self.say("acknowledged", len(self.shown.get(peer.fileno(), ())))
            spent = [self.tickets.pop(ticket)[0] for ticket in self.shown.pop(peer.fileno(), ())]
            self.acknowledged(spent)
        else:
            self.exit_at("redeem")
            pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            known = [self.tickets.get(ticket, ("", 0)) for ticket in tickets]
            if self.refusals or any(owner not in (pid, -1) for _, owner in known):
                self.refusals = max(0, self.refusals - 1)
                refusal = {"error": "TicketRefused", "message": "can't redeem the ticket: it is unknown", "exit": 7}
                peer.send(b"-" + json.dumps(refusal).encode())
                return True
            names = [name for name, _ in known][: self.behaviour.get("most", 16)]
            fds = array.array("i", [self.descriptor(name) for name in names])
            rights = [] if self.behaviour.get("no_descriptor") else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            self.shown[peer.fileno()] = tickets
            self.say("redeemed", *names)
            peer.sendmsg([b"+" + "\0".join(names).encode()], rights)
        return True

    def hello(self) -> dict[str, Any]:
        return {
            "v": 1,
            "pid": os.getpid(),
            "state": self.behaviour.get("state", "serving"),
            "mistakes": self.behaviour.get("mistakes", []),
            "uid_known": self.behaviour.get("uid_known", True),
        }


if __name__ == "__main__":
    Pretender(json.loads(sys.argv[1])).run()
