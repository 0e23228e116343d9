"""``python -m benchmarks.registration``: who holds the event registration: hand-over, moves, spread, and doing nothing.

Everything is measured beside what else does it, in the same run: a lock of the kernel's, nginx's accept_mutex,
EPOLLEXCLUSIVE, SO_REUSEPORT, the bare system calls.
"""

from __future__ import annotations

import argparse
import signal
import sys

from benchmarks import failover, idle, moves, spread


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registration", description=__doc__.partition("\n")[0])
    parts = ("failover", "moves", "spread", "idle")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all, if none is named")
    parser.add_argument("--kills", type=int, default=100, help="of each way, at most")
    parser.add_argument("--kill-seconds", type=float, default=120.0, help="for all of them, at most")
    parser.add_argument("--moves", type=int, default=2000, help="of each kind")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8], help="that connections spread over")
    parser.add_argument("--rate", type=float, default=200.0, help="connections a second of the low load")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load of each way")
    parser.add_argument("--idle", type=int, default=100, help="processes beside an idle broker")
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--idle-settle", type=float, default=5.0, help="seconds in line before that")
    options = parser.parse_args()
    for part in options.parts:
        if part not in parts:
            parser.error(f"no such part: {part!r}")
    # By default it would end at once, and leave all that it has started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = options.parts or parts
    if "failover" in chosen:
        failover.run(options.kills, options.kill_seconds)
    if "moves" in chosen:
        moves.run(options.moves)
    if "spread" in chosen:
        spread.run(options.processes, options.rate, options.seconds)
    if "idle" in chosen:
        idle.run(options.idle, options.idle_settle, options.idle_seconds)


if __name__ == "__main__":
    main()
