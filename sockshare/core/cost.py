"""What ending a process has cost its clients: how each connection that it had has ended.

The kernel keeps its counters of a connection for a moment after the program has closed it; `idleness` judges them. A
client that goes while it waits for its answer has cost nobody anything: only what the server closes first is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from .idleness import Sample, Verdict

#: What the end of file of its client adds to a connection's counters of bytes.
_END_OF_FILE = 1

#: A request on a connection that has had an answer before came as that ended, if it is as young (milliseconds) or was
#: never read.
_LATE = 50


class Fate(Enum):
    """How a connection has ended."""

    WHOLE = "whole"  # with nothing in hand, or left by its client
    MET = "met"  # it was kept, and closed just as another request came: its client asks again (RFC 9112, 9.3.1)
    CUT = "cut"  # with something unread, or a request in hand
    UNSEEN = "unseen"  # with a request in hand, as far as anybody can tell: the kernel has no word on it


class Cost(NamedTuple):
    """What was lost when processes ended.

    Attributes:
        cut: Connections that ended with something unread, or a request in hand.
        met: Kept ones that were closed just as another request came.
        unseen: Why it is not known of all of them; empty when it is.
        cause: Why requests were cut, with what to do against it.
    """

    cut: int = 0
    met: int = 0
    unseen: str = ""
    cause: str = ""


def total(costs: Iterable[Cost]) -> Cost:
    """All of *costs* together."""
    known = list(costs)
    return Cost(
        sum(cost.cut for cost in known),
        sum(cost.met for cost in known),
        next((cost.unseen for cost in known if cost.unseen), ""),
        next((cost.cause for cost in known if cost.cause), ""),
    )


def fate(before: Sample, verdict: Verdict, last: Sample | None, *, closed_by_server: bool) -> Fate:
    """How a connection ended that was last seen open as *before*.

    Args:
        verdict: What it was doing then, as far as the rules could tell.
        last: The kernel's last word on it; None: nobody heard it.
        closed_by_server: Whether its own side closed first, in good order. (The kernel goes on to send then.)
    """
    if last is None:
        # One that is reset for what was unread leaves nothing, and looks as if its client had left.
        return Fate.WHOLE if verdict is Verdict.IDLE and closed_by_server else Fate.UNSEEN
    if not (closed_by_server or _is_unread(last)) or not _in_hand(before, verdict, last):
        return Fate.WHOLE
    came_late = verdict is not Verdict.BUSY or last.last_received <= _LATE or _is_unread(last)
    return Fate.MET if before.bytes_sent > 0 and came_late else Fate.CUT


def is_unanswered(last: Sample) -> bool:
    """Whether a connection of which nothing else is known, and that was last as *last*, had a request and no answer."""
    return last.bytes_received > _END_OF_FILE and last.bytes_sent == 0


def _is_unread(last: Sample) -> bool:
    return last.receive_queue > _END_OF_FILE


def _in_hand(before: Sample, verdict: Verdict, last: Sample) -> bool:
    if _is_unread(last):
        return True
    if last.bytes_received <= _END_OF_FILE:
        return False
    if last.bytes_sent == 0:
        return True
    if last.bytes_sent > before.bytes_sent:
        return last.last_received < last.last_sent
    return verdict is Verdict.BUSY or last.bytes_received > before.bytes_received + _END_OF_FILE


def sentence(cost: Cost | None) -> str:
    """*cost* for people; empty if nothing was lost, and that was seen, or if nobody was to look."""
    if cost is None:
        return ""
    said = []
    if cost.cut:
        said.append(f"{_requests(cost.cut)} cut: {cost.cause}")
    if cost.met:
        # Their clients saw the end before any byte of an answer.
        said.append(
            f"{_requests(cost.met)} met by the end of a kept connection: clients repeat it, unless it is a POST"
        )
    if cost.unseen:
        said.append(f"can't see whether requests were cut: {cost.unseen}")
    return "; ".join(said)


def _requests(count: int) -> str:
    return f"{count} request{' was' if count == 1 else 's were'}"
