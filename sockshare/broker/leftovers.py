"""Finds what is left over of managed processes that have ended, and ends what is left of the old version at a reload.

A wrapper that dies of its stop signal leaves its server behind, a master that is killed its workers: with the shared
socket registered, and below no managed process. `core.leftovers` says whose they are. One that nobody knows is named,
and never ended.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from sockshare.core import leftovers as rules
from sockshare.core.command_lines import in_words
from sockshare.core.cost import Cost, total
from sockshare.core.ending import ending
from sockshare.core.errors import ManagerError, NotPermitted
from sockshare.core.leftovers import Ended, Leftover, Suspect
from sockshare.core.servers import SERVERS
from sockshare.core.steps import Plan
from sockshare.kernel import connections, epoll, holders, peers, processes, waits
from sockshare.kernel.holders import Scan

from .drain import NO_TCP, Address, Drainer
from .holders import source
from .hostlink import HostLink
from .plans import server_of
from .state import State

log = logging.getLogger(__name__)

#: Seconds that a look through all processes may take.
_WITHIN = 0.5
#: How often, and at which distance in seconds, one is looked at that is not seen to wait: it may be busy.
_LOOKS, _APART = 20, 0.002
#: Seconds from a death until it is looked what is left of the process; for all that die meanwhile together.
_LOOK_AFTER = 1.0
#: Seconds that a process has to end after SIGKILL.
_DYING = 5.0
#: Rounds in which what is left is ended: a wrapper leaves its server, which leaves its workers.
_ROUNDS = 8


class _Whose(NamedTuple):
    """By what it is told whose a process is."""

    live: Mapping[int, int]
    ended: Mapping[int, Ended]
    directory: str  # that of the notify sockets


class Outcome(NamedTuple):
    """What came of ending what is left."""

    ended: list[Leftover]
    left: list[Leftover]
    cost: Cost | None = None  # None: nothing was to be ended


class Leftovers:
    """Made in the running loop.

    Args:
        directory: The runtime directory.
    """

    def __init__(self, state: State, link: HostLink, directory: str) -> None:
        self._state = state
        self._link = link
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Task[None] | None = None

    def look_after_deaths(self) -> None:
        """A managed process has ended: soon, look whether anything is left of it, and forget it if not."""
        if self._looking is None:
            self._looking = self._loop.create_task(self._look_after_deaths())

    async def _look_after_deaths(self) -> None:
        await asyncio.sleep(_LOOK_AFTER)
        self._looking = None
        try:
            left = await self.find(None, await self._state.holders.look())
        except OSError as error:  # such as too many open files: nobody has asked
            log.warning("left over: can't see what is left of processes that have ended: %s", error)
            return
        for program, found in left.items():
            for one in found:
                log.warning("%s: left over: %s serves %s: %s", program, one, one.socket, one.remedy(program))

    async def find(self, listed: Mapping[str, Any] | None, scan: Scan) -> dict[str, list[Leftover]]:
        """What is left over and serves a shared socket, by program.

        Args:
            listed: What the manager says of its processes; None: nothing, so that it can't be told who is a stranger.
            scan: Who has the shared sockets open.
        """
        names = {inode: name for name, (inode, _) in self._state.shared.items()}
        return await self._find(listed, scan, names, are_all=True)

    async def end(self, program: str, plan: Plan, names: Collection[str], of: int | None) -> Outcome:
        """End what is left of *program*'s processes that have ended and serves one of the sockets *names*, as an old
        process is: held off its socket, drained, stopped.

        Args:
            of: Of this one alone, which was given up: also what has yet to serve; None: of all.
        """
        until = self._loop.time() + plan.drain_timeout + plan.stop_timeout + _DYING
        ended: dict[int, Leftover] = {}
        costs: list[Cost] = []
        for _ in range(_ROUNDS):
            found = await self._left(program, names, of)
            mine = {one.pid: one for one in found if one.origin is not None and not one.unseen}
            if not mine:
                return Outcome(list(ended.values()), found, total(costs) if costs else None)
            roots = {one.root for one in mine.values()}
            done = await asyncio.gather(*(self._end(program, plan, names, *root, until) for root in roots))
            ended |= mine
            costs += [cost for _, cost in done if cost is not None]
            if not any(has_ended for has_ended, _ in done):
                break
        left = await self._left(program, names, of)
        gone = [one for one in ended.values() if one.pid not in {other.pid for other in left}]
        return Outcome(gone, left, total(costs) if costs else None)

    async def _left(self, program: str, names: Collection[str], of: int | None) -> list[Leftover]:
        inodes = {self._state.observer.inode(name): name for name in names}
        listed = await self._listed()
        scan = await self._state.holders.worker.do(holders.scan, inodes, _WITHIN)
        found = (await self._find(listed, scan, inodes, are_all=False, given_up=of)).get(program, [])
        return [one for one in found if of is None or one.origin == of]

    async def _listed(self) -> dict[str, Any] | None:
        try:
            programs: dict[str, Any] = (await self._link.ask("processes"))["programs"]
        except ManagerError as error:
            log.warning("left over: %s", error)
            return None
        return programs

    def _whose(self, listed: Mapping[str, Any] | None) -> _Whose:
        live = self._state.roster.live
        for facts in (listed or {}).values():
            for pid in (one["pid"] for one in facts["processes"] if one["pid"] not in live):
                with suppress(ProcessLookupError):
                    live[pid] = peers.start_time(pid)
        return _Whose(live, self._state.roster.ended, self._directory)

    async def _find(
        self,
        listed: Mapping[str, Any] | None,
        scan: Scan,
        names: Mapping[int, str],
        *,
        are_all: bool,
        given_up: int | None = None,
    ) -> dict[str, list[Leftover]]:
        whose = self._whose(listed)
        office = source(self._state.manager["pid"])
        addresses = {inode: self._state.addresses([name]) for inode, name in names.items()}
        found, known = await self._state.holders.worker.do(_find, scan, names, addresses, whose, office, given_up)
        if are_all:  # else only some of the sockets were looked for
            self._state.roster.forget_ended(whose.ended.keys() - known)
        by_program: dict[str, list[Leftover]] = {}
        for one in found:
            for program in () if listed is None and one.origin is None else self._programs(one, whose):
                by_program.setdefault(program, []).append(one)
        return by_program

    def _programs(self, one: Leftover, whose: _Whose) -> list[str]:
        if one.origin is not None:
            return [whose.ended[one.origin].program]
        return [name for name, spec in self._state.programs.items() if one.socket in spec.sockets]

    async def _end(
        self, program: str, plan: Plan, names: Collection[str], pid: int, start: int, until: float
    ) -> tuple[bool, Cost | None]:
        """End *pid*, which began at *start*, and then its tree if it won't; whether it has ended, and what that has
        cost (None: it had ended before)."""
        observer, addresses = self._state.observer, self._state.addresses(names)
        try:
            pidfd = peers.pidfd_open(pid)
        except ProcessLookupError:
            return True, None
        drainer = Drainer(pid, addresses, unseen="" if len(addresses) == len(names) else NO_TCP)
        drained: asyncio.Future[str] = self._loop.create_future()
        watch = self._loop.create_task(drainer.run(lambda left: None, drained.set_result))
        cause = plan.cut
        try:
            if peers.start_time(pid) != start:
                return True, None
            how = await observer.suspend(pid, names)
            await asyncio.sleep(plan.quiesce)
            if not self._drains_itself(program, plan, pid):
                drainer.end_idle()
                seconds = max(0.0, until - plan.stop_timeout - self._loop.time())
                if not (await asyncio.wait({drained}, timeout=seconds))[0]:
                    cause = f"pid {pid}, which was left over, had not answered them within {seconds:.0f} s"
                how = f"{how}; {drained.result() if drained.done() else f'given up after {seconds:g} s'}"
            await observer.let_go(pid)
            log.info("%s: ending pid %d, which is left over: %s", program, pid, how)
            family = await self._state.holders.worker.do(processes.identified_tree, pid)
            drainer.expect_stop()
            signal.pidfd_send_signal(pidfd, plan.stop_signal)
            seconds = max(0.0, min(plan.stop_timeout, until - _DYING - self._loop.time()))
            has_ended = await self._has_ended(pidfd, seconds)
            if not has_ended:
                log.warning("%s: pid %d has not ended %g s after its stop signal: killed", program, pid, seconds)
                cause = f"pid {pid}, which was left over, was killed {seconds:.0f} s after its stop signal"
                await self._state.holders.worker.do(_kill, family)
                has_ended = await self._has_ended(pidfd, _DYING)
            cost = await drainer.cost()
            return has_ended, cost._replace(cause=cause if cost.cut else "")
        except ProcessLookupError:
            return True, None
        except PermissionError as error:
            log.error("%s: can't end pid %d, which is left over: %s", program, pid, error)
            return False, None
        finally:
            os.close(pidfd)
            drainer.stop()
            await asyncio.wait({watch})
            await observer.let_go(pid)

    def _drains_itself(self, program: str, plan: Plan, pid: int) -> bool:
        """As for a managed process: whether it may be left to its stop signal."""
        catches, runtime = processes.catches(pid, plan.stop_signal), processes.runtime_with_handlers(pid)
        spec = self._state.programs.get(program)
        if spec is None:
            return catches and not runtime
        found = ending(
            spec,
            plan.stop_signal,
            key="",
            server=SERVERS.get(spec.server) or server_of(pid),
            learned=self._state.learned.get(program),
            process=program,
            catches=catches,
            runtime=runtime,
        )
        return not found.drain

    async def _has_ended(self, pidfd: int, seconds: float) -> bool:
        ended = asyncio.Event()
        self._loop.add_reader(pidfd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            self._loop.remove_reader(pidfd)
        return True


def _find(
    scan: Scan,
    names: Mapping[int, str],
    addresses: Mapping[int, list[Address]],
    whose: _Whose,
    office: Collection[int],
    given_up: int | None,
) -> tuple[list[Leftover], set[int]]:
    """What is left over and serves, or of *given_up* may yet, and the ended processes of which anything is left that
    has a socket open."""
    found, known = [], whose.ended.keys() & _leaders()
    open_in: dict[int, tuple[Suspect, int | None, set[int]]] = {}
    for pid in {*scan.holders, *scan.refused, *scan.unfinished} - {*office}:
        try:
            if any(above in whose.live for above in peers.ancestors(pid)):
                continue  # as nearly all: nothing more need be read of it
            suspect = _suspect(pid, whose)
            where = rules.origin(suspect, whose.live, whose.ended)
            if (where is not None and where.lives) or (where is None and pid not in scan.holders) or _is_broker(pid):
                continue
        except OSError as error:
            _raise_if_short(error)
            continue  # it has ended
        if where is not None:
            known.add(where.pid)
        origin = where and where.pid
        if pid in scan.holders:
            open_in[pid] = suspect, origin, set(scan.holders[pid]) & names.keys()
            continue
        why = "the broker may not look into it" if pid in scan.refused else "the time did not suffice"
        sockets, root = ", ".join(sorted(names.values())), _root(suspect, origin, whose)
        found.append(Leftover(pid, _command(pid), sockets, origin, root, why))
    for look in range(_LOOKS):
        for pid, (suspect, origin, inodes) in list(open_in.items()):
            serves = _served(pid, inodes, {} if look else addresses)  # connections last, and are many
            inodes -= serves
            if serves:
                command, root = _command(pid), _root(suspect, origin, whose)
                found += [Leftover(pid, command, names[inode], origin, root) for inode in sorted(serves)]
            if not inodes:
                del open_in[pid]
        if not open_in:
            break
        time.sleep(_APART)
    for pid, (suspect, origin, inodes) in open_in.items():
        if origin is not None and origin == given_up:  # a worker that was forked last, and loads
            command, root = _command(pid), _root(suspect, origin, whose)
            found += [Leftover(pid, command, names[inode], origin, root) for inode in sorted(inodes)]
    return found, known


def _leaders() -> set[int]:
    """The numbers of all sessions and process groups that have a member."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                found |= {os.getsid(int(name)), os.getpgid(int(name))}
    return found


def _suspect(pid: int, whose: _Whose) -> Suspect:
    notifies, prefix = None, f"{whose.directory}/notify/"
    with suppress(PermissionError):
        path = processes.variable(pid, "NOTIFY_SOCKET") or ""
        if path.startswith(prefix) and path[len(prefix) :].isdecimal():
            notifies = int(path[len(prefix) :])
    ancestors = tuple(peers.ancestors(pid))
    return Suspect(pid, peers.start_time(pid), ancestors, os.getsid(pid), os.getpgid(pid), notifies)


def _served(pid: int, inodes: Collection[int], addresses: Mapping[int, list[Address]]) -> set[int]:
    """Those of *inodes* that *pid* has registered, waits on, or has a connection of."""
    found: set[int] = set()
    try:
        found |= {entry.inode for entry in epoll.registrations(pid, inodes, tree=False)}
        for wait in waits.waits(pid, inodes):
            found |= wait.sockets
        owned = processes.socket_descriptors(pid).keys()
        for inode in set(inodes) - found:
            if any(
                one.inode in owned for address in addresses.get(inode, ()) for one in connections.established(*address)
            ):
                found.add(inode)
    except (NotPermitted, OSError) as error:
        _raise_if_short(error)
        log.debug("pid %d: %s", pid, error)
    return found


def _raise_if_short(error: Exception) -> None:
    """Raise *error* again if it says that we had no descriptor to look with, so that nothing was seen."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise error


def _root(suspect: Suspect, origin: int | None, whose: _Whose) -> tuple[int, int]:
    """The topmost process above *suspect* that is left of *origin* too, by pid and start; itself for a stranger."""
    root = suspect.pid, suspect.start
    for pid in suspect.ancestors[1:] if origin is not None else ():
        try:
            above = _suspect(pid, whose)
        except OSError:
            break
        where = rules.origin(above, whose.live, whose.ended)
        if where is None or where.lives or where.pid != origin:
            break
        root = above.pid, above.start
    return root


def _kill(family: Iterable[tuple[int, int]]) -> None:
    for one in family:
        with suppress(OSError):
            pidfd = peers.pidfd_open(one[0])
            try:
                if processes.is_same(one):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def _is_broker(pid: int) -> bool:
    """Whether it is a broker of ours that has yet to end."""
    return processes.command(pid) == processes.command(os.getpid())


def _command(pid: int) -> str:
    try:
        return in_words(processes.command(pid))
    except OSError:
        return "?"
