"""Notify sockets, with real processes of the tree and real strangers of other users."""

from __future__ import annotations

import array
import asyncio
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from sockshare.broker.notify import NotifySocket
from sockshare.core.sdnotify import Notification
from sockshare.kernel import closing, listeners
from sockshare.kernel.processes import descriptors
from tests.support.circusd import wait_until
from tests.support.strangers import NOBODY, READY, SOMEBODY, Stranger, strangers

TIMEOUT = 10.0
pytestmark = pytest.mark.timeout(20)  # what lingers does so for an hour
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which only root may")


class Scene:
    """A notify socket that the host made, a leader, and what was heard and refused."""

    def __init__(self, path: str, leader: Stranger) -> None:
        self.path = path
        self.leader = leader
        self.heard: list[Notification] = []
        self.refused: list[tuple[int, int, str]] = []
        self.sock = listeners.make(path, socket.SOCK_DGRAM)
        self.listener: NotifySocket | None = None

    def listen(self) -> NotifySocket:
        self.listener = NotifySocket(
            os.dup(self.sock.fileno()),
            self.leader.pid,
            self.heard.append,
            lambda pid, uid, reason: self.refused.append((pid, uid, reason)),
        )
        return self.listener

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, (self.heard, self.refused)
            await asyncio.sleep(0.005)


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that other users may pass through."""
    with tempfile.TemporaryDirectory(prefix="ss-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


Starter = Callable[..., Stranger]


@pytest.fixture
def start() -> Iterator[Starter]:
    with strangers() as starter:
        yield starter


def sockets() -> int:
    """How many we have."""
    return sum(target.startswith("socket:") for _, target in descriptors(os.getpid()))


def play(directory: Path, leader: Stranger, body: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Run *body* with a scene; no descriptor of ours is left."""
    assert leader.done() == "leads"
    before = sockets()

    async def run() -> None:
        scene = Scene(str(directory / "notify"), leader)
        try:
            await body(scene)
        finally:
            if scene.listener is not None:
                scene.listener.close()
            closing.close(scene.sock)

    asyncio.run(run())
    wait_until(lambda: not closing.unfinished() and sockets() == before, TIMEOUT, "all is closed")


@pytest.mark.parametrize("session", [True, False], ids=["its own session", "its own group"])
@pytest.mark.parametrize("uid", [0, pytest.param(NOBODY, marks=as_root)], ids=["root", "nobody"])
def test_tree_is_heard(directory: Path, start: Starter, uid: int, session: bool) -> None:
    """The process itself, a child, and a daemon that has left the tree, but not its session or group: gone or not."""

    async def body(scene: Scene) -> None:
        scene.listen()
        ways = ["self", "child", "child that stays", "daemon", "daemon that stays"]
        if uid == 0 == os.geteuid() and session:
            ways.append("daemon of another user")  # and of another group: the session can't be left so
        for way in ways:
            scene.leader.tell(way, f"STATUS={way}", scene.path)
        await scene.until(lambda: len(scene.heard) + len(scene.refused) == len(ways))
        assert {said.status for said in scene.heard} == set(ways)
        scene.leader.tell("self", "READY=1", scene.path)
        await scene.until(lambda: scene.heard[-1].ready)
        assert not scene.refused

    play(directory, start(uid, "lead", session=session, group=None if session else 0), body)


@as_root
@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
def test_stranger_is_refused(directory: Path, start: Starter, gone: bool) -> None:
    """Another user's process has no say, whether it is there to be looked at or not; nor has one of the same user that
    is there; and the process itself is heard after them."""

    async def body(scene: Scene) -> None:
        if not gone:
            scene.listen()
        other = start(SOMEBODY, "say", READY, scene.path)
        assert await asyncio.to_thread(other.done) == 1
        if gone:
            other.close()
            scene.listen()
        else:
            same = start(NOBODY, "say", READY, scene.path)
            assert await asyncio.to_thread(same.done) == 1
        scene.leader.tell("self", "STATUS=mine", scene.path)
        await scene.until(lambda: scene.heard)
        assert [said.status for said in scene.heard] == ["mine"]
        expected = [(other.pid, SOMEBODY)] if gone else [(other.pid, SOMEBODY), (same.pid, NOBODY)]
        assert [refused[:2] for refused in scene.refused] == expected

    play(directory, start(NOBODY, "lead", session=True), body)


@as_root
def test_stranger_is_refused_when_it_joined_the_group(directory: Path, start: Starter) -> None:
    """setpgid(2) lets every process of the manager's session into a program's process group: its user decides."""

    async def body(scene: Scene) -> None:
        scene.listen()
        for uid in (SOMEBODY, NOBODY):
            joined = start(uid, "say", READY, scene.path, group=scene.leader.pid)
            assert await asyncio.to_thread(joined.done) == 1
        await scene.until(lambda: scene.heard)
        assert [(uid, reason) for _, uid, reason in scene.refused] == [
            (SOMEBODY, "it has only joined that process group")
        ]

    play(directory, start(NOBODY, "lead", group=0), body)


def test_what_was_not_acted_upon_is_heard_again(directory: Path, start: Starter) -> None:
    """What a broker heard is in the socket until it has acted: one that dies at it leaves it to the next."""

    async def body(scene: Scene) -> None:
        seen: list[bytes] = []

        def heard(said: Notification) -> None:
            seen.append(scene.sock.recv(100, socket.MSG_PEEK))
            scene.heard.append(said)

        scene.listener = NotifySocket(os.dup(scene.sock.fileno()), scene.leader.pid, heard, lambda *_: None)
        scene.leader.tell("self", "READY=1", scene.path)
        await scene.until(lambda: scene.heard)
        assert seen == [b"READY=1"]
        with pytest.raises(BlockingIOError):
            scene.sock.recv(100)

    play(directory, start(os.geteuid(), "lead", session=True), body)


def test_barrier_waits_for_nobody(directory: Path, start: Starter) -> None:
    """sd_notify_barrier(3) works, no descriptor arrives, and what only looks like it is no barrier."""

    async def body(scene: Scene) -> None:
        for text in (b"BARRIER=1", b"BARRIER=1\n"):
            ours, theirs = os.pipe()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, os.fdopen(ours, "rb") as pipe:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs]))
                assert sock.sendmsg([text], [rights], 0, scene.path) == len(text)
                os.close(theirs)
                assert pipe.read() == b""  # ends when nobody has the other end
        texts = [b"BARRIER=0", b"BARRIER=1\n2", b"READY=1", b"BARRIER", b""]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            for text in texts:
                sock.sendto(text, scene.path)
        assert [scene.sock.recv(100) for _ in texts] == texts
        with pytest.raises(BlockingIOError):
            scene.sock.recv(100)

    play(directory, start(os.geteuid(), "lead", session=True), body)


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="there is no systemd-notify")
def test_systemd_notify_is_heard_and_content(directory: Path, start: Starter) -> None:
    """As a script of the process runs it: it says what it has to, sets a barrier, and exits 0."""

    async def body(scene: Scene) -> None:
        scene.listen()
        script = "systemd-notify --ready --status=up; echo $?"
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            script,
            env={**os.environ, "NOTIFY_SOCKET": scene.path},
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.setpgid(0, scene.leader.pid),
        )
        output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
        assert output == b"0\n"
        await scene.until(lambda: scene.heard)
        assert scene.heard == [Notification(ready=True, status="up")]

    play(directory, start(os.geteuid(), "lead", group=0), body)


def lingers(scene: Scene, start: Starter, count: int) -> Stranger:
    """Somebody sends connections that linger, *count* of them, as if the kernel could not refuse them.

    Not in a thread: what is read before its sender has closed it would not be ours to close.
    """
    listeners.accept_descriptors(scene.sock)
    stranger = start(SOMEBODY, "linger", count, scene.path)
    assert stranger.done() == count
    return stranger


@as_root
@pytest.mark.parametrize("count", [1, 5])
def test_loop_goes_on_when_lingering_connections_come(directory: Path, start: Starter, count: int) -> None:
    """Where the kernel can't refuse them: closing each takes an hour, and the loop, the process's own word and the end
    of the socket wait for none."""

    async def body(scene: Scene) -> None:
        scene.listen()
        stranger = lingers(scene, start, count)
        await scene.until(lambda: len(scene.refused) == count)
        await scene.until(lambda: closing.unfinished() == count)
        scene.leader.tell("self", "READY=1", scene.path)
        await scene.until(lambda: scene.heard)
        assert scene.heard[0].ready
        assert closing.unfinished() == count
        stranger.close()  # the peers' ends are closed: nothing lingers
        await scene.until(lambda: not closing.unfinished())

    play(directory, start(os.geteuid(), "lead", session=True), body)


@as_root
@pytest.mark.parametrize("last", ["host", "broker"])
def test_end_of_socket_waits_for_nothing_in_its_queue(directory: Path, start: Starter, last: str) -> None:
    """Who closes a socket last closes what waits in it: by a thread, where that can't be refused."""

    async def body(scene: Scene) -> None:
        ends: list[Callable[[], None]] = [
            scene.listen().close,
            functools.partial(closing.close, scene.sock, TIMEOUT * (last == "broker")),
        ]
        stranger = lingers(scene, start, 3)
        for end in ends if last == "host" else reversed(ends):
            end()
        scene.listener = None
        await scene.until(lambda: closing.unfinished() == 1)
        stranger.close()

    play(directory, start(os.geteuid(), "lead", session=True), body)


@as_root
def test_kernel_refuses_descriptors_where_it_can(directory: Path, start: Starter) -> None:
    """Nothing of a datagram with descriptors arrives, and no thread is needed."""

    async def body(scene: Scene) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            if not listeners.refuse_descriptors(other):
                pytest.skip("this kernel refuses none (SO_PASSRIGHTS, Linux 6.16)")
        # Not in a thread: what is read before its sender has closed it would linger at its sender, which we wait for.
        assert start(SOMEBODY, "linger", 5, scene.path).done() == 0
        scene.listen()
        scene.leader.tell("self", "READY=1", scene.path)
        await scene.until(lambda: scene.heard)
        assert not scene.refused
        assert not closing.unfinished()

    play(directory, start(os.geteuid(), "lead", session=True), body)


def test_others_have_their_turn_however_much_comes(directory: Path, start: Starter) -> None:
    """A socket in which there is always more is read some at a time."""

    async def body(scene: Scene) -> None:
        count = 0

        def refused(pid: int, uid: int, reason: str) -> None:
            nonlocal count
            count += 1
            if count < 1000:
                sock.sendto(b"STATUS=more", scene.path)

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            fd = os.dup(scene.sock.fileno())
            scene.listener = NotifySocket(fd, scene.leader.pid, scene.heard.append, refused)
            sock.sendto(b"STATUS=first", scene.path)
            await scene.until(lambda: count)
            assert count < 100
            await scene.until(lambda: count == 1000)

    play(directory, start(os.geteuid(), "lead", session=True), body)


@as_root
def test_flood_costs_its_sender(directory: Path, start: Starter) -> None:
    """What a stranger floods is read some at a time, and the process's own words come through."""

    async def body(scene: Scene) -> None:
        scene.listen()
        flooding = start(SOMEBODY, "flood", 1.5, scene.path)
        assert await asyncio.to_thread(flooding.done) == "begun"
        await scene.until(lambda: len(scene.refused) > 100)
        began, cost, since = time.monotonic(), time.process_time(), len(scene.refused)
        for number in range(20):
            scene.leader.tell("self", f"STATUS={number}", scene.path)
        scene.leader.tell("self", "READY=1", scene.path)
        await scene.until(lambda: len(scene.heard) == 21)
        print(f"21 in {time.monotonic() - began:.3f} s")
        assert [said.status for said in scene.heard[:-1]] == [str(number) for number in range(20)]
        assert scene.heard[-1].ready
        taken = await asyncio.to_thread(flooding.done)
        await scene.until(lambda: len(scene.refused) == taken)
        print(f"{taken - since} refused in {time.monotonic() - began:.2f} s cost {time.process_time() - cost:.2f} s")

    play(directory, start(NOBODY, "lead", session=True), body)
