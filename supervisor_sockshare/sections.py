"""What supervisord's configuration says to sockshare, and every mistake in it at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from supervisor.datatypes import boolean, colon_separated_user_group, octal_type

from sockshare.core.errors import BadConfiguration
from sockshare.core.spec import (
    Mistake,
    ProgramSpec,
    SocketSpec,
    check_command,
    check_descriptors,
    check_foreign,
    check_givers,
    parse_plugin_options,
    parse_program,
    parse_socket,
)
from sockshare.core.suggest import did_you_mean
from sockshare.kernel import binding
from sockshare.kernel.binding import Address, Binding

#: The program that is the broker, and its group.
BROKER = "sockshare-broker"

PREFIX = "sockshare_"
#: The key that loads us.
FACTORY = "supervisor.rpcinterface_factory"
_OURS = "supervisor_sockshare"
#: supervisord has its HTTP servers from sections whose names begin so.
_SERVERS = ("unix_http_server", "inet_http_server")
#: What is said of a supervisord that has none; loudly, for it looks as if it had no commands at all.
UNREACHABLE = (
    "there is no [unix_http_server] and no [inet_http_server]: supervisorctl can't reach this supervisord; add one"
    " (`sockshare status` and `sockshare reload` work without)"
)
_CTL_FACTORY = "supervisor.ctl_factory"
#: What supervisorctl says of a command that it has no section for.
_UNKNOWN = "supervisorctl does not know its command sockshare (*** Unknown syntax)"
_MOST_BACKLOG = 65535  # supervisord's own bound

_BINDING_KEYS = ("socket", "socket_backlog", "socket_owner", "socket_mode", "socket_ipv6_only")
_SPEC_KEYS = tuple(field for field in SocketSpec.__struct_fields__ if field not in ("name", "address"))
_PROGRAM_KEYS = tuple(PREFIX + field for field in ProgramSpec.__struct_fields__ if field != "name")

_Get = Callable[[str, str], str]


class Socket(NamedTuple):
    """One ``[sockshare:NAME]`` section."""

    spec: SocketSpec
    binding: Binding
    backlog: int


class Declaration(NamedTuple):
    """What a configuration says to sockshare."""

    sockets: Mapping[str, Socket]
    programs: Mapping[str, ProgramSpec]
    runtime_dir: str | None
    warnings: Sequence[str] = ()  # what works, but not as its author may think

    def digest(self) -> str:
        """A word that is another one when sockets, or what programs may have of them, are."""
        sockets = {
            name: [msgspec.to_builtins(one.spec), one.binding, one.backlog] for name, one in self.sockets.items()
        }
        programs = {name: spec.sockets for name, spec in self.programs.items() if spec.sockets}
        return hashlib.sha256(json.dumps([sockets, programs], sort_keys=True).encode()).hexdigest()[:16]


def interface(parser: Any) -> str | None:
    """The ``[rpcinterface:...]`` section that loads us, if there is one: the hooks stay when it is taken out."""
    for section in parser.sections():
        if section.startswith("rpcinterface:") and parser.get(section, FACTORY, fallback="").startswith(_OURS):
            return str(section)
    return None


def read(parser: Any, here: str | None) -> Declaration:
    """Read everything that *parser*, which loads us, has; *here* is what ``%(here)s`` means.

    Raises:
        BadConfiguration: There are mistakes; the message has each on a line of its own.
    """
    mistakes: list[Mistake] = []

    def get(section: str, key: str) -> str:
        _check_percent(parser.get(section, key, fallback=""))
        expansions = {"here": here, "program_name": section.partition(":")[2]}
        return str(parser.saneget(section, key, "", expansions=expansions)).strip()

    runtime_dir = _read_interface(parser, get, mistakes)
    mistakes += _check_sections(parser)
    sockets = _read_sockets(parser, get, mistakes)
    programs = _read_programs(parser, get, [*_names(parser)], mistakes)
    _check_commands(parser, get, programs, {name: one.spec for name, one in sockets.items()}, mistakes)
    if mistakes:
        raise BadConfiguration("\n".join(str(mistake) for mistake in mistakes))
    return Declaration(sockets, programs, runtime_dir, _warnings(parser, sockets, programs))


def _check_percent(value: str) -> None:
    """Refuse what supervisord would expand without a word: ``50%.sock`` becomes ``50ock`` (printf-style formatting).

    Raises:
        ValueError: There is a ``%`` that begins no expansion.
    """
    if "%" in re.sub(r"%%|%\(\w+\)[-#0 +]*[\d.]*[a-z]", "", value):
        raise ValueError(f"{value!r} has a % that begins no %(name)s; write %% for the sign itself")


def _check_sections(parser: Any) -> list[Mistake]:
    """Refuse sections that are circus's: supervisord passes over what it does not know."""
    mistakes = []
    for section in parser.sections():
        kind, _, name = section.partition(":")
        if kind == "socket":
            host, port = parser.get(section, "host", fallback="127.0.0.1"), parser.get(section, "port", fallback="8000")
            path = parser.get(section, "path", fallback="")
            address = f"unix://{path}" if path else f"tcp://{host}:{port}"
            message = (
                f"it is circus's, and supervisord passes over it; write [sockshare:{name}] with socket = {address}"
            )
        elif section == "plugin:sockshare":
            message = f"it is circus's, and supervisord passes over it; its keys go to [{interface(parser)}]"
        elif kind == "watcher" and any(key.startswith("sockshare") for key in parser.options(section)):
            message = (
                f"it is circus's, and supervisord passes over it; write [program:{name}], and its keys as {PREFIX}KEY"
            )
        else:
            continue
        mistakes.append(Mistake(section, "[]", message))
    return mistakes


def _warnings(parser: Any, sockets: Mapping[str, Socket], programs: Mapping[str, ProgramSpec]) -> list[str]:
    reachable = any(section.startswith(_SERVERS) for section in parser.sections())
    found = _of_command(parser) if reachable else [UNREACHABLE]
    for name, one in sockets.items():
        users = [program for program, spec in programs.items() if name in spec.sockets]
        if one.spec.blocking and len(users) > 1:
            found.append(
                f"{name}: it is blocking and shared: of the processes that wait for one connection, all but one hang in"
                f" accept until the next ({', '.join(users)})"
            )
    return found


def _of_command(parser: Any) -> list[str]:
    """Why ``supervisorctl sockshare`` is unknown, if it is."""
    sections = [
        section
        for section in parser.sections()
        if section.startswith("ctlplugin:") and parser.get(section, _CTL_FACTORY, fallback="").startswith(_OURS)
    ]
    included = {section: parser.section_to_file[section] for section in sections if section in parser.section_to_file}
    if not sections:
        return [
            f"there is no [ctlplugin:sockshare], so {_UNKNOWN}; write it, with {_CTL_FACTORY} ="
            " supervisor_sockshare:make_ctlplugin, beside [supervisord], then run `supervisorctl reread`"
            " (`sockshare status` and `sockshare reload` work without)"
        ]
    if len(included) < len(sections):
        return []
    section, file = next(iter(included.items()))
    return [
        f"[{section}] is in {file}, and supervisorctl reads no [include] files, so {_UNKNOWN}; move it to the file that"
        " has [supervisord], then run `supervisorctl reread`"
    ]


def _read_interface(parser: Any, get: _Get, mistakes: list[Mistake]) -> str | None:
    section = interface(parser)
    assert section is not None
    options = _values(parser, section, get, mistakes)
    if "logfile" in options:
        message = "supervisord's own log has what this would; leave it out"
        mistakes.append(Mistake(section, "logfile", message))
        del options["logfile"]
    spec, more = parse_plugin_options(section, options, (), {FACTORY})
    mistakes += more
    return None if spec is None else spec.runtime_dir


def _values(parser: Any, section: str, get: _Get, mistakes: list[Mistake]) -> dict[str, str]:
    values = {}
    for key in parser.options(section):
        try:
            values[key] = get(section, key)
        except ValueError as error:
            mistakes.append(Mistake(section, key, str(error)))
    return values


def _names(parser: Any) -> list[str]:
    return [section[10:] for section in parser.sections() if section.startswith("sockshare:")]


def _read_sockets(parser: Any, get: _Get, mistakes: list[Mistake]) -> dict[str, Socket]:
    sockets: dict[str, Socket] = {}
    addresses: dict[Address | str, str] = {}
    for section in parser.sections():
        kind, _, name = section.partition(":")
        if kind != "sockshare":
            # Most misspelt sections are none of ours; one that begins so can't be anybody else's.
            if section.startswith("sockshare") and kind != BROKER:
                mistakes.append(Mistake(section, "[]", "no such section; did you mean '[sockshare:NAME]'?"))
            continue
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            message = f"{name!r} is no name for a socket; use letters, digits, '_', '-' and '.'"
            mistakes.append(Mistake(section, "[]", message))
            continue
        found = _read_socket(section, name, _values(parser, section, get, mistakes), mistakes)
        if found is None:
            continue
        address = found.binding.address
        other = addresses.setdefault(address.path or address, section)  # a path is one socket's, of whichever type
        if other != section:
            message = (
                f"[{other}] has {address.path or address} already; a program may name one socket as well as another"
            )
            mistakes.append(Mistake(section, "socket", message))
        sockets[name] = found
    return sockets


def _read_socket(section: str, name: str, values: dict[str, str], mistakes: list[Mistake]) -> Socket | None:
    before = len(mistakes)

    def wrong(key: str, message: str) -> None:
        mistakes.append(Mistake(section, key, message))

    for key in values:
        if key not in (*_BINDING_KEYS, *_SPEC_KEYS):
            wrong(key, f"no such key{did_you_mean(key, (*_BINDING_KEYS, *_SPEC_KEYS))}")
    spec, more = parse_socket(name, section, {key: values[key] for key in _SPEC_KEYS if key in values}, "")
    mistakes += more
    address = None
    if not values.get("socket"):
        wrong("socket", "it is missing; write where to bind, such as socket = tcp://127.0.0.1:8000")
    else:
        try:
            address = binding.parse(values["socket"])
        except ValueError as error:
            wrong("socket", f"{values['socket']!r} {error}{_suggest_scheme(values['socket'])}")
    backlog = _read_backlog(values, wrong)
    owner, mode, ipv6_only = None, binding.MODE, False
    for key, reader in (("socket_owner", colon_separated_user_group), ("socket_mode", octal_type)):
        if key not in values:
            continue
        if address is not None and not address.path:
            wrong(key, f"{address} has none: only a path does")
            continue
        try:
            value = reader(values[key])
        except (ValueError, TypeError) as error:
            wrong(
                key, f"{values[key]!r} is not {'a user, or user:group' if key == 'socket_owner' else 'octal'} ({error})"
            )
            continue
        if key == "socket_owner":
            owner = (int(value[0]), int(value[1]))
        elif not 0 <= value <= 0o777:
            wrong(key, f"{values[key]!r} is out of range: it must be at most 0777")
        else:
            mode = int(value)
    if "socket_ipv6_only" in values:
        try:
            ipv6_only = boolean(values["socket_ipv6_only"])
        except ValueError:
            wrong("socket_ipv6_only", f"{values['socket_ipv6_only']!r} is neither true nor false")
        if address is not None and ":" not in address.host:
            wrong("socket_ipv6_only", f"{address} is not an IPv6 address")
    if len(mistakes) > before or spec is None or address is None:
        return None
    if address.path:
        spec = msgspec.structs.replace(spec, address=str(address))
    return Socket(spec, Binding(address, owner, mode, ipv6_only), backlog)


def _suggest_scheme(text: str) -> str:
    scheme = text.partition(":")[0]
    return "" if scheme in binding.SCHEMES else did_you_mean(scheme, binding.SCHEMES)


def _read_backlog(values: Mapping[str, str], wrong: Callable[[str, str], None]) -> int:
    text = values.get("socket_backlog")
    if text is None:
        return binding.BACKLOG
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= _MOST_BACKLOG:
        wrong("socket_backlog", f"{text!r} is not a number from 1 to {_MOST_BACKLOG}")
        return binding.BACKLOG
    return int(text)


def _read_programs(parser: Any, get: _Get, names: list[str], mistakes: list[Mistake]) -> dict[str, ProgramSpec]:
    programs: dict[str, ProgramSpec] = {}
    every = {section.partition(":")[2].strip() for section in parser.sections() if _is_program(section)} - {BROKER}
    for section in parser.sections():
        kind, _, name = section.partition(":")
        name = name.strip()
        if kind in ("eventlistener", "group", "supervisord", "rpcinterface"):
            mistakes += [
                Mistake(section, key, "only a [program:] can have it")
                for key in parser.options(section)
                if key.startswith(PREFIX)
            ]
        if kind == "group" and BROKER in re.split(r"[,\s]+", get(section, "programs")):
            mistakes.append(Mistake(section, "programs", f"{BROKER} is sockshare's own and in a group of its own"))
        if not _is_program(section):
            continue
        if name == BROKER:
            mistakes.append(Mistake(section, "[]", f"{BROKER} is sockshare's own; give the program another name"))
            continue
        ours = {}
        foreign = {key: parser.get(section, key) for key in parser.options(section) if not key.startswith("sockshare")}
        is_ours = any(key.startswith(PREFIX) for key in parser.options(section))
        mistakes += check_foreign(section, foreign, PREFIX, names, is_ours=is_ours)
        for key in parser.options(section):
            if key.startswith(PREFIX):
                try:
                    ours[key[len(PREFIX) :]] = get(section, key)
                except ValueError as error:
                    mistakes.append(Mistake(section, key, str(error)))
            elif key.startswith("sockshare"):
                mistakes.append(Mistake(section, key, f"no such key{did_you_mean(key, _PROGRAM_KEYS)}"))
        spec, more = parse_program(name, section, ours, PREFIX, names)
        mistakes += more
        if spec is not None:
            mistakes += check_givers(section, PREFIX, spec, every)
            programs[name] = spec
    return programs


def _is_program(section: str) -> bool:
    return section.partition(":")[0] in ("program", "fcgi-program")


def _check_commands(
    parser: Any,
    get: _Get,
    programs: Mapping[str, ProgramSpec],
    specs: Mapping[str, SocketSpec],
    mistakes: list[Mistake],
) -> None:
    names = _names(parser)
    for section in parser.sections():
        program = programs.get(section.partition(":")[2].strip())
        if not _is_program(section) or not parser.has_option(section, "command"):
            continue
        command = parser.get(section, "command")  # as it stands: what supervisord expands in it is its own
        raw = parser.get(section, f"{PREFIX}sockets", fallback="").replace(",", " ").split()
        sockets = raw if program is None else program.sockets
        mistakes += check_descriptors(section, "command", command, sockets, names, PREFIX)
        if program is not None:
            mistakes += check_command(section, "command", command, program.sockets, specs)
