"""What people write to make circus wait for a new process: an ``after_spawn`` hook that blocks until it is up."""

from __future__ import annotations

import os
import time
from typing import Any

from sockshare.kernel import epoll, waits

LONGEST = 10.0  # s


def after_spawn(watcher: Any, arbiter: Any, hook_name: str, pid: int, **facts: Any) -> bool:
    """Block circusd, all of it, until *pid* waits for connections, or for ten seconds; it goes on in any case."""
    inodes = [os.fstat(sock.fileno()).st_ino for sock in arbiter.sockets.values()]
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        try:
            if epoll.registrations(pid, inodes) or waits.waiting(pid, inodes):
                break
        except OSError:  # it starts, or has died
            pass
        time.sleep(0.01)
    return True
