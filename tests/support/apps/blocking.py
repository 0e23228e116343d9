"""The oldest loop there is: accept, answer, close, one client at a time, and no handler for any signal.

It needs a socket that blocks (``web.blocking = true``).
"""

from __future__ import annotations

from tests.support.apps import behaviour


def main() -> None:
    """Serve for ever."""
    listener = behaviour.listener()
    listener.setblocking(True)  # what Python believes; the socket is handed out so
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            try:
                status, body = behaviour.answer(connection.recv(65536).partition(b" ")[2].decode()) or (500, b"")
                head = f"HTTP/1.1 {status} OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
            except OSError:
                continue  # the client has gone


if __name__ == "__main__":
    main()
