"""The line for one socket's registration: feeds `core.registration` what happens, and performs what it says."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, TypeVar

from sockshare.core import registration_steps as rules
from sockshare.core.errors import NotPermitted
from sockshare.core.registration import Registration
from sockshare.core.registration_steps import Claim, Means, Policy, Standing
from sockshare.core.spec import SocketSpec
from sockshare.kernel import epoll, processes, queues
from sockshare.kernel.peers import Identity

from .endpoint import Caller
from .gates import Claimant, Gates, event
from .hostlink import HostLink
from .worker import Worker

log = logging.getLogger(__name__)

#: Seconds after which a turn ends in which nothing is taken of what waits.
TURN = 0.005
#: Seconds from what a process adds to its tally to its accept(2).
_TAKES = 0.001
#: How much less than others one can have taken to be given more of the turns for it.
_BEHIND = 8
#: What makes room, by its note, in words.
_CAUSES = {
    "gone": "has died",
    "stalled": "does not take what waits",
    "moved": "is to have it",
    "released": "has let go",
    "paused": "is not to have it",
    "cancelled": "was cancelled",
}


T = TypeVar("T")
#: A part of a line's work, which waits for each of those futures to be done.
_Work = Generator["asyncio.Future[Any]", None, T]


class Services(NamedTuple):
    """What a line works with."""

    link: HostLink
    gates: Gates
    #: Looks into processes, and changes their epolls.
    worker: Worker
    #: Sends fields of an answer to a claimant.
    tell: Callable[[Caller, dict[str, Any]], object]
    #: Has the manager stop the process of a claim of this socket, for a reason.
    stop: Callable[[str, Claimant, str], None]
    #: Another one holds the registration of the socket of this name.
    moved: Callable[[str], None]
    #: The claim of this process is over.
    left: Callable[[Identity], None]
    #: This managed process has taken its registration of the socket of this name back.
    taken_back: Callable[[int, str], None] = lambda pid, name: None


class Line:
    """One socket: its rules, its claimants, and what has been counted; made in the running loop.

    What happens is worked off one event after the other. Most of it is done when `feed` returns; what has to look into
    a process, or to wait until it is recorded, goes on later, and the events that come meanwhile wait for it.

    Args:
        inode, fd: The socket's, and our descriptor of it.
    """

    def __init__(self, services: Services, spec: SocketSpec, inode: int, fd: int) -> None:
        self._services = services
        self._loop = asyncio.get_running_loop()
        self.name = spec.name
        self.spec = spec
        self.inode = inode
        self.fd = fd
        self.policy = Policy.of(spec.registration)
        self.rules = Registration(self.policy)
        self.claimants: dict[str, Claimant] = {}
        self.moves = self.violations = self.stalls = 0
        self.dropped = 0  # gates
        self.overlaps: deque[float] = deque(maxlen=1000)  # seconds that registrations may have gone unnoticed
        self.last_move: dict[str, Any] | None = None
        self._cause = ""  # what has made room last
        self._ending: asyncio.TimerHandle | None = None  # of the turn
        self._turned = 0.0  # when the last turn began, in the loop's time
        self._happened: deque[Any] = deque()
        self._turn_of: str | None = None  # whose turn has just been ended
        self._turning = False  # whether what is being performed is that, and the next one's turn
        self._in_turn: set[str] = set()  # who was told that it holds, where turns are taken
        self._work: _Work[None] | None = None
        self._afterwards: list[Callable[[], object]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_shared(self) -> bool:
        """Whether everybody may have it."""
        return self.policy.kind == "shared"

    @property
    def takes_turns(self) -> bool:
        """Whether it goes round: a turn is neither recorded nor told, as there may be thousands a second."""
        return self.policy.kind == "rotate"

    def is_told(self, key: str) -> bool:
        """Whether the claim *key* is to be told that it holds: it does, or takes its turns."""
        return key in self._in_turn or self.standing(key) is Standing.HELD

    def of_process(self, pid: int) -> list[Claimant]:
        """The claimants that are of the managed process *pid*."""
        return [one for one in self.claimants.values() if one.managed == pid]

    def standing(self, key: str) -> Standing | None:
        """Where the claim *key* stands; None if it is not in the line."""
        entry = self.rules.find(key)
        return None if entry is None else entry.standing

    def holds(self, key: str) -> bool:
        """Whether the claim *key* has the registration, or has not let go of it yet."""
        return self.standing(key) in (Standing.HELD, Standing.REVOKING)

    def take_up(self, record: dict[str, Any]) -> list[Any]:
        """Be as *record*, of the broker before, says; its claimants are there afterwards.

        Returns:
            The effects, for `go_on`.

        Raises:
            KeyError, TypeError, ValueError: It is no record of a line.
        """
        if self.takes_turns:
            # Turns are not recorded: who had the last one, in which epoch, is not known. It begins anew, by the sweep.
            anew = {"standing": Standing.WAITING.value, "epoch": 0}
            record = {**record, "claims": [{**claim, **anew} for claim in record["claims"]]}
        self.rules, effects = Registration.recover(self.policy, record, _now())
        for entry in self.rules.claims:
            claim = entry.claim
            identity = Identity(*claim.identity)
            one = Claimant(claim.key, self.name, identity, claim.managed, claim.process, claim.program, claim.means)
            one.eligible = True
            one.gate = self._services.gates.take_up(claim.key) if claim.means is Means.GATE else None
            self.claimants[claim.key] = one
        return list(effects)

    def go_on(self, effects: Iterable[Any]) -> None:
        """Perform what `take_up` returned."""
        self._begin(effects)

    def enter(self, one: Claimant, *, paused: bool) -> None:
        """*one* is in the line from now on."""
        one.eligible = True
        one.taken = max((other.taken for other in self.claimants.values()), default=0)
        claim = Claim(one.key, one.identity.pid, one.identity, one.process, one.program, one.means, one.managed)
        self.feed(rules.Claimed(claim, paused))

    def feed(self, happened: Any) -> None:
        """Let the rules know, and do what they say; what comes up meanwhile is fed after it."""
        self._happened.append(happened)
        if self._work is None:
            self._begin(())

    @property
    def is_busy(self) -> bool:
        """Whether what has happened is being worked off: where claims stand is not all that is known of them."""
        return self._work is not None

    def afterwards(self, then: Callable[[], object]) -> None:
        """Call *then* when all that has happened is worked off: at once if it is."""
        if self._work is None:
            then()
        else:
            self._afterwards.append(then)

    async def settled(self) -> None:
        """Wait until all that has happened is worked off."""
        while self._work is not None:
            done = asyncio.Event()
            self._afterwards.append(done.set)
            await done.wait()

    def leave(self, one: Claimant) -> None:
        """The claim of *one*, which is out of the line, is over."""
        self.claimants.pop(one.key, None)
        self._in_turn.discard(one.key)
        self._close_tally(one)
        if one.gate is not None:
            self._services.gates.drop(one.key, one.gate)
            one.gate = None
            self.dropped += 1
        self._services.left(one.identity)

    def close(self) -> None:
        """End, and leave what is armed as it is."""
        if self._work is not None:
            self._work.close()
            self._work = None
        for timer in (self._timer, self._ending):
            if timer is not None:
                timer.cancel()
        for one in self.claimants.values():
            self._close_tally(one)
            if one.gate is not None:
                one.gate.close()

    # Turns.

    def tally(self, one: Claimant) -> int:
        """The eventfd to which the process of *one* is to add what it takes.

        That is the only way to know: an arrival that was taken before we look has never arrived for us.
        """
        if one.tally is None:
            one.tally = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._loop.add_reader(one.tally, self._took, one)
        return one.tally

    def _close_tally(self, one: Claimant) -> None:
        if one.tally is not None:
            self._loop.remove_reader(one.tally)
            os.close(one.tally)
            one.tally = None

    def _took(self, one: Claimant) -> None:
        assert one.tally is not None
        try:
            one.taken += os.eventfd_read(one.tally)
        except BlockingIOError:
            return
        if not self.takes_turns or self.standing(one.key) is not Standing.HELD:
            return
        # It says so just before it takes it. What still waits alone is that, mostly, and not for the next one.
        if self._ending is None and self._waits_alone():
            self._ending = self._loop.call_later(_TAKES, self.end_turn)
        elif self._ending is None:
            self.end_turn()

    def _waits_alone(self) -> bool:
        with socket.socket(fileno=os.dup(self.fd)) as duplicate:
            try:
                return queues.look(duplicate).amount == 1
            except OSError:
                return False

    def end_unused_turn(self) -> None:
        """Something waits: it is the next one's turn if that of the present holder has been long enough."""
        if self._loop.time() - self._turned >= TURN:
            self.end_turn()

    def end_turn(self) -> None:
        """It is the next one's turn, if there is another, and the present one lasted as long as it has to."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        now, following = self._loop.time(), self.rules.fresh
        if not following or now - self._turned < self.spec.rotate_ms / 1000:
            return
        self._turned = now
        # The one that has taken least; but who was away is not to have all, until it has made up for it.
        taken = {key: one.taken for key, one in self.claimants.items()}
        least = max(taken.values()) - _BEHIND
        self.feed(rules.Advance(min(following, key=lambda key: max(taken[key], least))))

    # Suspending.

    # In the worker's thread: they touch nothing but processes, and `Claimant.epolls`.

    def _suspend(self, one: Claimant, spared: Callable[[epoll.Registration], bool]) -> str | None:
        """Suspend what the process of *one* has registered by itself; None once that is done, else why it can't be."""
        try:
            for entry in self._where_it_was(one, spared):
                epoll.suspend(entry, self.fd)
            epoll.suspend_all(one.managed, {self.inode: self.fd}, spared=self._noting(one, spared))
        except ProcessLookupError:
            return None
        except (OSError, NotPermitted) as error:
            return str(error)
        return None

    def _suspend_program(self, one: Claimant, spared: Callable[[epoll.Registration], bool]) -> str | None:
        """As `_suspend`, of a program that may have registered nothing."""
        try:
            suspendable = self._entries(one, spared)
        except (OSError, NotPermitted):
            suspendable = []
        return self._suspend(one, spared) if suspendable else "its program runs, and lets go only by ending"

    def _resume(self, one: Claimant, spared: Callable[[epoll.Registration], bool]) -> bool:
        """Resume what `_suspend` has suspended; False if there is nothing of it any more."""
        # What waits is not to wait until all of /proc is read.
        quick = [epoll.resume(entry, self.fd) for entry in self._where_it_was(one, spared)]
        count = epoll.resume_all(one.managed, {self.inode: self.fd}, spared=spared)
        return any(quick) or bool(count) or not self._is_gone(one, spared) or not processes.alive(one.managed)

    def _is_gone(self, one: Claimant, spared: Callable[[epoll.Registration], bool]) -> bool:
        try:
            return one.means is Means.SUSPEND and not self._entries(one, spared)
        except (OSError, NotPermitted):
            return False

    def _entries(self, one: Claimant, spared: Callable[[epoll.Registration], bool]) -> list[epoll.Registration]:
        return [entry for entry in epoll.registrations(one.managed, [self.inode]) if not spared(entry)]

    def _where_it_was(self, one: Claimant, spared: Callable[[epoll.Registration], bool]) -> list[epoll.Registration]:
        """As `_entries`, where something was suspended before: that is found in a fraction of the time."""
        found = [entry for epfd in one.epolls for entry in epoll.entries_of(one.managed, epfd, [self.inode])[0]]
        return [entry for entry in found if not spared(entry)]

    def _noting(
        self, one: Claimant, spared: Callable[[epoll.Registration], bool]
    ) -> Callable[[epoll.Registration], bool]:
        """*spared*, and note where the others are; not those of children, which come and go, and so do pids."""

        def note(entry: epoll.Registration) -> bool:
            ours = spared(entry)
            if not ours and entry.pid == one.managed:
                one.epolls.add(entry.epfd)
            return ours

        return note

    # In the loop.

    def entries(self, one: Claimant) -> asyncio.Future[list[epoll.Registration]]:
        """What the process tree of *one* has registered by itself.

        Raises:
            NotPermitted, OSError: It may not be looked into.
        """
        return self._services.worker.do(self._entries, one, self.spared(one))

    def has_taken_back(self, one: Claimant) -> asyncio.Future[bool]:
        """Whether *one* is an unmodified program that is not registered any more."""
        return self._services.worker.do(self._is_gone, one, self.spared(one))

    def spared(self, one: Claimant | None) -> Callable[[epoll.Registration], bool]:
        """Which of the entries that the processes of *one* have, or all processes, are ours: those in gates."""
        claimants = self.claimants.values() if one is None else self.of_process(one.managed)
        gates = [other.gate for other in claimants if other.gate is not None]
        return lambda entry: any(gate.same(entry.pid, entry.epfd) for gate in gates)

    def _begin(self, effects: Iterable[Any]) -> None:
        self._work = self._work_off(list(effects))
        self._go_on()

    def _go_on(self, _: object = None) -> None:
        """Work on, up to the next thing that has to be waited for."""
        if self._work is None:
            return  # closed
        waiting: asyncio.Future[Any] | None = None
        try:
            waiting = next(self._work)
        except StopIteration:
            self._schedule()
        finally:
            if waiting is None:  # also after a bug, which is the caller's, or the loop's to log
                self._work = None
                afterwards, self._afterwards = self._afterwards, []
                for then in afterwards:
                    then()
        if waiting is not None:
            waiting.add_done_callback(self._go_on)

    # A generator and not a coroutine: a task would begin only after `feed` has returned.
    def _work_off(self, effects: list[Any]) -> _Work[None]:
        try:
            yield from self._perform(effects)
            while self._happened:
                one = self._happened.popleft()
                effects = self.rules.feed(one, _now())
                self._turning = isinstance(one, rules.Advance)
                if self._turning:
                    self._turn_of = next((effect.key for effect in effects if isinstance(effect, rules.Disarm)), None)
                elif self._turn_of is not None and isinstance(one, rules.Disarmed) and one.key == self._turn_of:
                    self._turning, self._turn_of = True, None
                yield from self._perform(effects)
        finally:
            self._turning = False

    def _done(self, future: asyncio.Future[T]) -> _Work[T]:
        yield future
        return future.result()

    def _perform(self, effects: Iterable[Any]) -> _Work[None]:
        # In this order: disarm, record, arm, tell. So a broker that comes after a death in between knows of everybody
        # that could be armed. (A turn is not recorded: after such a death it begins anew, by the sweep.) And what waits
        # does not wait until somebody was told, and the log written.
        for effect in sorted(effects, key=_rank):
            if isinstance(effect, rules.Record):
                if not self._turning:
                    self._services.link.journal(f"registration:{self.name}", self.rules.record())
                    recorded = self._services.link.recorded()
                    if recorded is not None:
                        yield recorded
                continue
            one = self.claimants.get(effect.key)
            if one is None:  # it was told that it is over
                continue
            if isinstance(effect, rules.Disarm):
                failure = yield from self._disarm(one, swept=effect.epoch == 0)
                if failure is None:
                    self._happened.append(rules.Disarmed(effect.key, effect.epoch))
                else:
                    self._happened.append(rules.NotDisarmed(effect.key, effect.epoch, failure))
            elif isinstance(effect, rules.Arm):
                yield from self._arm(one, effect.epoch)
            elif isinstance(effect, rules.Tell):
                self._tell(one, effect)
            elif isinstance(effect, rules.Stop):
                self._services.stop(self.name, one, effect.reason)
            else:
                self._note(one, effect)

    def give_up(self, one: Claimant, epoch: int) -> None:
        """The unmodified program of *one*, which holds under *epoch*, has taken its registration back."""
        log.info("%s: %s (pid=%d) has taken its registration back", self.name, one.process, one.managed)
        self._services.taken_back(one.managed, self.name)
        self.feed(rules.Released(one.key, epoch))
        self.leave(one)

    def _arm(self, one: Claimant, epoch: int) -> _Work[None]:
        self._services.moved(self.name)
        try:
            if one.means is Means.GATE:
                if one.gate is not None:  # else it has yet to show it again
                    one.gate.arm(self.fd)
                return
            there = yield from self._done(self._services.worker.do(self._resume, one, self.spared(one)))
            if not there:
                self.give_up(one, epoch)
        except ProcessLookupError:
            return  # its death is on its way
        except (OSError, NotPermitted) as error:
            log.error("%s: can't give the registration to %s: %s", self.name, one.process, error)

    def _disarm(self, one: Claimant, *, swept: bool) -> _Work[str | None]:
        """Take from *one* what it has; None once that is done, else why it can't be."""
        if one.means is not Means.GATE:
            if one.means is Means.COOPERATE and swept:
                return None  # it waits, and does not run its program yet
            suspend = self._suspend if one.means is Means.SUSPEND else self._suspend_program
            return (yield from self._done(self._services.worker.do(suspend, one, self.spared(one))))
        if one.gate is None:
            return "its gate was lost with the host, and it has not shown it again"
        try:
            one.gate.disarm()
        except OSError as error:
            return f"its gate can't be disarmed: {error}"
        return None

    def _tell(self, one: Claimant, effect: Any) -> None:
        if self.takes_turns:
            if self._turning and (effect.what == "revoked" or one.key in self._in_turn):
                return
            (self._in_turn.add if effect.what == "held" else self._in_turn.discard)(one.key)
        if one.caller is not None:
            self._services.tell(one.caller, event(effect.what, effect.epoch, effect.reason))
        if effect.what == "cancelled":
            if one.caller is not None:
                self._services.tell(one.caller, {"ok": True, "released": True})
            self.leave(one)

    def _note(self, one: Claimant, effect: Any) -> None:
        if effect.what == "violation":
            self.violations += 1
        if effect.what in _CAUSES:
            self._cause = f"{one.process} (pid {one.identity.pid}) {_CAUSES[effect.what]}: {effect.reason}"
        if effect.what == "granted":
            self.moves += 1
            cause, self._cause = self._cause, ""
        if self._turning:
            return
        if effect.what == "granted":
            self.last_move = {"to": one.process, "pid": one.identity.pid, "reason": cause, "at": time.time()}
        if self.is_shared or effect.what == "moved":  # that is in why the former holder lost it
            return
        entry = self.rules.find(effect.key)
        log.log(
            logging.WARNING if effect.what in ("violation", "stalled") else logging.INFO,
            "%s: registration %s: %s (pid=%d, epoch=%d)%s",
            self.name,
            effect.what,
            one.process,
            one.identity.pid,
            0 if entry is None else entry.epoch,
            f": {effect.reason}" if effect.reason else "",
        )

    def _schedule(self) -> None:
        due = self.rules.deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_later(max(0.0, (due - _now()) / 1e9), self.feed, rules.Tick())


def _rank(effect: Any) -> int:
    return _RANKS.get(type(effect), len(_RANKS))


_RANKS: dict[type, int] = {rules.Disarm: 0, rules.Record: 1, rules.Arm: 2}


def _now() -> int:
    # CLOCK_BOOTTIME rises over a restart of the broker and a suspend of the machine: so do the epochs made of it.
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
