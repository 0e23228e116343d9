"""A host of today, and what brokers of the version before have said to theirs; brokers that never begin."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sockshare.core import versions
from sockshare.host import absence, life, meeting
from sockshare.host.host import Host
from sockshare.host.journal import Journal
from sockshare.host.verbs import Answer, Manager
from sockshare.kernel.channel import Channel
from sockshare.kernel.descriptors import close_all
from sockshare.kernel.directory import Directory
from tests.host.embedded import SLEEPER, Orders, embedded
from tests.recorded import MANAGERS, recorded


class Obliging:
    """Verbs of a manager that does whatever it is told."""

    def whois(self, pid: int, answer: Answer) -> None:
        answer.give(process=None)

    def processes(self, answer: Answer) -> None:
        answer.give(programs={})

    def start(self, program: str, answer: Answer) -> None:
        answer.give(pid=1, process=f"{program}:1")

    def settle(
        self,
        program: str,
        retire: Sequence[int],
        known: Sequence[int],
        count: int,
        kill: bool,
        patience: float,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        answer.give(retired=list(retire), stopped=False)

    def claim(self, program: str, pid: int, answer: Answer) -> None:
        answer.give()

    def release(
        self,
        program: str,
        pid: int,
        keep: bool,
        kill: Sequence[int],
        patience: float,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        answer.give()


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


async def until(condition: Callable[[], object], what: str) -> None:
    give_up = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < give_up, what
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("manager", MANAGERS)
def test_host_does_all_that_a_broker_of_the_version_before_says(
    tmp_path: Path, manager: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every line that was recorded: each question is answered well, journal and store hold what they held then."""

    async def body() -> None:
        (tmp_path / meeting.NOTIFY).mkdir()
        host = Host(asyncio.get_running_loop(), Obliging(), Manager(manager, os.getpid(), 0, "1-1"), str(tmp_path))
        host.open()
        ours, theirs = socket.socketpair()
        broker = Channel(theirs)
        heard: list[dict[str, Any]] = []
        host.serve(ours)
        asked, journal, kept = 0, {}, set()

        def has_answered(times: int) -> bool:
            return _has_answered(broker, heard) >= times

        try:
            for one in recorded(manager):
                if one.by == "host":
                    continue
                pipes = [os.pipe() for _ in range(one.fds)]
                broker.send(one.message, [reading for reading, _ in pipes])
                while broker.wants_write:
                    select.select([], [broker], [])
                    broker.flush()
                for pipe in pipes:
                    close_all(pipe)
                if one.message["type"] == "ask":
                    asked += 1
                    await until(partial(has_answered, asked), f"an answer to {one.message}")
                elif one.message["type"] == "journal":
                    journal[one.message["key"]] = one.message["record"]
                elif one.message["type"] == "keep":
                    kept.add(one.message["key"])
                elif one.message["type"] == "forget":
                    kept.discard(one.message["key"])
            await until(lambda: host.records == {key: one for key, one in journal.items() if one}, "the same journal")
            assert set(host._store.kept) == kept
            assert all(answer["ok"] for answer in heard if answer["type"] == "answer")
            hello = heard[0]
            assert (hello["type"], hello["version"]) == ("hello", versions.LINK)
        finally:
            broker.close()
            host.close()
        found = json.loads((tmp_path / "journal.json").read_text())
        assert found["version"] == versions.LINK

    run(body)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _has_answered(broker: Channel, heard: list[dict[str, Any]]) -> int:
    broker.flush()
    for message, fds in broker.receive():
        heard.append(message)
        close_all(fds)
    return sum(message["type"] == "answer" for message in heard)


def test_messages_of_a_later_broker_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a type that is not known, however often, with one line in the log; a verb is refused with a sentence."""

    async def body() -> None:
        (tmp_path / meeting.NOTIFY).mkdir()
        gone: list[str] = []
        host = Host(
            asyncio.get_running_loop(),
            Orders(),
            Manager("circus", os.getpid(), 0, "1-1"),
            str(tmp_path),
            nonsense=lambda: gone.append("nonsense"),
        )
        host.open()
        ours, theirs = socket.socketpair()
        host.serve(ours)
        broker = Channel(theirs)
        try:
            for number in range(300):
                broker.send({"type": "statistics", "number": number})
            broker.send({"type": "ask", "id": 1, "verb": "conjure"})
            heard: list[dict[str, Any]] = []
            await until(lambda: _has_answered(broker, heard), "an answer")
            assert "can't conjure: this host has no such verb" in heard[-1]["message"]
            assert not gone
        finally:
            broker.close()
            host.close()

    run(body)
    assert caplog.text.count("'statistics' are passed over") == 1


@pytest.mark.parametrize("change", [-2, -1, 0, 1, 2, None])
def test_journal_file_of_a_neighbour_is_read(
    tmp_path: Path, change: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """That of any other version, or of none, costs its records and a line in the log."""
    path = tmp_path / "journal.json"
    version = None if change is None else versions.LINK + change
    path.write_text(json.dumps({"version": version, "owner": "1-1", "records": {"a": {"b": 1}}}))
    near = change in (-1, 0, 1)
    assert Journal(str(path), "1-1").records == ({"a": {"b": 1}} if near else {})
    assert (f"is of version {version!r}, this host reads" in caplog.text) is not near


#: A broker that says that it can't read its hello, as long as a file is not there; then it hangs.
UNREADABLE = """
import os, signal, socket, sys
link = socket.socket(fileno=int(sys.argv[sys.argv.index("--link-fd") + 1]))
link.recv(65536)
if os.path.exists(sys.argv[1]):
    link.sendall(b'{"type": "ask", "id": 1, "verb": "processes"}\\n')
    signal.pause()
link.sendall(b'{"type": "unreadable", "version": 7, "message": "it is in runes"}\\n')
sys.exit(1)
"""


def test_reason_is_said_until_a_broker_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that can't read its hello is tried again at a growing pause; a mended one is taken up with no more ado."""
    mended = tmp_path / "mended"

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as shared:
            command = (sys.executable, "-S", "-E", "-c", UNREADABLE, str(mended))
            async with embedded(tmp_path, shared, command) as one:
                await until(lambda: len(one.started) >= 6, "six attempts")
                gaps = [later - earlier for earlier, later in zip(one.started, one.started[1:], strict=False)]
                assert gaps[-1] > 2 * gaps[0] > 0.1, gaps
                assert one.absent == [f"it is in runes; it is tried again every {life.LONGEST_PAUSE:g} s"]
                mended.touch()
                await until(lambda: one.absent[-1] is None, "a broker begins")
                pid = one.life.pid
                one.kill()  # the next ones are had at once again
                await until(lambda: one.life.pid not in (pid, None), "the next broker")
                assert one.absent[1:] == [None]

    run(body)
    assert "broker: it is in runes; the next attempt is in" in caplog.text


def test_broker_that_never_begins_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that lives and says nothing, for whatever reason, is no broker."""
    monkeypatch.setattr(life, "BEGINS_WITHIN", 0.2)

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as shared:
            async with embedded(tmp_path, shared, SLEEPER) as one:
                await until(lambda: len(one.started) >= 3, "three attempts")
                assert one.absent == [f"it has not begun within 0.2 s of its start; it is tried again every {10:g} s"]

    run(body)


def test_start_is_tried_again_whatever_it_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody has thought of costs one attempt, not all of them."""
    attempts: list[int] = []

    def fail(*_: object) -> None:
        attempts.append(1)
        raise RuntimeError("no such luck")

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as shared:
            async with embedded(tmp_path, shared) as one:
                await one.verbs.report()
                with monkeypatch.context() as patched:
                    patched.setattr(life, "_Instance", fail)
                    one.life.stop()
                    one.host.drain()
                    one.life.start()
                    await until(lambda: len(attempts) >= 7, "seven attempts")
                    assert one.absent == ["can't start it: no such luck; it is tried again every 10 s"]
                report, _ = await one.verbs.report()
                assert report["pid"] == one.life.pid
                await until(lambda: one.absent[-1] is None, "it is not absent any more")

    run(body)


def test_file_of_a_reason_is_nobody_elses(tmp_path: Path) -> None:
    """What another user has put at its place is not followed, nor written to."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("stopped", "stopped~"):
        (tmp_path / name).symlink_to(victim)
    with Directory(str(tmp_path)) as directory:
        absence.say(directory, "stopped", "for a reason")
    assert (tmp_path / "stopped").read_text() == "for a reason"
    assert (tmp_path / "stopped").stat().st_mode & 0o777 == 0o644
    assert victim.read_text() == "precious"
    with Directory(str(tmp_path)) as directory:
        absence.say(directory, "stopped", None)
        absence.say(directory, "stopped", None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["victim"]
