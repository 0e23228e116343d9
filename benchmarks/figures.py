"""Figures: processors, quantiles, and the table that a benchmark prints."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path


def threads(pid: int) -> list[int]:
    """The threads of a process: libzmq's work in some of its own."""
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def pin(pid: int, cpus: set[int]) -> None:
    """Let every thread of *pid* (0: this process) run on *cpus* only.

    A wake-up across processors costs more than a hand-out.
    """
    for thread in threads(pid or os.getpid()):
        os.sched_setaffinity(thread, cpus)


def cpu_seconds(pid: int) -> float:
    """What a process has used of a processor so far, from schedstat (ns), which counts finer than stat's ticks."""
    return (
        sum(int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) for thread in threads(pid)) / 1e9
    )


def median(samples: Sequence[float]) -> float:
    """p50."""
    return statistics.median(samples)


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that *share* of them do not exceed."""
    return sorted(samples)[max(0, math.ceil(len(samples) * share) - 1)]


def show(title: str, rows: Sequence[tuple[str, ...]], notes: Sequence[str] = ()) -> None:
    """Print a table; the first row has the headings."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
        if not number:
            print("  " + "  ".join("-" * width for width in widths))
    for note in notes:
        print(f"  {note}")


def microseconds(seconds: float) -> str:
    """For a table."""
    return f"{seconds * 1e6:.1f} us"


def milliseconds(seconds: float) -> str:
    """For a table."""
    return f"{seconds * 1e3:.1f} ms"


def fine(seconds: float) -> str:
    """For a table, in milliseconds with two digits."""
    return f"{seconds * 1e3:.2f} ms"
