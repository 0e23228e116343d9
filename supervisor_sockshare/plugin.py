"""What lives in supervisord: the sockets, the host, the broker's life. It outlives ``supervisorctl reload``.

Every way into here from supervisord is guarded: an exception that left it would end supervisord, and orphan all that
it runs. The two exceptions are a mistake in the configuration, which is to be refused, and its sockets, at the start.
"""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
from supervisor import events
from supervisor.options import make_namespec

from sockshare.core.errors import BadConfiguration
from sockshare.core.spec import ProgramSpec
from sockshare.host import meeting
from sockshare.host.host import Host
from sockshare.host.loop import guarded
from sockshare.host.support import unsupported
from sockshare.host.verbs import Configuration, Manager
from sockshare.kernel.meeting import name as meeting_name
from sockshare.kernel.meeting import points
from sockshare.kernel.peers import pidfd_open

from . import sections
from .life import LINK, SPARE, Life, with_spare
from .polling import PollLoop
from .registry import Registry
from .sections import BROKER, Declaration
from .twins import Twins, program_of
from .verbs import SupervisorVerbs

log = logging.getLogger(__name__)

_NO_SERVER = (
    "sockshare: there is no [unix_http_server] and no [inet_http_server]: supervisorctl can't reach this supervisord;"
    " `sockshare status` and `sockshare reload` can"
)
_BROKER_SECTION = {
    "priority": "-100",  # the first to start, the last to stop
    "autorestart": "true",
    "startsecs": "0",
    "startretries": "1000000",
    "stopwaitsecs": "5",
    "redirect_stderr": "true",
}


class _SupervisordLog(logging.Handler):
    """Our log is supervisord's."""

    def __init__(self) -> None:
        super().__init__()
        self.options: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        logger = getattr(self.options, "logger", None)
        if logger is None:
            return
        try:
            text = "sockshare: " + self.format(record).replace("%", "%%")
            level = record.levelno
            write = logger.error if level >= logging.ERROR else logger.warn if level >= logging.WARNING else logger.info
            write(text)
        except Exception:
            self.handleError(record)


class Plugin:
    """The one of this process."""

    def __init__(self) -> None:
        self.loop = PollLoop()
        self.registry = Registry()
        self._supervisord: Any = None
        self._declared = Declaration({}, {}, None)  # what is in force
        self._reread: Declaration | None = None  # what was read since
        self._specs: Mapping[str, ProgramSpec] = {}
        self._twins = Twins(self.loop, self.supervisord)
        self._verbs = SupervisorVerbs(self.supervisord, self._twins)
        self._directory: str | None = None
        self._runtime_dir: str | None = None
        self.host: Host | None = None
        self._life: Life | None = None
        self._pidfds: dict[int, int] = {}
        self._log = _SupervisordLog()
        for package in ("sockshare", "supervisor_sockshare"):
            logger = logging.getLogger(package)
            logger.setLevel(logging.INFO)
            logger.propagate = False
            logger.addHandler(self._log)

    def supervisord(self) -> Any:
        """The Supervisor object there is now; each `reload` makes another."""
        return self._supervisord

    @property
    def directory(self) -> str | None:
        """The runtime directory; None until supervisord runs, or when none could be made."""
        return self._directory

    # The configuration.

    def parse(self, options: Any, parser: Any) -> Declaration | None:
        """Look at a configuration before supervisord does; bind its sockets, unless this is a `reread`.

        Returns:
            What it says to us; None if it does not load us.

        Raises:
            BadConfiguration: It is wrong, or a socket can't be bound.
        """
        if not sections.enabled(parser):
            return None
        wrong = unsupported()
        if wrong is not None:
            raise BadConfiguration(wrong)
        declaration = sections.read(parser, options.here)
        if self._is_reread(options):
            self.registry.check(declaration.sockets)
        else:
            self.registry.apply(declaration.sockets)
            self._declared, self._reread = declaration, None
            self._specs = declaration.programs
        self._warn(options, parser, declaration)
        self._inject(parser, declaration)
        return declaration

    def _is_reread(self, options: Any) -> bool:
        return self._supervisord is not None and self._supervisord.options is options

    def _inject(self, parser: Any, declaration: Declaration) -> None:
        section = f"program:{BROKER}"
        parser.add_section(section)
        for key, value in _BROKER_SECTION.items():
            parser.set(section, key, value)
        parser.set(section, "command", self._command(declaration.runtime_dir).replace("%", "%%"))
        # With it the group is another one when the sockets are, so that `update` comes to it.
        parser.set(section, "environment", f'SOCKSHARE_DIGEST="{declaration.digest()}"')

    def _command(self, runtime_dir: str | None) -> str:
        # The meeting point has the pid for a name, which is not known before supervisord has become a daemon.
        directory = self._directory or runtime_dir or "."
        return f"{shlex.quote(sys.executable)} -m sockshare.broker --link {shlex.quote(os.path.join(directory, LINK))}"

    def _warn(self, options: Any, parser: Any, declaration: Declaration) -> None:
        if not any(name.startswith(("unix_http_server", "inet_http_server")) for name in parser.sections()):
            options.parse_criticals.append(_NO_SERVER)
        for name, one in declaration.sockets.items():
            users = [program for program, spec in declaration.programs.items() if name in spec.sockets]
            if one.spec.blocking and len(users) > 1:
                options.parse_warnings.append(
                    f"sockshare: {name}: it is blocking and shared: of the processes that wait for one connection, all"
                    f" but one hang in accept until the next ({', '.join(users)})"
                )

    def parsed(self, options: Any, declaration: Declaration, groups: Any) -> None:
        """Take what supervisord has made of it."""
        for group in groups:
            if group.name == BROKER:
                group.process_configs.append(with_spare(group.process_configs[0]))
        if self._is_reread(options):
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
                mistakes=[],
                sockets=[(msgspec.to_builtins(declared.spec), sock) for declared, sock in self.registry.sockets],
                uids=self._uids(),
            )
        )

    def _uids(self) -> list[int]:
        uids = {os.geteuid()}
        groups = [group.config for group in self._supervisord.process_groups.values()]
        for group in [*groups, *self._supervisord.options.process_group_configs]:
            uids |= {int(config.uid) for config in group.process_configs if config.uid is not None}
        return sorted(uids)

    # supervisord.

    @guarded(log)
    def attach(self, supervisord: Any) -> None:
        """Belong to *supervisord*, which is about to run; a second time, for a second HTTP server, changes nothing."""
        if self._supervisord is supervisord:
            return
        if not any(group.name == BROKER for group in supervisord.options.process_group_configs):
            return  # our section was taken out before a `reload`
        self._supervisord = supervisord
        self._log.options = supervisord.options
        self.loop.attach(supervisord.options.poller)
        events.subscribe(events.SupervisorRunningEvent, self._running)
        events.subscribe(events.ProcessStateEvent, self._changed)
        events.subscribe(events.ProcessGroupAddedEvent, self._added)

    @guarded(log)
    def _running(self, event: Any) -> None:
        """supervisord runs, under its final pid and user; no process has been started yet."""
        if self._declared.runtime_dir != self._runtime_dir:
            self._close_host()
        if self.host is None:
            self._open_host()
        self._fit_command()
        self._configure()
        self.loop.hurry()  # the first processes need not wait for the first second to pass

    def _open_host(self) -> None:
        self._runtime_dir = self._declared.runtime_dir
        try:
            directory = meeting.create(os.getpid(), self._runtime_dir)
            manager = Manager("supervisor", os.getpid(), os.geteuid(), meeting_name(os.getpid()))
            host = Host(self.loop, self._verbs, manager, directory, nonsense=self._restart_broker)
            host.open()
            life = Life(self.loop, self.supervisord, host, directory)
            life.open()
        except (OSError, ValueError) as error:
            log.critical("can't serve: %s", error)
            self._give_up_broker()
            return
        self._directory, self.host, self._life = directory, host, life
        atexit.register(self._end, os.getpid())

    def _close_host(self) -> None:
        if self.host is not None and self._life is not None and self._directory is not None:
            self._life.close()
            self.host.close()
            meeting.clear(self._directory)
        self.host = self._life = self._directory = None

    def _fit_command(self) -> None:
        group = self._supervisord.process_groups.get(BROKER)
        if group is not None and self._directory is not None:
            for config in [*group.config.process_configs, *(one.config for one in group.processes.values())]:
                config.command = self._command(None)

    def _give_up_broker(self) -> None:
        group = self._supervisord.process_groups.get(BROKER)
        for process in group.processes.values() if group is not None else ():
            process.config.autostart = process.config.autorestart = False

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
        program = program_of(process)
        if program is None:
            return
        self._twins.changed(process)
        if isinstance(event, events.ProcessStateStartingEvent) and self._is_served(program):
            self.loop.call_later(0.0, lambda: self._watch(process))
        elif isinstance(event, events.ProcessStateExitedEvent):
            self.loop.hurry()

    def _is_served(self, program: str) -> bool:
        spec = self._specs.get(program)
        return spec is not None and bool(spec.sockets)

    @guarded(log)
    def _watch(self, process: Any) -> None:
        """Wake when *process* dies: its successor is waited for by who is queued on its sockets."""
        pid = process.pid
        if pid and pid not in self._pidfds:
            self._pidfds[pid] = pidfd = pidfd_open(pid)
            self.loop.add_reader(pidfd, lambda: self._died(pid))

    @guarded(log)
    def _died(self, pid: int) -> None:
        pidfd = self._pidfds.pop(pid)
        self.loop.remove_reader(pidfd)
        os.close(pidfd)
        self.loop.hurry()

    @guarded(log)
    def _added(self, event: Any) -> None:
        """`update` has added a group; where it is the broker's, sockets are to be others."""
        if event.group != BROKER or self._reread is None:
            return
        declaration, self._reread = self._reread, None
        self._fit_command()
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
        found |= set(self._pidfds.values())
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
        for point in points(pid):
            meeting.remove(point)


def broker_hint() -> str:
    """What to do when there is no broker."""
    return f"supervisorctl start {make_namespec(BROKER, BROKER)}"


__all__ = ["SPARE", "Plugin", "broker_hint"]
