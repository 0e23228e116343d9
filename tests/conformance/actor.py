"""A managed process that uses the library as a test tells it to, over `tests.support.puppets.Puppet`.

Where the puppet of ``apps/puppet.py`` speaks the raw protocol, an actor does what a program would do: it attaches,
duplicates, redeems, forks, and uses what it holds. It keeps sockets under the names (*key*) that the test gives them.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import closing
from typing import Any

import sockshare
from sockshare.client.registration import Claiming, Registration

HOME = os.environ["APP_DIRECTORY"]
PATIENCE = 10_000  # ms for anything to come


def await_event(sock: socket.socket, event: int) -> None:
    """Wait until *sock* is ready, whether or not it would block."""
    poller = select.poll()
    poller.register(sock, event)
    if not poller.poll(PATIENCE):
        raise TimeoutError(f"nothing happened on {sock}")


def accept(sock: socket.socket) -> socket.socket:
    """The next connection, also where others wait for it too."""
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        await_event(sock, select.POLLIN)
        try:
            return sock.accept()[0]
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise


def plain(address: Any) -> Any:
    """*address* as JSON has it; a name in the abstract namespace is bytes (unix(7))."""
    return address.decode("latin-1") if isinstance(address, bytes) else address


class Actor:
    """One method a request. Texts stand for bytes (latin-1); an address is what JSON makes of it."""

    def __init__(self) -> None:
        self.share = sockshare.attach()
        self.held: dict[str, socket.socket] = {}
        self.children: list[int] = []
        self.mailbox: socket.socket | None = None
        self.epolls: dict[str, select.epoll] = {}
        self.claims: dict[str, Claiming] = {}
        self.registrations: dict[str, Registration] = {}

    # The library.

    def take(self, name: str, key: str = "") -> int:
        """Have the socket *name*, under that name or *key*; its inode."""
        self.held[key or name] = self.share.socket(name)
        return self.inode(key or name)

    def duplicate(self, name: str, pid: int) -> str:
        """A ticket for another process."""
        return self.share.duplicate(name, pid).hex()

    def redeem(self, ticket: str, key: str) -> int:
        """Have what a ticket is for; its inode."""
        self.held[key] = self.share.redeem(bytes.fromhex(ticket))
        return self.inode(key)

    def redeem_from(self, path: str, key: str) -> int:
        """The same with a ticket that lies in a file, or comes through a FIFO."""
        with open(path, "rb") as file:
            return self.redeem(file.read().hex(), key)

    def register(self, name: str) -> int:
        """Hold the registration of the socket *name*; its epoch."""
        self.claims[name] = self.share.registration(name, timeout=PATIENCE / 1000)
        self.registrations[name] = self.claims[name].__enter__()
        return self.registrations[name].epoch

    def unregister(self, name: str) -> None:
        """Leave it."""
        del self.registrations[name]
        self.claims.pop(name).__exit__(None, None, None)

    def notified(self, name: str) -> bool:
        """Whether the library says that something waits on the socket *name*."""
        return self.registrations[name].waiting()

    def lost(self, name: str) -> str:
        """Why the registration of *name* is lost for good; empty if it is held."""
        if not self.registrations[name].revoked.wait(0):
            return ""
        try:
            self.registrations[name].wait(0)
        except sockshare.RegistrationLost as error:
            return str(error)
        return ""

    # An epoll of its own, as a program has that does not use the library.

    def watch(self, key: str, events: int) -> None:
        """Register *key* with an epoll; once more: with other events."""
        if key not in self.epolls:
            self.epolls[key] = select.epoll()
            self.epolls[key].register(self.held[key], events)
        else:
            self.epolls[key].modify(self.held[key], events)

    def events(self, key: str) -> int:
        """What that epoll reports now."""
        return sum(event for _, event in self.epolls[key].poll(0)) if key in self.epolls else 0

    # Processes.

    def fork(self) -> int:
        """Have a child: an actor of its own, with all that this one holds, as a server forks its workers."""
        pid = os.fork()
        if pid == 0:
            self.children.clear()
            if self.mailbox is not None:
                self.mailbox.close()
                self.mailbox = None
            raise Forked
        self.children.append(pid)
        return pid

    def write_ticket(self, path: str, name: str, pid: int) -> None:
        """Leave a ticket in a file, or put it into a FIFO."""
        with open(path, "wb") as file:
            file.write(self.share.duplicate(name, pid))

    def open_mailbox(self) -> str:
        """Where others may send descriptors to (SCM_RIGHTS)."""
        path = f"{HOME}/mail-{os.getpid()}"
        self.mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.mailbox.bind(path)
        return path

    def post(self, key: str, path: str) -> None:
        """Send a descriptor to whoever has the mailbox at *path*."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(path)
            socket.send_fds(sender, [key.encode()], [self.held[key].fileno()])

    def collect(self) -> str:
        """Have what is in the mailbox, under the key it was sent by."""
        assert self.mailbox is not None
        await_event(self.mailbox, select.POLLIN)
        key, (fd,), _, _ = socket.recv_fds(self.mailbox, 100, 1)
        self.held[key.decode()] = socket.socket(fileno=fd)
        return key.decode()

    # What one does with a socket.

    def inode(self, key: str) -> int:
        """Which socket it is."""
        return os.fstat(self.held[key].fileno()).st_ino

    def fileno(self, key: str) -> int:
        """The number of the descriptor."""
        return self.held[key].fileno()

    def accept(self, key: str, connection: str) -> int:
        """Have the next connection of *key* under the name *connection*; its inode."""
        self.held[connection] = accept(self.held[key])
        return self.inode(connection)

    def send(self, key: str, text: str, to: Any = None) -> int:
        """Send, on a connected socket or to an address; how many bytes."""
        sock = self.held[key]
        await_event(sock, select.POLLOUT)
        if to is None:
            return sock.send(text.encode("latin-1"), socket.MSG_NOSIGNAL)
        return sock.sendto(text.encode("latin-1"), tuple(to) if isinstance(to, list) else to)

    def receive(self, key: str, size: int = 1000) -> tuple[str, Any]:
        """What comes next, and from where."""
        sock = self.held[key]
        await_event(sock, select.POLLIN)
        data, address = sock.recvfrom(size)
        return data.decode("latin-1"), plain(address)

    def waiting(self, key: str) -> bool:
        """Whether anything waits to be read or accepted now."""
        return bool(select.select([self.held[key]], [], [], 0)[0])

    def hung_up(self, key: str) -> bool:
        """Whether the socket is shut down in both directions, as poll(2) has it."""
        poller = select.poll()
        poller.register(self.held[key], 0)
        return any(event & select.POLLHUP for _, event in poller.poll(0))

    def connect(self, key: str, to: Any) -> None:
        """Give a datagram socket a peer."""
        self.held[key].connect(tuple(to) if isinstance(to, list) else to)

    def peer(self, key: str) -> Any:
        """The peer; OSError if there is none."""
        return plain(self.held[key].getpeername())

    def listen(self, key: str, backlog: int) -> None:
        """listen(2)."""
        self.held[key].listen(backlog)

    def shutdown(self, key: str, how: int) -> None:
        """shutdown(2)."""
        self.held[key].shutdown(how)

    def close(self, key: str) -> None:
        """close(2)."""
        self.held.pop(key).close()

    def get(self, key: str, level: int, option: int, size: int) -> str:
        """getsockopt(2), hexadecimal."""
        return self.held[key].getsockopt(level, option, size).hex()

    def set(self, key: str, level: int, option: int, value: str) -> None:
        """setsockopt(2), hexadecimal."""
        self.held[key].setsockopt(level, option, bytes.fromhex(value))

    def control(self, key: str, command: int, argument: int = 0) -> int:
        """fcntl(2)."""
        return fcntl.fcntl(self.held[key], command, argument)

    # Threads.

    def serve_by_threads(self, name: str, count: int) -> list[tuple[int, int, str]]:
        """*count* threads, each of which asks for the socket itself and answers one client, all at once.

        Returns:
            Of each thread the number of its descriptor, the id of its socket object, and what it was asked.
        """
        together = threading.Barrier(count, timeout=PATIENCE / 1000)
        served: list[tuple[int, int, str]] = []

        def serve() -> None:
            sock = self.share.socket(name)
            together.wait()
            served.append((sock.fileno(), id(sock), answer_one(sock)))
            together.wait()  # nobody is finished before all are: each has served one

        self._in_threads(serve, count)
        self.take(name)
        return served

    def echo_by_threads(self, key: str, count: int, size: int) -> list[str]:
        """*count* threads, each of which reads *size* bytes of one connection and sends them back, all at once."""
        together = threading.Barrier(count, timeout=PATIENCE / 1000)
        echoed: list[str] = []

        def echo() -> None:
            together.wait()
            text, _ = self.receive(key, size)
            self.send(key, text)
            echoed.append(text)
            together.wait()

        self._in_threads(echo, count)
        return echoed

    def _in_threads(self, work: Any, count: int) -> None:
        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE / 1000)

    # The end of a scene.

    def descriptors(self) -> int:
        """How many this process has."""
        return len(os.listdir("/proc/self/fd"))

    def reset(self) -> int:
        """End the children, let go of everything; how many descriptors are left."""
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)  # our own and not waited for before, so no other process has the number
            os.waitpid(pid, 0)
        self.children.clear()
        for name in list(self.claims):
            self.unregister(name)
        for epoll in self.epolls.values():  # before the sockets: closed the other way round it would report for ever
            epoll.close()
        self.epolls.clear()
        for sock in (*self.held.values(), *filter(None, [self.mailbox])):
            sock.close()
        self.held.clear()
        if self.mailbox is not None:
            os.unlink(f"{HOME}/mail-{os.getpid()}")
            self.mailbox = None
        return self.descriptors()


class Forked(Exception):
    """We are the child now."""


def answer_one(sock: socket.socket) -> str:
    """Answer one client with what it asked: the datagram, or what the next connection says first."""
    if sock.type == socket.SOCK_DGRAM:
        while True:
            await_event(sock, select.POLLIN)
            try:
                data, address = sock.recvfrom(1000)
            except BlockingIOError:
                continue
            sock.sendto(data, address)
            return data.decode("latin-1")
    with accept(sock) as connection:
        await_event(connection, select.POLLIN)
        data = connection.recv(1000)
        connection.send(data)
        return data.decode("latin-1")


def act(actor: Actor) -> None:
    """Do as told, one connection after the other, for ever."""
    path = f"{HOME}/puppet-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path + ".new")
        listener.listen(8)
        os.rename(path + ".new", path)  # there only once it listens
        while True:
            connection, _ = listener.accept()
            with connection, closing(connection.makefile("rw")) as stream:
                for line in stream:
                    request = json.loads(line)
                    try:
                        answer: Any = {"ok": getattr(actor, request.pop("do"))(**request)}
                    except Exception as error:  # the test shows it
                        if isinstance(error, Forked):
                            # Out of the two with blocks first: they close our copies of what is the parent's.
                            raise
                        answer = {"error": f"{type(error).__name__}: {error}"}
                    stream.write(json.dumps(answer) + "\n")
                    stream.flush()


def main() -> None:
    """Be an actor, or in time its child, or that one's."""
    actor = Actor()
    while True:
        try:
            act(actor)
        except Forked:
            continue


if __name__ == "__main__":
    # Its children are zombies until `reset` has waited for them.
    sys.exit(main())  # type: ignore[func-returns-value]
