"""What the tests demand of a :class:`sockshare.cli.load.Result`, in sentences that show the evidence."""

from __future__ import annotations

from collections.abc import Collection

from sockshare.cli.measured import Load, Record, Result

__all__ = [
    "Load",
    "Record",
    "Result",
    "assert_answered_by_old_ones",
    "assert_answered_by_version",
    "assert_no_later",
    "assert_none_failed",
    "describe",
]

LATER = 0.25  # s that a request may be later than the worst without a reload


def describe(result: Result, since: float = 0.0) -> str:
    """Counts a kind, and the first failures with their times after *since*."""
    lines = [f"{kind}: {result.of(kind).summary()}" for kind in sorted({record.kind for record in result.records})]
    lines += [
        f"  {record.kind} due at {record.due - since:+.3f} s, {record.outcome} after {record.latency * 1000:.0f} ms, "
        f"attempts={record.attempts} {record.detail}"
        for record in result.failures[:25]
    ]
    return "\n".join(lines)


def assert_none_failed(result: Result, *, since: float = 0.0, at_least: int = 1) -> None:
    """0 refused, 0 reset, 0 timed out, 0 wrong; and there was load at all."""
    assert len(result) >= at_least, f"only {len(result)} requests were sent"
    assert not result.failures, f"{len(result.failures)} of {len(result)} failed\n{describe(result, since)}"


def assert_no_later(result: Result, quiet: Result, *, since: float = 0.0, later: float = LATER) -> None:
    """No request of a kind took longer than the worst of that kind in the quiet run, and 250 ms."""
    for kind in sorted({record.kind for record in quiet.records}):
        bound = quiet.of(kind).worst + later
        late = [record for record in result.of(kind).records if record.latency > bound]
        evidence = [f"due {record.due - since:+.3f} s: {record.latency * 1000:.0f} ms" for record in late[:20]]
        assert not late, (
            f"{len(late)} {kind} requests took over {bound * 1000:.0f} ms (worst {result.of(kind).worst * 1000:.0f}, "
            f"generator itself late by {result.worst_lag * 1000:.0f} ms): {evidence}"
        )


#: Requests that a process may answer between its registration and the moment it is noticed and held back: a look every
#: 4 ms, at some hundred requests a second.
UNNOTICED = 3


def assert_answered_by_old_ones(result: Result, pids: Collection[int]) -> None:
    """Only *pids* answered, but for what a new process did before its registration was noticed."""
    others = [record for record in result.records if record.outcome == "ok" and record.pid not in pids]
    assert len(others) <= UNNOTICED, f"{len(others)} answers came from another process than {sorted(pids)}"


def assert_answered_by_version(result: Result, version: str) -> None:
    """Every answer came from *version*."""
    others = [record for record in result.records if record.outcome == "ok" and record.version != version]
    assert result.records, "no request to judge by"
    assert not others, f"{len(others)} of {len(result)} answers are not from {version}: {others[:5]}"
