"""Logs: of a process that must not die of them, and of a door that is open to strangers."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from sockshare.broker.sparing import Sparing
from sockshare.kernel.logfile import LogFile, Stream


def record(text: str, *arguments: object, level: int = logging.WARNING, line: int = 1) -> logging.LogRecord:
    return logging.LogRecord("sockshare", level, "door.py", line, text, arguments, None)


def test_lines_go_to_the_new_file_after_rotation_and_nowhere_without_directory(tmp_path: Path) -> None:
    """Neither raises out of the call that logs, and what comes after is written again."""
    path = tmp_path / "logs" / "sockshare.log"
    path.parent.mkdir()
    log = LogFile(str(path))
    log.emit(record("one"))
    path.rename(path.with_suffix(".1"))
    log.emit(record("two"))
    assert path.read_text() == "two\n"
    shutil.rmtree(path.parent)
    log.emit(record("three"))
    path.parent.mkdir()
    log.emit(record("four"))
    assert path.read_text() == "four\n"
    log.close()


@pytest.mark.timeout(20)
def test_who_logs_into_a_pipe_that_nobody_reads_is_not_held_up() -> None:
    """What it has no room for is lost, and counted; what is longer than a pipe takes at once is whole."""
    reading, writing = os.pipe()
    try:
        log = Stream(writing)
        for number in range(200):  # 200 KB into 64
            log.emit(record("%d" + "x" * 1000, number))
        os.set_blocking(reading, False)
        before = os.read(reading, 1 << 20).decode()
        kept = [int(line.partition("x")[0]) for line in before.splitlines()]
        assert kept == list(range(len(kept)))
        assert 32 <= len(kept) < 200
        log.emit(record("y" * 10_000))
        log.emit(record("last"))
        said = os.read(reading, 1 << 20).decode().splitlines()
        assert said == [
            "",
            f"({200 - len(kept)} records before this one were lost: nobody read them)",
            "y" * 10_000,
            "last",
        ]
    finally:
        os.close(reading)
        os.close(writing)
    log.emit(record("to nobody"))


def test_strangers_write_so_much_and_no_more() -> None:
    """Warnings of one kind are counted out, others and what is no warning are not; the next one says how many."""
    now = 0.0
    sparing = Sparing(most=2, seconds=10.0, clock=lambda: now)
    said = [sparing.filter(record("pid %d has too many", pid)) for pid in range(5)]
    assert said == [True, True, False, False, False]
    assert sparing.filter(record("another", line=2))
    assert sparing.filter(record("pid %d has died", 1, level=logging.INFO))
    now = 10.0
    last = record("pid %d has too many", 9)
    assert sparing.filter(last)
    assert last.getMessage() == "pid 9 has too many (3 like it were left out before)"
    now = 20.0
    last = record("pid %d has too many", 9)
    assert sparing.filter(last)
    assert last.getMessage() == "pid 9 has too many"
