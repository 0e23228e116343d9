"""Accepts every connection, and hands it to the least loaded worker. It reads nothing of any."""

import selectors
import signal
import socket

import sockshare

#: Connections that may wait here for a worker; more wait in the kernel's queue.
MOST = 64
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
            waiting: list[tuple[socket.socket, bytes]] = []
            while waiting or not stopping:
                selector.select(0.05 if waiting else 0.5)
                while registration.waiting() and not stopping and len(waiting) < MOST:
                    try:
                        waiting.append((listener.accept()[0], b""))
                    except BlockingIOError:
                        break
                # What no worker takes now is still ours, and unread: it is offered again.
                left = share.hand_over_many(waiting, to="worker", timeout=0.5)
                waiting = [(one.connection, b"") for one in left]
            selector.unregister(registration)


main()
