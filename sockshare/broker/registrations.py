"""Who holds the event registration of each shared socket: a `Line` for each, and who asks for what of them.

A claim is kept by one of three means. *gate*: a program of the library watches its gate, which is armed and disarmed
here. *suspend*: an unmodified program's own registration is suspended and resumed. *cooperate*: a program behind ``exec
--registration`` does not run before it holds, and lets go by ending, which its manager sees to.

What is armed is in the kernel, and outlives a broker; the line of those who wait is in the host's journal, written
before anything is given.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from sockshare.core import registration_steps as rules
from sockshare.core.errors import ManagerError, NotPermitted, UnknownSocket
from sockshare.core.readiness import Evidence
from sockshare.core.records import Records
from sockshare.core.registration_steps import Means, Standing
from sockshare.core.spec import SocketSpec
from sockshare.kernel import peers, processes
from sockshare.kernel.peers import Identity

from .arrivals import Arrivals
from .claims import Claims
from .endpoint import Caller
from .gates import Claimant, Gates
from .hostlink import HostLink
from .keeping import Keeping
from .line import TURN, Line, Services
from .observer import Observer
from .roster import Managed
from .siblings import Siblings

log = logging.getLogger(__name__)


class Registrations:
    """Those of all sockets; made in the running loop.

    Attributes:
        claims: Those of the library and of ``exec --registration``.

    Args:
        shared: Each socket's inode and our descriptor, by name.
        records: What the broker before had the host keep.
        kept: The descriptors that it had the host keep, by key.
        tell: Sends fields of an answer to a claimant.
        live: The managed processes that may have the socket of a name.
        ready_timeout: Seconds that the program of a name may take to start.
    """

    def __init__(
        self,
        link: HostLink,
        observer: Observer,
        sockets: Mapping[str, SocketSpec],
        shared: Mapping[str, tuple[int, int]],
        records: Records,
        kept: Mapping[str, int],
        tell: Callable[[Caller, dict[str, Any]], object],
        live: Callable[[str], Iterable[int]],
        ready_timeout: Callable[[str], float] = lambda program: 30.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._observer = observer
        self._pidfds: dict[Identity, int] = {}
        self._held_back: set[int] = set()  # managed processes that are not to have anything yet
        #: Who held what, before it was suspended for a successor.
        self._displaced: set[tuple[int, str]] = set()
        self._quiesced: set[int] = set()
        self._take_up_notes(records)
        self._stopping: set[asyncio.Task[None]] = set()
        self._siblings = Siblings(observer, live)
        gates = Gates(link, kept)
        gates.sweep([fd for _, fd in shared.values()])
        services = Services(
            link, gates, observer.worker, tell, self._stop, self._moved, self._forget_pidfd, self._taken_back
        )
        self._lines = {name: Line(services, spec, *shared[name]) for name, spec in sockets.items() if name in shared}
        self._keeping = Keeping(self._lines, observer, self.watch_for_death, self.is_paused, self.stop, ready_timeout)
        self.claims = Claims(self._lines, gates, tell, self.watch_for_death, self.is_paused, self._keeping.uses_library)
        self._arrivals = Arrivals(waits=self._keeping.waits, stalled=self._keeping.stalled)
        for line in self._lines.values():
            self._take_up(line, records.registrations.get(line.name))
            if not line.is_shared:
                often = {"look_every": TURN} if line.takes_turns else {}
                self._arrivals.watch(line.name, line.fd, stall_timeout=line.spec.stall_timeout, **often)
        gates.forget_unclaimed()

    def _take_up(self, line: Line, record: dict[str, Any] | None) -> None:
        if not record:
            return
        try:
            effects = line.take_up(record)
        except (KeyError, TypeError, ValueError) as error:
            log.error("%s: the record of its registration can't be read, so it begins anew: %r", line.name, error)
            return
        dead = [one.identity for one in line.claimants.values() if not self.watch_for_death(one.identity)]
        for one in line.claimants.values():
            if one.means is Means.SUSPEND and one.identity not in dead:
                self._keeping.watch(one.managed, one.identity.start, one.process, one.program, [line.name])
                if line.holds(one.key):
                    self._keeping.look_now(one.managed)
        log.info("%s: registration taken up again (%d claims, %d dead)", line.name, len(line.claimants), len(dead))
        line.go_on(effects)
        for identity in dict.fromkeys(dead):
            self.gone(identity)

    def close(self) -> None:
        """End, and leave everything as it is, as a death would."""
        for pidfd in self._pidfds.values():
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()
        self._arrivals.close()
        self._keeping.close()
        for line in self._lines.values():
            line.close()

    def _take_up_notes(self, records: Records) -> None:
        """Go on with what was noted of processes that live still."""
        for (pid, name), start in records.displaced.items():
            if _lives(pid, start):
                self._displaced.add((pid, name))
            else:
                self._link.journal(f"displaced:{pid}:{name}", None)
        for pid, start in records.quiesced.items():
            if _lives(pid, start):
                self._quiesced.add(pid)
            else:
                self._link.journal(f"quiesced:{pid}", None)

    def _forget_displaced(self, pid: int, name: str) -> None:
        if (pid, name) in self._displaced:
            self._displaced.discard((pid, name))
            self._link.journal(f"displaced:{pid}:{name}", None)

    # Processes.

    def handed_out(self, managed: Managed, names: Iterable[str]) -> None:
        """*managed* gets duplicates of the sockets *names*: it may register them at any moment."""
        names = [name for name in names if name in self._lines and not self._lines[name].is_shared]
        if names:
            self._keeping.watch(managed.pid, managed.start, managed.name, managed.program, names)

    def process_died(self, managed: Managed, sockets: Iterable[str]) -> None:
        """The managed process has died. What it held its pidfd has freed; here is what else hangs on it."""
        self._held_back.discard(managed.pid)
        for pid, name in [one for one in self._displaced if one[0] == managed.pid]:
            self._forget_displaced(pid, name)
        if managed.pid in self._quiesced:
            self._quiesced.discard(managed.pid)
            self._link.journal(f"quiesced:{managed.pid}", None)
        for its, one in self._claims_on_few(managed.pid):
            # Whichever of its pidfds is read first: what was seen of it is about to be forgotten.
            if one.means is not Means.GATE:
                self._keeping.suspend_orphans(its, managed.pid)
        self._keeping.died(managed.pid)
        for name in sockets:
            line = self._lines.get(name)
            if line is not None and line.is_shared:
                self._siblings.look_after(name, line.fd)

    def is_paused(self, pid: int) -> bool:
        """Whether the managed process *pid* is not to have what only some may have."""
        return pid in self._held_back or pid in self._quiesced

    # What a reload asks.

    def hold_back(self, pid: int) -> None:
        """The managed process *pid*, which has just been started, is not to have anything that only some may have."""
        self._held_back.add(pid)
        for line, one in self._claims_on_few(pid):
            line.feed(rules.Paused(one.key, None))

    def let_in(self, pid: int) -> None:
        """`hold_back` is over."""
        self._held_back.discard(pid)
        for line, one in self._claims_on_few(pid):
            line.feed(rules.Resumed(one.key, False))

    def suspend(self, pid: int, sockets: Collection[str], successor: int | None = None) -> asyncio.Future[str]:
        """Have the managed process *pid* get nothing more from *sockets*; what came of it, in words.

        It is begun when this returns, and done even if whoever waits for the words is cancelled.

        Args:
            successor: The managed process that is to have instead what only some may have.
        """
        held: dict[str, bool] = {}
        rest = []
        for name in sockets:
            line = self._lines.get(name)
            mine = [] if line is None else line.of_process(pid)
            if line is None or line.is_shared or not mine:
                rest.append(name)
            if line is None or not mine:
                continue
            heirs = [] if successor is None else line.of_process(successor)
            held[name] = any(line.holds(one.key) for one in mine)
            if held[name] and successor is not None:
                self._displaced.add((pid, name))
                self._link.journal(f"displaced:{pid}:{name}", {"start": mine[0].identity.start})
            for one in mine:
                line.feed(rules.Paused(one.key, heirs[0].key if heirs else None))
        observed = self._observer.suspend(pid, rest) if rest or not held else None
        return asyncio.ensure_future(self._suspended(pid, held, observed))

    async def _suspended(self, pid: int, held: Mapping[str, bool], observed: asyncio.Future[str] | None) -> str:
        """What came of `suspend`; *held* says of which of the sockets *pid* had the registration."""
        words = []
        for name, had in held.items():
            line = self._lines[name]
            await line.settled()
            if any(line.holds(one.key) for one in line.of_process(pid)):
                words.append(f"{name}: pid {pid} keeps the registration until it ends")
            else:
                words.append(f"{name}: pid {pid} {'has let go of the registration' if had else 'stood by'}")
        if observed is not None:
            words.append(await observed)
        return "; ".join(words)

    def resume(self, pid: int, sockets: Collection[str]) -> None:
        """Undo `suspend`: what it took from the process for a successor it has again."""
        self._held_back.discard(pid)
        self._observer.resume(pid, [name for name in sockets if name not in self._lines or self._lines[name].is_shared])
        for name in sockets:
            line = self._lines.get(name)
            first = (pid, name) in self._displaced
            self._forget_displaced(pid, name)
            for one in [] if line is None else line.of_process(pid):
                assert line is not None
                line.feed(rules.Resumed(one.key, first))

    async def is_held_back(self, pid: int, sockets: Collection[str]) -> bool:
        """Whether the managed process *pid* takes nothing new from *sockets*, after `suspend`."""
        rest = []
        for name in sockets:
            line = self._lines.get(name)
            if line is not None:
                await line.settled()
            mine = [] if line is None else line.of_process(pid)
            if line is not None and any(line.holds(one.key) for one in mine):
                return False
            if line is None or line.is_shared or not mine:
                rest.append(name)
        return await self._observer.is_held_back(pid, rest)

    async def resume_unclaimed(self, pid: int, sockets: Collection[str], *, held_back: bool) -> int:
        """Resume what the broker before has left suspended, and no reload claims; how many of all there were."""
        names = [name for name in sockets if name in self._lines and self._lines[name].is_shared]
        if pid in self._quiesced:
            # The marks in its epolls have outlived that broker; a thread that was held has been let go by its death.
            await self._observer.suspend(pid, names)
            return 0
        resumed = self._observer.resume(pid, names)
        if held_back:
            self.hold_back(pid)
        else:
            self.let_in(pid)
        return await resumed

    async def evidence(self, managed: Managed, sockets: Collection[str], *, patient: bool = False) -> Evidence:
        """See `Observer.evidence`; who has a claim is as good as registered."""
        claimed = {name for name in sockets if name in self._lines and self._lines[name].of_process(managed.pid)}
        rest = [name for name in sockets if name not in claimed]
        seen = await self._observer.evidence(managed, rest, patient=patient)
        return Evidence(seen.said, frozenset(seen.registered) | claimed)

    def stands_by(self, pid: int, sockets: Collection[str]) -> bool:
        """Whether the managed process *pid* has claims on some of *sockets* and holds none of them."""
        mine = [(line, one) for line, one in self._claims_on_few(pid) if line.name in sockets]
        return bool(mine) and not any(line.holds(one.key) for line, one in mine)

    def _claims_on_few(self, pid: int) -> list[tuple[Line, Claimant]]:
        """The claims of the managed process *pid* on what only some may have."""
        return [(line, one) for line in self._lines.values() if not line.is_shared for one in line.of_process(pid)]

    # What people ask.

    async def move(self, name: str, managed: Managed) -> str:
        """Hand the registration of the socket *name* to *managed*; what came of it, in words.

        Raises:
            NotPermitted: It has no claim, or can't have it now.
            UnknownSocket: There is no such socket.
        """
        line = self._lines.get(name)
        if line is None:
            raise UnknownSocket(f"can't move the registration of {name!r}: no such socket")
        if line.is_shared:
            raise NotPermitted(f"can't move the registration of {name!r}: it is shared, every process has it")
        await line.settled()
        mine = line.of_process(managed.pid)
        to = f"can't move the registration of {name!r} to {managed.name} (pid {managed.pid})"
        if not mine:
            raise NotPermitted(f"{to}: it has not registered the socket")
        if any(line.standing(one.key) is Standing.HELD for one in mine):
            return "it holds the registration already"
        if self.is_paused(managed.pid):
            raise NotPermitted(f"{to}: it is quiesced; run `sockshare wake {managed.name}` first")
        if await line.has_taken_back(mine[0]):
            raise NotPermitted(f"{to}: it has taken its registration back")
        line.feed(rules.MoveTo(mine[0].key))
        await line.settled()
        if line.standing(mine[0].key) is Standing.HELD:
            return "it holds the registration now"
        holders = ", ".join(entry.claim.process for entry in line.rules.holders)
        return f"it has the registration as soon as {holders} lets go"

    def quiesce(self, managed: Managed, sockets: Collection[str]) -> asyncio.Future[str]:
        """Have *managed* get nothing more, until `wake`; what came of it, in words."""
        self._quiesced.add(managed.pid)
        self._link.journal(f"quiesced:{managed.pid}", {"start": managed.start})
        return self.suspend(managed.pid, sockets)

    def wake(self, managed: Managed, sockets: Collection[str]) -> str:
        """End `quiesce`; what came of it, in words."""
        if managed.pid not in self._quiesced:
            return "it was not quiesced"
        self._quiesced.discard(managed.pid)
        self._link.journal(f"quiesced:{managed.pid}", None)
        self.resume(managed.pid, sockets)
        return "it takes part again"

    def is_quiesced(self, pid: int) -> bool:
        """Whether somebody has had *pid* quiesced, and not woken."""
        return pid in self._quiesced

    def line(self, name: str) -> Line | None:
        """The line of the socket *name*."""
        return self._lines.get(name)

    def claims_of(self, pid: int, name: str) -> Iterator[tuple[Claimant, Any]]:
        """The claims of the managed process *pid* on the socket *name*, with where they stand (None: nowhere yet)."""
        line = self._lines.get(name)
        for one in [] if line is None else line.of_process(pid):
            yield one, line and line.rules.find(one.key)

    # What a line asks.

    def _moved(self, name: str) -> None:
        self._arrivals.begin_anew(name)

    def _taken_back(self, pid: int, name: str) -> None:
        self._keeping.taken_back(pid, name)

    def _stop(self, name: str, one: Claimant, reason: str) -> None:
        self.stop(name, one.program, one.managed, one.identity.start, reason)

    def stop(self, name: str, program: str, pid: int, start: int, reason: str) -> None:
        """Have the manager stop that very process of *program*; whether it starts another one is its own rule."""
        task = self._loop.create_task(self._have_stopped(name, program, pid, start, reason))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _have_stopped(self, name: str, program: str, pid: int, start: int, reason: str) -> None:
        try:
            facts = (await self._link.ask("processes"))["programs"].get(program)
            listed = [] if facts is None else [one["pid"] for one in facts["processes"]]
            if pid not in listed or peers.start_time(pid) != start:
                return
            log.warning("%s: the manager is to stop pid %d of %s: %s", name, pid, program, reason)
            known = [other for other in listed if other != pid]
            count = facts["numprocesses"]
            await self._link.ask(
                "settle", program=program, retire=[pid], known=known, count=count, kill=False, patience=0.0
            )
        except ProcessLookupError:
            return
        except ManagerError as error:
            log.error("%s: can't have pid %d stopped: %s", name, pid, error)

    # Deaths.

    def watch_for_death(self, identity: Identity) -> bool:
        """Watch a claimant's process; false if it is dead."""
        if identity in self._pidfds:
            return True
        try:
            pidfd = peers.pidfd_open(identity.pid)
        except OSError:
            return False
        try:
            same = peers.identity(identity.pid, pidfd) == identity
        except ProcessLookupError:
            same = False
        if not same or not processes.alive(identity.pid):
            os.close(pidfd)
            return False
        self._pidfds[identity] = pidfd
        self._loop.add_reader(pidfd, self.gone, identity)
        return True

    def _forget_pidfd(self, identity: Identity) -> None:
        if any(one.identity == identity for line in self._lines.values() for one in line.claimants.values()):
            return
        pidfd = self._pidfds.pop(identity, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def gone(self, identity: Identity) -> None:
        """The process that is *identity* has died: whoever is next has what it held. It may be said again."""
        for line in self._lines.values():
            mine = [one for one in line.claimants.values() if one.identity == identity]
            if any(one.means is not Means.GATE for one in mine):
                self._keeping.suspend_orphans(line, identity.pid)
            for one in mine:
                if one.gate is not None:
                    one.gate.disarm()  # a child that it has forked may have it still
            if mine:
                line.feed(rules.Gone(identity))
                for one in mine:
                    line.leave(one)
        self._forget_pidfd(identity)


def _lives(pid: int, start: int) -> bool:
    try:
        return peers.start_time(pid) == start
    except ProcessLookupError:
        return False
