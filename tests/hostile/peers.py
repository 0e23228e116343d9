"""Hostile peers: twenty ways to burden a broker, its host and its manager, each a forked process of another uid.

``stranger`` is a uid that the manager runs nothing as; ``admitted`` is one that it runs a program as, so that the
broker hears what it says.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import zmq

STRANGER, ADMITTED = 31001, 65534
#: Connections that one peer holds open.
HELD = 100
#: Packets between two looks at whether the test is over.
BURST = 50

Work = Callable[[], object]


def _pause(seconds: float) -> None:
    """Be no busier than a peer that waits for nothing: two cores are shared by twenty of them and what is measured."""
    time.sleep(seconds)


def _connect(path: str, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.setblocking(False)
    with suppress(OSError):
        sock.connect(path)
    return sock


def _dealer(runtime: str) -> zmq.Socket[bytes]:
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(f"ipc://{runtime}/broker")
    return dealer


def _lingering() -> socket.socket:
    """A TCP connection whose last close blocks for an hour: unsent data, and a peer that does not read."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        sock = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    _UNREAD.append(peer)
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sock


_UNREAD: list[socket.socket] = []


def _notify_sockets(runtime: str) -> list[str]:
    """The notify sockets: their directory can't be listed, but everybody sees which processes there are."""
    return [
        path for pid in os.listdir("/proc") if pid.isdecimal() and os.path.exists(path := f"{runtime}/notify/{pid}")
    ]


def _say(runtime: str, *datagrams: bytes, ancillary: Callable[[], list[int]] = list) -> Work:
    def work() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            for path in _notify_sockets(runtime):
                for datagram in datagrams:
                    for _ in range(BURST):
                        try:
                            fds = ancillary()
                            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
                            sock.sendmsg([datagram], rights if fds else [], 0, path)
                        except OSError:
                            break
        _pause(0.005)

    return work


def _hold(path: str, kind: int, first: bytes = b"") -> Work:
    """Keep connections open that say *first* and nothing more, and open new ones for the oldest."""
    held: list[socket.socket] = []

    def work() -> None:
        held.append(_connect(path, kind))
        with suppress(OSError):
            if first:
                held[-1].send(first)
        if len(held) > HELD:
            held.pop(0).close()
        _pause(0.001)

    return work


def _pour(path: str, kind: int, packet: Callable[[], bytes]) -> Work:
    """One connection after the other, each full of packets; no answer is read."""
    open_: list[socket.socket] = []

    def work() -> None:
        if not open_:
            open_.append(_connect(path, kind))
        try:
            for _ in range(BURST):
                open_[0].send(packet())
        except BlockingIOError:
            _pause(0.001)
        except OSError:
            open_.pop().close()
            _pause(0.001)

    return work


def _pour_descriptors(path: str) -> Work:
    held = [_lingering() for _ in range(4)]

    def work() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.setblocking(False)
            with suppress(OSError):
                sock.connect(path)
                rights = struct.pack("4i", *(one.fileno() for one in held))
                sock.sendmsg([b"H"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        _pause(0.001)

    return work


def _ask(runtime: str, *requests: Mapping[str, object], text: Callable[[], bytes] | None = None) -> Work:
    """Requests whose answers nobody reads, on one ZeroMQ connection."""
    dealers: list[zmq.Socket[bytes]] = []
    ids = itertools.count(1)

    def work() -> None:
        if not dealers:
            dealers.append(_dealer(runtime))
        try:
            for request in requests:
                dealers[0].send(json.dumps({"v": 1, "id": next(ids), **request}).encode(), zmq.NOBLOCK)
            if text is not None:
                dealers[0].send(text(), zmq.NOBLOCK)
        except zmq.Again:
            _pause(0.001)

    return work


def _multipart(runtime: str) -> Work:
    """A message that never ends."""
    dealers: list[zmq.Socket[bytes]] = []

    def work() -> None:
        if not dealers:
            dealers.append(_dealer(runtime))
        with suppress(zmq.Again):
            for _ in range(BURST):
                dealers[0].send(b"x" * 512, zmq.SNDMORE | zmq.NOBLOCK)
        _pause(0.0005)

    return work


def _come_and_go(runtime: str) -> Work:
    def work() -> None:
        dealer = _dealer(runtime)
        with suppress(zmq.Again):
            dealer.send(b'{"v":1,"id":1,"op":"status"}', zmq.NOBLOCK)
        dealer.close(linger=0)
        _pause(0.002)

    return work


def hostile(runtime: str) -> dict[str, tuple[int, Callable[[], Work]]]:
    """Every peer, by name: its uid, and what makes its work once it is in a process of its own."""
    stream, packets = socket.SOCK_STREAM, socket.SOCK_SEQPACKET
    key = "k" * 32
    asked: dict[str, list[Mapping[str, object]]] = {
        "status flood": [{"op": "status"}],
        "doctor flood": [{"op": "doctor"}],
        "ticket flood": [{"op": "ticket", "socket": "web"}, {"op": "ticket", "socket": "web", "pid": 1}],
        "attach flood": [{"op": "attach"}, {"op": "inherit"}, {"op": "inherit", "sockets": ["web"] * 500}],
        "claim flood": [
            {"op": "claim", "socket": "web", "key": "0" * 32, "cooperate": True},
            {"op": "release", "socket": "web", "key": "0" * 32, "epoch": 1},
        ],
        "hand-over flood": [
            {"op": "receive", "key": key},
            {"op": "introduce", "to": "web", "key": key},
            {"op": "retiring", "key": key},
            {"op": "retired"},
            {"op": "ready", "status": "x" * 1000},
        ],
        "command flood": [
            {"op": "reload", "program": "web", "key": key},
            {"op": "cancel", "program": "web", "key": key},
            {"op": "move", "socket": "web", "process": "web"},
            {"op": "quiesce", "process": "web"},
            {"op": "wake", "process": "web"},
        ],
    }
    peers: dict[str, tuple[int, Callable[[], Work]]] = {
        "silent at the door": (STRANGER, lambda: _hold(f"{runtime}/door", packets)),
        "silent at the endpoint": (STRANGER, lambda: _hold(f"{runtime}/broker", stream)),
        "half a greeting": (ADMITTED, lambda: _hold(f"{runtime}/broker", stream, b"\xff" + bytes(8) + b"\x7f")),
        "garbage at the door": (STRANGER, lambda: _pour(f"{runtime}/door", packets, lambda: os.urandom(64))),
        "garbage at the endpoint": (ADMITTED, lambda: _pour(f"{runtime}/broker", stream, lambda: os.urandom(4096))),
        "hello flood": (STRANGER, lambda: _pour(f"{runtime}/door", packets, lambda: b"H")),
        "guessed tickets": (ADMITTED, lambda: _pour(f"{runtime}/door", packets, lambda: b"R" + os.urandom(16))),
        "lingering descriptors at the door": (STRANGER, lambda: _pour_descriptors(f"{runtime}/door")),
        "lingering descriptors by notify": (
            STRANGER,
            lambda: _say(runtime, b"FDSTORE=1", ancillary=lambda: [_kept().fileno()]),
        ),
        "forged READY": (STRANGER, lambda: _say(runtime, b"READY=1", b"READY=1\nSTATUS=forged")),
        "STATUS flood": (ADMITTED, lambda: _say(runtime, b"STATUS=" + b"x" * 2000)),
        "endless multipart": (ADMITTED, lambda: _multipart(runtime)),
        "no requests": (ADMITTED, lambda: _ask(runtime, text=lambda: os.urandom(200))),
        **{
            name: (ADMITTED, lambda requests=requests: _ask(runtime, *requests))  # type: ignore[misc]
            for name, requests in asked.items()
        },
    }
    return peers


def _kept() -> socket.socket:
    if not _LINGERING:
        _LINGERING.append(_lingering())
    return _LINGERING[0]


_LINGERING: list[socket.socket] = []


def _stand_back() -> None:
    """Leave the processors to others: what is measured is our limits, not who is first at two of them."""
    os.nice(19)
    os.setsid()
    with suppress(FileNotFoundError), open("/proc/self/autogroup", "w") as file:
        file.write("19")  # sessions share the processors, and nice values count within each (sched(7))


class Peer:
    """One hostile process; it ends when it is told to, and with whoever started it."""

    def __init__(self, name: str, uid: int, make: Callable[[], Work], elder: Sequence[Peer]) -> None:
        self.name = name
        reading, self._writing = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(reading)
            return
        try:
            for one in (self, *elder):  # each ends when its pipe has no other end left
                os.close(one._writing)
            _stand_back()
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.set_blocking(reading, False)
            work = make()
            while True:
                with suppress(BlockingIOError):
                    if not os.read(reading, 1):
                        break
                work()
        finally:
            os._exit(0)

    def stop(self) -> None:
        """End it."""
        os.close(self._writing)
        os.waitpid(self.pid, 0)


@contextmanager
def peers(runtime: str) -> Iterator[list[Peer]]:
    """All hostile peers, at work."""
    started: list[Peer] = []
    try:
        for name, (uid, make) in hostile(runtime).items():
            started.append(Peer(name, uid, make, started))
        yield started
    finally:
        for one in started:
            one.stop()
