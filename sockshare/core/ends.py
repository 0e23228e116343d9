"""How processes ended, and what they wrote last: kept by the manager's side, for who has to say why one failed."""

from __future__ import annotations

import signal
from collections import deque
from typing import Any, NamedTuple

#: Bytes that are kept of what a process wrote to one stream, and lines that are shown of them.
_KEPT = 4096
_SHOWN = 10
#: Of so many processes that have ended; the oldest are forgotten.
_ENDED = 128
#: Of so many that run, and have written something.
_RUNNING = 4096
#: Seconds within which the crashes of a process count, and so many of them at most.
CRASHES_WITHIN = 60.0
_CRASHES = 1000


class End(NamedTuple):
    """How one process ended."""

    pid: int
    status: int | None  # in the form of waitpid(2); None: nobody saw it
    stopped: bool  # its manager had it stopped: this was no crash
    output: str = ""


class Ends:
    """The ends of a manager's processes. All times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._written: dict[int, dict[str, bytes]] = {}
        self._ended: dict[int, End] = {}
        self._last: dict[str, End] = {}
        self._crashes: dict[str, deque[float]] = {}

    def wrote(self, pid: int, stream: str, data: bytes) -> None:
        """Process *pid* wrote *data* to *stream*, ``stdout`` or ``stderr``."""
        streams = self._written.get(pid)
        if streams is None:
            if len(self._written) >= _RUNNING:
                del self._written[next(iter(self._written))]
            self._ended.pop(pid, None)  # another process has had this pid
            streams = self._written[pid] = {}
        streams[stream] = (streams.get(stream, b"") + data[-_KEPT:])[-_KEPT:]

    def ended(self, pid: int, name: str, status: int | None, *, stopped: bool, now: float) -> None:
        """Process *pid*, which is called *name*, has ended; see `End`."""
        end = End(pid, status, stopped, self._output(pid))
        self._written.pop(pid, None)
        self._ended.pop(pid, None)
        self._ended[pid] = self._last[name] = end
        if len(self._ended) > _ENDED:
            del self._ended[next(iter(self._ended))]
        if not stopped:
            self._crashes.setdefault(name, deque(maxlen=_CRASHES)).append(now)

    def report(self, pid: int) -> dict[str, Any]:
        """What is known of *pid*, as it goes over the link; of one that runs its output only."""
        return self._ended.get(pid, End(pid, None, stopped=False, output=self._output(pid)))._asdict()

    def last(self, name: str) -> dict[str, Any] | None:
        """The last end of a process that was called *name*, without its output; None: none has ended."""
        end = self._last.get(name)
        return None if end is None else {"pid": end.pid, "status": end.status, "stopped": end.stopped}

    def crashes(self, name: str, now: float) -> int:
        """How often a process called *name* ended by itself within the last `CRASHES_WITHIN` seconds."""
        return sum(now - when <= CRASHES_WITHIN for when in self._crashes.get(name, ()))

    def _output(self, pid: int) -> str:
        streams = self._written.get(pid, {})
        # A server's stdout has its access log: what it died of stands on its stderr, unless the two are one.
        data = streams.get("stderr") or streams.get("stdout", b"")
        return "\n".join(data.decode(errors="replace").splitlines()[-_SHOWN:])


def describe(status: int | None, *, stopped: bool = False, manager: str = "its manager") -> str:
    """How a process ended, in words for after its name."""
    if stopped:
        return f"was stopped by {manager}"
    if status is None:
        return "has died"
    if status & 0x7F:
        return f"was killed by signal {status & 0x7F}{_name(status & 0x7F)}"
    return f"exited with status {status >> 8}"


def _name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
