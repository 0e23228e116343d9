"""A managed process that hands over and receives what a test tells it to, by the library's synchronous share.

It listens on ``hands-PID`` in ``APP_DIRECTORY``; a request is one JSON line ``{"do": name, ...}``, the answer another.
Each string is served by a thread of its own, so that one may wait while another asks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
import sockshare

HOME = os.environ["APP_DIRECTORY"]


class Hands:
    """One method a request."""

    def __init__(self, share: sockshare.Share) -> None:
        self.share = share
        self.connections: dict[int, socket.socket] = {}
        self.number = 0
        self.lock = threading.Lock()

    def keep(self, connection: socket.socket) -> int:
        with self.lock:
            self.number += 1
            self.connections[self.number] = connection
            return self.number

    def connect(self, port: int) -> int:
        """An established connection."""
        return self.keep(socket.create_connection(("127.0.0.1", port)))

    def pair(self, kind: str) -> list[int]:
        """Both ends of a connection of that kind."""
        if kind.startswith("unix"):
            types = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}
            ends = socket.socketpair(socket.AF_UNIX, types[kind.split()[1]])
        elif kind == "udp":
            ends = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            for end in ends:
                end.bind(("127.0.0.1", 0))
            ends[0].connect(ends[1].getsockname())
            ends[1].connect(ends[0].getsockname())
        else:
            family, host = (socket.AF_INET6, "::1") if kind == "tcp6" else (socket.AF_INET, "127.0.0.1")
            with socket.create_server((host, 0), family=family) as listener:
                peer = socket.create_connection(listener.getsockname()[:2])
                ends = listener.accept()[0], peer
        return [self.keep(end) for end in ends]

    def inode(self, number: int) -> int:
        """Which socket it is."""
        return os.fstat(self.connections[number].fileno()).st_ino

    def has(self, inode: int) -> bool:
        """Whether this process has the socket open, however often."""
        names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return f"socket:[{inode}]" in [os.readlink(name) for name in names if os.path.islink(name)]

    def set_buffer(self, number: int, size: int) -> None:
        """SO_SNDBUF."""
        self.connections[number].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def buffer(self, number: int) -> int:
        """The same, read."""
        return self.connections[number].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def hear(self, number: int) -> str:
        """What has come, or comes."""
        self.connections[number].settimeout(10)
        return self.connections[number].recv(100).decode()

    def give(self, number: int, to: str, state: str = "", timeout: float = 5.0, **routing: Any) -> str:
        """Hand one over."""
        self.share.hand_over(self.connections[number], to, state.encode(), timeout, **routing)
        assert self.connections.pop(number).fileno() == -1
        return "given"

    def give_many(self, numbers: list[int], to: str, state: str = "", timeout: float = 5.0) -> list[str]:
        """Hand many over; the errors of those that are left."""
        kept = self.share.hand_over_many([(self.connections[one], state.encode()) for one in numbers], to, timeout)
        return [f"{type(one.error).__name__}: {one.error}" for one in kept]

    def give_with(self, what: str, to: str) -> str:
        """Try to hand over what can't move."""
        import ssl

        things: dict[str, Any] = {
            "tls": lambda: ssl.create_default_context().wrap_socket(
                socket.socketpair()[0], server_hostname="x", do_handshake_on_connect=False
            ),
            "number": lambda: 7,
            "unconnected": socket.socket,
            "closed": self._closed,
            "listening": lambda: self.share.socket("web"),
            "file": self._with_file,
        }
        self.share.hand_over(things[what](), to)
        return "given"

    def give_long(self, number: int, to: str, size: int) -> str:
        """Hand one over with a state of that length."""
        self.share.hand_over(self.connections[number], to, bytes(size))
        return "given"

    def _closed(self) -> socket.socket:
        sock = socket.socketpair()[0]
        sock.close()
        return sock

    def _with_file(self) -> socket.socket:
        sock, _ = socket.socketpair()
        self.file = sock.makefile("rb")
        return sock

    def receive(self, timeout: float | None = 10.0, limit: int | None = None) -> list[Any]:
        """Its number and its state (of a long one, the length)."""
        connection, state = self.share.receive(timeout, limit=limit)
        assert connection.gettimeout() is None
        assert not os.get_inheritable(connection.fileno())
        return [self.keep(connection), state.decode() if len(state) < 10_000 else len(state)]

    def say(self, number: int, text: str) -> None:
        """To the peer of a connection."""
        self.connections[number].sendall(text.encode())

    def close(self, number: int) -> None:
        """Close a connection."""
        self.connections.pop(number).close()

    def forked_receives(self, timeout: float) -> int:
        """What a forked child receives, which uses the parent's share: the child's pid."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            connection, _ = self.share.receive(timeout)
            connection.sendall(f"child {os.getpid()}".encode())
            connection.close()
            status = 0
        finally:
            os._exit(status)

    def wait_for(self, pid: int) -> int:
        """The exit status of a child."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def retiring(self) -> list[Any]:
        """Whether it is to hand over, and to whom."""
        event = self.share.retiring
        return [event.is_set(), event.successor]

    def retire(self) -> int:
        """Wait until it is to hand over, hand over all that it has, say so: how many."""
        assert self.share.retiring.wait(60)
        to = self.share.retiring.successor
        assert to is not None
        for number, connection in list(self.connections.items()):
            self.share.hand_over(connection, to, b"moved")
            del self.connections[number]
        self.share.retired()
        return to.pid

    def ready(self) -> None:
        """Serve."""
        self.share.ready()

    def end(self) -> None:
        """Close the share, and leave the process alive."""
        self.share.close()

    def descriptors(self) -> int:
        """How many this process has."""
        return len(os.listdir("/proc/self/fd"))


def serve(hands: Hands, string: socket.socket) -> None:
    """Answer on one string."""
    with string, string.makefile("rw") as stream:
        for line in stream:
            request = json.loads(line)
            try:
                answer: Any = {"ok": getattr(hands, request.pop("do"))(**request)}
            except Exception as error:  # the test shows it
                answer = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(answer) + "\n")
            stream.flush()


def main() -> None:
    """Until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    hands = Hands(sockshare.attach())
    path = f"{HOME}/hands-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path + ".new")
        listener.listen(8)
        os.rename(path + ".new", path)  # there only once it listens
        while True:
            string, _ = listener.accept()
            threading.Thread(target=serve, args=(hands, string), daemon=True).start()


main()
