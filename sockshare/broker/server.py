"""The broker: ties the host, the dialogue, the door and the rules together. Crash-only: everything it needs to know it
has from the host, the kernel and the processes, so it may be killed at any moment."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from sockshare.core.errors import ManagerError, SockshareError
from sockshare.core.sdnotify import Notification
from sockshare.kernel.channel import Message
from sockshare.kernel.descriptors import close_all
from sockshare.kernel.peers import Peer

from .door import Door
from .endpoint import Caller, Endpoint
from .handout import HandOut
from .hostlink import HostLink
from .notify import NotifySocket
from .operations import Operations
from .reloading import Reloading
from .retirements import Retirements
from .roster import Known, Managed
from .state import State

log = logging.getLogger(__name__)


class Broker:
    """One broker, serving what the hello of its host says."""

    def __init__(self, link: HostLink, hello: Message, fds: Sequence[int], end: Callable[[str], None]) -> None:
        """Serve; made in the running loop.

        Args:
            hello: The host's first message, as docs/protocol.md has it.
            fds: The descriptors that came with it: the listeners', the sockets', the notify sockets', the kept.
            end: Called with the reason when this broker should end, for the host to start the next one.
        """
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._end = end
        names, pids, journal = hello["listeners"], hello["notify"], hello["journal"]
        rest = list(fds)
        counts = len(names), len(hello["sockets"]), len(pids)
        (listening, shared, notified), kept = ([rest.pop(0) for _ in range(count)] for count in counts), rest
        listeners = dict(zip(names, listening, strict=True))
        self._state = state = State(link, hello, shared, kept, reply=self._reply, fail=self._fail, on_death=self._died)
        self._handout = HandOut(state, self._notify_path)
        self._notify: dict[int, tuple[str, NotifySocket]] = {}
        self._reloading = Reloading(state, self._handout.introductions, link, journal)
        self._retirements = Retirements(state, self._reloading, link)
        self._uids = {0, os.geteuid(), state.manager["uid"], *hello.get("uids", [])}
        self._filters = bool(hello.get("uids"))
        self._directory = hello["directory"]
        # A command that re-attaches to its reload must not find it missing, and begin it anew.
        taken_up = self._loop.create_task(self._take_up(journal, dict(zip(pids, notified, strict=True))))
        self._operations = Operations(
            state, self._handout, self._reloading, self._retirements, link, self._said, taken_up
        )
        self._door = Door(listeners["door"], self._handout, self._hello)
        filtered = self._uids if self._filters else ()
        self._endpoint = Endpoint(listeners["broker"], f"{self._directory}/broker", filtered, self._operations.answer)
        self._loop.call_later(1.0, self._expire)
        log.info(
            "broker: %s (pid=%d, manager=%d, sockets=%s)",
            "refused" if state.mistakes else "serving",
            os.getpid(),
            state.manager["pid"],
            ",".join(state.sockets),
        )

    def _reply(self, caller: Caller, fields: dict[str, Any]) -> bool:
        return self._endpoint.reply(caller, fields)

    def _fail(self, caller: Caller, error: SockshareError) -> None:
        self._endpoint.fail(caller, error)

    def on_host_message(self, message: Message, fds: list[int]) -> None:
        """Take what the host says by itself."""
        close_all(fds)
        if message.get("type") == "question":
            self._operations.answer_host(message)
            return
        if message.get("type") == "held":
            self._retirements.look()
            return
        if message.get("type") != "programs":
            log.warning("link: a message of type %r was passed over", message.get("type"))
            return
        self._state.learn(message)
        uids = set(message.get("uids", []))
        if self._filters and not uids <= self._uids:
            # ZeroMQ takes its filter before it binds; the next broker has the new list.
            self._end(f"there are new user ids: {sorted(uids - self._uids)}")

    def _hello(self, peer: Peer) -> dict[str, object]:
        known = not self._filters or peer.uid in self._uids
        return {
            "v": 1,
            "pid": os.getpid(),
            "state": "refused" if self._state.mistakes else "serving",
            "mistakes": self._state.mistakes,
            "uid_known": known,
        }

    def _said(self, managed: Managed, how: str, status: str | None) -> None:
        """*managed* said that it is ready, by *how* (client, notify)."""
        if status is not None:
            managed.status = status[:256]
        if managed.ready is None or how == "client":
            managed.ready = how
        self._state.roster.note(managed)
        self._reloading.said(managed)
        self._retirements.said(managed)

    async def _notify_path(self, managed: Managed) -> str:
        """The path of the notify socket of *managed*, which the host makes when it is asked first.

        Raises:
            ManagerError: It can't.
        """
        if managed.pid not in self._notify:
            answer, fds = await self._link.ask_with_descriptors("notify", pid=managed.pid)
            if managed.pid in self._notify or self._state.roster.managed(managed.pid) is None:
                close_all(fds)  # two asked at once, or it has died
            else:
                self._listen_to(managed.pid, str(answer["path"]), fds[0])
            return str(answer["path"])
        return self._notify[managed.pid][0]

    def _listen_to(self, pid: int, path: str, fd: int) -> None:
        self._notify[pid] = (path, NotifySocket(fd, lambda sender, said: self._heard(pid, sender, said)))

    def _heard(self, pid: int, sender: int, said: Notification) -> None:
        managed = self._state.roster.managed(pid)
        if managed is None:
            return
        log.debug("%s: notified by pid %d: %s", managed.name, sender, said)
        if said.ready:
            self._said(managed, "notify", said.status)
        elif said.status is not None:
            managed.status = said.status[:256]
            self._state.roster.note(managed)

    def _died(self, known: Known) -> None:
        state = self._state
        state.registrations.gone(known.identity)  # first of all: something may wait for the next holder
        self._handout.died(known)
        pid, managed = known.identity.pid, known.managed
        if managed is None or managed.pid != pid:
            return
        log.info("%s: died (pid=%d, generation=%d)", managed.name, pid, managed.generation)
        spec = state.programs.get(managed.program)
        state.registrations.process_died(managed, () if spec is None else spec.sockets)
        listening = self._notify.pop(pid, None)
        if listening is not None:
            listening[1].close()
        self._reloading.died(known)
        self._retirements.died(known)

    def _expire(self) -> None:
        self._handout.expire()
        self._loop.call_later(1.0, self._expire)

    async def _take_up(self, journal: dict[str, Any], notify: dict[int, int]) -> None:
        """Learn of the processes there are; take up the reloads that were running; resume what no reload claims."""
        try:
            programs = (await self._link.ask("processes"))["programs"]
        except ManagerError as error:
            log.error("broker: can't learn of the processes: %s", error)
            programs = {}
        for name, facts in programs.items():
            if name in self._state.programs:
                self._state.roster.enter_all(name, facts["processes"])
        self._state.roster.forget_the_dead()
        # Not before the processes are known: what is heard of an unknown one is lost.
        for pid, fd in notify.items():
            self._listen_to(pid, f"{self._directory}/notify/{pid}", fd)
        self._reloading.take_up(journal)
        self._retirements.take_up(journal)
        for spec in self._state.programs.values():
            for managed in self._state.roster.of_program(spec.name):
                if self._state.roster.managed(managed.pid) is not managed:
                    continue  # it has died meanwhile
                self._state.registrations.handed_out(managed, spec.sockets)
                running = [*self._reloading.running.values(), *self._retirements.running]
                if managed.pid not in {one.suspends for one in running}:
                    held_back = managed.pid in {one.holds_back for one in running}
                    count = await self._state.registrations.resume_unclaimed(
                        managed.pid, spec.sockets, held_back=held_back
                    )
                    if count:
                        log.warning(
                            "%s: %d suspended registrations that no reload claims were resumed", managed.name, count
                        )
