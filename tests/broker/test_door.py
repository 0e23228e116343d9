"""The door for gates that are brought back, with real processes that bring them, or other things."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from sockshare.broker.door import Door
from sockshare.core.errors import NotPermitted
from sockshare.kernel import closing, listeners
from sockshare.kernel.gate import Gate, is_gate
from sockshare.kernel.peers import Peer
from tests.support.strangers import strangers

KEY = "0123456789abcdef" * 2
TIMEOUT = 10.0


class Claims:
    """What the door asks: `KEY` may be presented, and is taken unless *refuses*."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, bool]] = []
        self.taken: list[tuple[str, bool]] = []
        self.expected: Gate | None = None
        self.failure: Exception | None = None

    def redeem(self, secrets: Sequence[bytes], peer: Peer, pidfd: int | None) -> list[tuple[str, int]]:
        return []

    def acknowledge(self, secrets: Sequence[bytes]) -> None: ...

    def abandon(self, secrets: Sequence[bytes]) -> None: ...

    def hand_out(self, name: str, peer: Peer, pidfd: int | None) -> int:
        raise NotPermitted(f"can't hand out {name}")

    def may_present(self, key: str, peer: Peer, pidfd: int | None) -> None:
        self.asked.append((key, peer.pid, pidfd is not None))
        if key != KEY:
            raise NotPermitted(f"can't take the gate of claim {key}: it is another process's")

    def presented(self, key: str, fd: int) -> None:
        assert is_gate(fd)
        expected = self.expected is not None and self.expected.same(os.getpid(), fd)
        os.close(fd)
        if self.failure is not None:
            raise self.failure
        self.taken.append((key, expected))


class Client:
    """A connection to the door, used by a thread: it blocks."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(path)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()

    def say(self, packet: bytes, fds: Sequence[int] = ()) -> str:
        """The answer; "" when the door has closed."""
        try:
            socket.send_fds(self.sock, [packet], list(fds))
            return self.sock.recv(4096).decode()
        except ConnectionError:
            return ""

    def bring(self, fds: Sequence[int], packet: bytes = b"F") -> str:
        """Present *fds* for `KEY`: the last answer."""
        assert self.say(b"P" + KEY.encode()) == "+"
        return self.say(packet, fds)


def at_door(
    directory: Path, work: Callable[[str, Claims], Coroutine[Any, Any, None]], kind: type[Door] = Door, **options: Any
) -> None:
    """Run *work* beside a door with those *options*; no descriptor and no thread is left."""

    async def body() -> None:
        path = str(directory / "door")
        claims = Claims()
        door = kind(listeners.make(path, socket.SOCK_SEQPACKET).detach(), claims, lambda peer: {"v": 1}, **options)
        before = len(os.listdir("/proc/self/fd"))
        await work(path, claims)
        await until(lambda: len(os.listdir("/proc/self/fd")) == before and not door._visitors)
        assert not door._of_pid
        assert not door._of_user
        asyncio.get_running_loop().remove_reader(door._listener)
        door._listener.close()

    asyncio.run(body())
    assert not [thread for thread in threading.enumerate() if thread.name == "sockshare-gate"]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_gate_reaches_the_broker_when_its_claim_allows_it(tmp_path: Path) -> None:
    """The very epoll that was sent, once a connection; who asks is the kernel's word."""

    async def work(path: str, claims: Claims) -> None:
        def bring() -> None:
            with Gate() as gate:
                claims.expected = gate
                for _ in range(3):
                    with Client(path) as client:
                        assert client.bring([gate.fileno()]) == "+"
                        assert client.say(b"H") == ""

        await asyncio.to_thread(bring)
        assert claims.taken == [(KEY, True)] * 3
        assert {(key, pid) for key, pid, _ in claims.asked} == {(KEY, os.getpid())}

    at_door(tmp_path, work)


@pytest.mark.parametrize("key", [b"", KEY[:-1].encode(), KEY.encode() + b"0", KEY.upper().encode(), b"\xff" * 32])
def test_key_that_is_none_is_refused_unasked(tmp_path: Path, key: bytes) -> None:
    """The connection is as good as before."""

    async def work(path: str, claims: Claims) -> None:
        def bring() -> None:
            with Client(path) as client:
                assert json.loads(client.say(b"P" + key)[1:])["error"] == "ProtocolError"
                assert client.say(b"H")[0] == "+"

        await asyncio.to_thread(bring)
        assert claims.asked == []

    at_door(tmp_path, work)


def test_claim_of_another_is_refused_before_anything_is_received(tmp_path: Path) -> None:
    """And the kernel, where it can, refuses the descriptor that is sent all the same."""

    async def work(path: str, claims: Claims) -> None:
        def bring() -> None:
            with Client(path) as client, Gate() as gate:
                answer = client.say(b"P" + b"f" * 32)
                assert answer[0] == "-"
                assert json.loads(answer[1:])["error"] == "NotPermitted"
                try:
                    socket.send_fds(client.sock, [b"F"], [gate.fileno()])
                except PermissionError:  # SO_PASSRIGHTS, Linux 6.16
                    pass

        await asyncio.to_thread(bring)
        assert claims.taken == []

    at_door(tmp_path, work)


@pytest.mark.parametrize("what", ["nothing", "socket", "two", "another packet", "gone"])
def test_what_is_not_one_epoll_is_refused(tmp_path: Path, what: str) -> None:
    """It is closed, a sentence says so, and the broker's claims hear of nothing."""

    async def work(path: str, claims: Claims) -> None:
        def bring() -> None:
            with Client(path) as client, Gate() as gate, socket.socket() as sock:
                fds = {"nothing": [], "socket": [sock.fileno()], "two": [gate.fileno()] * 2}.get(what, [gate.fileno()])
                if what == "gone":
                    assert client.say(b"P" + KEY.encode()) == "+"
                    return
                answer = client.bring(fds, b"FF" if what == "another packet" else b"F")
                assert json.loads(answer[1:])["error"] == "ProtocolError"

        await asyncio.to_thread(bring)
        assert claims.taken == []

    at_door(tmp_path, work)


@pytest.mark.parametrize(
    ("failure", "word"), [(NotPermitted("can't take it: swept"), "swept"), (ValueError("a bug"), "has a bug")]
)
def test_gate_that_the_broker_does_not_take_is_answered(tmp_path: Path, failure: Exception, word: str) -> None:
    """With the broker's sentence, whatever went wrong."""

    async def work(path: str, claims: Claims) -> None:
        def bring() -> None:
            with Client(path) as client, Gate() as gate:
                assert word in json.loads(client.bring([gate.fileno()])[1:])["message"]

        claims.failure = failure
        await asyncio.to_thread(bring)

    at_door(tmp_path, work)


def test_broker_is_not_held_up_by_a_socket_that_is_slow_to_close(tmp_path: Path) -> None:
    """SO_LINGER makes the last close(2) of a socket with unsent data wait: a thread does, and the door serves on."""

    async def work(path: str, claims: Claims) -> None:
        listener = socket.create_server(("127.0.0.1", 0))

        def bring() -> None:
            with Client(path) as client:
                slow = socket.create_connection(listener.getsockname())
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2))
                slow.setblocking(False)
                try:
                    while slow.send(b"x" * 65536):
                        pass
                except BlockingIOError:
                    pass
                assert client.say(b"P" + KEY.encode()) == "+"
                socket.send_fds(client.sock, [b"F"], [slow.fileno()])
                slow.close()  # the door has the last one now
                sent.set()
                assert client.sock.recv(4096)[:1] == b"-"

        def ask() -> float:
            assert sent.wait(TIMEOUT)
            slowest = 0.0
            while not done.is_set():
                began = time.monotonic()
                with Client(path) as client:
                    assert client.say(b"H")[:1] == "+"
                slowest = max(slowest, time.monotonic() - began)
            return slowest

        sent, done = threading.Event(), threading.Event()
        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        try:
            began = time.monotonic()
            await asyncio.to_thread(bring)
            took = time.monotonic() - began
        finally:
            sent.set()
            done.set()
        listener.close()
        assert took > 1.5  # or this test shows nothing
        assert await asking < 1.0

    at_door(tmp_path, work)


def test_connection_that_presents_nothing_is_closed_in_time(tmp_path: Path) -> None:
    """2 s of patience, as for every other silence."""

    async def work(path: str, claims: Claims) -> None:
        def wait() -> None:
            with Client(path) as client:
                assert client.say(b"P" + KEY.encode()) == "+"
                assert select.select([client.sock], [], [], TIMEOUT)[0]
                assert client.sock.recv(10) == b""

        await asyncio.to_thread(wait)

    at_door(tmp_path, work)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")
@pytest.mark.timeout(20)  # what lingers does so for an hour
@pytest.mark.parametrize("count", [1, 40], ids=["read", "one too many"])
def test_door_serves_on_when_strangers_send_what_lingers(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Where the kernel can't refuse descriptors (before Linux 6.16) they are not received, and threads close them."""

    def cannot(sock: socket.socket) -> bool:
        listeners.accept_descriptors(sock)
        return False

    monkeypatch.setattr("sockshare.broker.door.refuse_descriptors", cannot)

    async def work(path: str, claims: Claims) -> None:
        with strangers() as start:
            stranger = start(54321, "pack", "seqpacket", count, path)
            # Not in a thread: what is read before its sender has closed it would not be ours to close.
            assert stranger.done() == count
            await until(lambda: closing.unfinished() == count)
            await asyncio.to_thread(ask, path)
        await until(lambda: not closing.unfinished())

    def ask(path: str) -> None:
        for _ in range(3):
            with Client(path) as client:
                assert client.say(b"H")[0] == "+"

    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        os.chmod(directory, 0o711)
        at_door(Path(directory), work)


def test_connection_that_says_too_much_leaves_turns_to_others(tmp_path: Path) -> None:
    """Very many packets of one that are there already are not taken all at once."""

    async def work(path: str, claims: Claims) -> None:
        loop = asyncio.get_running_loop()
        turns, answers = 0, 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if not done:
                loop.call_soon(turn)

        done = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
            sent = 0
            sock.setblocking(False)
            try:
                while sent < 400:
                    sock.send(b"H")
                    sent += 1
            except BlockingIOError:
                pass
            turn()
            while answers < sent:
                try:
                    assert sock.recv(100)[:1] == b"+"
                    answers += 1
                except BlockingIOError:
                    await asyncio.sleep(0)
            done = True
        assert sent > 100
        assert turns > sent / 20

    at_door(tmp_path, work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be another user")
def test_strangers_leave_room_for_those_that_are_admitted(tmp_path: Path) -> None:
    """However many processes of however many users hold silent connections."""

    async def work(path: str, claims: Claims) -> None:
        ready, go = os.pipe(), os.pipe()
        pids = []
        for number in range(20):
            pid = os.fork()
            if pid == 0:
                _hold_many(path, 60000 + number, ready[1], go[0])
            pids.append(pid)
        try:
            connected = 0
            while connected < 20:
                connected += len(await asyncio.to_thread(os.read, ready[0], 20))

            def ask() -> str:
                with Client(path) as client:
                    return client.say(b"H")[:1]

            assert await asyncio.to_thread(ask) == "+"
            assert counts[0] == 256
        finally:
            os.write(go[1], b"x" * 20)
            for pid in pids:
                os.waitpid(pid, 0)
            for fd in (*ready, *go):
                os.close(fd)

    counts = [0]

    class Seen(Door):
        def _accept(self) -> None:
            super()._accept()
            counts[0] = max(counts[0], self._of_user[-1])

    tmp_path.chmod(0o755)
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        at_door(Path(directory), work, kind=Seen, is_admitted=lambda uid: uid == 0)


def _hold_many(path: str, uid: int, ready: int, go: int) -> None:
    """In a forked child: hold as many connections as a process may, until told; never returns."""
    try:
        os.setuid(uid)
        socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(31)]
        for sock in socks:
            sock.connect(path)
        os.write(ready, b"x")
        os.read(go, 1)
    finally:
        os._exit(0)


def test_door_that_can_not_accept_waits_and_says_so(tmp_path: Path) -> None:
    """At the limit of descriptors its listener stays readable, which must not keep the loop busy; then all is well."""
    troubles: list[str] = []

    async def work(path: str, claims: Claims) -> None:
        loop = asyncio.get_running_loop()
        client = Client(path)  # accepted, before
        await until(lambda: bool(troubles))
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        waiting.settimeout(TIMEOUT)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) - 1, before[1]))
        try:
            while True:
                spare.append(os.dup(0))
        except OSError:
            pass
        try:
            waiting.connect(path)
            waiting.send(b"H")
            await until(lambda: troubles[-1] != "")
            used = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - used < 0.1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for fd in spare:
                os.close(fd)
        assert (await asyncio.to_thread(waiting.recv, 100))[:1] == b"+"
        assert troubles[-1] == ""
        assert troubles.count("the door can't accept connections: Too many open files") >= 1
        waiting.close()
        client.sock.close()
        assert loop.is_running()

    spare: list[int] = []
    at_door(tmp_path, work, trouble=troubles.append)
