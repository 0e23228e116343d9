"""Keeps the registrations as the lines say, by what the kernel shows: who registers by himself, who does not take."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from sockshare.core import registration_steps as rules
from sockshare.core.errors import NotPermitted
from sockshare.core.registration_steps import Means, Standing
from sockshare.kernel import epoll, peers, processes
from sockshare.kernel.peers import Identity

from .gates import Claimant
from .line import Line
from .observer import Observer
from .watching import Seen, Watching

log = logging.getLogger(__name__)

_STATES = {"R": "running", "S": "sleeping", "D": "waiting in the kernel", "T": "stopped", "t": "traced", "Z": "dead"}
_OUT_OF_TURN = "it has registered out of turn"


class Keeping:
    """Made in the running loop.

    Args:
        watch_for_death: Has the death of a process watched; false if it is dead.
        is_paused: Whether a managed process is not to have what only some may have.
        stop: Has the manager stop a process: the socket's name, its program, pid and start time, and the reason.
        ready_timeout: Seconds that a program may take to start.
    """

    def __init__(
        self,
        lines: Mapping[str, Line],
        observer: Observer,
        watch_for_death: Callable[[Identity], bool],
        is_paused: Callable[[int], bool],
        stop: Callable[[str, str, int, int, str], None],
        ready_timeout: Callable[[str], float],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._watch_for_death = watch_for_death
        self._is_paused = is_paused
        self._stop = stop
        self._ready_timeout = ready_timeout
        self._lines = lines
        self._observer = observer
        self._watching = Watching(observer, self._is_gate, self._dropped, self._seen, self._examine)
        self._degraded: dict[int, str] = {}  # why the registrations of a process can't be kept

    def close(self) -> None:
        """Look at nobody any more."""
        self._watching.close()

    def watch(self, pid: int, start: int, process: str, program: str, names: Iterable[str]) -> None:
        """The managed process *pid* may register the sockets *names*, which only some may have."""
        self._watching.add(pid, start, process, program, names)

    def look_now(self, pid: int) -> None:
        """Learn of the workers of *pid*, which is watched and holds a registration, before the broker serves."""
        self._watching.look_now(pid)

    def _examine(self, pid: int, process: str, names: list[str]) -> None:
        """Say once, if what the process registers of *names* can't be kept: it may drop its user at any time."""
        names = [name for name in names if not self._claims_itself(pid, name)]
        refusal = self._observer.refusal(pid) if names else None
        if refusal is not None and self._degraded.get(pid) != refusal:
            self._degraded[pid] = refusal
            log.warning(
                "%s: degraded: what it registers of %s can't be suspended: %s; use the library, or exec --registration",
                process,
                ", ".join(names),
                refusal,
            )

    def _claims_itself(self, pid: int, name: str) -> bool:
        return any(one.means is not Means.SUSPEND for one in self._lines[name].of_process(pid))

    def uses_library(self, pid: int, name: str) -> None:
        """The managed process *pid* claims the socket *name* itself: that it registers it too is not waited for."""
        self._watching.settle(pid, name)

    def died(self, pid: int) -> None:
        """The managed process *pid* has died."""
        self._watching.remove(pid)
        self._degraded.pop(pid, None)

    def suspend_orphans(self, line: Line, pid: int) -> None:
        """The managed process *pid* has died, and its workers may live on, registered as they were."""
        workers = self._watching.workers(pid, line.name)
        is_gate = line.spared(None)

        def suspend() -> None:
            for worker in workers():
                try:
                    if processes.alive(worker):
                        for entry in epoll.registrations(worker, [line.inode], tree=False):
                            if not is_gate(entry):
                                epoll.suspend(entry, line.fd)
                except (OSError, NotPermitted) as error:
                    log.warning("%s: pid %d lives on without its parent %d: %s", line.name, worker, pid, error)

        self._observer.worker.do(suspend)  # before whoever is next is resumed, which the same thread does

    # What is seen.

    def _is_gate(self, entry: epoll.Registration) -> bool:
        line = next((line for line in self._lines.values() if line.inode == entry.inode), None)
        gated = [] if line is None else [one for one in line.claimants.values() if one.means is Means.GATE]
        if any(one.gate is None and one.identity.pid == entry.pid for one in gated):
            return True  # it may be: it is lost, and has yet to be shown again
        gated.sort(key=lambda one: one.identity.pid != entry.pid)  # mostly it is one of its own
        try:
            return any(one.gate is not None and one.gate.same(entry.pid, entry.epfd) for one in gated)
        except (NotPermitted, OSError):
            return False

    def _dropped(self) -> int:
        return sum(line.dropped for line in self._lines.values())

    def _seen(self, seen: Seen) -> None:
        """A process has registered a socket by itself, with an epoll of its own."""
        line = self._lines[seen.socket]
        one = line.claimants.get(f"{seen.pid}:{seen.start}")  # as it is after its first time
        if one is None:
            one = next((one for one in line.of_process(seen.pid) if one.means is not Means.GATE), None)
        if one is None:
            self._registered(line, seen)
        elif seen.armed and not line.is_busy and line.standing(one.key) is Standing.WAITING:
            self._violated(line, one)

    def _registered(self, line: Line, seen: Seen) -> None:
        refusal = self._observer.refusal(seen.pid)
        if refusal is None and not rules.supports(line.policy, Means.SUSPEND):
            refusal = f"registration = {line.spec.registration} takes the library"
        if refusal is not None:
            self._can_not_keep(line, seen, refusal)
            return
        try:
            identity = peers.identity(seen.pid)
        except ProcessLookupError:
            return
        if identity.start != seen.start or not self._watch_for_death(identity):
            return
        key = f"{seen.pid}:{seen.start}"
        one = Claimant(key, line.name, identity, seen.pid, seen.process, seen.program, Means.SUSPEND)
        line.claimants[key] = one
        line.enter(one, paused=self._is_paused(seen.pid))
        if seen.armed:
            line.afterwards(
                lambda: line.overlaps.append(seen.unnoticed) if line.standing(key) is Standing.WAITING else None
            )

    def _can_not_keep(self, line: Line, seen: Seen, why: str) -> None:
        holders = line.rules.holders
        if not seen.armed or len(holders) < line.policy.limit:
            return
        line.violations += 1
        log.warning(
            "%s: violation: %s (pid=%d) has registered it beside %s (pid=%d), and can't be kept from it: %s",
            line.name,
            seen.process,
            seen.pid,
            holders[0].claim.process,
            holders[0].claim.pid,
            why,
        )
        if line.spec.enforce == "stop":
            self._stop(line.name, seen.program, seen.pid, seen.start, _OUT_OF_TURN)

    def _violated(self, line: Line, one: Claimant) -> None:
        if line.spec.enforce == "suspend" or line.policy.kind == "latest":
            line.feed(rules.Registered(one.key))
            return
        line.violations += 1
        log.warning("%s: violation: %s (pid=%d): %s", line.name, one.process, one.managed, _OUT_OF_TURN)
        if line.spec.enforce == "stop":
            self._stop(line.name, one.program, one.managed, one.identity.start, _OUT_OF_TURN)

    # What arrives.

    async def waits(self, name: str) -> None:
        """Something waits on the socket: a holder that has taken its registration back is not to be waited for, nor one
        that does not use its turn."""
        line = self._lines[name]
        if line.takes_turns:
            line.end_unused_turn()
            return
        for entry in line.rules.holders:
            one = line.claimants.get(entry.claim.key)
            if one is None or one.means is not Means.SUSPEND or entry.standing is not Standing.HELD:
                continue
            known = self._watching.entries(one.managed, name)
            try:
                if any(epoll.present(found, line.fd) for found in known) or await line.entries(one):
                    continue
            except (OSError, NotPermitted):
                continue
            if not line.is_busy and line.rules.find(one.key) == entry:
                line.give_up(one, entry.epoch)

    def taken_back(self, pid: int, name: str) -> None:
        """The managed process *pid* has taken its registration of the socket *name* back."""
        self._watching.forget(pid, name)

    async def stalled(self, name: str) -> None:
        """What waits on the socket is not taken, though somebody holds the registration."""
        line = self._lines[name]
        self._forgive(line)
        for entry in line.rules.holders:
            if entry.standing is not Standing.HELD:
                continue
            claim = entry.claim
            if await self._starts(line, entry):
                continue
            try:
                state = processes.state(claim.pid)
            except ProcessLookupError:
                continue  # its death is on its way
            line.stalls += 1
            reason = f"for {line.spec.stall_timeout:g} s; its state is {state} ({_STATES.get(state, 'see proc(5)')})"
            log.warning("%s: %s (pid=%d) has not taken what waits %s", name, claim.process, claim.pid, reason)
            line.feed(rules.Stalled(claim.key, entry.epoch, reason))

    async def _starts(self, line: Line, entry: rules.Entry) -> bool:
        """Whether the holder is a cold standby that has been let go, and its program has yet to come to the socket."""
        claim, held_for = entry.claim, time.clock_gettime(time.CLOCK_BOOTTIME) - entry.since / 1e9
        if claim.means is not Means.COOPERATE or held_for >= self._ready_timeout(claim.program):
            return False
        inodes, _ = await self._observer.worker.do(self._observer.look, claim.managed, [line.name])
        return not inodes

    def _forgive(self, line: Line) -> None:
        """Now that a holder hangs: if all who could follow have hung before, those that run may try again."""
        waiting = [entry for entry in line.rules.claims if entry.standing is Standing.WAITING and not entry.paused]
        if all(entry.stalled for entry in waiting):
            for entry in waiting:
                if _runs(entry.claim.pid):
                    line.feed(rules.Resumed(entry.claim.key))


def _runs(pid: int) -> bool:
    try:
        return processes.state(pid) not in "TtZX"
    except ProcessLookupError:
        return False
