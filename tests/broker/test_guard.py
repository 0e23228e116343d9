"""A shared socket that clients don't reach is said, and mended, by a real broker."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sockshare.broker import guard
from sockshare.cli.stage import free_port
from sockshare.kernel import binding, reach
from sockshare.kernel.binding import Binding
from tests.broker.stage import Stage, stage, until
from tests.support import door


def made(address: str) -> socket.socket:
    return binding.make(Binding(binding.parse(address)))


@contextmanager
def asking(one: Stage) -> Iterator[door.Dialogue]:
    """A dialogue of this process, as one that the manager runs."""
    one.verbs.managed[os.getpid()] = "web_0"
    dialogue = door.Dialogue(str(one.directory))
    try:
        dialogue.ask("ready")
        yield dialogue
    finally:
        dialogue.close()


def entries(dialogue: door.Dialogue) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in dialogue.ask("status")["status"]["sockets"]}


def said(dialogue: door.Dialogue, name: str) -> list[tuple[str, str]]:
    """What the doctor says of the socket *name*."""
    found = dialogue.ask("doctor")["findings"]
    return [(one["level"], one["sentence"]) for one in found if one["subject"] == f"socket {name}"]


def shut(sock: socket.socket) -> None:
    with sock.dup() as duplicate, suppress(OSError):
        duplicate.shutdown(socket.SHUT_RDWR)


def answers(sock: socket.socket) -> bool:
    with socket.socket(sock.family, sock.type) as client:
        return client.connect_ex(sock.getsockname()) == 0


CHILD = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while words := sys.stdin.readline():
    if "shut" in words:
        sock.shutdown(socket.SHUT_RDWR)
    if "end" in words:
        break
"""


class Child:
    """A process that has a socket open."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def send(self, words: bytes) -> None:
        """Have it do that."""
        assert self._process.stdin is not None
        self._process.stdin.write(words + b"\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Return when it has ended."""
        self._process.wait(10)


@contextmanager
def child(one: Stage, name: str, sock: socket.socket) -> Iterator[Child]:
    """A managed process, of that *name*, which has *sock* open, and no other of the shared ones."""
    command = [sys.executable, "-c", CHILD, str(sock.fileno())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[sock.fileno()]) as process:
        one.verbs.managed[process.pid] = name
        try:
            yield Child(process)
        finally:
            process.kill()
            del one.verbs.managed[process.pid]


@contextmanager
def shared_by_two() -> Iterator[tuple[door.Dialogue, Child, Child]]:
    """A dialogue, and the known processes `web_1` and `web_2`, which have the socket `web` open."""
    sock = made(f"tcp://127.0.0.1:{free_port()}")
    with (
        stage(shared={"web": ({}, sock)}) as one,
        asking(one) as dialogue,
        child(one, "web_1", sock) as first,
        child(one, "web_2", sock) as second,
    ):
        entries(dialogue)  # now they are known
        yield dialogue, first, second


def test_each_socket_is_mended_by_its_guard(tmp_path: Path) -> None:
    """`repair` mends at once what can be mended, `warn` says it, `off` does not look; a path is as a port."""
    paths = {name: tmp_path / name for name in ("path", "kept")}
    shared: dict[str, tuple[dict[str, Any], socket.socket]] = {
        "web": ({}, made(f"tcp://127.0.0.1:{free_port()}")),
        "warned": ({"guard": "warn"}, made(f"tcp://127.0.0.1:{free_port()}")),
        "off": ({"guard": "off"}, made(f"tcp://127.0.0.1:{free_port()}")),
        "path": ({}, made(f"unix://{paths['path']}")),
        "kept": ({"guard": "warn"}, made(f"unix://{paths['kept']}")),
        "udp": ({}, made(f"udp://127.0.0.1:{free_port()}")),
    }
    web, warned = shared["web"][1], shared["warned"][1]
    with (
        stage(shared=shared) as one,
        asking(one) as dialogue,
        child(one, "web_1", web) as culprit,
        child(one, "web_2", warned) as other,
    ):
        before = entries(dialogue)
        assert {name: entry["state"] for name, entry in before.items()} == {**dict.fromkeys(shared, "ok"), "off": None}
        assert before["off"]["unseen"] == "guard = off"
        assert {entry["drops"] for entry in before.values()} == {0}
        assert before["path"]["backlog"] == binding.BACKLOG
        culprit.send(b"shut")
        other.send(b"shut")
        shut(shared["udp"][1])
        shut(shared["off"][1])
        for path in paths.values():
            path.unlink()
        # By itself, not because somebody asks.
        until(lambda: not answers(warned), "it is shut down", 10)
        until(lambda: "web: it was shut down" in one.said() and "published again" in one.said(), "they are mended", 5)
        assert answers(web)
        assert answers(shared["path"][1])
        after = entries(dialogue)
        assert {name: entry["state"] for name, entry in after.items()} == {
            "web": "ok",
            "warned": "unreachable",
            "off": None,
            "path": "ok",
            "kept": "unreachable",
            "udp": "unreachable",
        }
        assert after["web"]["mended"]["times"] == 1
        assert after["kept"]["why"] == f"{paths['kept']} is gone; guard = warn, so it is left as it is"
        its = f"by web_1 (pid {culprit.pid}), the only process that "
        [(level, sentence)] = until(
            lambda: [one for one in said(dialogue, "web") if its in one[1]], "it is known who did it", 3
        )
        assert level == "note"
        assert sentence.startswith(f"it was shut down (shutdown(2)) {its}")
        assert "; revived; connections that waited were reset" in sentence
        [(level, sentence)] = said(dialogue, "warned")
        assert level == "problem"
        its = f"by web_2 (pid {other.pid}), the only process that "
        assert sentence.startswith(f"clients don't reach it: it was shut down (shutdown(2)) {its}")
        assert "; guard = warn, so it is left as it is" in sentence
        assert [level for level, _ in said(dialogue, "udp")] == ["problem"]
        done = one.sockshare("status")
        assert done.returncode == 3
        assert "sockshare: warned: clients don't reach this socket: it was shut down" in done.stderr
        # Whoever does what the sentence says has it again.
        warned.listen(5)
        assert entries(dialogue)["warned"]["state"] == "ok"


def test_process_that_ended_is_the_culprit_where_several_have_it() -> None:
    """Of those that have the socket open, one ends as it is shut down; otherwise it is not known who it was."""
    with shared_by_two() as (dialogue, first, second):
        first.send(b"shut")
        both = f"(can't tell by whom of web_1 (pid {first.pid}), web_2 (pid {second.pid}))"
        until(lambda: any(both in sentence for _, sentence in said(dialogue, "web")), "it is not known", 3)
        second.send(b"shut and end")
        ended = f"as web_2 (pid {second.pid}) ended; revived"
        until(lambda: any(ended in sentence for _, sentence in said(dialogue, "web")), "it is known", 3)
        assert entries(dialogue)["web"]["mended"]["times"] == 2


def test_process_that_ended_before_is_not_the_culprit() -> None:
    """As the old one of the reload before, a moment ago."""
    with shared_by_two() as (dialogue, first, second):
        second.send(b"end")
        second.wait()
        time.sleep(guard._HEARD_BEFORE)  # so much before
        first.send(b"shut")
        its = f"by web_1 (pid {first.pid}), the only process that "
        until(lambda: any(its in sentence for _, sentence in said(dialogue, "web")), "it is known", 3)


def test_next_broker_mends_what_was_broken_meanwhile(tmp_path: Path) -> None:
    """A broker that is not there sees nothing; the next one looks as it begins."""
    path = tmp_path / "s"
    shared: dict[str, tuple[dict[str, Any], socket.socket]] = {
        "web": ({}, made(f"tcp://127.0.0.1:{free_port()}")),
        "path": ({}, made(f"unix://{path}")),
    }
    with stage(shared=shared) as one, asking(one) as dialogue:
        entries(dialogue)
        before = one.broker
        os.kill(before, signal.SIGSTOP)
        shut(shared["web"][1])
        path.unlink()
        assert not answers(shared["web"][1])
        os.kill(before, signal.SIGKILL)
        until(lambda: answers(shared["web"][1]) and answers(shared["path"][1]), "both are reached", 5)


def test_full_queue_and_nobody_there_are_states() -> None:
    """`unreachable` once nobody more gets in; `unserved` where no process accepts."""
    sock = made(f"tcp://127.0.0.1:{free_port()}")
    sock.listen(1)
    with stage(shared={"web": ({}, sock)}) as one, asking(one) as dialogue:
        clients = [socket.socket() for _ in range(4)]
        try:
            for client in clients:
                client.setblocking(False)
                client.connect_ex(sock.getsockname())
            until(lambda: entries(dialogue)["web"]["drops"], "one is dropped")
            entry = entries(dialogue)["web"]
            assert (entry["state"], entry["why"]) == ("unreachable", "its queue is full (2 of 1)")
        finally:
            for client in clients:
                client.close()
        one.verbs.managed.clear()
        dialogue.close()
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sock.accept()[0].close()
        done = one.sockshare("status", "--json")
        assert done.returncode == 3
        assert '"state": "unserved"' in done.stdout


@pytest.mark.soak  # the rule is in tests/core/test_reachability.py
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_process_that_accepts_nothing_any_more_does_not_serve(tmp_path: Path, scheme: str) -> None:
    """It has said that it is ready, and hangs: a connection that waits for 5 s tells; others that come and go don't."""
    sock = made(f"tcp://127.0.0.1:{free_port()}" if scheme == "tcp" else f"unix://{tmp_path}/s")
    with stage(shared={"web": ({}, sock)}) as one, asking(one) as dialogue:
        began = time.monotonic()
        while time.monotonic() - began < 7:  # longer than one has to wait
            with socket.socket(sock.family) as client:
                client.connect(sock.getsockname())
                assert entries(dialogue)["web"]["state"] == "ok"
                sock.accept()[0].close()
        with socket.socket(sock.family) as client:
            client.connect(sock.getsockname())
            entry = until(lambda: (e := entries(dialogue)["web"])["state"] == "unserved" and e, "it is seen", 15)
            assert "and nobody has accepted it" in entry["why"]
            assert said(dialogue, "web")[0][0] == "problem"
            sock.accept()[0].close()
            until(lambda: entries(dialogue)["web"]["state"] == "ok", "it is over", 5)


def test_socket_is_looked_at_where_no_descriptor_is_left() -> None:
    """A look takes none, and leaves the one that it is given: a guard that needs one would see nothing for ever."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        spare = os.dup(sock.fileno())
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, limit[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(sock.fileno())
            with guard._as_socket(sock.fileno()) as seen:
                assert reach.look(seen, None) is None
                assert reach.load(seen).length == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert answers(sock)


def test_idle_guard_costs_little() -> None:
    """A look at 200 sockets each second: less than a hundredth of a processor."""
    shared: dict[str, tuple[dict[str, Any], socket.socket]] = {
        f"web{number}": ({}, made(f"tcp://127.0.0.1:{port}")) for number, port in enumerate(free_ports(200))
    }
    with stage(shared=shared) as one:
        began, used = time.monotonic(), cpu(one.broker)
        time.sleep(1.5)  # it is about how much it does in a while
        assert cpu(one.broker) - used < 0.02 * (time.monotonic() - began)


def free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return sorted(found)


def cpu(pid: int) -> float:
    """Seconds of processor time that *pid* has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
