"""What the roster has the journal keep, of real processes, with a host that only writes it down."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import pytest

from sockshare.broker import roster
from sockshare.broker.hostlink import HostLink
from sockshare.broker.roster import Managed, Roster
from sockshare.core.records import ProcessFacts, Records
from tests.host.test_host import SLEEPER, until


class Written:
    """The journal's lines, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, ProcessFacts | None]] = []

    def journal(self, key: str, record: ProcessFacts | None) -> None:
        self.lines.append((key, record))

    @property
    def statuses(self) -> list[str]:
        return [record.status for _, record in self.lines if record is not None]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPER) as started:
        try:
            yield started
        finally:
            started.kill()


def run(
    process: subprocess.Popen[bytes], body: Callable[[Roster, Managed, Written], Coroutine[Any, Any, None]]
) -> None:
    async def play() -> None:
        written = Written()
        known = Roster(cast(HostLink, written), Records(), on_death=lambda _: None)
        managed = known.enter(process.pid, "web", "web:1")
        written.lines.clear()
        await body(known, managed, written)

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(play())
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the pidfd of one that is watched to the end


def test_journal_has_the_first_and_the_last_of_many_statuses(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a process says something, a line is written at most every so often, and its last word is."""
    monkeypatch.setattr(roster, "_NOTE_EVERY", 0.05)

    async def body(known: Roster, managed: Managed, written: Written) -> None:
        for number in range(1000):
            managed.status = str(number)
            known.note_soon(managed)
        assert written.statuses == ["0"]
        await until(lambda: written.statuses == ["0", "999"], "the last one is written")
        assert not known._noted or written.statuses == ["0", "999"]
        await until(lambda: not known._noted, "nothing is due any more")
        managed.status = "later"
        known.note_soon(managed)
        assert written.statuses == ["0", "999", "later"]

    run(process, body)


def test_readiness_is_written_at_once_among_statuses(process: subprocess.Popen[bytes]) -> None:
    """A broker that dies in the next instant leaves it to the next; and what is as it was is not written again."""

    async def body(known: Roster, managed: Managed, written: Written) -> None:
        for status in ("a", "b"):
            managed.status = status
            known.note_soon(managed)
        managed.ready = "notify"
        known.note(managed)
        key, record = written.lines[-1]
        assert (key, record and record.ready, record and record.status) == (
            f"process:{process.pid}",
            "notify",
            "b",
        )
        known.note(managed)
        assert len(written.lines) == 2

    run(process, body)


def test_nothing_is_written_of_a_process_that_died_meanwhile(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line of it is that it is forgotten."""
    monkeypatch.setattr(roster, "_NOTE_EVERY", 0.05)

    async def body(known: Roster, managed: Managed, written: Written) -> None:
        for status in ("a", "b"):
            managed.status = status
            known.note_soon(managed)
        process.kill()
        await until(lambda: known.managed(process.pid) is None, "its death is seen")
        await until(lambda: not known._noted, "nothing is due any more")
        assert written.statuses == ["a"]
        assert known.ended[process.pid].program == "web"  # until it is known that nothing is left of it
        known.forget_ended([process.pid])
        assert written.lines[-1] == (f"process:{process.pid}", None)
        assert not known.ended

    run(process, body)
