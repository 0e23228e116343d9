"""What lives in supervisord: the sockets, the host, the broker's life. It outlives ``supervisorctl reload``.

Every way into here from supervisord is guarded: an exception that left it would end supervisord, and orphan all that
it runs. The two exceptions are a mistake in the configuration, which is to be refused, and its sockets, at the start.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Mapping
from typing import Any

import msgspec
from supervisor import events

from sockshare.core.errors import BadConfiguration
from sockshare.core.spec import Mistake, ProgramSpec
from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.loop import guarded
from sockshare.host.support import unsupported
from sockshare.host.verbs import Configuration, Manager
from sockshare.kernel.meeting import find, places
from sockshare.kernel.meeting import name as meeting_name

from . import program, sections
from .daemonlog import DaemonLog
from .deaths import Deaths
from .life import Life
from .places import program_of
from .polling import PollLoop
from .registry import Registry
from .sections import BROKER, Declaration
from .twins import Twins
from .verbs import SupervisorVerbs

log = logging.getLogger(__name__)

#: Seconds between looks at whether the runtime directory is still there.
_LOOK_EVERY = 1.0

#: Where supervisorctl looks for the configuration by itself.
_FOUND_BY_ITSELF = ("/etc/supervisord.conf", "/etc/supervisor/supervisord.conf")

_TOO_LATE = (
    "supervisord runs without it, and can't be given it by reread or update; `supervisorctl reload` brings it in"
)


class Plugin:
    """The one of this process."""

    def __init__(self) -> None:
        self.loop = PollLoop()
        self.registry = Registry()
        self._supervisord: Any = None
        self._declared = Declaration({}, {}, None)  # what is in force
        self._reread: Declaration | None = None  # what was read since
        self._specs: Mapping[str, ProgramSpec] = {}
        self._twins = Twins(self.loop, self.supervisord, self._applied)
        self._verbs = SupervisorVerbs(self.loop, self.supervisord, self._twins, self._renew)
        self._file: str | None = None
        self._trying = False  # whether a configuration is read to see what a `reload` would find
        self._directory: str | None = None
        self._runtime_dir: str | None = None
        self._refusals: list[str] = []  # why the configured one, or any, could not be made
        self._unmet: str | None = None  # what to do where clients can't find it by themselves
        self._unmakeable = ""  # why it could not be made anew, when it was removed
        self.host: Host | None = None
        self._life: Life | None = None
        self._deaths = Deaths(self.loop, lambda pid: self.loop.hurry())
        self._log = DaemonLog()
        self._log.take("sockshare", "supervisor_sockshare")

    def supervisord(self) -> Any:
        """The Supervisor object there is now; each `reload` makes another."""
        return self._supervisord

    @property
    def directory(self) -> str | None:
        """The runtime directory; None until supervisord runs, or when none could be made."""
        return self._directory

    @property
    def refusal(self) -> str:
        """Why there is no broker that could say it, or why it has been stopped; empty if neither is so."""
        if self._life is None:
            return "; ".join(self._refusals)
        return self._life.stopped or ""

    # The configuration.

    def parse(self, options: Any, parser: Any) -> Declaration | None:
        """Look at a configuration before supervisord does; bind its sockets, unless this is a `reread`.

        Returns:
            What it says to us; None if it does not load us.

        Raises:
            BadConfiguration: It is wrong, or a socket can't be bound.
        """
        section = sections.interface(parser)
        if section is None:
            return None
        wrong = unsupported()
        if wrong is not None:
            raise BadConfiguration(wrong)
        declaration = sections.read(parser, options.here)
        if _runs_already(options) and not self._is_of(options):
            # What is recommended must not end it: a supervisord that can't bind does not start.
            self.registry.check(declaration.sockets, own=os.getpid())
            if self._trying:
                return None
            raise BadConfiguration(str(Mistake(section, sections.FACTORY, _TOO_LATE)))
        if options.configfile and self._file is None:  # before supervisord has changed its directory
            path = os.path.abspath(options.configfile)
            self._file = None if path in _FOUND_BY_ITSELF else path
        if self._is_of(options):
            # A `reload` ends what runs here first; `update` does not.
            self.registry.check(declaration.sockets, own=os.getpid() if self._trying else 0)
        else:
            self.registry.apply(declaration.sockets)
            self._declared, self._reread = declaration, None
            self._specs = declaration.programs
        self._warn(options, declaration)
        program.inject(parser, self._directory or declaration.runtime_dir, declaration.digest())
        return declaration

    def try_configuration(self, options: Any) -> None:
        """Read the configuration of *options*, those of the supervisord that runs, as its `reload` is about to.

        Raises:
            ValueError: It would not start with it.
        """
        self._trying = True
        try:
            options.process_config(do_usage=False)
        finally:
            self._trying = False

    def as_before(self, options: Any, parser: Any = None) -> Declaration | None:
        """Go on with what is in force, where a bug of ours keeps us from reading what was to be: a `reload` of
        supervisord that refused its configuration would be its end. None where it may be refused."""
        if self._directory is None or _runs_already(options):
            return None
        if parser is not None:
            program.inject(parser, self._directory, self._declared.digest())
        return self._declared

    @property
    def _latest(self) -> Declaration:
        """What was read last."""
        return self._reread or self._declared

    def _is_of(self, options: Any) -> bool:
        """Whether these are the options of the supervisord that we belong to: then this is a `reread`."""
        return self._supervisord is not None and self._supervisord.options is options

    def _warn(self, options: Any, declaration: Declaration) -> None:
        for warning in declaration.warnings:
            if self._is_of(options):
                if warning not in self._latest.warnings:
                    log.warning("%s", warning)
                continue
            # Of a supervisord that starts: there is no log yet.
            level = options.parse_criticals if warning == sections.UNREACHABLE else options.parse_warnings
            level.append(f"sockshare: {warning}")

    def parsed(self, options: Any, declaration: Declaration, groups: Any) -> None:
        """Take what supervisord has made of it."""
        program.add_spare(groups)
        if self._is_of(options):
            self._reread = declaration
            self._learn(declaration.programs)

    def _learn(self, programs: Mapping[str, ProgramSpec]) -> None:
        """Let settings of programs be in force for the next reload; sockets wait for `update`."""
        known = {name: spec for name, spec in programs.items() if set(spec.sockets) <= self.registry.names}
        self._specs = {**self._specs, **known}
        self._configure()

    def _configure(self) -> None:
        self._verbs.specs = self._specs
        if self.host is None:
            return
        self.host.configure(
            Configuration(
                programs=[msgspec.to_builtins(spec) for spec in self._specs.values()],
                mistakes=list(self._refusals),
                sockets=[(msgspec.to_builtins(declared.spec), sock) for declared, sock in self.registry.sockets],
                uids=self._uids(),
                warnings=[*self._latest.warnings, *([self._unmet] if self._unmet else [])],
            )
        )

    def _uids(self) -> list[int]:
        uids = {os.geteuid()}
        groups = [group.config for group in self._supervisord.process_groups.values()]
        for group in [*groups, *self._supervisord.options.process_group_configs]:
            uids |= {int(config.uid) for config in group.process_configs if config.uid is not None}
        return sorted(uids)

    def _renew(self, name: str, inode: int) -> None:
        self.registry.renew(name, inode)
        # After the answer: by this the broker ends, for sockets come with the hello only.
        self.loop.call_later(0.0, guarded(log)(self._configure))

    # supervisord.

    @guarded(log)
    def attach(self, supervisord: Any) -> None:
        """Belong to *supervisord*, which is about to run; a second time, for a second HTTP server, changes nothing."""
        if self._supervisord is supervisord:
            return
        if not any(group.name == BROKER for group in supervisord.options.process_group_configs):
            self._leave()  # our section was taken out before a `reload`
            return
        self._supervisord = supervisord
        self._twins.renew()
        self._log.options = supervisord.options
        self.loop.attach(supervisord.options.poller)
        events.subscribe(events.SupervisorRunningEvent, self._running)
        events.subscribe(events.ProcessStateEvent, self._changed)
        events.subscribe(events.ProcessGroupAddedEvent, self._added)

    @guarded(log)
    def _running(self, event: Any) -> None:
        """supervisord runs, under its final pid and user; no process has been started yet."""
        if self._declared.runtime_dir != self._runtime_dir or self._refusals:
            self._close_host()
        if self.host is None:
            self._open_host()
        self._fit_program()
        self._configure()
        self.loop.hurry()  # the first processes need not wait for the first second to pass

    def _open_host(self) -> None:
        self._runtime_dir, self._refusals = self._declared.runtime_dir, []
        directory = self._make_directory()
        if directory is not None:
            try:
                name = meeting_name(os.getpid())
                manager = Manager("supervisor", os.getpid(), os.geteuid(), name, file=self._file)
                self.host = Host(
                    self.loop, self._verbs, manager, directory, nonsense=self._restart_broker, begun=self._begun
                )
                self._life = Life(self.loop, self.supervisord, self.host, self.host.directory)
                self._directory = directory
                self.host.open()
                self._life.open()
            except (OSError, ValueError) as error:
                self._refuse(error)
                self._close_host()
        if self.host is None:
            program.give_up(self._supervisord)
            return
        self.loop.call_later(_LOOK_EVERY, lambda host=self.host: self._look_after(host))  # type: ignore[misc]
        atexit.register(self._end, os.getpid())

    def _make_directory(self) -> str | None:
        """The configured runtime directory; else the default one, where a broker can say what is wrong with that."""
        for attempt in dict.fromkeys((self._runtime_dir, None)):
            try:
                directory = meeting.create(os.getpid(), attempt)
            except (OSError, ValueError) as error:
                self._refuse(error)
                continue
            self._unmet = meeting.unmet(os.getpid(), directory)
            if self._unmet is not None:
                log.warning("%s", self._unmet)
                os.environ["SOCKSHARE_ENDPOINT"] = directory  # programs inherit it
            return directory
        return None

    def _refuse(self, error: Exception) -> None:
        self._refusals.append(str(error))
        log.critical("can't serve: %s", error)

    @guarded(log)
    def _look_after(self, host: Host) -> None:
        """Have the runtime directory, and the meeting point that leads to it, again after somebody removed them."""
        if self.host is not host or self._life is None:
            return  # another one has its own timer
        self.loop.call_later(_LOOK_EVERY, lambda: self._look_after(host))
        reachable = host.reachable and self._life.reachable
        if reachable and (self._unmet is not None or find(os.getpid()) is not None):
            return
        try:
            meeting.create(os.getpid(), None if self._refusals else self._runtime_dir)
        except (OSError, ValueError) as error:
            if str(error) != self._unmakeable:
                self._unmakeable = str(error)
                log.error("host: can't make the runtime directory anew: %s; trying again each second", error)
            return
        self._unmakeable = ""
        if not reachable:
            host.reopen()
            self._life.reopen()

    def _close_host(self) -> None:
        host, life, directory = self.host, self._life, self._directory
        self.host = self._life = self._directory = None
        if host is not None and life is not None and directory is not None:
            life.close()
            host.close()
            try:
                meeting.clear(directory)
            except OSError as error:
                log.warning("host: can't clear %s: %s", directory, error.strerror)

    def _leave(self) -> None:
        self._supervisord = None
        self.registry.close()
        self._close_host()

    def _fit_program(self) -> None:
        if self._directory is not None:
            program.fit(self._supervisord, self._directory)

    @guarded(log)
    def _begun(self) -> None:
        if self._life is not None:
            self._life.begun()

    @guarded(log)
    def _restart_broker(self) -> None:
        if self._life is not None:
            self._life.kill()

    @guarded(log)
    def _changed(self, event: Any) -> None:
        process = event.process
        if self._life is not None and self._life.is_ours(process):
            self._life.changed(process)
            return
        name = program_of(process)
        if name is None:
            return
        self._twins.changed(process)
        if isinstance(event, events.ProcessStateStartingEvent) and self._is_served(name):
            self.loop.call_later(0.0, lambda: self._watch(process))
        elif isinstance(event, events.ProcessStateExitedEvent):
            self.loop.hurry()

    def _applied(self, program: str) -> int | None:
        """The number of the configuration that a reload of *program* applies just now; None if it has failed."""
        record = None if self.host is None else self.host.records.get(f"reload:{program}")
        if record is None or record["rollout"]["failure"][0]:
            return None
        number = record["rollout"]["plan"].get("configuration")
        return number if isinstance(number, int) else None

    def _is_served(self, name: str) -> bool:
        spec = self._specs.get(name)
        return spec is not None and bool(spec.sockets)

    @guarded(log)
    def _watch(self, process: Any) -> None:
        """Wake when *process* dies: its successor is waited for by who is queued on its sockets."""
        if process.pid:
            self._deaths.watch(process.pid)

    @guarded(log)
    def _added(self, event: Any) -> None:
        """`update` has added a group; where it is the broker's, sockets are to be others."""
        if event.group != BROKER or self._reread is None:
            return
        declaration, self._reread = self._reread, None
        self._fit_program()
        try:
            self.registry.apply(declaration.sockets)
        except BadConfiguration as error:
            log.critical("the sockets are as before: %s", str(error).replace("\n", "; "))
            return
        self._declared, self._specs = declaration, declaration.programs
        log.info("the sockets are those of the configuration: %s", ", ".join(sorted(self.registry.names)) or "none")
        self._configure()

    # Descriptors, and the end.

    def descriptors(self) -> list[int]:
        """Every descriptor of ours, in order; supervisord's `reload` must not close them."""
        found = {sock.fileno() for _, sock in self.registry.sockets} | set(self.loop.descriptors())
        found |= set(self._deaths.descriptors())
        if self._life is not None:
            found |= set(self._life.descriptors())
        if self.host is not None:
            found |= set(self.host.descriptors())
        return sorted(fd for fd in found if fd >= 0)

    def _end(self, pid: int) -> None:
        if os.getpid() != pid:
            return  # a child that could not become its program
        self.registry.close()
        self._close_host()
        for point in places(pid):
            meeting.remove(point)


def _runs_already(options: Any) -> bool:
    """Whether the supervisord of *options* has read its configuration before."""
    return hasattr(options.configroot.supervisord, "process_group_configs")
