"""How long the broker's loop does not answer: somebody asks at its door every few milliseconds.

``python tests/support/pings.py DOOR BROKER`` does so until its standard input ends, and prints the longest answer.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

EVERY = 0.003


def waited(*processes: str) -> dict[str, int]:
    """Nanoseconds for which each thread of *processes* was runnable and did not run: others had the processors
    (Documentation/scheduler/sched-stats.rst)."""
    found = {}
    for process in processes:
        for thread in os.listdir(f"/proc/{process}/task"):
            try:
                with open(f"/proc/{process}/task/{thread}/schedstat", "rb", buffering=0) as file:
                    found[thread] = int(file.read().split()[1])
            except OSError:
                continue
    return found


def ping(door: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(30)
        sock.connect(door)
        sock.send(b"H")
        assert sock.recv(65536).startswith(b"+"), "the door says how its broker is"


def main(door: str, broker: str) -> None:
    ping(door)
    print("begun", flush=True)
    count, own, wall = 0, 0.0, 0.0
    while not select.select([0], [], [], EVERY)[0]:
        before, began = waited(broker, "self"), time.monotonic()
        ping(door)
        took = time.monotonic() - began
        others = sum(since - before[thread] for thread, since in waited(broker, "self").items() if thread in before)
        wall, own = max(wall, took), max(own, took - others / 1e9)
        count += 1
    print(json.dumps([count, own, wall]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
