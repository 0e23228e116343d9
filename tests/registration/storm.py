"""Kills and stops those who hold a registration, and their broker, while an oracle watches and a load goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tests.registration.scenes import START_WINDOW, in_line, inode_of, record
from tests.support import ledger
from tests.support.circusd import Circusd, wait_until
from tests.support.numbered import Outcome, Pelting, Piece
from tests.support.oracle import Oracle, Watch, children, has_socket, is_broker

RATE = {"tcp": 200.0, "udp": 250.0}


class Mishap(Enum):
    """What befalls whom."""

    KILL = "holder killed"
    STOP = "holder stopped"
    BROKER = "broker killed"
    BOTH = "holder and broker killed"


class Happened(NamedTuple):
    """A mishap that has befallen *pid*."""

    at: float  # monotonic seconds
    mishap: Mishap
    pid: int


class Storm:
    """One storm on *stage*; `verdict` is for when it is over."""

    def __init__(self, stage: Circusd, oracle: Oracle, seed: int) -> None:
        self.stage = stage
        self.oracle = oracle
        self.happened: list[Happened] = []
        self.killed: set[int] = set()
        self.epochs: list[int] = []
        self._random = random.Random(seed)
        self._doing: dict[Mishap, Callable[[int], None]] = {
            Mishap.KILL: self._kill,
            Mishap.STOP: self._stop,
            Mishap.BROKER: self._kill_broker,
            Mishap.BOTH: self._kill_both,
        }

    def rage(self, kills: int, stops: int, brokers: int) -> None:
        """So many of each, mixed; every other death of a broker is together with the holder's."""
        both = brokers // 2
        mishaps = [Mishap.KILL] * (kills - both) + [Mishap.STOP] * stops
        mishaps += [Mishap.BROKER] * (brokers - both) + [Mishap.BOTH] * both
        self._random.shuffle(mishaps)
        mishaps = _spread(mishaps)
        for mishap in mishaps:
            self._doing[mishap](self.calm())
        self.calm()

    def calm(self) -> int:
        """The holder, once there is one alone and somebody who could follow."""
        found: list[int] = []

        def is_calm() -> bool:
            found[:] = self.oracle.armed()
            others = set(in_line(self.stage)) - set(found)
            return len(found) == 1 and len(others) >= 2

        wait_until(is_calm, 30, "one holds, and others wait", 0.005)
        self.epochs.append(record(self.stage)["last_epoch"])
        return found[0]

    def _signal(self, pid: int, number: int) -> bool:
        """To a process that still is the holder, by what can't mean another one."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if pid not in self.oracle.armed():
                return False
            signal.pidfd_send_signal(pidfd, number)
            return True
        finally:
            os.close(pidfd)

    def _note(self, mishap: Mishap, pid: int) -> None:
        self.happened.append(Happened(time.monotonic(), mishap, pid))

    def _kill(self, pid: int) -> None:
        self._note(Mishap.KILL, pid)
        if self._signal(pid, signal.SIGKILL):
            self.killed.add(pid)
            self._succeeded(pid)

    def _stop(self, pid: int) -> None:
        self._note(Mishap.STOP, pid)
        if not self._signal(pid, signal.SIGSTOP):
            return
        pidfd = os.pidfd_open(pid)
        try:
            self._succeeded(pid)
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)

    def _kill_broker(self, pid: int) -> None:
        broker = self.broker()
        self._note(Mishap.BROKER, broker)
        self.stage.kill(broker)
        self._replaced(broker)

    def _kill_both(self, pid: int) -> None:
        broker = self.broker()
        self._note(Mishap.BOTH, pid)
        self.stage.kill(broker)
        if self._signal(pid, signal.SIGKILL):
            self.killed.add(pid)
        self._replaced(broker)

    def _succeeded(self, pid: int) -> None:
        wait_until(lambda: set(self.oracle.armed()) - {pid}, 20, f"somebody holds it after {pid}", 0.005)

    def _replaced(self, broker: int) -> None:
        wait_until(lambda: self._find_broker() not in (0, broker), 10, "a broker comes after it", 0.01)

    def broker(self) -> int:
        """The broker that serves."""
        return int(wait_until(self._find_broker, 10, "a broker serves", 0.01))

    def _find_broker(self) -> int:
        return broker_of(self.stage, self.oracle.inode)


def broker_of(stage: Circusd, inode: int) -> int:
    """The broker that serves the socket *inode*, or 0: the one that stands by does not have it."""
    return next((pid for pid in children(stage.host()) if is_broker(pid) and has_socket(pid, inode)), 0)


def _spread(mishaps: list[Mishap]) -> list[Mishap]:
    """*mishaps* with the deaths of brokers apart: the next one has its own successor started a quarter of a second
    after its start, and what two deaths at once cost is another question."""
    brokers = [one for one in mishaps if one in (Mishap.BROKER, Mishap.BOTH)]
    others = [one for one in mishaps if one not in brokers]
    every = max(1, len(others) // max(1, len(brokers)))
    for place, one in enumerate(brokers):
        others.insert(place * (every + 1) + every // 2, one)
    return others


class Verdict(NamedTuple):
    """What a storm has shown."""

    happened: list[Happened]
    watch: Watch
    outcome: Outcome
    refused: int
    lost: list[Piece]  # not taken by anybody; of datagrams, also those that were dropped
    doubtful: int  # processes that died while they took something: each explains one of `lost`
    died_with: int  # taken by one that died before it had answered
    twice: int
    dropped: int  # datagrams, by the kernel, for want of room

    def gaps(self, *mishaps: Mishap) -> list[float]:
        """The lengths, in seconds, of the times without a holder that follow upon *mishaps*."""
        lengths = []
        for gap in self.watch.gaps():
            before = [one for one in self.happened if one.at <= gap.start + 0.01]
            if before and before[-1].mishap in mishaps:
                lengths.append(gap.end - gap.start)
        return lengths

    def __str__(self) -> str:
        kinds = {mishap.value: sum(one.mishap is mishap for one in self.happened) for mishap in Mishap}
        several = self.watch.several()
        ends = {
            mishap.value: f"{len(gaps)} gaps, p50 {_quantile(gaps, 0.5)} p99 {_quantile(gaps, 0.99)} max "
            f"{_quantile(gaps, 1)} ms"
            for mishap in Mishap
            if (gaps := self.gaps(mishap))
        }
        new = [span.end - span.start for span in several if span.age < START_WINDOW]
        return (
            f"{kinds}; {self.watch.looks} looks, longest pause {self.watch.longest_pause * 1000:.0f} ms; "
            f"two at once: {len(several) - len(new)}, and {len(new)} in a start window (p50 {_quantile(new, 0.5)} "
            f"p99 {_quantile(new, 0.99)} max {_quantile(new, 1)} ms); none: {ends}; "
            f"load {dict(self.outcome.outcomes)}, refused {self.refused}, lost {len(self.lost)} "
            f"({self.doubtful} died taking), twice {self.twice}, dropped {self.dropped}, "
            f"died with their taker {self.died_with}"
        )


def _quantile(values: Sequence[float], share: float) -> str:
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000:.1f}" if ordered else "-"


def run(stage: Circusd, kind: str, *, kills: int, stops: int, brokers: int, seed: int = 5) -> Verdict:
    """A storm on *stage* under a load of *kind* (tcp, udp)."""
    assert stage.process is not None
    with Oracle(inode_of(stage), stage.process.pid) as oracle, Pelting(stage.port, kind, RATE[kind]) as load:
        storm = Storm(stage, oracle, seed)
        storm.rage(kills, stops, brokers)
        outcome = load.stop()
        wait_until(lambda: _is_empty(stage, kind, outcome), 10, "everything is taken", 0.05)
        watch = oracle.stop()
    assert storm.epochs == sorted(storm.epochs), "an epoch was smaller than one before it"
    return _judge(stage, kind, storm, watch, outcome)


def _is_empty(stage: Circusd, kind: str, outcome: Outcome) -> bool:
    return kind == "tcp" or _socket(stage)[1] == 0


def _socket(stage: Circusd) -> tuple[int, int]:
    """Of the UDP socket: how many datagrams the kernel dropped, and the bytes that wait (/proc/net/udp, proc(5))."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{stage.port:04X}"):
            return int(fields[12]), int(fields[4].partition(":")[2], 16)
    return -1, 0


def _judge(stage: Circusd, kind: str, storm: Storm, watch: Watch, outcome: Outcome) -> Verdict:
    books = list(ledger.read(stage.directory))
    dead = [book for book in books if book.pid in storm.killed]
    taken = [entry.number for book in books for entry in book.entries]
    unanswered = {entry.number for book in dead for entry in book.entries if entry.state == ledger.TAKEN}
    refused = outcome.outcomes["refused"]
    if kind == "tcp":
        failures = [piece for piece in outcome.failures() if piece.outcome != "refused"]
        lost = [piece for piece in failures if piece.number not in unanswered]
        return Verdict(
            storm.happened, watch, outcome, refused, lost, sum(book.taking for book in dead),
            len(failures) - len(lost), 0, 0,
        )  # fmt: skip
    known = set(taken)
    lost = [piece for piece in outcome.pieces if piece.outcome == "sent" and piece.number not in known]
    twice = len(taken) - len(known)
    doubtful = sum(book.taking for book in dead)
    return Verdict(storm.happened, watch, outcome, refused, lost, doubtful, 0, twice, _socket(stage)[0])
