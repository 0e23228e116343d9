"""The broker: ties the host, the dialogue, the door and the rules together. Crash-only: everything it needs to know it
has from the host, the kernel and the processes, so it may be killed at any moment."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from sockshare.core.errors import (
    BadConfiguration,
    ManagerError,
    NotPermitted,
    ProtocolError,
    SockshareError,
    TicketRefused,
    UnknownSocket,
)
from sockshare.core.sdnotify import Notification
from sockshare.core.spec import ProgramSpec, SocketSpec
from sockshare.core.suggest import did_you_mean
from sockshare.core.tickets import SECRET_BYTES, Tickets
from sockshare.kernel.channel import Message
from sockshare.kernel.descriptors import MOST, close_all
from sockshare.kernel.peers import Identity, Peer, identity

from .door import Door
from .drain import Address, address_of
from .endpoint import Caller, Endpoint
from .gates import GATE
from .holders import Holders
from .hostlink import HostLink
from .introductions import LANE, Introductions
from .notify import NotifySocket
from .observer import Observer
from .operations import Operations
from .registrations import Registrations
from .reloads import Reload, Services
from .retirements import Retirements
from .roster import Known, Managed, Roster

log = logging.getLogger(__name__)

#: Tickets for gates that are remembered until they are acknowledged.
_GATE_TICKETS = 4096


class Broker:
    """One broker, serving what the hello of its host says."""

    def __init__(self, link: HostLink, hello: Message, fds: Sequence[int], end: Callable[[str], None]) -> None:
        """Serve; made in the running loop.

        Args:
            hello: The host's first message, as docs/protocol.md has it.
            fds: The descriptors that came with it: the listeners', the sockets', the notify sockets'.
            end: Called with the reason when this broker should end, for the host to start the next one.
        """
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._end = end
        self.manager: dict[str, Any] = hello["manager"]
        self.mistakes: list[str] = list(hello["mistakes"])
        self.warnings: list[str] = list(hello.get("warnings", []))
        self.programs = {spec.name: spec for spec in msgspec.convert(hello["programs"], list[ProgramSpec])}
        self.sockets = {spec.name: spec for spec in msgspec.convert(hello["sockets"], list[SocketSpec])}
        names, pids = hello["listeners"], hello["notify"]
        listeners = dict(zip(names, fds, strict=False))
        rest = list(fds[len(names) :])
        self.shared = {name: (os.fstat(fd).st_ino, fd) for name, fd in zip(self.sockets, rest, strict=False)}
        self.observer = Observer(self.shared)
        self.holders = Holders(self.shared)
        self._tickets = Tickets()
        self._gate_tickets: dict[bytes, tuple[str, str]] = {}  # secret: socket and key of the claim
        journal: dict[str, Any] = hello["journal"]
        kept = dict(zip(hello["kept"], rest[len(self.sockets) + len(pids) :], strict=False))
        self.registrations = Registrations(
            link, self.observer, self.sockets, self.shared, journal, kept, self._tell, self._may_have
        )
        self.roster = Roster(link, journal, on_death=self._died)
        self.introductions = Introductions(self, self._secret_for)
        self._notify: dict[int, tuple[str, NotifySocket]] = {}
        self.reloads: dict[str, Reload] = {}
        self.retirements = Retirements(self, link)
        self.last: dict[str, dict[str, Any]] = {
            key[5:]: record for key, record in journal.items() if key.startswith("last:")
        }
        #: The key by which a program's section names its sockets.
        self.sockets_key = "sockshare.sockets" if self.manager["kind"] == "circus" else "sockshare_sockets"
        self.refusals = 0
        self._uids = {0, os.geteuid(), self.manager["uid"], *hello.get("uids", [])}
        self._filters = bool(hello.get("uids"))
        self._directory = hello["directory"]
        notify = dict(zip(pids, rest[len(self.sockets) :], strict=False))
        # A command that re-attaches to its reload must not find it missing, and begin it anew.
        taken_up = self._loop.create_task(self._take_up(journal, notify))
        self._operations = Operations(self, link, taken_up)
        self._door = Door(listeners["door"], self, self._hello)
        filtered = self._uids if self._filters else ()
        self.endpoint = Endpoint(listeners["broker"], f"{self._directory}/broker", filtered, self._operations.answer)
        self._loop.call_later(1.0, self._expire)
        state = "refused" if self.mistakes else "serving"
        log.info(
            "broker: %s (pid=%d, manager=%d, sockets=%s)",
            state,
            os.getpid(),
            self.manager["pid"],
            ",".join(self.sockets),
        )

    def on_host_message(self, message: Message, fds: list[int]) -> None:
        """Take what the host says by itself."""
        close_all(fds)
        if message.get("type") == "question":
            self._operations.answer_host(message)
            return
        if message.get("type") == "held":
            self.retirements.look()
            return
        if message.get("type") != "programs":
            log.warning("link: a message of type %r was passed over", message.get("type"))
            return
        self.mistakes = list(message.get("mistakes", []))
        self.warnings = list(message.get("warnings", []))
        self.programs = {spec.name: spec for spec in msgspec.convert(message["programs"], list[ProgramSpec])}
        uids = set(message.get("uids", []))
        if self._filters and not uids <= self._uids:
            # ZeroMQ takes its filter before it binds; the next broker has the new list.
            self._end(f"there are new user ids: {sorted(uids - self._uids)}")

    # The door.

    def _hello(self, peer: Peer) -> dict[str, object]:
        known = not self._filters or peer.uid in self._uids
        return {
            "v": 1,
            "pid": os.getpid(),
            "state": "refused" if self.mistakes else "serving",
            "mistakes": self.mistakes,
            "uid_known": known,
        }

    def _tell(self, caller: Caller, fields: dict[str, Any]) -> bool:
        return self.endpoint.reply(caller, fields)

    def _may_have(self, name: str) -> list[int]:
        """The pids of the known managed processes that may have the socket *name*."""
        programs = [spec.name for spec in self.programs.values() if name in spec.sockets]
        return [managed.pid for program in programs for managed in self.roster.of_program(program)]

    def redeem(self, secrets: Sequence[bytes], peer: Peer, pidfd: int | None) -> list[tuple[str, int]]:
        """See `door.Tickets`."""
        try:
            names = self._tickets.redeem(secrets, self._identity(peer, pidfd), time.monotonic())
        except ProcessLookupError:
            raise TicketRefused("can't redeem ticket: its process has died") from None
        except TicketRefused as error:
            self.refused(peer.pid, f"{error} ({error.__cause__})")
            raise
        try:
            return [(name, self._descriptor(name)) for name in names]
        except LookupError:
            raise TicketRefused("can't redeem ticket: its claim is over") from None

    def hand_out(self, name: str, peer: Peer, pidfd: int | None) -> int:
        """See `door.Tickets`."""
        known = self.roster.known(peer.pid)
        try:
            is_known = known is not None and self._identity(peer, pidfd) == known.identity
        except ProcessLookupError:
            is_known = False
        if known is None or not is_known:
            raise TicketRefused("can't hand out without a ticket: this broker does not know the process yet")
        if self.mistakes:
            raise BadConfiguration("\n".join(self.mistakes))
        try:
            self.entitled(known, name)
        except SockshareError as error:
            self.refused(peer.pid, str(error))
            raise
        self._watch_registration(known, name)
        return self.shared[name][1]

    def inherit(
        self, peer: Peer, pidfd: int | None, sockets: Sequence[str], warning: str
    ) -> Awaitable[tuple[dict[str, object], list[int]]]:
        """See `door.Tickets`."""
        return self._inherit(peer, pidfd and os.dup(pidfd), sockets, warning)

    async def _inherit(
        self, peer: Peer, pidfd: int | None, sockets: Sequence[str], warning: str
    ) -> tuple[dict[str, object], list[int]]:
        try:
            if self.mistakes:
                raise BadConfiguration("\n".join(self.mistakes))
            known = await self.roster.identify(peer.pid)
            if self._identity(peer, pidfd) != known.identity:
                raise NotPermitted(f"can't tell who pid {peer.pid} is: it has died")
            facts, names = await self.begin_program(known, sockets, warning)
        except NotPermitted as error:
            self.refused(peer.pid, str(error))
            raise
        except ProcessLookupError:
            raise NotPermitted(f"can't tell who pid {peer.pid} is: it has died") from None
        finally:
            if pidfd is not None:
                os.close(pidfd)
        if len(names) > MOST:
            raise ProtocolError(f"can't hand out {len(names)} sockets at once: tickets are needed")
        return {**facts, "sockets": names}, [self.shared[name][1] for name in names]

    async def begin_program(
        self, known: Known, sockets: Sequence[str], warning: str
    ) -> tuple[dict[str, object], list[str]]:
        """What *known* begins a program with: what it is told of itself, and the names of its sockets.

        Raises:
            NotPermitted, UnknownSocket, ManagerError: It can't.
        """
        managed = self.managed_of(known, known.identity.pid)
        names = list(sockets or self.programs[managed.program].sockets)
        for name in names:
            self.entitled(known, name)
            self._watch_registration(known, name)
        if warning and managed.warning != warning:
            log.warning("%s: %s", managed.name, warning)
            managed.warning = warning
            self.roster.note(managed)
        notify = await self.notify_path(managed)
        return {"program": managed.program, "process": managed.name, "notify": notify}, names

    def _watch_registration(self, known: Known, name: str) -> None:
        if self.sockets[name].registration != "shared":
            self.registrations.handed_out(self.managed_of(known, known.identity.pid), [name])

    def _identity(self, peer: Peer, pidfd: int | None) -> Identity:
        known = self.roster.known(peer.pid)
        if known is not None and pidfd is not None and known.identity.inode == os.fstat(pidfd).st_ino:
            return known.identity
        return identity(peer.pid, pidfd)

    def _descriptor(self, name: str) -> int:
        if name.startswith(GATE):
            return self.registrations.claims.gate_of(name[len(GATE) :])
        if name.startswith(LANE):
            return self.introductions.descriptor(name)
        return self.shared[name][1]

    def acknowledge(self, secrets: Sequence[bytes]) -> None:
        """See `door.Tickets`."""
        self._tickets.acknowledge(secrets)
        self.introductions.acknowledged(secrets)
        for secret in secrets:
            socket_and_key = self._gate_tickets.pop(secret, None)
            if socket_and_key is not None:
                self.registrations.claims.eligible(*socket_and_key)

    def abandon(self, secrets: Sequence[bytes]) -> None:
        """See `door.Tickets`."""
        self._tickets.abandon(secrets)

    def may_present(self, key: str, peer: Peer, pidfd: int | None) -> None:
        """See `door.Tickets`."""
        try:
            who = self._identity(peer, pidfd)
        except ProcessLookupError:
            raise NotPermitted("can't take a gate: its process has died") from None
        self.registrations.claims.may_present(key, who)

    def presented(self, key: str, fd: int) -> None:
        """See `door.Tickets`."""
        self.registrations.claims.presented(key, fd)

    def gate_ticket(self, known: Known, name: str, key: str) -> str:
        """A ticket for the gate of the claim *key* on the socket *name*, for *known*."""
        secret = os.urandom(SECRET_BYTES)
        self._tickets.issue(secret, GATE + key, known.identity, time.monotonic())
        self._gate_tickets[secret] = (name, key)
        if len(self._gate_tickets) > _GATE_TICKETS:
            del self._gate_tickets[next(iter(self._gate_tickets))]
        return secret.hex()

    def _secret_for(self, known: Known, name: str) -> bytes:
        secret = os.urandom(SECRET_BYTES)
        self._tickets.issue(secret, name, known.identity, time.monotonic())
        return secret

    def issue(self, asking: Known, name: str | None, target: Known) -> dict[str, Any]:
        """A ticket for the socket *name*, which *asking* wants for *target*, as the answer has it.

        Raises:
            NotPermitted, UnknownSocket, ProtocolError: One of them may not have it, or there is no such socket.
        """
        self.entitled(asking, name)
        if target is not asking:
            self.entitled(target, name)
        assert name is not None
        secret = os.urandom(SECRET_BYTES)
        self._tickets.issue(secret, name, target.identity, time.monotonic())
        self._watch_registration(target, name)
        return {"ok": True, "socket": name, "ticket": secret.hex()}

    def entitled(self, known: Known, name: str | None) -> None:
        """Refuse *known* the socket *name* if it may not have it.

        Raises:
            NotPermitted, UnknownSocket, ProtocolError: It may not, or there is no such socket.
        """
        managed = self.managed_of(known, known.identity.pid)
        if name is None:
            raise ProtocolError("can't hand out a socket: the request names none")
        allowed = self.programs[managed.program].sockets
        if name in allowed:
            return
        whom = f"{managed.name} (pid {known.identity.pid})"
        if name in self.shared:
            section = "watcher" if self.manager["kind"] == "circus" else "program"
            raise NotPermitted(
                f"can't hand {name!r} to {whom}: its section does not name it; "
                f"add it to {self.sockets_key} in [{section}:{managed.program}]"
            )
        raise UnknownSocket(f"can't duplicate socket {name!r} for {whom}: no such socket{did_you_mean(name, allowed)}")

    def managed_of(self, known: Known, pid: int) -> Managed:
        """The managed process that *known* (pid *pid*) is or descends from, if its program may have sockets.

        Raises:
            NotPermitted: There is none, or it may not.
        """
        managed = known.managed
        if managed is None:
            manager = f"{self.manager['kind']} (pid {self.manager['pid']})"
            raise NotPermitted(f"can't hand out sockets to pid {pid}: it is no process that {manager} runs")
        if managed.program not in self.programs:
            raise NotPermitted(
                f"can't hand out sockets to {managed.name} (pid {pid}): "
                f"the section of {managed.program} has no {self.sockets_key}"
            )
        return managed

    def refused(self, pid: int, reason: str) -> None:
        """Count and log that *pid* was refused something."""
        self.refusals += 1
        log.warning("refused: pid %d: %s", pid, reason)

    def said(self, managed: Managed, how: str, status: str | None) -> None:
        """*managed* said that it is ready, by *how* (client, notify)."""
        if status is not None:
            managed.status = status[:256]
        if managed.ready is None or how == "client":
            managed.ready = how
        self.roster.note(managed)
        running = self.reloads.get(managed.program)
        if running is not None:
            running.said(managed)
        self.retirements.said(managed)

    async def notify_path(self, managed: Managed) -> str:
        """The path of the notify socket of *managed*, which the host makes when it is asked first.

        Raises:
            ManagerError: It can't.
        """
        if managed.pid not in self._notify:
            answer, fds = await self._link.ask_with_descriptors("notify", pid=managed.pid)
            if managed.pid in self._notify or self.roster.managed(managed.pid) is None:
                close_all(fds)  # two asked at once, or it has died
            else:
                self._listen_to(managed.pid, str(answer["path"]), fds[0])
            return str(answer["path"])
        return self._notify[managed.pid][0]

    def _listen_to(self, pid: int, path: str, fd: int) -> None:
        self._notify[pid] = (path, NotifySocket(fd, lambda sender, said: self._heard(pid, sender, said)))

    def _heard(self, pid: int, sender: int, said: Notification) -> None:
        managed = self.roster.managed(pid)
        if managed is None:
            return
        log.debug("%s: notified by pid %d: %s", managed.name, sender, said)
        if said.ready:
            self.said(managed, "notify", said.status)
        elif said.status is not None:
            managed.status = said.status[:256]
            self.roster.note(managed)

    def services(self) -> Services:
        """What a reload works with."""
        return Services(
            self._link,
            self.roster,
            self.observer,
            self.registrations,
            self.introductions,
            self._addresses,
            self.endpoint.reply,
        )

    def _addresses(self, names: Iterable[str]) -> list[Address]:
        return [address for name in sorted(names) if (address := address_of(self.shared[name][1])) is not None]

    def reload_ended(self, reload: Reload, answer: dict[str, Any]) -> None:
        """*reload* is over; *answer* is what its command is told."""
        del self.reloads[reload.program]
        # In this order: killed between the two, the next broker would take the reload up again, and find nothing to do.
        self.keep_last(reload, answer)
        self._link.journal(f"reload:{reload.program}", None)

    def keep_last(self, reload: Reload, answer: dict[str, Any]) -> None:
        """*reload* is the last of its program."""
        self.last[reload.program] = record = {"key": reload.key, "answer": answer}
        self._link.journal(f"last:{reload.program}", record)

    def _died(self, known: Known) -> None:
        self.registrations.gone(known.identity)  # first of all: something may wait for the next holder
        self._tickets.forget(known.identity)
        self.introductions.died(known)
        pid = known.identity.pid
        managed = known.managed
        if managed is None or managed.pid != pid:
            return
        log.info("%s: died (pid=%d, generation=%d)", managed.name, pid, managed.generation)
        spec = self.programs.get(managed.program)
        self.registrations.process_died(managed, () if spec is None else spec.sockets)
        listening = self._notify.pop(pid, None)
        if listening is not None:
            listening[1].close()
        running = self.reloads.get(managed.program)
        if running is not None:
            running.died(known)
        self.retirements.died(known)

    def _expire(self) -> None:
        self._tickets.expire(time.monotonic())
        self._loop.call_later(1.0, self._expire)

    async def _take_up(self, journal: dict[str, Any], notify: dict[int, int]) -> None:
        """Learn of the processes there are; take up the reloads that were running; resume what no reload claims."""
        try:
            programs = (await self._link.ask("processes"))["programs"]
        except ManagerError as error:
            log.error("broker: can't learn of the processes: %s", error)
            programs = {}
        for name, facts in programs.items():
            if name in self.programs:
                self.roster.enter_all(name, facts["processes"])
        self.roster.forget_the_dead()
        # Not before the processes are known: what is heard of an unknown one is lost.
        for pid, fd in notify.items():
            self._listen_to(pid, f"{self._directory}/notify/{pid}", fd)
        for key, record in journal.items():
            program = key.partition(":")[2]
            if not key.startswith("reload:") or not record or program in self.reloads:
                continue
            if self.last.get(program, {}).get("key") == record["rollout"]["plan"]["key"]:
                self._link.journal(key, None)
                continue
            try:
                Reload.recover(self.services(), record, self.reload_ended, self.reloads)
            except (KeyError, TypeError, ValueError):
                log.exception("%s: the record of its reload is not readable; it is given up", program)
                self._link.journal(key, None)
        self.retirements.take_up(journal)
        claimed = {reload.suspends for reload in self.reloads.values()} | self.retirements.suspend
        new = {reload.holds_back for reload in self.reloads.values()} | self.retirements.hold_back
        for spec in self.programs.values():
            for managed in self.roster.of_program(spec.name):
                self.registrations.handed_out(managed, spec.sockets)
                if managed.pid not in claimed:
                    held_back = managed.pid in new
                    count = self.registrations.resume_unclaimed(managed.pid, spec.sockets, held_back=held_back)
                    if count:
                        log.warning(
                            "%s: %d suspended registrations that no reload claims were resumed", managed.name, count
                        )
