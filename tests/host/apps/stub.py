"""A broker as far as the link goes: says by `start` what its hello was, and does what the answer tells it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from typing import Any

from sockshare.kernel.channel import Channel


def main() -> None:
    link = Channel(socket.socket(fileno=int(sys.argv[sys.argv.index("--link-fd") + 1])))
    number = 0
    pending: list[tuple[dict[str, Any], list[int]]] = []

    def hear() -> tuple[dict[str, Any], list[int]]:
        while not pending:
            select.select([link.fileno()], [], [])
            pending.extend(link.receive())
        return pending.pop(0)

    def ask(verb: str, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        nonlocal number
        number += 1
        link.send({"type": "ask", "id": number, "verb": verb, **fields})
        while True:
            message, fds = hear()
            if message["type"] == "answer":
                assert message["id"] == number
                return message, fds
            told.append(message)

    def flush() -> None:
        while link.wants_write:  # what was said counts once the socket has it
            select.select([], [link.fileno()], [])
            link.flush()

    hello, fds = hear()
    told: list[dict[str, Any]] = []
    report: dict[str, Any] = {"pid": os.getpid(), "hello": hello, "inodes": [os.fstat(fd).st_ino for fd in fds]}
    while True:
        order, _ = ask("start", program=json.dumps(report))
        report = {"pid": os.getpid(), "told": told}
        if "journal" in order:
            for key, record in order["journal"]:
                link.send({"type": "journal", "key": key, "record": record})
            flush()
        for key in order.get("keep", ()):  # a pipe each, whose reading end is kept
            reading, writing = os.pipe()
            os.write(writing, key.encode())
            link.send({"type": "keep", "key": key}, [reading] * order.get("copies", 1))
            report.setdefault("kept", []).append(os.fstat(reading).st_ino)
            flush()  # while the pipe is open: the link sends what its number means then
            os.close(reading)
            os.close(writing)
        for key in order.get("forget", ()):
            link.send({"type": "forget", "key": key})
        if "ask" in order:
            answer, fds = ask(**order["ask"])
            report["answer"] = answer
            report["inodes"] = [os.fstat(fd).st_ino for fd in fds]
            report["said"] = []
            for fd in fds:
                with socket.socket(fileno=fd) as sock:
                    sock.setblocking(False)
                    try:
                        report["said"].append(sock.recv(4096).decode())
                    except BlockingIOError:
                        report["said"].append("")
        if "do" in order:
            if order["do"] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if order["do"] == "garble":
                os.write(link.fileno(), b"nonsense\n")
            if order["do"] == "hang up":
                link.close()
            signal.pause()


main()
