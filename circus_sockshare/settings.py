"""What circus's configuration says to sockshare, in the plugin's section, of the sockets, and in the watchers."""

from __future__ import annotations

import inspect
import logging
import os
import pwd
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from circus.config import read_config
from circus.watcher import Watcher

from sockshare.core.spec import (
    Mistake,
    ProgramSpec,
    SocketSpec,
    check_command,
    check_descriptors,
    check_foreign,
    check_givers,
    check_timeouts,
    parse_plugin_options,
    parse_program,
)
from sockshare.core.suggest import did_you_mean
from sockshare.host.verbs import Configuration
from sockshare.kernel import listeners

from .verbs import words

log = logging.getLogger(__name__)

PREFIX = "sockshare."

#: The keys of a plugin's section that are circus's.
CIRCUS_OWN = frozenset({"__name__", "use", "active", *inspect.signature(Watcher.__init__).parameters})


def read(
    section: str,
    options: Mapping[str, str],
    told: Mapping[str, Any],
    inherited: Mapping[str, socket.socket],
) -> tuple[Configuration, dict[str, ProgramSpec]]:
    """Read everything, from circusd's answer *told* to our operation ``processes``.

    Args:
        section: The name of the plugin's section; *options* are its keys.
        inherited: The sockets that circusd passed on, by name.

    Returns:
        What the broker is to know, with every mistake; and the specs of the programs, by name.
    """
    sockets: list[dict[str, Any]] = told["sockets"]
    names = [one["name"] for one in sockets]
    plugin, mistakes = parse_plugin_options(section, options, names, CIRCUS_OWN)
    mistakes += _check_sockets(section, options, sockets, inherited)
    specs: dict[str, ProgramSpec] = {}
    for name, watcher in told["watchers"].items():
        spec, more = _read_watcher(name, watcher, names, told["watchers"])
        mistakes += more
        if spec is not None:
            specs[name] = spec
    by_name = {spec.name: spec for spec in plugin.sockets} if plugin is not None else {}
    for program in specs.values():
        command = str(told["watchers"][program.name]["cmd"])
        mistakes += check_command(f"watcher:{program.name}", "cmd", command, program.sockets, by_name)
    shared = []
    for one in sockets:
        if one["name"] in inherited:
            spec_of = by_name.get(one["name"], SocketSpec(one["name"]))
            if one["blocking"]:  # circus's own key for the same
                spec_of = msgspec.structs.replace(spec_of, blocking=True)
            shared.append((msgspec.to_builtins(spec_of), inherited[one["name"]]))
    configuration = Configuration(
        programs=[msgspec.to_builtins(spec) for spec in specs.values()],
        mistakes=[str(mistake) for mistake in mistakes],
        sockets=shared,
        uids=_uids(told["watchers"].values()),
    )
    return configuration, specs


def _check_sockets(
    section: str, options: Mapping[str, str], sockets: Sequence[Mapping[str, Any]], inherited: Mapping[str, object]
) -> list[Mistake]:
    mistakes = [
        Mistake(
            f"socket:{one['name']}",
            "so_reuseport",
            "can't share a socket of which each process binds its own: what is queued on one is lost when it closes;"
            " take the key out",
        )
        for one in sockets
        if one["so_reuseport"]
    ]
    missing = [one["name"] for one in sockets if not one["so_reuseport"] and one["name"] not in inherited]
    if missing and "use_sockets" not in options:
        mistakes.append(
            Mistake(
                section, "use_sockets", "can't share a socket that circus does not pass on; write use_sockets = True"
            )
        )
    else:
        mistakes += [
            Mistake(
                f"socket:{name}",
                name,
                f"can't share a socket that was made after the plugin started; run: circusctl restart {section}",
            )
            for name in missing
        ]
    return mistakes


def _read_watcher(
    name: str, watcher: Mapping[str, Any], sockets: Sequence[str], watchers: Collection[str]
) -> tuple[ProgramSpec | None, list[Mistake]]:
    section = f"watcher:{name}"
    options = {key: str(value) for key, value in watcher["options"].items()}
    ours = {key[len(PREFIX) :]: value for key, value in options.items() if key.startswith(PREFIX)}
    spec, mistakes = parse_program(name, section, ours, PREFIX, sockets)
    mistakes += check_foreign(section, watcher.get("foreign", {}), PREFIX, sockets, is_ours=bool(ours))
    command = " ".join([str(watcher["cmd"]), *map(str, words(watcher.get("args")))])
    given = ours.get("sockets", "").replace(",", " ").split()
    mistakes += check_descriptors(section, "cmd", command, given, sockets, PREFIX)
    known = [f"{PREFIX}{field}" for field in ProgramSpec.__struct_fields__ if field != "name"]
    mistakes += [
        Mistake(section, key, f"no such key{did_you_mean(key, known)}") for key in options if not key.startswith(PREFIX)
    ]
    if spec is not None:
        mistakes += check_givers(section, PREFIX, spec, watchers)
        mistakes += check_timeouts(spec, float(watcher["graceful_timeout"]), "before_signal" in watcher["hooks"])
    return spec, mistakes


def foreign_sections(path: str | None) -> list[Mistake]:
    """Refuse the sections in circusd's configuration at *path* that are supervisord's: circus passes over them.

    None where that can't be read: circusd may have been started by a user who may.
    """
    try:
        parser, _ = read_config(path)
    except Exception as error:  # configparser's, open(2)'s
        log.debug("can't read %s: %s", path, error)
        return []
    mistakes = []
    for section in parser.sections():
        kind, _, name = section.partition(":")
        if kind == "sockshare":
            ours = f"write [socket:{name}] with host and port, and what else it has as {name}.KEY in [plugin:sockshare]"
        elif section == "rpcinterface:sockshare":
            ours = "its keys go to [plugin:sockshare]"
        elif kind == "program" and any(key.startswith("sockshare") for key in parser.options(section)):
            ours = f"write [watcher:{name}], and its keys as {PREFIX}KEY"
        else:
            continue
        mistakes.append(Mistake(section, "[]", f"it is supervisord's, and circus passes over it; {ours}"))
    return mistakes


def warnings(configuration: Configuration, told: Mapping[str, Any]) -> list[str]:
    """What works, but not as its author may think."""
    found = []
    for spec, _ in configuration.sockets:
        users = [program["name"] for program in configuration.programs if spec["name"] in program["sockets"]]
        if spec["blocking"] and sum(told["watchers"][name]["numprocesses"] for name in users) > 1:
            found.append(
                f"{spec['name']}: it is blocking and shared: of the processes that wait for one connection, all but one"
                f" hang in accept until the next ({', '.join(users)})"
            )
    return found


def _uids(watchers: Any) -> list[int]:
    """The users that programs run as, the manager's own among them; none when one is not known here."""
    uids = {os.geteuid()}
    for watcher in watchers:
        uid = watcher["uid"]
        if uid in (None, ""):
            continue
        try:
            uids.add(int(uid) if str(uid).isdigit() else pwd.getpwnam(str(uid)).pw_uid)
        except KeyError:
            return []
    return sorted(uids)


def inherit(sockets: Sequence[Mapping[str, Any]]) -> dict[str, socket.socket]:
    """Take those of circusd's *sockets* that this process has inherited, by name; they become close-on-exec.

    A socket is recognized by its inode. Its number is circusd's, but after a ``reloadconfig`` may be another socket's.
    """
    own: dict[int, int] = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            own.setdefault(listeners.inode(int(entry)), int(entry))
        except OSError:
            continue  # no socket, or the descriptor of this very listing
    found = {}
    for one in sockets:
        if one["inode"] in own and not one["so_reuseport"]:
            sock = socket.socket(fileno=own[one["inode"]])
            sock.set_inheritable(False)
            found[one["name"]] = sock
    return found
