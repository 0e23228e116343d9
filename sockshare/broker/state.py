"""What a broker knows, for all of its parts: what its host said, and what is seen of the kernel and the processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from sockshare.core.errors import BadConfiguration, NotPermitted, ProtocolError, SockshareError, UnknownSocket
from sockshare.core.hello import Configuration, Hello
from sockshare.core.records import Learned, Records
from sockshare.core.spec import ProgramSpec
from sockshare.core.suggest import did_you_mean
from sockshare.core.troubles import Troubles

from .drain import Address, address_of
from .endpoint import Caller
from .guard import Guard
from .holders import Holders
from .hostlink import HostLink
from .observer import Observer
from .registrations import Registrations
from .roster import Known, Managed, Roster

log = logging.getLogger(__name__)


class State:
    """What one broker knows; made in the running loop.

    Args:
        hello: The host's first message.
        records: Those of its journal.
        shared: Our descriptors of the sockets, in the order of the hello.
        kept: Those that the broker before had the host keep, in that order.
        reply, fail: Answer a caller of the dialogue.
        on_death: Called once for each known process that dies.
    """

    #: Set by the broker, which knows the reloads.
    guard: Guard

    def __init__(
        self,
        link: HostLink,
        hello: Hello,
        records: Records,
        shared: Sequence[int],
        kept: Sequence[int],
        *,
        reply: Callable[[Caller, dict[str, Any]], bool],
        fail: Callable[[Caller, SockshareError], None],
        on_death: Callable[[Known], None],
    ) -> None:
        self.reply = reply
        self.fail = fail
        self.manager: dict[str, Any] = msgspec.to_builtins(hello.manager)
        #: The key by which a program's section names its sockets.
        self.sockets_key = self.key("sockets")
        self.manager_name = {"circus": "circusd", "supervisor": "supervisord"}.get(self.manager["kind"], "the manager")
        self._section = "watcher" if self.manager["kind"] == "circus" else "program"
        self.learn(hello)
        self.sockets = {spec.name: spec for spec in hello.sockets}
        self.shared = {name: (os.fstat(fd).st_ino, fd) for name, fd in zip(self.sockets, shared, strict=False)}
        #: The programs whose stop signal has cut requests.
        self.learned: dict[str, Learned] = dict(records.learned)
        self.refusals = 0
        self._troubles = Troubles()
        self.observer = Observer(self.shared)
        self.holders = Holders(self.shared)
        stored = dict(zip(hello.kept, kept, strict=True))
        self.registrations = Registrations(
            link, self.observer, self.sockets, self.shared, records, stored, reply, self._may_have, self._ready_timeout
        )
        self.roster = Roster(link, records, on_death=on_death)

    def key(self, name: str) -> str:
        """What the key *name* of ours is called in a program's section."""
        return f"sockshare{'.' if self.manager['kind'] == 'circus' else '_'}{name}"

    @property
    def warnings(self) -> list[str]:
        """What is not as its author may think, and what the host or the broker can't do just now."""
        return [*self._warnings, *self._troubles.sentences]

    def trouble(self, subject: str, sentence: str) -> None:
        """Let *sentence* be the trouble of *subject*, "" if it has none (any more); the log says so once."""
        if self._troubles.say(subject, sentence):
            log.log(logging.ERROR if sentence else logging.INFO, "%s: %s", subject, sentence or "all is well again")

    def learn(self, configuration: Configuration) -> None:
        """Take what the host says of the manager's configuration."""
        self.mistakes = configuration.mistakes
        self.refused_sections = configuration.refused
        self._warnings = configuration.warnings
        self.programs = {spec.name: spec for spec in configuration.programs}

    def _ready_timeout(self, program: str) -> float:
        spec = self.programs.get(program)
        return ProgramSpec.ready_timeout if spec is None else spec.ready_timeout

    def addresses(self, names: Iterable[str]) -> list[Address]:
        """Where the TCP ones of the sockets *names* listen."""
        shared = sorted(self.shared.keys() & set(names))
        return [address for name in shared if (address := address_of(self.shared[name][1])) is not None]

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
            raise NotPermitted(
                f"can't hand {name!r} to {whom}: its section does not name it; "
                f"add it to {self.sockets_key} in [{self._section}:{managed.program}]"
            )
        raise UnknownSocket(f"can't duplicate socket {name!r} for {whom}: no such socket{did_you_mean(name, allowed)}")

    def check_section(self, program: str) -> None:
        """Refuse *program* if its section is refused, and nothing of it was in force before.

        Raises:
            BadConfiguration: It is; the message has each mistake.
        """
        wrong = [one for one in self.refused_sections if one.startswith(f"[{self._section}:{program}] ")]
        if wrong and program not in self.programs:
            raise BadConfiguration("\n".join(wrong))

    def managed_of(self, known: Known, pid: int) -> Managed:
        """The managed process that *known* (pid *pid*) is or descends from, if its program may have sockets.

        Raises:
            NotPermitted: There is none, or it may not.
            BadConfiguration: The section of its program is refused.
        """
        managed = known.managed
        if managed is None:
            manager = f"{self.manager['kind']} (pid {self.manager['pid']})"
            raise NotPermitted(f"can't hand out sockets to pid {pid}: it is no process that {manager} runs")
        if managed.program not in self.programs:
            self.check_section(managed.program)
            raise NotPermitted(
                f"can't hand out sockets to {managed.name} (pid {pid}): "
                f"the section of {managed.program} has no {self.sockets_key}"
            )
        return managed

    def names(self, program: str, socket: str) -> bool:
        """Whether the section of *program* names *socket*."""
        spec = self.programs.get(program)
        return spec is not None and socket in spec.sockets

    def refused(self, pid: int, reason: str) -> None:
        """Count and log that *pid* was refused something."""
        self.refusals += 1
        log.warning("refused: pid %d: %s", pid, reason)

    def _may_have(self, name: str) -> list[int]:
        """The pids of the known managed processes that may have the socket *name*."""
        programs = [spec.name for spec in self.programs.values() if name in spec.sockets]
        return [managed.pid for program in programs for managed in self.roster.of_program(program)]
