"""``drain = hand_over``: the old process is told whom its connections are for, and the reload waits for its word."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from sockshare.cli.stage import wait_until
from sockshare.client import door
from tests.handover.cast import PATIENCE, Actor, Cast, cast

KEYS = "sockshare.sockets = web\nsockshare.ready = client\nsockshare.ready_hold = 0.3\nsockshare.drain = hand_over"


@pytest.fixture
def scene() -> Iterator[Cast]:
    """One process, which serves and has a connection."""
    with cast(web=(1, KEYS)) as found:
        yield found


class Reload:
    """``sockshare reload web``, up to the moment that its old process is to hand over."""

    def __init__(self, scene: Cast, *, watched: bool = True) -> None:
        self.scene = scene
        (self.old,) = scene.actors("web")
        self.old.do("ready")
        self.number, self.peer = scene.peers.connection(self.old)
        if watched:
            assert self.old.do("retiring") == [False, None]
        self.command: subprocess.Popen[str] = scene.stage.command("reload", "web")
        wait_until(lambda: len(scene.stage.pids("web")) == 2, PATIENCE, "the new process has started", 0.05)
        (pid,) = set(scene.stage.pids("web")) - {self.old.pid}
        self.new = Actor(scene.stage, pid)
        self.new.error("receive", timeout=0.05)
        self.new.do("ready")

    def told(self) -> None:
        """The old process is to hand over, to the new one."""
        wait_until(lambda: self.old.do("retiring")[0], PATIENCE, "the old process is told", 0.05)
        program, _, pid = self.old.do("retiring")[1]
        assert (program, pid) == ("web", self.new.pid)

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it said."""
        with self.command:
            output, errors = self.command.communicate(timeout=60)
        self.new.close()
        return self.command.returncode, output + errors


def moved(reload: Reload) -> None:
    number, state = reload.new.do("receive")
    assert state == "moved"
    reload.new.do("say", number=number, text="new")
    assert reload.peer.recv(100) == b"new"


def test_connection_moves_to_the_new_process(scene: Cast) -> None:
    """The drain ends when the old process says so; not before, and its peer notices nothing."""
    reload = Reload(scene)
    reload.told()
    assert reload.command.poll() is None
    assert "NoReceiver" in reload.new.error("give", number=reload.new.do("connect", port=scene.peers.port), to="web")
    assert reload.old.do("retire") == reload.new.pid
    moved(reload)
    status, said = reload.end()
    assert status == 0, said
    assert f"it hands its connections to web:2 (pid {reload.new.pid})" in said
    assert "it has handed over what it had" in said


def test_drain_goes_on_with_the_next_broker(scene: Cast) -> None:
    """A broker that is killed while the old process hands over costs nothing: its successor asks again."""
    reload = Reload(scene)
    reload.told()
    broker = door.hello(str(scene.stage.runtime), time.monotonic() + PATIENCE).pid
    os.kill(broker, signal.SIGKILL)
    assert reload.old.do("retire") == reload.new.pid
    moved(reload)
    status, said = reload.end()
    assert status == 0, said


def test_old_process_stays_when_the_new_one_dies_meanwhile(scene: Cast) -> None:
    """It is told so, keeps what it has, and takes connections again."""
    reload = Reload(scene)
    reload.told()
    os.kill(reload.new.pid, signal.SIGKILL)
    status, said = reload.end()
    assert status == 5, said
    wait_until(lambda: reload.old.do("retiring") == [False, None], PATIENCE, "it is told to stay", 0.05)
    reload.old.do("say", number=reload.number, text="still here")
    assert reload.peer.recv(100) == b"still here"


def test_process_that_does_not_watch_is_not_waited_for(scene: Cast) -> None:
    """It is stopped as any other, and the reload says why nothing was handed over."""
    reload = Reload(scene, watched=False)
    began = time.monotonic()
    status, said = reload.end()
    assert status == 0, said
    assert "not handed over: it does not watch for `retiring`" in said
    assert time.monotonic() - began < 20, "its drain_timeout was waited for"
    assert ended(reload.peer)


def ended(peer: socket.socket) -> bool:
    try:
        return peer.recv(100) == b""
    except ConnectionResetError:
        return True
