"""A managed process whose children hand connections to each other while it kills them, and the broker, at random.

It reads ``killing.json`` in ``APP_DIRECTORY`` (how many connections, how many hand-overs a kill), is the client of all
of them, and leaves ``account.json``. A connection says who owns it: ``G`` from a giver that has it back, ``R`` from a
receiver.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[3]))
import sockshare
from sockshare.client import door

HOME = Path(os.environ["APP_DIRECTORY"])
RUNTIME = os.environ["SOCKSHARE_ENDPOINT"]
AT_ONCE = 48  # connections of this process
LONGEST = 20.0  # s for one of them


def giver(listener: socket.socket, batched: bool) -> None:
    """Accept, read a number, hand over with the number as state; what it has back it ends itself."""
    with sockshare.attach() as share:
        while True:
            connections: list[tuple[socket.socket, bytes]] = []
            while not connections or (batched and len(connections) < 16 and _waits(listener)):
                connection, _ = listener.accept()
                connection.settimeout(None)
                connections.append((connection, connection.recv(4, socket.MSG_WAITALL)))
            kept = share.hand_over_many(connections, to="killing", timeout=3.0)
            for one in kept:
                one.connection.send(b"G")
                one.connection.close()


def _waits(listener: socket.socket) -> bool:
    listener.setblocking(True)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        return bool(selector.select(0))


def receiver(listener: socket.socket) -> None:
    """Receive, say so with the number, end it."""
    listener.close()
    with sockshare.attach() as share:
        while True:
            connection, state = share.receive()
            connection.send(b"R" + state)
            connection.close()


class Role(NamedTuple):
    """What a child does."""

    name: str
    play: Callable[[socket.socket], None]


class Play:
    """The parent: clients, deaths, and the account."""

    def __init__(self, count: int, every: int, seed: int) -> None:
        self.count, self.every = count, every
        self.random = random.Random(seed)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = self.listener.getsockname()
        self.roles: dict[int, Role] = {}
        self.selector = selectors.DefaultSelector()
        self.number = 0
        self.open: dict[socket.socket, tuple[int, float, bytearray]] = {}
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.kills: Counter[str] = Counter()

    def spawn(self, role: Role) -> None:
        pid = os.fork()
        if pid:
            self.roles[pid] = role
            return
        try:
            self.selector.close()
            for sock in self.open:
                sock.close()
            role.play(self.listener)
        finally:
            os._exit(1)

    def begin(self) -> None:
        """Two givers, one of them in batches, and three receivers."""
        for play in (partial(giver, batched=False), partial(giver, batched=True)):
            self.spawn(Role("giver", play))
        for _ in range(3):
            self.spawn(Role("receiver", receiver))

    def run(self) -> None:
        """All connections, with a death now and then."""
        next_death = self.every
        while self.number < self.count or self.open:
            while self.number < self.count and len(self.open) < AT_ONCE:
                self.connect()
            self.step()
            if sum(self.outcomes.values()) >= next_death and self.number < self.count:
                next_death += self.every
                self.kill()

    def connect(self) -> None:
        sock = socket.create_connection(self.address)
        sock.send(struct.pack("<I", self.number))
        sock.setblocking(False)
        self.open[sock] = (self.number, time.monotonic(), bytearray())
        self.selector.register(sock, selectors.EVENT_READ)
        self.number += 1

    def step(self) -> None:
        for key, _ in self.selector.select(0.05):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            number, _, heard = self.open[sock]
            try:
                data = sock.recv(64)
            except ConnectionResetError:  # closed with its number unread: clean enough
                data = b""
            heard += data
            if not data:
                self.end(sock, number, bytes(heard))
        now = time.monotonic()
        for sock, (number, began, heard) in list(self.open.items()):
            if now - began > LONGEST:
                self.wrong.append(f"connection {number} has no end after {LONGEST} s; it said {bytes(heard)!r}")
                self.end(sock, number, b"")

    def end(self, sock: socket.socket, number: int, heard: bytes) -> None:
        self.selector.unregister(sock)
        sock.close()
        del self.open[sock]
        if heard == b"R" + struct.pack("<I", number):
            self.outcomes["received"] += 1
        elif heard == b"G":
            self.outcomes["kept"] += 1
        elif not heard:
            self.outcomes["closed"] += 1
        else:
            self.outcomes["wrong"] += 1
            self.wrong.append(f"connection {number} said {heard!r}: two owners, or another's state")

    def kill(self) -> None:
        """Someone, at a random moment of the next hand-overs."""
        time.sleep(self.random.random() * 0.003)
        who = self.random.choice(["giver", "giver", "receiver", "receiver", "broker"])
        self.kills[who] += 1
        if who == "broker":
            os.kill(door.hello(RUNTIME, time.monotonic() + 10).pid, signal.SIGKILL)
            return
        pid = self.random.choice([pid for pid, role in self.roles.items() if role.name == who])
        role = self.roles.pop(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.spawn(role)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def settled(play: Play) -> dict[str, list[int]]:
    """Everybody's descriptors, when they are the same twice in a row after everything has ended."""

    def look() -> dict[str, list[int]]:
        broker = door.hello(RUNTIME, time.monotonic() + 10).pid
        return {"children": sorted(descriptors(pid) for pid in play.roles), "broker": [descriptors(broker)]}

    before, deadline = look(), time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.3)
        now = look()
        if now == before:
            return now
        before = now
    return before


def warm_up(play: Play, count: int) -> None:
    """Hand-overs without deaths, so that everybody knows everybody."""
    target, play.count, every = play.count, count, play.every
    play.every = 10**9
    play.run()
    play.count, play.every, play.number = target, every, 0
    play.outcomes.clear()


def main() -> None:
    """Play it."""
    with sockshare.attach() as share:
        share.ready()
        told = json.loads((HOME / "killing.json").read_text())
        play = Play(told["count"], told["every"], told["seed"])
    # From here on without threads: children are forked.
    play.begin()
    warm_up(play, 100)
    before = settled(play)
    began = time.monotonic()
    play.run()
    seconds = time.monotonic() - began
    # The same number of each again, and everybody knows everybody.
    outcomes = Counter(play.outcomes)
    warm_up(play, 100)
    after = settled(play)
    account = {
        "outcomes": outcomes,
        "kills": play.kills,
        "wrong": play.wrong,
        "before": before,
        "after": after,
        "seconds": round(seconds, 2),
    }
    (HOME / "account.part").write_text(json.dumps(account))
    (HOME / "account.part").rename(HOME / "account.json")
    for pid in play.roles:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    signal.pause()


main()
