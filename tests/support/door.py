"""The dialogue and the door, spoken by hand from docs/protocol.md: what an attacker, or another language, would send.

Nothing here imports sockshare: a mistake that the library and the broker share would hide from a test that used both.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import zmq

TIMEOUT = 12.0  # s


class Reply(NamedTuple):
    """What the door answered: its first packet, and the inode of each descriptor that came with it."""

    text: str
    inodes: list[int]

    @property
    def granted(self) -> bool:
        """Whether a descriptor came."""
        return bool(self.inodes)


class Dialogue:
    """A DEALER on the broker's ``ipc://``."""

    def __init__(self, directory: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.reconnect_ivl = 5
        self.socket.connect(f"ipc://{directory}/broker")
        self.last = 0

    def send(self, op: str, **fields: Any) -> int:
        """Send a request and return its id."""
        self.last += 1
        self.socket.send(json.dumps({"v": 1, "id": self.last, "op": op, **fields}).encode())
        return self.last

    def ask(self, op: str, timeout: float = TIMEOUT, **fields: Any) -> dict[str, Any]:
        """The answer to a request; it is sent again each second, as the protocol wants it."""
        identity = self.send(op, **fields)
        for _ in range(int(timeout)):
            while self.socket.poll(1000):
                answer: dict[str, Any] = json.loads(self.socket.recv())
                if answer.get("id") == identity and "event" not in answer:
                    return answer
            self.socket.send(json.dumps({"v": 1, "id": identity, "op": op, **fields}).encode())
        raise TimeoutError(f"can't {op}: no answer in {timeout:g} s")

    def close(self) -> None:
        """Leave."""
        self.context.destroy(linger=0)


def knock(directory: str) -> socket.socket:
    """A connection to the door."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(f"{directory}/door")
    except BaseException:
        sock.close()
        raise
    return sock


def read(sock: socket.socket) -> Reply:
    """One packet; its descriptors are looked at and closed."""
    try:
        data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return Reply("(reset)", [])
    received: array.array[int] = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
    inodes = [os.fstat(fd).st_ino for fd in received]
    for fd in received:
        os.close(fd)
    return Reply(data.decode(errors="replace"), inodes)


def redeem(directory: str, tickets: list[bytes], acknowledge: bool = True) -> Reply:
    """Show tickets at the door."""
    with knock(directory) as sock:
        try:
            sock.send(b"R" + b"".join(tickets))
            reply = read(sock)
            if acknowledge and reply.granted:
                sock.send(b"A")
        except (BrokenPipeError, ConnectionResetError):
            return Reply("(closed)", [])
    return reply


def visit(directory: str, packet: str) -> Reply:
    """Say *packet* at the door; the broker has closed the connection after a good answer."""
    with knock(directory) as sock:
        sock.send(packet.encode())
        reply = read(sock)
        if reply.granted:
            assert read(sock) == Reply("", [])
    return reply


def redeem_as(directory: str, tickets: list[bytes], uid: int | None) -> Reply:
    """Show tickets at the door from a forked process, of another uid if one is given."""
    return in_child(lambda: redeem(directory, tickets), uid)


def in_child(attempt: Callable[[], Reply], uid: int | None = None) -> Reply:
    """What a forked process, of another uid if one is given, gets."""
    inward, outward = os.pipe()
    pid = os.fork()
    if pid == 0:  # no ZeroMQ in here: its sockets do not survive a fork
        status = 1
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            os.write(outward, json.dumps(attempt()).encode())
            status = 0
        except BaseException as error:  # a forked child reports, and must not run the parent's code
            os.write(outward, json.dumps([f"({type(error).__name__}: {error})", []]).encode())
        finally:
            os._exit(status)
    os.close(outward)
    with os.fdopen(inward) as pipe:
        text, inodes = json.load(pipe)
    os.waitpid(pid, 0)
    return Reply(text, inodes)


def leave(directory: str, moment: str) -> None:
    """Take part in a hand-out up to *moment*, then be gone without a word."""
    if moment == "after_connect":
        socket_, unused = knock(directory), Dialogue(directory)
        del socket_, unused
        os._exit(0)
    dialogue = Dialogue(directory)
    if moment == "after_asking":
        dialogue.send("ticket", socket="web")
        dialogue.socket.poll(2)  # so that libzmq has sent it
        os._exit(0)
    ticket = bytes.fromhex(dialogue.ask("ticket", socket="web")["ticket"])
    if moment == "after_ticket":
        os._exit(0)
    sock = knock(directory)
    if moment == "before_redeem":
        os._exit(0)
    sock.send(b"R" + ticket)
    if moment == "after_redeem":
        os._exit(0)
    read(sock)
    if moment == "before_acknowledge":
        os._exit(0)
    sock.send(b"A")
    os._exit(0)


MOMENTS = (
    "after_connect",
    "after_asking",
    "after_ticket",
    "before_redeem",
    "after_redeem",
    "before_acknowledge",
    "after_acknowledge",
)

if __name__ == "__main__":
    leave(str(Path(sys.argv[1])), sys.argv[2])
