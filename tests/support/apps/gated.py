"""A process that serves through a gate: ``gated.py HOW GATE LISTENER``, HOW is epoll, poll or asyncio.

It says ``ready`` once it watches, and answers requests as HTTP with its pid. Asked ``accepted`` on stdin, it
says how many it has accepted. It ends with its stdin.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import threading

from sockshare.kernel.gate import Gate

accepted = 0


def answer(connection: socket.socket) -> None:
    body = str(os.getpid()).encode()
    with connection:
        connection.settimeout(10)
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)


def ready(gate: Gate, listener: socket.socket) -> None:
    global accepted
    while gate.poll():
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        accepted += 1
        answer(connection)


def serve(how: str, gate: Gate, listener: socket.socket) -> None:
    if how == "asyncio":
        loop = asyncio.new_event_loop()
        loop.add_reader(gate.fileno(), ready, gate, listener)
        loop.call_soon(print_ready)
        loop.run_forever()
    watch = select.epoll() if how == "epoll" else select.poll()
    watch.register(gate.fileno(), select.EPOLLIN)
    print_ready()
    while True:
        watch.poll()
        ready(gate, listener)


def print_ready() -> None:
    print("ready", flush=True)


def obey() -> None:
    for line in sys.stdin:
        if line.strip() == "accepted":
            print(accepted, flush=True)
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=obey, daemon=True).start()
    serve(sys.argv[1], Gate(int(sys.argv[2])), socket.socket(fileno=int(sys.argv[3])))
