"""Where we get hold of supervisord, which offers a plugin nothing but a place among its XML-RPC methods.

Four methods of its ServerOptions are wrapped when this is imported, which is in the middle of reading the
configuration: sections are looked at before supervisord drops its user, so that ports below 1024 can be bound; and a
supervisord without an HTTP server, which never calls an rpcinterface's factory, has its sockets all the same. One of
its Subprocess is: the command ``sockshare`` is our own, which need not be in PATH.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from supervisor import options as supervisor_options
from supervisor.process import Subprocess
from supervisor.rpcinterface import SupervisorNamespaceRPCInterface
from supervisor.xmlrpc import Faults, RPCError

from sockshare.core.platforms import unsupported
from sockshare.host.launch import launched

from . import daemonlog, ends

if TYPE_CHECKING:
    from .plugin import Plugin

log = logging.getLogger(__name__)

_plugins: list[Plugin] = []


def plugin() -> Plugin:
    """The plugin of this supervisord; it outlives ``supervisorctl reload``, as this module does."""
    if not _plugins:
        # Not before supervisord needs it: supervisorctl imports this module too.
        from .plugin import Plugin

        _plugins.append(Plugin())
    return _plugins[0]


def install() -> None:
    """Wrap what has to be wrapped; repeating it changes nothing."""
    server_options = supervisor_options.ServerOptions
    if getattr(server_options, "knows_sockshare", False):
        return
    server_options.knows_sockshare = True
    ends.install()
    _wrap_restart()
    for name, wrap in (
        ("process_groups_from_parser", _wrap_parse),
        ("processes_from_section", _wrap_section),
        ("openhttpservers", _wrap_open),
        ("cleanup_fds", _wrap_cleanup),
    ):
        original = getattr(server_options, name)
        setattr(server_options, name, functools.wraps(original)(wrap(original)))
    Subprocess.get_execv_args = _wrap_command(Subprocess.get_execv_args)


def _wrap_command(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_execv_args(self: Any) -> Any:
        try:
            command = launched(shlex.split(self.config.command))
        except ValueError:
            command = None  # supervisord's to say
        return original(self) if command is None else (command[0], command)

    return get_execv_args


def _wrap_restart() -> None:
    """Have ``supervisorctl reload`` refuse what would be the end of supervisord, and of all that it runs."""
    original = SupervisorNamespaceRPCInterface.restart

    @functools.wraps(original)
    def restart(self: Any) -> Any:
        self._update("restart")  # a supervisord that ends already says that
        try:
            plugin().try_configuration(self.supervisord.options)
        except ValueError as error:
            raise RPCError(Faults.CANT_REREAD, str(error)) from error
        except Exception:
            log.exception("hooks: can't try the configuration")
        return original(self)

    SupervisorNamespaceRPCInterface.restart = restart


def _wrap_parse(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_groups_from_parser(self: Any, parser: Any) -> Any:
        wrong = unsupported()
        if wrong is not None:
            raise ValueError(wrong)
        try:
            declaration = plugin().parse(self, parser)
        except ValueError as error:
            # A mistake of the user's: a fault for `reread`; the end of one that starts, which says so to nobody but a
            # stderr that it may not have.
            if not hasattr(self.configroot.supervisord, "process_group_configs"):
                daemonlog.append(getattr(self.configroot.supervisord, "logfile", None), str(error))
            raise
        except Exception as error:
            log.exception("sections: can't read the configuration")
            declaration = plugin().as_before(self, parser)
            if declaration is None:
                raise ValueError(f"sockshare can't read the configuration: it has a bug ({error!r})") from error
        groups = original(self, parser)
        if declaration is not None:
            try:
                plugin().parsed(self, declaration, groups)
            except Exception as error:
                log.exception("sections: can't take the configuration")
                if plugin().as_before(self) is None:
                    raise ValueError(f"sockshare can't take the configuration: it has a bug ({error!r})") from error
        return groups

    return process_groups_from_parser


def _wrap_section(original: Callable[..., Any]) -> Callable[..., Any]:
    def processes_from_section(self: Any, parser: Any, section: str, *args: Any, **kwargs: Any) -> Any:
        configs = original(self, parser, section, *args, **kwargs)
        kind, _, name = section.partition(":")
        if kind in ("program", "fcgi-program"):
            for config in configs:
                # Of which section a process is can't be told from its group, which may be of several programs.
                config.sockshare_program = name.strip()
        return configs

    return processes_from_section


def _wrap_open(original: Callable[..., Any]) -> Callable[..., Any]:
    def openhttpservers(self: Any, supervisord: Any) -> Any:
        try:
            plugin().attach(supervisord)
        except Exception:
            log.exception("host: can't begin")
        return original(self, supervisord)

    return openhttpservers


def _wrap_cleanup(original: Callable[..., Any]) -> Callable[..., Any]:
    def cleanup_fds(self: Any) -> Any:
        # It closes every number from 5 up, ours too. Others may have wrapped it for theirs; all end in closerange.
        close_range = os.closerange
        try:
            ours = plugin().descriptors()
        except Exception:
            log.exception("descriptors: can't tell which are ours, so none is cleaned up")
            return None

        def spare(low: int, high: int) -> None:
            for fd in ours:
                if low <= fd < high:
                    close_range(low, fd)
                    low = fd + 1
            close_range(low, high)

        os.closerange = spare
        try:
            return original(self)
        finally:
            os.closerange = close_range

    return cleanup_fds
