"""The plugin: the process that circusd starts for ``[plugin:sockshare]``, in which the host lives.

It ends with circusd and never before: a plugin that exits is respawned for ever, once a second, and says nothing. So
what is wrong with the configuration goes to the log and to the broker, which tells it to whoever asks.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any

from circus.plugins import CircusPlugin
from circus.util import to_str
from zmq.eventloop.zmqstream import ZMQStream

from sockshare.core.errors import BadConfiguration
from sockshare.core.spec import parse_plugin_options
from sockshare.host import absence, meeting
from sockshare.host.host import Host
from sockshare.host.life import Life
from sockshare.host.loop import guarded
from sockshare.host.support import unsupported
from sockshare.host.verbs import Configuration, Manager
from sockshare.kernel import listeners, reach
from sockshare.kernel.logfile import FORMAT, LogFile
from sockshare.kernel.meeting import REFUSED, STOPPED, find
from sockshare.kernel.meeting import name as meeting_name
from sockshare.kernel.peers import pidfd_open

from . import settings
from .circusd import CONFIGURED, UNKNOWN_COMMAND, Circusd, Refusal
from .inherited import Inherited, passed_on
from .verbs import CircusVerbs

log = logging.getLogger(__name__)

#: Seconds between questions to a circusd that does not answer yet: it may be busy starting.
_ASK_AGAIN = 0.5
#: Seconds between looks at whether the runtime directory is still there.
_LOOK_EVERY = 1.0

#: circus's events after which its configuration may be another one.
_NEWS = frozenset({"add", "remove", "start", "stop", "updated", CONFIGURED})

#: Our own: circus holds a process back (`circus_sockshare.holding`).
_HELD = "held"

_TOO_LATE = "can't serve: circusd was started before [plugin:sockshare] was added; restart circusd once"


class SockShare(CircusPlugin):  # type: ignore[misc]
    """``use = circus_sockshare.SockShare``; the section's keys are in docs/circus.md."""

    name = "sockshare"

    def __init__(self, endpoint: str, pubsub_endpoint: str, check_delay: float, ssh_server: Any = None, **config: str):
        super().__init__(endpoint, pubsub_endpoint, check_delay, ssh_server, **config)
        self._section = config.get("name", "plugin:sockshare")
        self._options: Mapping[str, str] = config
        self._mistakes: list[str] = []  # found before circusd was asked
        self._told_mistakes: list[str] = []
        self._foreign: list[str] | None = None  # what in the configuration is none of circus's; None: not looked at
        self._warnings: set[str] = set()
        self._unsupported = unsupported()
        self._runtime_dir: str | None = None  # the configured one, if it could be made
        self._point: str | None = None  # where clients meet it
        self._unmet: str | None = None  # what to do where they can't
        self._unmakeable = ""  # why it could not be made anew, when it was removed
        self._manager = 0
        self._pidfd = -1
        self._host: Host | None = None
        self._life: Life | None = None
        self._told: dict[str, Any] | None = None  # circusd's last answer
        self._passed_on = passed_on()
        self._sockets = Inherited()
        self._gone: list[socket.socket] = []  # those that circusd has closed, and a broker may be given yet
        self._fetching = False
        self._ended = False

    # What circus calls.

    def initialize(self) -> None:
        """Connect to circusd, and begin."""
        super().initialize()
        try:
            self._begin()
        except Exception:
            log.exception("host: can't begin")  # and stay, see above

    def _begin(self) -> None:
        self._aio = self.loop.asyncio_loop
        for number in (signal.SIGTERM, signal.SIGINT):
            self._aio.add_signal_handler(number, self._end, f"got {number.name}")
        if self._unsupported is not None:
            self._mistakes.append(self._unsupported)
        self._watch_manager()
        directory = self._make_directory()
        self._open_log(directory)
        # Linger 0, set by circus: what circusd did not take when we end is of no use to it.
        stream = ZMQStream(self.client, self.loop)
        self._circusd = Circusd(self._aio, stream.send)
        stream.on_recv(self._circusd.hear)
        self._verbs = CircusVerbs(self._aio, self._circusd, self._learned)
        if directory is not None:
            self._open_host(directory)
        self._learn()

    def handle_recv(self, data: Any) -> None:
        """Look again at the configuration when circus says that a watcher has changed; pass on what is held."""
        try:
            event = to_str(data[0]).rpartition(".")[2]
            if event == _HELD and self._host is not None:
                self._host.held()
            elif event in _NEWS and self._told is not None:
                self._verbs.refresh(lambda: None, lambda refusal: log.warning("circusd: %s", refusal.reason))
        except Exception:
            log.exception("circusd: can't read an event")

    def handle_stop(self) -> None:
        """End, if that is not what brought us here."""
        self._end("circus stops the plugin")

    # The beginning, in its order.

    def _watch_manager(self) -> None:
        self._manager = os.getppid()
        self._aio.call_later(_LOOK_EVERY, self._look_at_manager)
        try:
            self._pidfd = pidfd_open(self._manager)
        except (OSError, AttributeError):
            return  # it is looked at all the same
        self._aio.add_reader(self._pidfd, self._end, "circusd has ended")

    @guarded(log)
    def _look_at_manager(self) -> None:
        """End with circusd also where the kernel can't tell of its end."""
        if self._ended:
            return
        self._aio.call_later(_LOOK_EVERY, self._look_at_manager)
        if os.getppid() != self._manager:
            self._end("circusd has ended")

    def _make_directory(self) -> str | None:
        attempts = [self._option("runtime_dir"), None]
        point = find(self._manager)
        if "runtime_dir" in self._options and point is not None and os.path.islink(point):
            attempts.insert(1, os.path.realpath(point))  # the one that was in force before
        if attempts[0] is None and "runtime_dir" in self._options:
            del attempts[0]
        for attempt in dict.fromkeys(attempts):
            try:
                directory = meeting.create(self._manager, attempt)
            except (BadConfiguration, OSError) as error:
                self._mistakes.append(str(error))
                continue
            self._runtime_dir = attempt
            self._point = find(self._manager)
            self._unmet = meeting.unmet(self._manager, directory)
            return directory
        return None

    def _option(self, key: str) -> str | None:
        """One path of our section, if it is there and right; what is wrong with it is said with everything else."""
        if key not in self._options:
            return None
        spec, _ = parse_plugin_options(self._section, {key: self._options[key]}, (), ())
        return None if spec is None else getattr(spec, key)

    def _open_log(self, directory: str | None) -> None:
        ours = [logging.getLogger(package) for package in ("sockshare", "circus_sockshare")]
        for logger in ours:
            logger.setLevel(logging.INFO)
        self._log: str | None = None
        default = None if directory is None else os.path.join(directory, meeting.LOG)
        for path in (self._option("logfile"), default):
            if path is None:
                continue
            try:
                handler = LogFile(path, own=path is default)
            except OSError as error:
                self._mistakes.append(f"can't write logfile {path}: {error.strerror}")
                continue
            handler.setFormatter(logging.Formatter(FORMAT))
            for logger in ours:
                logger.addHandler(handler)
            self._log = path
            break
        self._tell(self._mistakes)

    def _open_host(self, directory: str) -> None:
        manager = Manager("circus", self._manager, os.geteuid(), meeting_name(self._manager), self.endpoint)
        try:
            host = Host(self._aio, self._verbs, manager, directory, nonsense=self._restart_broker, begun=self._begun)
            host.open()
        except (OSError, ValueError) as error:
            log.error("host: can't make the sockets in %s: %s", directory, error)
            return
        self._host = host
        self._say(STOPPED, None)  # that of a host before
        self._say(REFUSED, None)
        self._aio.call_later(_LOOK_EVERY, self._look_after, host)
        if self._unsupported is not None:
            self._say(REFUSED, "\n".join(self._mistakes))
            return
        self._life = Life(
            self._aio, started=host.serve, ended=host.ended, absent=partial(self._say, STOPPED), output=self._log
        )

    @guarded(log)
    def _look_after(self, host: Host) -> None:
        """Have the runtime directory, and the meeting point that leads to it, again after somebody removed them."""
        if self._ended:
            return
        self._aio.call_later(_LOOK_EVERY, self._look_after, host)
        reachable = host.reachable
        if reachable and (self._point is None or os.path.isdir(self._point)):
            return
        try:
            meeting.create(self._manager, self._runtime_dir)
            self._point = find(self._manager)
        except (BadConfiguration, OSError) as error:
            if str(error) != self._unmakeable:
                self._unmakeable = str(error)
                log.error("host: can't make the runtime directory anew: %s; trying again each second", error)
            return
        self._unmakeable = ""
        if not reachable:
            host.reopen()

    def _say(self, name: str, text: str | None) -> None:
        if self._host is not None:
            absence.say(self._host.directory, name, text)

    def _begun(self) -> None:
        if self._life is not None:
            self._life.begun()

    def _restart_broker(self) -> None:
        if self._life is not None:
            self._life.kill()

    # What circusd tells.

    @guarded(log)
    def _learn(self) -> None:
        self._verbs.refresh(lambda: None, self._not_told)

    def _not_told(self, refusal: Refusal) -> None:
        if refusal.errno == UNKNOWN_COMMAND:
            self._configure(Configuration([], [*self._mistakes, _TOO_LATE], [], []))
            return
        log.warning("circusd: %s; asking again", refusal.reason)
        self._aio.call_later(_ASK_AGAIN, self._learn)

    def _learned(self, told: dict[str, Any]) -> None:
        if self._told is None:
            self._sockets.take(told["sockets"], self._passed_on)
        self._told = told
        if self._fetching:
            return
        self._gone += self._sockets.drop(told["sockets"])
        if self._host is not None and "use_sockets" in self._options and self._sockets.missing(told["sockets"]):
            self._fetching = True
            self._host.outdate()
            try:
                done = partial(self._fetched, told)
                self._sockets.fetch(self._circusd, self._host.directory, told["sockets"], done)
            except (OSError, ValueError) as error:
                log.error("host: can't have circusd's sockets: %s", error)
                self._fetched(told)
        else:
            self._apply(told)

    @guarded(log)
    def _fetched(self, told: dict[str, Any]) -> None:
        self._fetching = False
        if self._told is told or self._told is None:
            self._apply(told)
        else:  # meanwhile circusd has told something else
            self._learned(self._told)

    def _apply(self, told: dict[str, Any]) -> None:
        configuration, specs = settings.read(self._section, self._options, told, self._sockets)
        self._verbs.specs = specs
        if self._foreign is None or self._foreign:  # once it was right, a later file is circus's to read first
            self._foreign = [str(mistake) for mistake in settings.foreign_sections(told.get("file"))]
        mistakes = [*self._mistakes, *self._foreign]
        if mistakes and (told.get("in_force") is None or self._unsupported is not None):
            configuration = configuration._replace(mistakes=[*mistakes, *configuration.mistakes])
        else:
            configuration = configuration._replace(refused=[*mistakes, *configuration.refused])
        in_force = settings.in_force(self._section, self._options, told, configuration)
        # A circusd that runs an earlier version of ours does not say it, and can't remember it.
        if in_force is not None and "in_force" in told and in_force != told["in_force"]:
            told["in_force"] = in_force
            self._circusd.ask(
                lambda _: None,
                lambda refusal: log.warning("circusd: can't remember what is in force: %s", refusal.reason),
                op="in_force",
                configuration=in_force,
            )
        warnings = [*settings.warnings(configuration, told), *([self._unmet] if self._unmet else [])]
        warnings += [told["unapplied"]] if told.get("unapplied") else []
        for warning in warnings:
            if warning not in self._warnings:
                self._warnings.add(warning)
                log.warning("%s", warning)
        self._configure(configuration._replace(warnings=warnings))
        while self._gone:  # not before: the next broker is to have others
            gone = self._gone.pop()
            _forget_name(gone)
            gone.close()

    def _configure(self, configuration: Configuration) -> None:
        self._tell([*configuration.mistakes, *configuration.refused])
        if self._unsupported is not None:
            self._say(REFUSED, "\n".join(configuration.mistakes))
        for spec, sock in configuration.sockets:
            listeners.prepare(sock, blocking=spec["blocking"])
        if self._host is None or self._life is None:
            return
        self._host.configure(configuration)
        if self._life.pid is None and not self._ended:
            self._life.start()

    def _tell(self, mistakes: list[str]) -> None:
        """Log the mistakes that were not logged before."""
        for mistake in mistakes:
            if mistake not in self._told_mistakes:
                log.error("refused: %s", mistake)
        if self._told_mistakes and not mistakes:
            log.info("refused no longer: the mistakes are gone")
        self._told_mistakes = list(mistakes)

    # The end.

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        log.info("host: ends: %s", reason)
        if self._life is not None:
            self._life.stop()
        if self._host is not None:
            self._say(STOPPED, None)
            self._say(REFUSED, None)
            self._host.close()
        for sock in self._sockets.values():
            _forget_name(sock)
        if self._pidfd >= 0:
            self._aio.remove_reader(self._pidfd)
        # Killed, it could not do it itself (`inside`); otherwise the next plugin may have use for what is there.
        if os.getppid() != self._manager and self._point is not None:
            meeting.remove(self._point)
        self.loop.stop()


def _forget_name(sock: socket.socket) -> None:
    """Remove the second name that a broker has given the path of *sock*, one of circusd's."""
    try:
        at = reach.place(sock, "", os.getcwd())
        if at is not None:
            reach.forget_name(at)
    except (LookupError, OSError) as error:
        log.debug("host: %s", error)
