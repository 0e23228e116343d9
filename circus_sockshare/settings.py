"""What circus's configuration says to sockshare, in the plugin's section, of the sockets, and in the watchers."""

from __future__ import annotations

import inspect
import os
import pwd
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from circus.watcher import Watcher

from sockshare.core.spec import (
    Mistake,
    ProgramSpec,
    SocketSpec,
    check_command,
    check_givers,
    check_timeouts,
    parse_plugin_options,
    parse_program,
)
from sockshare.core.suggest import did_you_mean
from sockshare.host.verbs import Configuration
from sockshare.kernel import listeners

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
            elsewhere = _elsewhere(section, one, inherited[one["name"]], specs.values())
            if elsewhere:
                spec_of = msgspec.structs.replace(spec_of, elsewhere=elsewhere)
            shared.append((msgspec.to_builtins(spec_of), inherited[one["name"]]))
    configuration = Configuration(
        programs=[msgspec.to_builtins(spec) for spec in specs.values()],
        mistakes=[str(mistake) for mistake in mistakes],
        sockets=shared,
        uids=_uids(told["watchers"].values()),
    )
    return configuration, specs


def _elsewhere(section: str, one: Mapping[str, Any], sock: socket.socket, programs: Iterable[ProgramSpec]) -> str:
    """What is to be said where circusd has another socket of that name by now than *sock*: the inode tells."""
    if listeners.inode(sock.fileno()) == one["inode"]:
        return ""
    at = f", at {one['at']}," if "at" in one else ""  # a circusd that runs an earlier version of ours does not say
    reloads = "".join(f", then sockshare reload {spec.name}" for spec in programs if one["name"] in spec.sockets)
    return (
        f"circusd has another socket of this name since its section was changed{at} and nobody accepts there:"
        f" circusctl restart {section}{reloads}"
    )


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
    known = [f"{PREFIX}{field}" for field in ProgramSpec.__struct_fields__ if field != "name"]
    mistakes += [
        Mistake(section, key, f"no such key{did_you_mean(key, known)}") for key in options if not key.startswith(PREFIX)
    ]
    if spec is not None:
        mistakes += check_givers(section, PREFIX, spec, watchers)
        mistakes += check_timeouts(spec, float(watcher["graceful_timeout"]), "before_signal" in watcher["hooks"])
    return spec, mistakes


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
