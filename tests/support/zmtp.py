"""A hostile peer of the broker's ZeroMQ socket: ZMTP 3.0 (RFC 23) by hand, where libzmq would keep within its bounds.

``python -m tests.support.zmtp DIRECTORY WHAT SECONDS [UID]`` sends WHAT for so long, as that user, and reads no answer.
WHAT is an operation, ``garbage``, ``endless`` (a message that never ends, of empty parts) or ``large`` (of large ones).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
#: Requests in one write.
_MANY = 200


def connect(directory: str) -> socket.socket:
    """A connection after its handshake, as a DEALER."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(15)
    sock.connect(f"{directory}/broker")
    sock.sendall(_GREETING)
    heard = b""
    while len(heard) < 64:
        heard += sock.recv(64 - len(heard))
    ready = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")
    sock.sendall(b"\x04" + bytes([len(ready)]) + ready)
    return sock


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def frame(data: bytes, *, more: bool = False) -> bytes:
    """One frame."""
    if len(data) < 256:
        return bytes([more, len(data)]) + data
    return bytes([more | 2]) + struct.pack(">Q", len(data)) + data


def requests(op: str, first: int) -> bytes:
    """Some requests with every field that an operation could want."""
    fields = {"v": 1, "op": op, "socket": "web", "program": "web", "to": "web", "process": "web"}
    return b"".join(
        frame(json.dumps({**fields, "id": number, "key": f"{number:032x}"}).encode())
        for number in range(first, first + _MANY)
    )


def main() -> None:
    directory, what, seconds, *uid = sys.argv[1:]
    for number in map(int, uid):  # here: another user may not be let to our interpreter
        os.setgroups([])
        os.setgid(number)
        os.setuid(number)
    fixed = {
        "garbage": frame(b"\xff nonsense") * _MANY,
        "endless": frame(b"", more=True) * 32768,
        "large": frame(bytes(60000), more=True),
    }
    until, number, unsent = time.monotonic() + float(seconds), 0, b""
    try:
        sock = connect(directory)
        print("connected", flush=True)
        sock.settimeout(0.1)
        while time.monotonic() < until:
            if not unsent:
                unsent = fixed.get(what) or requests(what, number)
                number += _MANY
            try:
                unsent = unsent[sock.send(unsent) :]
            except TimeoutError:
                pass
    except OSError:
        pass  # the broker has ended
    os._exit(0)


if __name__ == "__main__":
    main()
