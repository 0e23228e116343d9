"""The broker: ties the host, the dialogue, the door and the rules together. Crash-only: everything it needs to know it
has from the host, the kernel and the processes, so it may be killed at any moment."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from sockshare.core import versions
from sockshare.core.errors import ManagerError, SockshareError
from sockshare.core.hello import Hello, read_programs
from sockshare.core.records import Records
from sockshare.core.records import read as read_records
from sockshare.core.sdnotify import Notification
from sockshare.kernel import closing
from sockshare.kernel.channel import Message
from sockshare.kernel.descriptors import close_all
from sockshare.kernel.peers import Peer

from .authority import Authority
from .door import Door
from .endpoint import Caller, Endpoint
from .guard import Guard
from .handout import HandOut
from .hostlink import HostLink
from .leftovers import Leftovers
from .notify import NotifySocket, Refused
from .operations import Operations
from .reloading import Reloading
from .retirements import Retirements
from .roster import Known, Managed
from .state import State

log = logging.getLogger(__name__)

#: The journal's key of the users who are admitted because they turned out to be allowed to command the manager. (ZeroMQ
#: takes its filter before it binds; the next broker has the new list.)
_ADMITTED = "admitted"


class Broker:
    """One broker, serving what the hello of its host says."""

    def __init__(self, link: HostLink, hello: Hello, fds: Sequence[int], end: Callable[[str], None]) -> None:
        """Serve; made in the running loop.

        Args:
            hello: The host's first message.
            fds: The descriptors that came with it: the listeners', the sockets', the notify sockets', the kept.
            end: Called with the reason when this broker should end, for the host to start the next one.
        """
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._end = end
        self._hello_of_host = hello
        rest = list(fds)
        counts = len(hello.listeners), len(hello.sockets), len(hello.notify), len(hello.kept)
        listening, shared, notified, kept = ([rest.pop(0) for _ in range(count)] for count in counts)
        close_all(rest)  # what a later version has besides
        listeners = dict(zip(hello.listeners, listening, strict=True))
        close_all(fd for name, fd in listeners.items() if name not in ("broker", "door"))
        records = read_records(hello.journal)
        for key, unread in records.unreadable.items():
            log.error("journal: %s is dropped, for it can't be read: %s", key, unread.why)
            if not key.startswith("reload:"):  # whose command has to be told
                link.journal(key, None)
        self._state = state = State(
            link, hello, records, shared, kept, reply=self._reply, fail=self._fail, on_death=self._died
        )
        self._handout = HandOut(state, self._notify_path)
        self._notify: dict[int, tuple[str, NotifySocket]] = {}
        self._leftovers = Leftovers(state, link, hello.directory)
        self._reloading = Reloading(state, self._handout.introductions, link, records, self._leftovers)
        self._retirements = Retirements(state, self._reloading, link)
        state.guard = self._guard = Guard(
            link,
            state.roster,
            state.holders,
            state.sockets,
            state.shared,
            manager=state.manager,
            replaced=self._replaced,
            uses=state.names,
        )
        self._authority = Authority(state.manager)
        self._uids = {0, os.geteuid(), state.manager["uid"], *hello.uids, *self._authority.owner()}
        self._uids.update(records.admitted)
        self._strange_uids: set[int] = set()
        self._filters = bool(hello.uids) and not self._authority.everybody()
        self._directory = hello.directory
        # A command that re-attaches to its reload must not find it missing, and begin it anew.
        taken_up = self._loop.create_task(self._take_up(records, dict(zip(hello.notify, notified, strict=True))))
        taken_up.add_done_callback(asyncio.Task.result)  # what it raises ends this broker: without it nothing is right
        self._operations = Operations(
            state,
            self._handout,
            self._reloading,
            self._retirements,
            self._leftovers,
            link,
            self._said,
            taken_up,
            self._authority,
        )
        self._door = Door(listeners["door"], self._handout, self._hello, self._is_admitted, self._door_trouble)
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

    def _replaced(self) -> list[int]:
        running = [*self._reloading.running.values(), *self._retirements.running]
        # A new process that is held back is suspended too.
        return [pid for one in running for pid in one.suspends if pid != one.holds_back]

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
        configuration = read_programs(message, self._hello_of_host)
        self._state.learn(configuration)
        self._strange_uids = set(configuration.uids) - self._uids if self._filters else set()
        self._admit_new()

    def _admit_new(self) -> None:
        """Have the next broker where programs run as users that this one does not let in, once no reload runs."""
        if self._strange_uids and not self._reloading.running and not self._retirements.running:
            self._end(f"there are new user ids: {sorted(self._strange_uids)}")

    def _is_admitted(self, uid: int) -> bool:
        return not self._filters or uid in self._uids

    def _door_trouble(self, sentence: str) -> None:
        self._state.trouble("door", sentence)

    def _hello(self, peer: Peer) -> dict[str, object]:
        known = self._is_admitted(peer.uid)
        if not known and self._authority.may_command(peer.pid, peer.uid):
            known = True
            self._uids.add(peer.uid)
            self._link.journal(_ADMITTED, {"uids": sorted(self._uids)})
            self._end(f"uid {peer.uid} may command the manager, and is new")
        return {
            "v": versions.DIALOGUE,
            "pid": os.getpid(),
            "state": "refused" if self._state.mistakes else "serving",
            "mistakes": self._state.mistakes if known else [],
            "uid_known": known,
        }

    def _said(self, managed: Managed, how: str, status: str | None) -> None:
        """*managed* said that it is ready, by *how* (client, notify)."""
        if status is not None:
            managed.status = status[:256]
        if managed.ready == how or (managed.ready is not None and how != "client"):
            self._state.roster.note_soon(managed)
            return
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
        refused = Refused(self._state, pid)
        self._notify[pid] = (path, NotifySocket(fd, pid, lambda said: self._heard(pid, said), refused))

    def _heard(self, pid: int, said: Notification) -> None:
        managed = self._state.roster.managed(pid)
        if managed is None:
            return
        log.debug("%s: notified: %s", managed.name, said)
        if said.ready:
            self._said(managed, "notify", said.status)
        elif said.status is not None:
            managed.status = said.status[:256]
            self._state.roster.note_soon(managed)

    def _died(self, known: Known) -> None:
        state = self._state
        state.registrations.gone(known.identity)  # first of all: something may wait for the next holder
        self._handout.died(known)
        self._guard.died(known)
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
        self._leftovers.look_after_deaths()

    def _expire(self) -> None:
        self._handout.expire()
        self._admit_new()
        if closing.unfinished() >= closing.MOST:
            # Only where descriptors can't be refused. Nothing waits for them as a process ends.
            self._end("strangers have sent descriptors that can't be closed")
        self._loop.call_later(1.0, self._expire)

    async def _take_up(self, records: Records, notify: dict[int, int]) -> None:
        """Learn of the processes there are; take up the reloads that were running; resume what no reload claims."""
        try:
            programs = (await self._link.ask("processes"))["programs"]
        except ManagerError as error:
            log.error("broker: can't learn of the processes: %s", error)
            programs = {}
        for name, facts in programs.items():
            if name in self._state.programs:
                self._state.roster.enter_all(name, facts["processes"])
        if self._state.roster.ended:
            self._leftovers.look_after_deaths()
        # Not before the processes are known: what is heard of an unknown one is lost.
        for pid, fd in notify.items():
            self._listen_to(pid, f"{self._directory}/notify/{pid}", fd)
        self._reloading.take_up()
        self._retirements.take_up(records)
        for spec in self._state.programs.values():
            for managed in self._state.roster.of_program(spec.name):
                if self._state.roster.managed(managed.pid) is not managed:
                    continue  # it has died meanwhile
                self._state.registrations.handed_out(managed, spec.sockets)
                running = [*self._reloading.running.values(), *self._retirements.running]
                if not any(managed.pid in one.suspends for one in running):
                    held_back = managed.pid in {one.holds_back for one in running}
                    count = await self._state.registrations.resume_unclaimed(
                        managed.pid, spec.sockets, held_back=held_back
                    )
                    if count:
                        log.warning(
                            "%s: %d suspended registrations that no reload claims were resumed", managed.name, count
                        )
