"""A pretender that grants registrations, of an exclusive socket each: in line order, through real gates.

Beside what `pretender.py` knows of, BEHAVIOUR has ``gates`` (descriptors of gates, one for each claim to come) and
``journal`` (a file: who has which gate and epoch; the next broker reads it), and the odd things:

* ``lost``: the gates that the journal speaks of are lost, and have to be brought back;
* ``exit_at``: dies also at ``claim`` (told of one), ``gate`` (its ticket was sent), ``present`` and ``release``;
* ``slip``: the first release of a claim that waits finds it granted meanwhile;
* ``tally``: turns are taken, and what is taken is to be told;
* ``deaf_to``: so many claims are not answered at first.

An order on stdin is a line: ``revoke NAME`` (the holder lets go, and waits at the end of the line), ``hold`` (nobody is
granted anything), ``go`` (on), ``cancel NAME`` (the holder's claim ends), ``tally`` (says what was told since).
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

from sockshare.kernel.descriptors import receive
from sockshare.kernel.gate import Gate

from .pretender import Pretender


class Standing:
    """One claim."""

    def __init__(self, key: str, name: str, gate: int | None) -> None:
        self.key = key
        self.name = name
        self.gate = None if gate is None else Gate(os.dup(gate))
        self.route: bytes | None = None
        self.request: dict[str, Any] = {}
        self.epoch = 0  # while it holds
        self.ready = False  # the other side has its gate


class Granter(Pretender):
    """The broker."""

    def __init__(self, behaviour: dict[str, Any]) -> None:
        super().__init__(behaviour)
        self.journal = Path(behaviour["journal"])
        self.line: list[Standing] = []
        self.paused = False
        self.deaf_to = int(behaviour.get("deaf_to", 0))
        self.slips = bool(behaviour.get("slip"))
        self.presenting: dict[int, str] = {}
        self.tally = os.eventfd(0)
        record: dict[str, Any] = {"used": 0, "line": []}
        if self.journal.exists():
            record = json.loads(self.journal.read_text())
        self.used = int(record["used"])
        for key, name, number, epoch in record["line"]:
            standing = Standing(key, name, None if behaviour.get("lost") else behaviour["gates"][number])
            standing.epoch = epoch
            self.line.append(standing)
            if standing.gate is not None:
                standing.gate.sweep(self.descriptor(name))
                if epoch:
                    standing.gate.arm(self.descriptor(name))
        self.numbers = {key: number for key, _, number, _ in record["line"]}

    def save(self) -> None:
        """Write the journal."""
        lines = [[one.key, one.name, self.numbers[one.key], one.epoch] for one in self.line]
        aside = self.journal.with_suffix(".new")
        aside.write_text(json.dumps({"used": self.used, "line": lines}))
        aside.rename(self.journal)

    def watch(self, poll: select.poll) -> None:
        poll.register(0, select.POLLIN)

    def obey(self, line: str) -> None:
        word, _, name = line.strip().partition(" ")
        if word == "tally":
            self.say("taken", os.eventfd_read(self.tally) if select.select([self.tally], [], [], 0)[0] else 0)
            self.say("obeyed", word)
            return
        self.paused = word in ("hold", "revoke")
        for standing in [one for one in self.line if one.epoch and one.name == name]:
            if standing.gate is None:  # it has to obey first
                self.tell(standing, "revoked")
                continue
            self.disarm(standing)
            if word == "cancel":
                self.line.remove(standing)
                self.tell(standing, "cancelled", reason="another process has registered")
                self.answer_claim(standing, {"ok": True, "released": True})
            else:
                self.line.append(self.line.pop(self.line.index(standing)))
                self.tell(standing, "revoked")
        self.grant()
        self.say("obeyed", word)

    def descriptor(self, name: str) -> int:
        for standing in self.line:
            if name == f"gate:{standing.key}" and standing.gate is not None:
                return standing.gate.fileno()
        return super().descriptor(name)

    def acknowledged(self, names: list[str]) -> None:
        for standing in self.line:
            if f"gate:{standing.key}" in names:
                standing.ready = True
        self.grant()

    def hear(self, frames: list[bytes]) -> None:
        request = json.loads(frames[-1])
        oddly = request["op"] in self.behaviour.get("errors", {}) or "garbage_dialogue" in self.behaviour
        if request["op"] not in ("claim", "release") or oddly:
            super().hear(frames)
            return
        self.say(
            request["op"], json.dumps({name: request[name] for name in sorted(request) if name not in ("v", "op")})
        )
        if request["op"] == "claim":
            self.exit_at("claim")
            if self.deaf_to:
                self.deaf_to -= 1
                return
            self.claim(frames[0], request)
        else:
            self.exit_at("release")
            self.release(frames[0], request)

    def claim(self, route: bytes, request: dict[str, Any]) -> None:
        key, name = request["key"], request["socket"]
        found = [one for one in self.line if one.key == key]
        if not found:
            found = [Standing(key, name, None if request["cooperate"] else self.behaviour["gates"][self.used])]
            self.numbers[key] = self.used
            self.used += 1
            self.line.append(found[0])
        (standing,) = found
        standing.route, standing.request = route, request
        if standing.gate is None and not request["cooperate"]:
            self.answer_claim(standing, {"event": {"present": True}})
        elif request["cooperate"] or request["gate"]:
            standing.ready = True
        else:
            ticket = self.issue(f"gate:{key}", -1).hex()
            self.answer_claim(standing, {"event": {"gate": ticket}})
            self.exit_at("gate")
        if self.behaviour.get("tally"):
            self.answer_claim(standing, {"event": {"tally": True}})
        if standing.epoch and standing.ready:
            self.tell(standing, "held")
        else:
            self.tell(standing, "waiting")
        self.save()
        self.grant()

    def release(self, route: bytes, request: dict[str, Any]) -> None:
        found = [one for one in self.line if one.key == request["key"]]
        if found and self.slips:
            self.slips = False
            self.give(found[0])
        released = bool(found) and found[0].epoch == request["epoch"]
        if released:
            (standing,) = found
            self.disarm(standing)
            self.line.remove(standing)
            if standing.gate is not None:
                standing.gate.close()
            self.answer_claim(standing, {"ok": True, "released": True})
        self.answer(route, request, {"ok": True, "released": released})
        self.say("released" if released else "kept", request["epoch"])
        self.grant()

    def grant(self) -> None:
        self.save()
        for name in self.behaviour["sockets"]:
            line = [one for one in self.line if one.name == name]
            able = [one for one in line if one.ready]
            if able and not self.paused and not any(one.epoch for one in line):
                self.give(able[0])

    def give(self, standing: Standing) -> None:
        standing.epoch = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.save()
        if standing.gate is not None:
            standing.gate.arm(self.descriptor(standing.name))
        self.tell(standing, "held")

    def disarm(self, standing: Standing) -> None:
        if standing.gate is not None:
            standing.gate.disarm()
        standing.epoch = 0

    def tell(self, standing: Standing, what: str, reason: str = "") -> None:
        self.answer_claim(standing, {"event": {"registration": what, "epoch": standing.epoch, "reason": reason}})
        self.say(what, standing.key)

    def answer_claim(self, standing: Standing, fields: dict[str, Any]) -> None:
        if standing.route is not None:
            self.answer(standing.route, standing.request, fields)

    def visit(self, peer: socket.socket) -> bool:
        if peer.fileno() in self.presenting:
            key = self.presenting.pop(peer.fileno())
            _, fds = receive(peer, 10, 1)
            self.exit_at("present")
            standing = next(one for one in self.line if one.key == key)
            standing.gate = Gate(fds[0])
            standing.gate.sweep(self.descriptor(standing.name))
            standing.ready = True
            if standing.epoch:
                standing.gate.arm(self.descriptor(standing.name))
            peer.send(b"+")
            self.say("presented", key)
            self.tell(standing, "held" if standing.epoch else "waiting")
            self.grant()
            return False
        packet = peer.recv(4096, socket.MSG_PEEK)
        if packet.startswith(b"Stally:"):
            self.say("tallies", packet[7:].decode())
            socket.send_fds(peer, [b"+" + packet[1:]], [self.tally])
            return False
        if packet[:1] == b"P":
            peer.recv(4096)
            self.presenting[peer.fileno()] = packet[1:].decode()
            peer.send(b"+")
            return True
        return super().visit(peer)


if __name__ == "__main__":
    Granter(json.loads(sys.argv[1])).run()
