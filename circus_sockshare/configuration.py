"""Patches ``Arbiter.reload_from_config``, which is ``circusctl reloadconfig``.

circus looks at changed values only: a key that is added or taken out means nothing to it, and for one that is changed
it stops the watcher and starts it anew. The keys of ours are put in force here, before it looks, and stop nothing.

A socket of which anything has changed it closes and binds anew, which fails while anybody else has the old one; and
when one can't be bound, all that is left to do is left undone. So what can be changed in place is, and new addresses
are tried before anything is changed.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

from circus import logger
from circus.arbiter import Arbiter
from circus.config import get_config
from circus.exc import MessageError
from circus.plugins import get_plugin_cmd
from circus.sockets import CircusSocket
from circus.util import to_bool

from . import holding

#: The event that we publish for our plugin (`circus_sockshare.circusd`).
_CONFIGURED = "configured"

#: What of a socket's section says where it is bound, and as what.
_ADDRESS = ("host", "port", "path", "family", "type", "proto", "interface", "so_reuseport")

_starting: WeakSet[Any] = WeakSet()

unapplied = ""  # why the last reloadconfig was not carried out, or not to its end


def install() -> None:
    """Put ours before circus's own method, which goes on to be used; repeating it changes nothing."""
    original = Arbiter.reload_from_config
    if getattr(original, "knows_sockshare", False):
        return

    @functools.wraps(original)
    def reload_from_config(self: Any, config_file: Any = None, inside_circusd: bool = False) -> Any:
        if self._exclusive_running_command is None and not self._restarting and not self._stopping:
            try:
                _prepare(self, config_file or self.config_file)
            except MessageError as error:
                _tell(self, str(error))
                raise
        done = original(self, config_file=config_file, inside_circusd=inside_circusd)
        self.loop.add_future(done, functools.partial(_done, self))
        return done

    start_watcher = Arbiter.start_watcher

    @functools.wraps(start_watcher)
    def note_and_start(self: Any, watcher: Any) -> Any:
        _starting.add(watcher)
        return start_watcher(self, watcher)

    reload_from_config.knows_sockshare = True  # type: ignore[attr-defined]
    Arbiter.reload_from_config = reload_from_config
    Arbiter.start_watcher = note_and_start


def watchers(arbiter: Any) -> list[Any]:
    """circusd's watchers, and those that it is about to have: it takes them in when all their processes are started."""
    known = list(arbiter.iter_watchers())
    _starting.difference_update(known)  # one that is taken out later, as by `circusctl rm --nostop`, is gone
    return known + [one for one in _starting if one not in known and one.status() in ("starting", "active")]


def _done(arbiter: Any, done: Any) -> None:
    error = done.exception()
    _tell(arbiter, "" if error is None else f"the last reloadconfig was not carried out to its end: {error!r}")


def _tell(arbiter: Any, why: str) -> None:
    """Tell the plugin that the configuration may be another one, or *why* it is not."""
    global unapplied
    unapplied = why
    host = holding.host_watcher(arbiter)
    if host is not None:
        host.notify_event(_CONFIGURED, {"time": time.time()})


def _prepare(arbiter: Any, path: str) -> None:
    """Put in force what circus would not; see the module.

    Raises:
        MessageError: A socket can't be bound; nothing has changed.
    """
    try:
        new = get_config(path)
        if arbiter.get_arbiter_config(new) != arbiter._cfg:
            return  # circus starts everything anew, of what it knows already
        refusals = [refusal for section in new["sockets"] if (refusal := _try_address(arbiter, section))]
        refusals += _same_paths(new["sockets"])
    except Exception:  # circus meets it as well, and says so
        logger.exception("sockshare: can't read %s", path)
        return
    if refusals:
        raise MessageError(f"can't reload the configuration: {'; '.join(refusals)}; nothing has changed")
    for take, kind in ((_take_socket, "sockets"), (_take_keys, "watchers"), (_keep_plugin, "plugins")):
        for section in new[kind]:
            try:
                take(arbiter, section)
            except Exception:  # circus's insides may be others than we know
                logger.exception("sockshare: can't put %s in force", section.get("name"))


def _address(section: Mapping[str, Any]) -> list[str]:
    found = [str(section.get(key, "")).strip() for key in _ADDRESS]
    if found[0].lower() == "localhost" and section.get("family", "AF_INET") == "AF_INET":
        found[0] = "127.0.0.1"  # another word for the same place
    return found


def _try_address(arbiter: Any, section: Mapping[str, Any]) -> str:
    """Why the socket of *section* can't be bound; empty if it can, or need not be."""
    held = arbiter.sockets.get(section["name"])
    if held is not None and held._cfg == section:
        return ""
    where = f"[socket:{section['name']}]"
    try:
        probe = CircusSocket.load_from_config(dict(section))
    except Exception as error:  # circus would meet it with the socket of before closed already
        return f"{where}: {type(error).__name__}: {error}"
    try:
        if (held is not None and _address(held._cfg) == _address(section)) or probe.so_reuseport:
            return ""
        if not probe.is_unix:
            probe.bind((probe.host, probe.port))
        elif os.path.exists(probe.path) and not probe.replace and not _is_held(arbiter, probe.path):
            return f"{where}: can't bind {probe.path}: it exists; remove it, or write replace = True"
        elif not os.access(directory := os.path.dirname(probe.path) or ".", os.W_OK | os.X_OK):
            return f"{where}: can't bind {probe.path}: {directory} is not there, or circusd may not write to it"
    except OSError as error:
        held_yet = " (a process that has it may be running yet)" if held is None else ""
        return f"{where}: can't bind {probe.location}: {error.strerror}{held_yet}"
    finally:
        socket.socket.close(probe)  # CircusSocket's would remove the path, which is not its own
    return ""


def _same_paths(sections: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why those of *sections* can't be bound whose path another one has: circus would fail halfway, or replace it."""
    first: dict[str, str] = {}
    refusals = []
    for section in sections:
        if path := section.get("path"):
            other = first.setdefault(os.path.abspath(path), section["name"])
            if other != section["name"]:
                refusals.append(f"[socket:{section['name']}]: can't bind {path}: [socket:{other}] has it already")
    return refusals


def _is_held(arbiter: Any, path: str) -> bool:
    return any(one.is_unix and one.path == path for one in arbiter.sockets.values())


def _take_socket(arbiter: Any, section: Mapping[str, Any]) -> None:
    held = arbiter.sockets.get(section["name"])
    if held is None or held._cfg == section or _address(held._cfg) != _address(section) or held.so_reuseport:
        return  # the last is not bound, and listen() would bind it anywhere
    backlog, blocking = int(section.get("backlog", 2048)), to_bool(section.get("blocking"))
    if held.blocking != blocking:  # for every process that has it, also where our plugin's key says something else
        held.setblocking(blocking)
    held.backlog, held.blocking = backlog, blocking
    if held.socktype in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        held.listen(held.backlog)  # of one that listens it changes the backlog, and nothing else (listen(2))
    held._cfg = dict(section)
    logger.info("sockshare: %s is changed in place", held)


def _take_keys(arbiter: Any, section: Mapping[str, Any]) -> None:
    watcher = arbiter._watchers_names.get(section["name"].lower())
    if watcher is None:
        return
    new = {key: value for key, value in section.items() if _is_ours(key)}
    old = {key: value for key, value in watcher._options.items() if _is_ours(key)}
    for known in (watcher._options, watcher._cfg):
        for key in filter(_is_ours, list(known)):
            del known[key]
        known.update(new)
    if new != old:
        watcher.optnames = (*(key for key in watcher.optnames if not _is_ours(key)), *new)
        logger.info("sockshare: %s has other settings of sockshare now", watcher.name)


def _keep_plugin(arbiter: Any, section: Mapping[str, Any]) -> None:
    """Have circus leave a plugin alone whose section is as before: at a reloadconfig it leaves ``loglevel`` out."""
    watcher = arbiter._watchers_names.get(section["name"].lower())
    if watcher is None:
        return
    at_start = get_plugin_cmd(
        dict(section),
        arbiter.endpoint,
        arbiter.pubsub_endpoint,
        arbiter.check_delay,
        arbiter.ssh_server,
        debug=arbiter.debug,
        loglevel=arbiter.loglevel,
        logoutput=arbiter.logoutput,
    )
    if watcher._cfg["cmd"] == at_start:
        watcher._cfg["cmd"] = arbiter.get_plugin_config({"plugins": [section]}, section["name"])["cmd"]


def _is_ours(key: str) -> bool:
    return key.startswith("sockshare")
