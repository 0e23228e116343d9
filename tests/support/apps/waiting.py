"""A server that waits for connections by one call or another: `waiting.py CALL LISTENER`.

It answers every connection with its pid. It says ``ready`` on stdout before it waits first, and ends when stdin does
(``single`` does not: it is to be ended by a signal).
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading


def end_with_stdin() -> None:
    """Whoever started this has gone, or is done."""
    sys.stdin.buffer.read()
    os._exit(0)


def wait(call: str, listener: socket.socket, pipe: int, kept: list[socket.socket]) -> None:
    """Until there is something to accept, or somebody else took it."""
    if call in ("poll", "single"):
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.poll()
    elif call == "poll-timeout":
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.poll(500)
    elif call in ("select", "fork"):
        select.select([listener], [], [], 0.5)
    elif call == "piped":
        select.select([listener.fileno(), pipe], [], [], 0.5)
    elif call == "loop":
        select.select([listener.fileno(), pipe, *(sock.fileno() for sock in kept)], [], [], 0.5)


def main() -> None:
    call, listener = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    if call == "fork":
        os.fork()
    if call != "single":  # which has no other thread that could meet a signal
        threading.Thread(target=end_with_stdin, daemon=True).start()
    os.write(1, b"ready\n")
    pipe, _ = os.pipe()
    kept: list[socket.socket] = []  # connections whose request ends with a byte that keeps them
    while True:
        wait(call, listener, pipe, kept)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        connection.settimeout(5)
        request = connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
        if request == b"keep":
            kept.append(connection)
        else:
            connection.close()


main()
