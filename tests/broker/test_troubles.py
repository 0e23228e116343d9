"""What the host can't do is said by `status` and `doctor`, and by who asked for it, until it can again."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from sockshare.kernel.channel import Channel
from tests.broker.stage import Stage, stage, until
from tests.support import door
from tests.support.supervisord import supervisord, wait_until


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """At the limit of descriptors of this process, which it has for the block only."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) - 1, before[1]))
    spare = []
    try:
        with suppress(OSError):
            while True:
                spare.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in spare:
            os.close(fd)


@contextmanager
def asking(one: Stage) -> Iterator[door.Dialogue]:
    """A dialogue of this process, as one that the manager runs."""
    one.verbs.managed[os.getpid()] = "web_0"
    dialogue = door.Dialogue(str(one.directory))
    try:
        yield dialogue
    finally:
        dialogue.close()


def warnings(dialogue: door.Dialogue) -> list[str]:
    found: list[str] = dialogue.ask("status")["status"]["warnings"]
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_full_disk_is_said_until_there_is_room() -> None:
    """The journal is in memory meanwhile, and in its file as soon as that can be written; nothing has to happen."""
    with stage(room="64k") as one, asking(one) as dialogue:
        filler = one.directory / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        dialogue.ask("attach")  # which the journal has
        [found] = until(lambda: warnings(dialogue), "it is said")
        assert "journal.json: No space left on device; make room there" in found
        findings = dialogue.ask("doctor")["findings"]
        assert [one["level"] for one in findings if "No space left" in one["sentence"]] == ["problem"]
        filler.unlink()
        until(lambda: f"process:{os.getpid()}" in (one.directory / "journal.json").read_text(), "it is written")
        until(lambda: not warnings(dialogue), "it is over")


def test_descriptors_gone_are_said_until_they_are_back() -> None:
    """Who starts a program then is told; afterwards it is served."""
    with stage() as one, asking(one) as dialogue:
        dialogue.ask("attach")
        broker = one.broker
        with no_descriptor_left():
            answer = dialogue.ask("inherit")
            assert answer["message"] == f"can't make a notify socket for pid {os.getpid()}: Too many open files"
            # The journal may be another thing that can't be opened.
            [found] = until(lambda: [one for one in warnings(dialogue) if "journal" not in one], "it is said")
            assert found.startswith("can't open descriptors: Too many open files; raise the limit of open files of")
        assert dialogue.ask("inherit")["ok"]
        until(lambda: not warnings(dialogue), "it is over")
        assert one.broker == broker


def test_message_that_lost_its_descriptors_comes_without_them() -> None:
    """As do all before it with theirs, and all after it: a channel is not at its end for it."""
    ours, theirs = socket.socketpair()
    sender, receiver = Channel(ours), Channel(theirs)
    reading, writing = os.pipe()
    try:
        sender.send({"number": 0}, [reading])
        [(message, fds)] = receiver.receive()
        assert (message["number"], len(fds)) == (0, 1)
        os.close(fds[0])
        with no_descriptor_left():
            sender.send({"number": 1})
            sender.send({"number": 2}, [reading, writing])
            sender.send({"number": 3}, [reading] * 300)
            sender.send({"number": 4})
            heard: list[tuple[dict[str, Any], list[int]]] = []
            while len(heard) < 4:
                heard += receiver.receive()
        assert [message["number"] for message, _ in heard] == [1, 2, 3, 4]
        assert not any(fds for _, fds in heard)
        assert [message.get("fds", 0) for message, _ in heard] == [0, 2, 300, 0]
        sender.send({"number": 5}, [writing])
        [(message, fds)] = receiver.receive()
        assert os.fstat(fds[0]).st_ino == os.fstat(writing).st_ino
        os.close(fds[0])
    finally:
        sender.close()
        receiver.close()
        os.close(reading)
        os.close(writing)


def test_supervisord_is_well_again_when_its_descriptors_are_back() -> None:
    """At its limit a reload is refused with a sentence and the old one serves, `doctor` says why, nobody is busy with
    it; and all is as before when it is over."""
    with supervisord("plain") as stage:
        wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "all is ready", 0.1)
        wait_until(stage.spare_stands_by, 15, "what supervisord has open stays as it is", 0.05)
        host, broker, pids = stage.host(), stage.broker(), stage.pids()
        _, hard = before = resource.prlimit(host, resource.RLIMIT_NOFILE)
        taken = _opened(host)
        # The lowest that is free. Below the number of those that it has, poll(2) would be refused too.
        lowest = next(fd for fd in range(3, 1024) if fd not in taken)
        resource.prlimit(host, resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            reload = stage.reload()
            assert reload.status not in (0, 75), reload
            assert "Traceback" not in reload.stderr
            assert "bug" not in reload.reason
            assert "Too many open files" in stage.sockshare("doctor").stdout
            used = _time_of(host)
            time.sleep(1)  # it is about how much it does in a while
            assert _time_of(host) - used < 0.5
        finally:
            resource.prlimit(host, resource.RLIMIT_NOFILE, before)
        wait_until(lambda: "all is well" in stage.sockshare("doctor").stdout, 15, "all is well again", 0.2)
        assert (stage.broker(), stage.pids()) == (broker, pids)
        reload = stage.reload()
        assert reload.status == 0, reload


def _opened(pid: int) -> set[int]:
    """The descriptors of *pid*, once they stay: some are closed by a thread, a connection when its end is read."""
    seen: list[set[int]] = []

    def is_still() -> bool:
        seen.append({int(fd) for fd in os.listdir(f"/proc/{pid}/fd")})
        return len(seen) > 2 and seen[-3] == seen[-2] == seen[-1]

    wait_until(is_still, 15, "its descriptors stay", 0.1)
    return seen[-1]


def _time_of(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
