"""Whether a connection waits for its client (idle) or for its server (busy), judged from outside.

Nobody but the server knows; the kernel's counters tell nearly all. They come with a catch: the ages of TCP_INFO count
clock ticks (4 ms at HZ=250), so after a fast exchange "last sent" equals "last received", and equally so while the
next request is at work. The rules below are asked in order, and the first that answers decides; what none can decide is
looked at again, with what has changed since as a witness, and counts as busy until it has been quiet for a while.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

#: Seconds after which a connection that no rule can judge is idle, if nothing has moved on it.
QUIET = 2.0


class Verdict(Enum):
    """What a connection is doing."""

    IDLE = "idle"
    BUSY = "busy"
    UNKNOWN = "unknown"


class Sample(NamedTuple):
    """What is known of a connection at one moment. Ages are milliseconds, by clock ticks."""

    receive_queue: int  # bytes that the server has not read
    notsent: int  # bytes that it wrote and that have not left
    unacked: int  # segments that left and are not acknowledged
    segment: int  # bytes of a full one
    bytes_received: int
    bytes_sent: int
    segments_received: int  # all of them, with data or without
    data_segments_received: int
    last_received: int  # age of the last data from the client
    last_sent: int  # age of the last data to the client
    last_acknowledged: int  # age of the last acknowledgement from the client


def judge(sample: Sample) -> Verdict:
    """Judge from one moment alone."""
    if sample.receive_queue > 0:
        return Verdict.BUSY
    # The tail of an answer may wait for an acknowledgement (Nagle, RFC 896); more is an answer still going out.
    if sample.notsent > 0 and not (sample.unacked > 0 and sample.notsent < sample.segment):
        return Verdict.BUSY
    if sample.bytes_received == 0:
        return Verdict.IDLE
    if sample.bytes_sent == 0:
        return Verdict.BUSY
    if sample.last_received < sample.last_sent:
        return Verdict.BUSY
    if sample.last_sent < sample.last_received:
        return Verdict.IDLE
    # A tie. A request after the answer would have acknowledged the answer.
    if sample.unacked > 0:
        return Verdict.IDLE
    # The client acknowledged something after its last request: the answer.
    if sample.last_acknowledged < sample.last_received:
        return Verdict.IDLE
    return Verdict.UNKNOWN


def is_answered(sample: Sample) -> bool:
    """Whether its last answer has gone out as a whole, though another request has come after it."""
    return sample.notsent == sample.unacked == 0 and sample.last_received <= sample.last_sent


class History:
    """The samples of one connection over time."""

    __slots__ = ("_last", "_verdict")

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._verdict = Verdict.UNKNOWN

    @property
    def verdict(self) -> Verdict:
        """What the rules and the witnesses say of the last sample: UNKNOWN while a wait of `QUIET` has to decide."""
        return self._verdict

    @property
    def last(self) -> Sample:
        """The last sample; there is one."""
        assert self._last is not None
        return self._last

    def add(self, sample: Sample) -> Verdict:
        """Judge from *sample* and those before it; never UNKNOWN."""
        verdict = judge(sample)
        before = self._last
        if verdict is Verdict.UNKNOWN and before is not None:
            sent = sample.bytes_sent > before.bytes_sent
            received = sample.bytes_received > before.bytes_received
            if sent and not received:
                verdict = Verdict.IDLE
            elif received and not sent:
                verdict = Verdict.BUSY
            elif not received and _pure_acknowledgements(sample) > _pure_acknowledgements(before):
                verdict = Verdict.BUSY
            elif not received and not sent:
                verdict = self._verdict
        if verdict is Verdict.UNKNOWN and min(sample.last_received, sample.last_sent) >= QUIET * 1000:
            verdict = Verdict.IDLE
        self._last, self._verdict = sample, verdict
        return Verdict.BUSY if verdict is Verdict.UNKNOWN else verdict


def _pure_acknowledgements(sample: Sample) -> int:
    return sample.segments_received - sample.data_segments_received
