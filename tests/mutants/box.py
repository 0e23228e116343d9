"""``python -m tests.mutants.box SECONDS COMMAND...``: runs a command, and ends whatever it leaves running.

A bug may well be that something is not ended. What is orphaned below this process becomes its child (prctl(2),
PR_SET_CHILD_SUBREAPER), so that it is found. Exits with the command's status, or 124 when its time was over.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TIMED_OUT = 124
_PR_SET_CHILD_SUBREAPER = 36


def main(seconds: float, command: list[str]) -> int:
    """Run *command* for at most *seconds*."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        deadline = time.monotonic() + 10
        while (left := _descendants(os.getpid())) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            _reap()
            time.sleep(0.01)


def _descendants(pid: int) -> list[int]:
    found = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *_descendants(child)]
    except OSError:
        pass  # it has ended
    return found


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
