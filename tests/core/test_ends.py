"""What is kept of processes that end."""

from __future__ import annotations

import pytest

from sockshare.core import ends
from sockshare.core.ends import Ends, describe


def test_last_lines_are_of_that_process_alone() -> None:
    """Whatever others write meanwhile; its stderr, or its stdout where it wrote nothing else."""
    kept = Ends()
    for number in range(2000):
        kept.wrote(1, "stderr", b"access log %d\n" % number)
        if number % 100 == 0:
            kept.wrote(2, "stderr", b"%d\n" % number)
    kept.wrote(2, "stdout", b"its access log\n")
    kept.wrote(3, "stdout", b"why\xff\n")
    for pid in (2, 3):
        kept.ended(pid, "web", 256, stopped=False, now=0.0)
    assert kept.report(2)["output"].splitlines() == [str(number) for number in range(1000, 2000, 100)]
    assert kept.report(3) == {"pid": 3, "status": 256, "stopped": False, "output": "why\ufffd"}
    assert kept.report(1)["status"] is None  # it runs
    assert kept.report(1)["output"].endswith("access log 1999")
    assert kept.report(4) == {"pid": 4, "status": None, "stopped": False, "output": ""}


def test_crashes_count_for_a_minute_and_stops_do_not() -> None:
    """What its manager stopped did not crash."""
    kept = Ends()
    assert (kept.last("web"), kept.crashes("web", 0.0)) == (None, 0)
    for now in (0.0, 50.0, 70.0):
        kept.ended(int(now) + 1, "web", 9, stopped=False, now=now)
    kept.ended(100, "web", 15, stopped=True, now=70.0)
    kept.ended(101, "api", 15, stopped=False, now=70.0)
    assert kept.crashes("web", 70.0) == 2
    assert kept.crashes("web", 200.0) == 0
    assert kept.last("web") == {"pid": 100, "status": 15, "stopped": True}


def test_new_process_does_not_inherit_what_its_pid_had() -> None:
    """A pid comes round."""
    kept = Ends()
    kept.wrote(7, "stderr", b"old\n")
    kept.ended(7, "web", 256, stopped=False, now=0.0)
    kept.wrote(7, "stderr", b"new\n")
    assert kept.report(7) == {"pid": 7, "status": None, "stopped": False, "output": "new"}


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten; of a stream a few kilobytes stay."""
    monkeypatch.setattr(ends, "_ENDED", 3)
    monkeypatch.setattr(ends, "_RUNNING", 3)
    kept = Ends()
    for pid in range(1, 6):
        kept.wrote(pid, "stderr", b"x" * 100_000)
    assert [len(kept.report(pid)["output"]) for pid in range(1, 6)] == [0, 0, 4096, 4096, 4096]
    for pid in range(1, 6):
        kept.ended(pid, "web", 0, stopped=False, now=0.0)
    assert [kept.report(pid)["status"] for pid in range(1, 6)] == [None, None, 0, 0, 0]


@pytest.mark.parametrize(
    ("status", "stopped", "said"),
    [
        (None, False, "has died"),
        (3 << 8, False, "exited with status 3"),
        (0, False, "exited with status 0"),
        (9, False, "was killed by signal 9 (SIGKILL)"),
        (11 | 0x80, False, "was killed by signal 11 (SIGSEGV)"),  # with a core dump
        (40, False, "was killed by signal 40"),
        (9, True, "was stopped by supervisord"),
        (None, True, "was stopped by supervisord"),
    ],
)
def test_end_is_told_in_words(status: int | None, stopped: bool, said: str) -> None:
    """What the manager was told to do is no signal of somebody's."""
    assert describe(status, stopped=stopped, manager="supervisord") == said
