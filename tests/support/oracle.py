"""Who has a shared socket registered, by /proc alone: what the broker's word is held against.

It shares no code with the product. ``python -m tests.support.oracle INODE MANAGER`` watches the processes of a manager
until its stdin ends, and prints a `Watch` as JSON.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_ASKS = 0x1 | 0x40  # EPOLLIN, EPOLLRDNORM
#: Not processes of a program: circus's plugin, which is the host, and supervisord's broker.
_OURS = (b"plugins;plugins.main", b"sockshare.broker", b"multiprocessing.resource_tracker")
#: Seconds between two looks.
EVERY = 0.002


def children(pid: int) -> list[int]:
    """The children of all threads of *pid*."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def tree(pid: int) -> list[int]:
    """*pid* and what descends from it."""
    found = [pid]
    for member in found:
        found += [child for child in children(member) if child not in found]
    return found


def roots(manager: int) -> list[int]:
    """The processes that *manager* runs for its programs; not a copy of itself that is about to become one, and still
    has whatever it has."""
    own = _command(manager)
    lines = {pid: _command(pid) for pid in children(manager)}
    return [pid for pid, line in lines.items() if line not in (b"", own) and not any(mark in line for mark in _OURS)]


def is_broker(pid: int) -> bool:
    """Whether *pid* is a broker, or stands by to be one."""
    return b"sockshare.broker" in _command(pid)


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ")
    except (FileNotFoundError, ProcessLookupError):
        return b""


def has_socket(pid: int, inode: int) -> bool:
    """Whether *pid* has a duplicate of the socket."""
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]" for fd in os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return False


def entries(pid: int, inode: int) -> list[int]:
    """The events of every entry of the socket *inode* in every epoll of *pid*; none of a process that is dead."""
    found = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{fd}") != "anon_inode:[eventpoll]":
                    continue
                with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                    lines = file.readlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for line in lines:
                words = line.replace(":", ": ").split()
                if words and words[0] == "tfd:" and int(words[words.index("ino:") + 1], 16) == inode:
                    found.append(int(words[words.index("events:") + 1], 16))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return found


def look(pids: Iterable[int], inode: int) -> tuple[list[int], list[int]]:
    """Those of *pids* that have an entry of the socket themselves or in a descendant; and whose is armed."""
    has, armed = [], []
    for pid in pids:
        events = [one for member in tree(pid) for one in entries(member, inode)]
        if events:
            has.append(pid)
        if any(one & _ASKS for one in events):
            armed.append(pid)
    return has, armed


def armed(manager: int, inode: int) -> list[int]:
    """The processes of *manager* that have an armed entry of the socket: read again as long as they are several, for
    reads of several processes are not one moment."""
    found = look(roots(manager), inode)[1]
    for _ in range(3):
        if len(found) > 1:
            found = look(found, inode)[1]
    return found


class Span(NamedTuple):
    """A time for which the same processes were armed (monotonic seconds)."""

    start: float
    end: float
    pids: list[int]
    age: float  # at the end, seconds since the youngest of them was first seen with an entry


class Watch(NamedTuple):
    """What a watcher has seen."""

    spans: list[Span]
    looks: int
    longest_pause: float  # between two looks: what is shorter can have been missed

    def several(self, limit: int = 1, *, window: float = 0.0) -> list[Span]:
        """When more than *limit* were armed, unless one of them was first seen less than *window* seconds before."""
        return [span for span in self.spans if len(span.pids) > limit and span.age >= window]

    def gaps(self) -> list[Span]:
        """When nobody was armed, from the first time somebody was on."""
        return [span for span in self.spans[1:-1] if not span.pids]


def watch(inode: int, manager: int) -> Watch:
    """Watch until stdin ends."""
    stdin = select.poll()
    stdin.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    spans: list[Span] = []
    first: dict[int, float] = {}  # when each was seen first
    since, last, looks, longest = time.monotonic(), [-1], 0, 0.0
    before = since
    print(since, flush=True)
    while not stdin.poll(int(EVERY * 1000)):
        now = time.monotonic()
        has, found = look(roots(manager), inode)
        for _ in range(3):
            if len(found) > 1:
                found = look(found, inode)[1]
        looks, longest, before = looks + 1, max(longest, now - before), now
        for pid in has:
            first.setdefault(pid, now)
        if found != last:
            if last != [-1] and (last or spans):
                spans.append(Span(since, now, last, min((now - first[pid] for pid in last), default=0.0)))
            since, last = now, found
    spans.append(Span(since, time.monotonic(), [] if last == [-1] else last, 0.0))
    return Watch(spans, looks, longest)


class Oracle:
    """A watcher in a process of its own; a context manager ends it."""

    def __init__(self, inode: int, manager: int) -> None:
        self.inode = inode
        self.manager = manager
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.oracle", str(inode), str(manager)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"can't watch: the watcher ended (status {self._process.wait()})")

    def armed(self) -> list[int]:
        """Who is armed now."""
        return armed(self.manager, self.inode)

    def stop(self) -> Watch:
        """What it has seen."""
        output, _ = self._process.communicate()
        document = json.loads(output)
        return Watch([Span(*span) for span in document[0]], *document[1:])

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


if __name__ == "__main__":
    print(json.dumps(watch(int(sys.argv[1]), int(sys.argv[2]))))
