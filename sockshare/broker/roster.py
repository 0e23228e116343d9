"""Which processes there are: who asked, who is managed, whose they are; each watched by its pidfd until it dies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sockshare.core.errors import NotPermitted
from sockshare.core.leftovers import Ended
from sockshare.core.records import ProcessFacts, Records
from sockshare.kernel.descriptors import are_gone
from sockshare.kernel.peers import Identity, identity, pidfd_open

from .hostlink import HostLink

#: Seconds for which a stranger stays one without the manager being asked again: every process of the machine may ask us
#: as often as it likes, and so would have circusd do nothing else. Of so many at most.
_STRANGE_FOR = 1.0
_STRANGERS = 1024
#: Seconds from one journal line about what a process says of itself to the next.
_NOTE_EVERY = 0.5


class Managed:
    """One process that the manager runs (circus's or supervisord's own child, not its children)."""

    __slots__ = ("family", "generation", "name", "pid", "program", "ready", "start", "status", "warning")

    def __init__(self, pid: int, program: str, name: str, start: int) -> None:
        self.pid = pid
        self.program = program
        self.name = name
        self.start = start
        self.generation = 1
        self.ready: str | None = None  # what showed it: client, notify, registration, hold
        self.status = ""  # what it says of itself (STATUS= of sd_notify(3))
        self.warning = ""  # what `sockshare exec` found odd about its command
        self.family: frozenset[tuple[int, int]] = frozenset()  # pid and start of its tree, before it was stopped


class Known:
    """One process that has spoken, or is managed."""

    __slots__ = ("identity", "managed", "pidfd")

    def __init__(self, who: Identity, pidfd: int, managed: Managed | None) -> None:
        self.identity = who
        self.pidfd = pidfd
        self.managed = managed  # the managed process that it is or descends from


class Roster:
    """The processes; made in the running loop.

    Args:
        host: Who is asked about a pid that is not known.
        records: What an earlier broker had the host keep.
        on_death: Called once for each known process that dies.
    """

    def __init__(self, host: HostLink, records: Records, *, on_death: Callable[[Known], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._on_death = on_death
        self._known: dict[int, Known] = {}
        self._asking: dict[int, asyncio.Task[Known]] = {}
        self._strangers: dict[int, tuple[Known, float]] = {}  # until when
        self._managed: dict[int, Managed] = {}
        self._noted: set[int] = set()  # pids of those that `note_soon` has noted a moment ago
        self._facts = dict(records.processes)
        self._generations = dict(records.generations)

    def known(self, pid: int) -> Known | None:
        """What is known of *pid* without asking anybody; None for a process that is not known, or unmanaged."""
        return self._known.get(pid)

    def managed(self, pid: int) -> Managed | None:
        """The managed process whose own pid is *pid*, if known."""
        return self._managed.get(pid)

    def of_program(self, program: str) -> list[Managed]:
        """The known managed processes of *program*."""
        return [one for one in self._managed.values() if one.program == program]

    async def identify(self, pid: int) -> Known:
        """Find out who *pid* is.

        Raises:
            NotPermitted: It is gone, or in another pid namespace.
            ManagerError: The manager did not say.
        """
        known = self._known.get(pid)
        if known is not None:
            return known
        if pid <= 0:
            raise NotPermitted("can't tell who asks: its process is in another pid namespace; run it in the manager's")
        asking = self._asking.get(pid)
        if asking is None:
            asking = self._asking[pid] = self._loop.create_task(self._identify(pid))
            asking.add_done_callback(lambda _: self._asking.pop(pid))
        return await asyncio.shield(asking)

    async def _identify(self, pid: int) -> Known:
        try:
            pidfd = pidfd_open(pid)
        except OSError as error:
            if are_gone(error):
                raise
            raise NotPermitted(f"can't tell who pid {pid} is: {error.strerror}") from None
        try:
            who = identity(pid, pidfd)
            stranger, until = self._strangers.get(pid, (None, 0.0))
            if stranger is not None and stranger.identity == who and self._loop.time() < until:
                os.close(pidfd)
                return stranger
            process = (await self._host.ask("whois", pid=pid))["process"]
            managed = None if process is None else self.enter(process["pid"], process["program"], process["process"])
        except ProcessLookupError:
            os.close(pidfd)
            raise NotPermitted(f"can't tell who pid {pid} is: it has died") from None
        except BaseException:
            os.close(pidfd)
            raise
        known = Known(who, pidfd, managed)
        if managed is None:
            # Not kept for longer: its watcher may be added to the manager later.
            os.close(pidfd)
            if len(self._strangers) >= _STRANGERS:
                self._strangers.clear()
            self._strangers[pid] = (known, self._loop.time() + _STRANGE_FOR)
            return known
        if pid in self._known:
            os.close(pidfd)
            return self._known[pid]
        self._watch(known)
        return known

    def enter(self, pid: int, program: str, name: str) -> Managed:
        """The managed process *pid* of *program*, known and watched from now on.

        Raises:
            ProcessLookupError: It has died.
        """
        managed = self._managed.get(pid)
        if managed is not None:
            return managed
        pidfd = pidfd_open(pid)
        try:
            who = identity(pid, pidfd)
        except ProcessLookupError:
            os.close(pidfd)
            raise
        managed = self._managed[pid] = Managed(pid, program, name, who.start)
        facts = self._facts.get(pid)
        if facts is not None and facts.start == who.start:
            managed.generation = facts.generation
            managed.ready = facts.ready
            managed.status = facts.status
            managed.warning = facts.warning
            managed.family = facts.family
        else:
            managed.generation = self._generations.get(program, 1)
            self.note(managed)
        self._watch(Known(who, pidfd, managed))
        return managed

    def enter_all(self, program: str, listed: Iterable[Mapping[str, Any]]) -> list[Managed]:
        """Those of *listed*, processes of *program* as the manager lists them, that live; each as by `enter`."""
        found = []
        for one in listed:
            try:
                found.append(self.enter(one["pid"], program, one["process"]))
            except ProcessLookupError:
                continue
        return found

    def note(self, managed: Managed) -> None:
        """Have the journal keep what is known of *managed*."""
        facts = ProcessFacts(
            managed.start,
            managed.generation,
            managed.ready,
            managed.status,
            managed.warning,
            managed.program,
            managed.family,
        )
        if self._facts.get(managed.pid) != facts:
            self._facts[managed.pid] = facts
            self._host.journal(f"process:{managed.pid}", facts)

    def note_soon(self, managed: Managed) -> None:
        """As `note`, for what may change very often: the journal gets a line every `_NOTE_EVERY` seconds at most.

        The first change is noted at once, the last one of many so much later at most.
        """
        if managed.pid not in self._noted:
            self.note(managed)
            self._noted.add(managed.pid)
            self._loop.call_later(_NOTE_EVERY, self._note_again, managed.pid)

    def _note_again(self, pid: int) -> None:
        self._noted.remove(pid)
        managed = self._managed.get(pid)
        if managed is not None and self._facts[pid].status != managed.status:
            self.note_soon(managed)

    def begin_generation(self, program: str, pids: Iterable[int] = ()) -> None:
        """Processes of *program* that are first seen from now on belong to a new generation, and *pids* do."""
        generation = self._generations[program] = self._generations.get(program, 1) + 1
        self._host.journal(f"generation:{program}", {"last": generation})
        for managed in filter(None, map(self._managed.get, pids)):
            managed.generation = generation
            self.note(managed)

    @property
    def live(self) -> dict[int, int]:
        """The start of each known managed process, by pid."""
        return {pid: managed.start for pid, managed in self._managed.items()}

    @property
    def ended(self) -> dict[int, Ended]:
        """The managed processes that have ended, of which something may be left, by pid."""
        return {
            pid: Ended(facts.program, facts.start, facts.family)
            for pid, facts in self._facts.items()
            if pid not in self._managed
        }

    def forget_ended(self, pids: Iterable[int]) -> None:
        """Drop what the journal has of *pids*, ended managed processes: nothing is left of them."""
        for pid in pids:
            if pid in self._facts and pid not in self._managed:
                self._facts.pop(pid)
                self._host.journal(f"process:{pid}", None)

    def _watch(self, known: Known) -> None:
        self._known[known.identity.pid] = known
        self._loop.add_reader(known.pidfd, self._died, known.identity.pid)

    def _died(self, pid: int) -> None:
        known = self._known.pop(pid)
        self._loop.remove_reader(known.pidfd)
        self._managed.pop(pid, None)
        try:
            self._on_death(known)
        finally:
            os.close(known.pidfd)
