"""Accepts every connection, and hands it to the least loaded worker. It reads nothing of any."""

import selectors
import signal
import socket

import sockshare

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
stopping = False


def stop(*_: object) -> None:
    global stopping
    stopping = True


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    with sockshare.attach() as share, selectors.DefaultSelector() as selector:
        listener = share.socket("web")
        with share.registration("web") as registration:
            selector.register(registration, selectors.EVENT_READ)
            share.ready("accepting")
            while not stopping:
                selector.select(0.5)
                connections: list[tuple[socket.socket, bytes]] = []
                while registration.waiting() and len(connections) < 64:
                    try:
                        connections.append((listener.accept()[0], b""))
                    except BlockingIOError:
                        break
                for left in share.hand_over_many(connections, to="worker"):
                    left.connection.send(BUSY)  # no worker has room, or none is there
                    left.connection.close()
            selector.unregister(registration)


main()
