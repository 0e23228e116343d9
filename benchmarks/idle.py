"""What the broker uses of a processor while nothing happens."""

from __future__ import annotations

import time

from benchmarks import figures
from benchmarks.ground import EXEC, Program, circusd
from sockshare.cli.stage import wait_until

WAYS = {
    "suspend: programs that know nothing of us": Program("exclusive", "epoll {fd:web}", EXEC),
    "gate: programs that use the library": Program("exclusive", "gate web"),
}


def measure(program: Program, processes: int, settle: float, seconds: float) -> float:
    """Seconds of processor a second, once all processes stand in line and have done so for *settle* seconds."""
    with circusd({"web": program}, processes) as ground:
        wait_until(lambda: ground.in_line("web"), 120, f"{processes} processes stand in line", 3.0)
        broker = ground.broker()
        time.sleep(settle)
        before, start = figures.cpu_seconds(broker), time.monotonic()
        time.sleep(seconds)  # doing nothing is what is measured
        return (figures.cpu_seconds(broker) - before) / (time.monotonic() - start)


def run(processes: int, settle: float, seconds: float) -> None:
    """Measure and report."""
    rows: list[tuple[str, ...]] = [("", "of one processor", "aim")]
    for name, program in WAYS.items():
        rows.append((name, f"{measure(program, processes, settle, seconds):.2%}", "0.50%"))
    figures.show(f"An idle broker, {processes} processes in line for one socket, {seconds:g} s", rows)
