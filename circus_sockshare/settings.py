"""What circus's configuration says to sockshare, in the plugin's section, of the sockets, and in the watchers."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pwd
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from circus.config import read_config
from circus.watcher import Watcher

from sockshare.core.spec import (
    Mistake,
    PluginSpec,
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

    At first any mistake refuses all of it. Later one costs its own section, of which what was in force goes on.

    Args:
        section: The name of the plugin's section; *options* are its keys.
        inherited: The sockets that circusd passed on, by name.

    Returns:
        What the broker is to know, with every mistake; and the specs of the programs, by name.
    """
    before = _InForce.of(told)
    sockets: list[dict[str, Any]] = told["sockets"]
    names = [one["name"] for one in sockets]
    plugin, mistakes = parse_plugin_options(section, options, names, CIRCUS_OWN)
    if plugin is None and before is not None:
        plugin = _parse_again(section, before.options, names)
    by_name = {spec.name: spec for spec in plugin.sockets} if plugin is not None else {}
    unshared = _check_sockets(section, options, told, inherited)
    mistakes += unshared.values()
    specs: dict[str, ProgramSpec] = {}
    for name, watcher in told["watchers"].items():
        spec, more = _read_watcher(name, watcher, names, told["watchers"], by_name)
        mistakes += more
        if spec is not None and not more and not unshared.keys() & set(spec.sockets):
            specs[name] = spec
        elif before is not None and name in before.programs:
            had = before.programs[name]
            specs[name] = msgspec.structs.replace(had, sockets=tuple(one for one in had.sockets if one in inherited))
        elif spec is not None and before is None:
            specs[name] = spec
    shared = []
    for one in sockets:
        if one["name"] in inherited:
            spec_of = by_name.get(one["name"], SocketSpec(one["name"]))
            if one["blocking"]:  # circus's own key for the same
                spec_of = msgspec.structs.replace(spec_of, blocking=True)
            shared.append((msgspec.to_builtins(spec_of), inherited[one["name"]]))
    said = [str(mistake) for mistake in mistakes]
    configuration = Configuration(
        programs=[msgspec.to_builtins(spec) for spec in specs.values()],
        mistakes=said if before is None else [],
        sockets=shared,
        uids=_uids(told["watchers"].values()),
        refused=[] if before is None else said,
    )
    return configuration, specs


class _InForce(NamedTuple):
    """What circusd remembers of the configuration that was last right, section by section."""

    options: Mapping[str, str]  # of the plugin's
    programs: Mapping[str, ProgramSpec]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> _InForce | None:
        """That in circusd's answer *told*; None if nothing was right yet."""
        found = told.get("in_force")
        if found is None:
            return None
        try:
            return cls(found["options"], msgspec.convert(found["programs"], dict[str, ProgramSpec]))
        except (ValueError, LookupError, TypeError):  # of a version that is no neighbour
            return None


def in_force(
    section: str, options: Mapping[str, str], told: Mapping[str, Any], configuration: Configuration
) -> dict[str, Any] | None:
    """What circusd is to remember of *configuration*, which `read` has made; None while all of it is refused."""
    if configuration.mistakes:
        return None
    wrong = any(mistake.startswith(f"[{section}] ") for mistake in configuration.refused)
    before = told.get("in_force")
    found: dict[str, Any] = {
        "options": before["options"] if wrong and before is not None else dict(options),
        "programs": {program["name"]: program for program in configuration.programs},
    }
    # As circusd will tell it, where a tuple is a list.
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _parse_again(section: str, options: Mapping[str, str], sockets: Sequence[str]) -> PluginSpec | None:
    """What *options*, which were right, say of the *sockets* that there are by now."""
    _, mistakes = parse_plugin_options(section, options, sockets, CIRCUS_OWN)
    wrong = {mistake.key for mistake in mistakes}
    kept = {key: value for key, value in options.items() if key not in wrong}
    return parse_plugin_options(section, kept, sockets, CIRCUS_OWN)[0]


def _check_sockets(
    section: str, options: Mapping[str, str], told: Mapping[str, Any], inherited: Mapping[str, socket.socket]
) -> dict[str, Mistake]:
    """Why sockets can't be shared, by their names; of those that each process binds, the ones that a program names."""
    named = {
        name
        for watcher in told["watchers"].values()
        for name in str(watcher["options"].get(f"{PREFIX}sockets", "")).replace(",", " ").split()
    }
    mistakes = {}
    paths: dict[str, str] = {}
    for one in told["sockets"]:
        name = one["name"]
        path = _path(inherited.get(name))
        if path and paths.setdefault(path, name) != name:
            message = f"can't share a socket at {path}: [socket:{paths[path]}] is bound there too; take one of them out"
            mistakes[name] = Mistake(f"socket:{name}", "path", message)
            continue
        if one["so_reuseport"] and name in named:
            message = (
                "can't share a socket of which each process binds its own: what is queued on one is lost when it"
                " closes; take the key out"
            )
            mistakes[name] = Mistake(f"socket:{name}", "so_reuseport", message)
        elif one["so_reuseport"] or name in inherited:
            continue
        elif "use_sockets" not in options:
            message = "can't share a socket that circus does not pass on; write use_sockets = True"
            mistakes[name] = Mistake(section, "use_sockets", message)
        else:
            message = f"can't share a socket that was made after the plugin started; run: circusctl restart {section}"
            mistakes[name] = Mistake(f"socket:{name}", name, message)
    return mistakes


def _path(sock: socket.socket | None) -> str:
    """Where *sock* is bound in the file system; "" if it is not."""
    if sock is None or sock.family != socket.AF_UNIX:
        return ""
    bound = sock.getsockname()
    return os.path.abspath(bound) if isinstance(bound, str) and bound else ""


def _read_watcher(
    name: str,
    watcher: Mapping[str, Any],
    sockets: Sequence[str],
    watchers: Collection[str],
    specs: Mapping[str, SocketSpec],
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
        mistakes += check_command(section, "cmd", str(watcher["cmd"]), spec.sockets, specs)
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
