"""The journal's file."""

from __future__ import annotations

import json
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sockshare.host.journal import Journal
from sockshare.kernel import closing
from tests.support.circusd import wait_until


def saved(path: Path, owner: str = "1-1") -> Journal:
    journal = Journal(str(path), owner)
    journal.put("a", {"x": 1})
    journal.put("b", {"y": [2]})
    journal.save()
    return journal


def test_records_are_found_again(tmp_path: Path) -> None:
    """What was put and saved is there for the next host of the same manager; what was forgotten is not."""
    path = tmp_path / "journal.json"
    journal = saved(path)
    journal.put("a", None)
    journal.put("never", None)
    journal.save()
    assert Journal(str(path), "1-1").records == {"b": {"y": [2]}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal.json"]


def test_replaced_file_is_given_back_by_a_thread(tmp_path: Path) -> None:
    """With ``discard`` ext4 waits for the disk meanwhile: 127 ms in which supervisord answered nobody."""
    path = tmp_path / "journal.json"
    journal = saved(path)
    before = identity(path.stat())
    release = threading.Event()
    for _ in range(closing.MOST):  # no thread is left
        closing.apart(release.wait)
    try:
        journal.put("a", {"x": 2})
        journal.save()
        assert json.loads(path.read_bytes())["records"]["a"] == {"x": 2}
        assert before in opened()
    finally:
        release.set()
    wait_until(lambda: before not in opened(), 10, "it is given back")


def identity(of: os.stat_result) -> tuple[int, int]:
    return of.st_dev, of.st_ino


def opened() -> set[tuple[int, int]]:
    """All files of which we have a descriptor."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            found.add(identity(entry.stat()))
    return found


def test_records_are_passed_over_when_they_are_another_manager_s(tmp_path: Path) -> None:
    """Pids and reloads of an earlier manager mean nothing to the next in the same directory."""
    path = tmp_path / "journal.json"
    saved(path)
    assert Journal(str(path), "2-2").records == {}


@pytest.mark.parametrize(
    "content",
    [b"", b'{"owner": "1-1", "rec', b"\x00\xff", b"[]", b'{"owner": "1-1", "records": {"a": 1}}', b"[" * 99999],
)
def test_journal_is_empty_when_its_file_is_garbage(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A torn file costs its records and a line in the log, never the host; the next save mends it."""
    path = tmp_path / "journal.json"
    path.write_bytes(content)
    journal = Journal(str(path), "1-1")
    assert journal.records == {}
    assert "journal" in caplog.text
    journal.put("a", {"x": 1})
    journal.save()
    assert json.loads(path.read_bytes())["records"] == {"a": {"x": 1}}


def test_memory_still_serves_when_file_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full or read-only directory is logged, and raises nothing."""
    journal = saved(tmp_path / "gone" / "journal.json")
    assert journal.records == {"a": {"x": 1}, "b": {"y": [2]}}
    assert "can't write" in journal.trouble


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    """Who ends while he writes leaves the file before; and what a reader has open is never written to."""
    path, kept = tmp_path / "journal.json", tmp_path / "kept"
    journal = saved(path)
    os.link(path, kept)
    before = kept.read_bytes()
    journal.put("a", {"x": 2})
    journal.save()
    assert kept.read_bytes() == before
    assert Journal(str(path), "1-1").records["a"] == {"x": 2}
    before = path.read_bytes()
    journal.put("b", {"y": object()})  # ends it in the middle
    with pytest.raises(TypeError):
        journal.save()
    assert path.read_bytes() == before


class Counted(dict[str, int]):
    """A record that counts how often it is encoded."""

    times = 0

    def items(self) -> Any:
        self.times += 1
        return super().items()


def test_what_has_not_changed_is_not_encoded_again(tmp_path: Path) -> None:
    """A save in supervisord's loop costs what has changed, however much the journal has; and the file is whole."""
    path = tmp_path / "journal.json"
    journal = Journal(str(path), "1-1")
    kept, changed = Counted(x=1), Counted(x=2)
    journal.put("kept", kept)
    for number in range(5):
        journal.put("changed", Counted(y=number))
        journal.put("changed", changed)  # twice in a turn: the last one counts
        journal.put("gone", {} if number % 2 else None)
        journal.save()
        assert json.loads(path.read_bytes())["records"] == journal.records
    assert (kept.times, changed.times) == (1, 5)
    journal.put("kept", {"x": 3})
    journal.save(anew=True)
    assert Journal(str(path), "1-1").records == {"kept": {"x": 3}, "changed": {"x": 2}}
