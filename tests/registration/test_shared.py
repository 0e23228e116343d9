"""A socket that all may register: what a death strands in the kernel is served by those who live."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.registration.scenes import Scene, staged, state
from tests.registration.storm import broker_of
from tests.support.circusd import Circusd, wait_until
from tests.support.oracle import entries, look

#: Seconds for which a connection that nobody is told of waits, at least, when nobody reminds the living of it.
STRANDED = 0.7


def test_connection_stranded_by_the_death_of_the_one_that_was_woken_is_served() -> None:
    """Of those that wait with EPOLLEXCLUSIVE the kernel wakes one. It dies: without the broker its connection waits,
    though all the others are idle; with it, one of them is woken."""
    watcher = {"respawn": "False"}
    with staged(
        "circus",
        "taking-exclusive",
        "shared",
        processes=6,
        waiting=False,
        options={"watcher": watcher},
        stall_timeout="",
    ) as stage:
        wait_until(lambda: is_up(stage), 20, "all are registered", 0.05)
        scene = Scene(stage)
        broker = broker_of(stage, scene.inode)
        scene.signal(broker, signal.SIGSTOP)
        with killed_when_woken(scene) as client:
            client.settimeout(STRANDED)
            try:
                assert client.recv(1) == b"", "somebody was woken all the same"
            except TimeoutError:
                pass
            scene.signal(broker, signal.SIGCONT)
            client.settimeout(5)
            assert client.recv(4096).startswith(b"HTTP/1.1 200"), "the broker, which is late, had nobody reminded"
        for _ in range(3):
            with killed_when_woken(scene) as client:
                client.settimeout(STRANDED)
                assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert scene.log().count("was stranded by a death") >= 2
        assert len(scene.tally(10)) >= 1  # two are left, and serve


def is_up(stage: Circusd) -> bool:
    """Whether every process has registered, by the broker's word."""
    done = stage.sockshare("status")
    if done.returncode:
        return False
    scene = Scene(stage)
    return len(look(stage.pids(), scene.inode)[0]) == 6


@contextmanager
def killed_when_woken(scene: Scene) -> Iterator[socket.socket]:
    """A client that has sent a request, and the one process that was woken for it has died before it accepted."""
    assert scene.stage.process is not None
    pids = [pid for pid in scene.stage.pids() if state(pid) not in ("", "Z")]
    # A reminder is good for any connection, until it is taken away.
    wait_until(lambda: all(len(entries(pid, scene.inode)) == 1 for pid in pids), 5, "no reminder is left")
    for pid in pids:
        (scene.stage.directory / f"halt-{pid}").touch()
    with socket.create_connection(("127.0.0.1", scene.stage.port), 5) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        woken = wait_until(lambda: [pid for pid in pids if state(pid) == "T"], 5, "one is woken", 0.002)
        for pid in pids:
            (scene.stage.directory / f"halt-{pid}").unlink(missing_ok=True)
        assert len(woken) == 1, "EPOLLEXCLUSIVE wakes one"
        scene.signal(woken[0], signal.SIGKILL)
        yield client
