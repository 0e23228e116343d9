"""The configuration: what the keys of sockshare may be, and every mistake in them at once.

The keys are the same under both managers; how they are spelled in a section (``sockshare.ready``, ``sockshare_ready``,
``web.blocking``) is the caller's *prefix*, which the mistakes show.
"""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import msgspec

from .registration_steps import Means, Policy, supports
from .servers import SERVERS
from .suggest import did_you_mean

_LONGEST_TIME = 86400.0  # seconds: a longer one is in other units
_MOST_HOLDERS = 4096
_MOST_DRAINING = 4096
# sun_path has 108 bytes with its NUL (unix(7)), and the longest name in the directory is notify/PID, PID up to 2**22.
_LONGEST_DIRECTORY = 107 - len("/notify/4194304")


class Mistake(NamedTuple):
    """One mistake in the configuration; as text it is one sentence."""

    section: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"[{self.section}] {self.key}: {self.message}"


class ProgramSpec(msgspec.Struct, frozen=True):
    """What a program's section says. Times are seconds.

    It goes over the link: a broker of the version before passes over a field that is new, so that has a default.
    """

    name: str
    sockets: tuple[str, ...] = ()  # what it may have, in the order of its descriptors
    ready: Literal["auto", "notify", "registration", "client", "hold"] = "auto"
    ready_timeout: float = 30.0
    ready_hold: float = 1.0  # how long it must live after it was ready
    quiesce: float = 0.3
    settle: float = 0.0  # how long the new one must live after the switch before the old one is drained
    drain: Literal["auto", "signal", "observe", "hand_over"] = "auto"
    drain_timeout: float = 30.0
    max_draining: int = 2  # how many old processes may drain at once
    receive_from: tuple[str, ...] = ()  # the programs, beside itself, that may hand it connections
    stop_signal: int | None = None  # None: the manager's own setting
    verify: str | None = None  # http:/path
    server: str = "auto"  # one of `servers.SERVERS`; auto: as its command shows


class SocketSpec(msgspec.Struct, frozen=True):
    """What is said of a shared socket; as for `ProgramSpec`."""

    name: str
    registration: Literal["shared", "exclusive", "latest", "rotate"] | int = "shared"
    stall_timeout: float = 1.0  # seconds that a queue may stand untaken before the registration moves; 0: for ever
    enforce: Literal["warn", "suspend", "stop"] = "suspend"  # what is done to one that registers out of turn
    rotate_ms: float = 0.0  # at least so many milliseconds with one holder; 0: passed on whenever something was taken
    blocking: bool = False  # handed out without O_NONBLOCK
    address: str = ""  # where its clients find it, if the socket itself is bound under another name
    guard: Literal["repair", "warn", "off"] = "repair"  # what is done when clients don't reach it


class PluginSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What circus's ``[plugin:sockshare]`` section says."""

    runtime_dir: str | None = None
    logfile: str | None = None
    sockets: tuple[SocketSpec, ...] = ()  # one for each socket that circus has


class _Bad(Exception):
    """A value that its key can't have; *candidates* are words that may have been meant by *word*."""

    def __init__(self, message: str, word: str = "", candidates: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.word = word
        self.candidates = tuple(candidates)


_Reader = Callable[[str], object]


def _choice(*values: str) -> _Reader:
    def read(value: str) -> str:
        if value not in values:
            raise _Bad(f"{value!r} is not one of {', '.join(values)}", value, values)
        return value

    return read


def _seconds(*, positive: bool = False) -> _Reader:
    def read(value: str) -> float:
        try:
            # float() alone takes "1_0" and the digits of other scripts.
            number = float(value) if value.isascii() and "_" not in value else math.nan
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise _Bad(f"{value!r} is not a number of seconds")
        if not 0 <= number <= _LONGEST_TIME or (positive and number == 0):
            least = "more than 0" if positive else "0 or more"
            raise _Bad(f"{value!r} is out of range: it must be {least} and at most {_LONGEST_TIME:.0f} seconds")
        return number

    return read


def _number(least: int, most: int) -> _Reader:
    def read(value: str) -> int:
        if not re.fullmatch("[0-9]+", value):
            raise _Bad(f"{value!r} is not a number")
        if len(value) > 9 or not least <= int(value) <= most:
            raise _Bad(f"{value} is out of range: it must be at least {least} and at most {most}")
        return int(value)

    return read


_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _boolean(value: str) -> bool:
    try:
        return _TRUTH[value.lower()]
    except KeyError:
        raise _Bad(f"{value!r} is neither true nor false") from None


def _signal(value: str) -> int:
    name = value.upper().removeprefix("SIG")
    names = {known.name.removeprefix("SIG"): known.value for known in signal.Signals}
    number = int(value) if re.fullmatch("[0-9]{1,3}", value) else names.get(name)
    if number is None:
        raise _Bad(f"{value!r} is not a signal", name, names)
    if number not in signal.valid_signals():
        raise _Bad(f"there is no signal {value}")
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise _Bad(
            f"{value} can't be handled, so the program would lose what it has in hand; write TERM, or what it drains on"
        )
    return number


def _page(value: str) -> str:
    # //host would be an authority: what answers is the socket's own address, nothing else.
    if not re.fullmatch("http:/(?!/)[!-~]*", value):
        raise _Bad(f"{value!r} is not of the form http:/PATH (an absolute path, no host, no spaces)")
    return value


def _milliseconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", value):
        raise _Bad(f"{value!r} is not a number of milliseconds, at most 999999")
    return float(value)


_POLICIES = ("shared", "exclusive", "latest", "rotate")


def _registration(value: str) -> str | int:
    if re.fullmatch("[0-9]+", value):
        if len(value) > 9 or not 1 <= int(value) <= _MOST_HOLDERS:
            raise _Bad(f"{value} is out of range: it must be at least 1 and at most {_MOST_HOLDERS}")
        return int(value)
    if value not in _POLICIES:
        raise _Bad(f"{value!r} is not one of {', '.join(_POLICIES)}, or a number", value, _POLICIES)
    return value


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise _Bad(f"{value!r} is not an absolute path")
    return value


def _directory(value: str) -> str:
    length = len(os.fsencode(_path(value)))
    if length > _LONGEST_DIRECTORY:
        raise _Bad(
            f"the path is too long for the sockets in it: {length} bytes of at most {_LONGEST_DIRECTORY} (unix(7))"
        )
    return value


def _words(missing: str) -> _Reader:
    def read(value: str) -> list[str]:
        words = value.replace(",", " ").split()
        if not words:
            raise _Bad(missing)
        return words

    return read


_PROGRAM: Mapping[str, _Reader] = {
    "sockets": _words("no socket is named; leave the key out for a program without sockets"),
    "ready": _choice("auto", "notify", "registration", "client", "hold"),
    "ready_timeout": _seconds(positive=True),
    "ready_hold": _seconds(),
    "quiesce": _seconds(),
    "settle": _seconds(),
    "drain": _choice("auto", "signal", "observe", "hand_over"),
    "drain_timeout": _seconds(),
    "max_draining": _number(1, _MOST_DRAINING),
    "receive_from": _words("no program is named; leave the key out where only the program itself may hand over"),
    "stop_signal": _signal,
    "verify": _page,
    "server": _choice("auto", *SERVERS),
}
_SOCKET: Mapping[str, _Reader] = {
    "registration": _registration,
    "stall_timeout": _seconds(),
    "enforce": _choice("warn", "suspend", "stop"),
    "rotate_ms": _milliseconds,
    "blocking": _boolean,
    "guard": _choice("repair", "warn", "off"),
}
#: Which registrations a socket's other keys are about.
_ONLY_WITH: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "stall_timeout": (lambda policy: policy != "shared", "a registration other than 'shared'"),
    "enforce": (lambda policy: policy != "shared", "a registration other than 'shared'"),
    "rotate_ms": (lambda policy: policy == "rotate", "registration = rotate"),
}
_PLUGIN: Mapping[str, _Reader] = {"runtime_dir": _directory, "logfile": _path}


#: The most sockets that one program may have: `sockshare exec` holds each twice for a moment, and a process may open
#: 1,024 descriptors as a rule.
MOST_SOCKETS = 400


def _read(
    section: str, options: Mapping[str, str], prefix: str, readers: Mapping[str, _Reader]
) -> tuple[dict[str, Any], list[Mistake]]:
    fields: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for key, given in options.items():
        if key not in readers:
            mistakes.append(Mistake(section, prefix + key, f"no such key{did_you_mean(key, readers, prefix)}"))
            continue
        try:
            fields[key] = readers[key](given.strip())
        except _Bad as bad:
            mistakes.append(Mistake(section, prefix + key, f"{bad}{did_you_mean(bad.word, bad.candidates)}"))
    return fields, mistakes


def parse_program(
    name: str,
    section: str,
    options: Mapping[str, str],
    prefix: str,
    sockets: Collection[str],
) -> tuple[ProgramSpec | None, list[Mistake]]:
    """Read what a program's *section* says to sockshare.

    Args:
        options: The keys without *prefix* (``sockshare.`` or ``sockshare_``).
        sockets: The names of the sockets that are shared.

    Returns:
        The spec, or None when there are mistakes; and all of these.
    """
    fields, mistakes = _read(section, options, prefix, _PROGRAM)
    named: list[str] = fields.get("sockets", [])
    for socket in dict.fromkeys(named):
        if socket not in sockets:
            suggestion = did_you_mean(socket, sockets)
            known = suggestion or f" (there are: {', '.join(sorted(sockets))})" if sockets else " (there are none)"
            mistakes.append(Mistake(section, f"{prefix}sockets", f"no such socket {socket!r}{known}"))
        if named.count(socket) > 1:
            mistakes.append(Mistake(section, f"{prefix}sockets", f"{socket!r} is named twice"))
    if len(named) > MOST_SOCKETS:
        message = f"it names {len(named)} sockets; a program may have {MOST_SOCKETS} at most: divide it in several"
        mistakes.append(Mistake(section, f"{prefix}sockets", message))
    if fields.get("ready") == "registration" and "sockets" not in options:
        message = f"'registration' is of a socket, and the program has none; name it in {prefix}sockets"
        mistakes.append(Mistake(section, f"{prefix}ready", message))
    if mistakes:
        return None, mistakes
    fields["sockets"] = tuple(named)
    fields["receive_from"] = tuple(dict.fromkeys(fields.get("receive_from", ())))
    return ProgramSpec(name, **fields), []


def check_givers(section: str, prefix: str, spec: ProgramSpec, programs: Collection[str]) -> list[Mistake]:
    """Refuse a *spec* that lets one hand it connections that is none of *programs*, which are all that there are."""
    return [
        Mistake(section, f"{prefix}receive_from", f"no such program {name!r}{did_you_mean(name, programs)}")
        for name in spec.receive_from
        if name not in programs
    ]


def parse_socket(
    name: str, section: str, options: Mapping[str, str], prefix: str
) -> tuple[SocketSpec | None, list[Mistake]]:
    """Read what *section* says of the socket *name*; arguments and result as of `parse_program`."""
    fields, mistakes = _read(section, options, prefix, _SOCKET)
    if "registration" in fields or "registration" not in options:
        policy = fields.get("registration", "shared")
        for key, (fits, what) in _ONLY_WITH.items():
            if key in fields and not fits(policy):
                mistakes.append(Mistake(section, prefix + key, f"it means nothing without {what}"))
    return (None, mistakes) if mistakes else (SocketSpec(name, **fields), [])


def parse_plugin_options(
    section: str,
    options: Mapping[str, str],
    sockets: Collection[str],
    ignored: Collection[str],
) -> tuple[PluginSpec | None, list[Mistake]]:
    """Read circus's ``[plugin:sockshare]`` section.

    Args:
        options: The whole section, as circus hands it to a plugin.
        sockets: The names of circus's sockets; each gets its `SocketSpec`.
        ignored: The keys that are circus's own there: ``use``, and the arguments of its Watcher.
    """
    own: dict[str, str] = {}
    by_socket: dict[str, dict[str, str]] = {socket: {} for socket in sockets}
    mistakes: list[Mistake] = []
    known = [*_PLUGIN, *(f"{socket}.{key}" for socket in sockets for key in _SOCKET)]
    for key, value in options.items():
        # The last dot: the name of a socket may have some itself.
        socket, dot, attribute = key.rpartition(".")
        if dot and socket in by_socket:
            by_socket[socket][attribute] = value
        elif dot and attribute in _SOCKET:
            mistakes.append(Mistake(section, key, f"no such socket {socket!r}{did_you_mean(socket, sockets)}"))
        elif key in _PLUGIN:
            own[key] = value
        elif key not in ignored:
            mistakes.append(Mistake(section, key, f"no such key{did_you_mean(key, known)}"))
    fields, more = _read(section, own, "", _PLUGIN)
    mistakes += more
    specs: list[SocketSpec] = []
    for socket, said in by_socket.items():
        spec, more = parse_socket(socket, section, said, f"{socket}.")
        mistakes += more
        if spec is not None:
            specs.append(spec)
    return (None, mistakes) if mistakes else (PluginSpec(**fields, sockets=tuple(specs)), [])


def check_command(
    section: str, key: str, command: str, sockets: Iterable[str], specs: Mapping[str, SocketSpec]
) -> list[Mistake]:
    """Refuse a program whose *command* shows that its registration of a socket can't be kept as that one asks.

    Args:
        key: Where *command* stands in *section*.
        sockets: What the program may have, of *specs*.
    """
    own = _exec_options(command)
    if own is None:
        return []
    chosen = _chosen(own)
    means = Means.COOPERATE if "--registration" in own else Means.SUSPEND
    return [
        Mistake(section, key, f"{name!r} has registration = {specs[name].registration}, which {_WHY_NOT[means]}")
        for name in sockets
        if name in specs and (not chosen or name in chosen) and not supports(Policy.of(specs[name].registration), means)
    ]


def _exec_options(command: str) -> list[str] | None:
    """The options between ``sockshare exec`` and the program in *command*; None if it does not go by that."""
    words = command.split()
    at = next(
        (at for at, word in enumerate(words[:-1]) if word.endswith("sockshare") and words[at + 1] == "exec"), None
    )
    if at is None:
        return None
    options = []
    rest = iter(words[at + 2 :])
    for word in rest:
        if word == "--" or not word.startswith("-"):
            break  # what follows is the program's, which may have a --socket of its own
        if word in ("--socket", "--endpoint"):
            word = f"{word}={next(rest, '')}"
        options.append(word)
    return options


def _chosen(options: list[str]) -> list[str]:
    """The sockets that the *options* of ``exec`` choose; none: all that the program may have."""
    return [word[9:].lower() for word in options if word.startswith("--socket=")]


#: What a manager itself replaces: supervisord's ``%(program_name)s``, circus's ``$(circus.wid)``.
_EXPANDED = re.compile(r"[%$]\(")

#: ``{fd:NAME}``, and what was meant for it: with blanks, in capitals, with another mark, not closed.
_DESCRIPTOR = re.compile(r"\{\s*fd\s*[:=]\s*([^\s{}]*)\s*\}?", re.IGNORECASE)


def check_descriptors(
    section: str, key: str, command: str, sockets: Collection[str], shared: Collection[str], prefix: str
) -> list[Mistake]:
    """Refuse a *command* in which ``sockshare exec`` could not replace a ``{fd:NAME}``.

    Args:
        key: Where *command* stands in *section*.
        sockets: What the program may have, of *shared*, all that there are.
        prefix: Of the program's keys.
    """
    own = _exec_options(command)
    if own is None:
        return []
    chosen = _chosen(own)
    if any(map(_EXPANDED.search, [*sockets, *chosen])):
        return []  # which sockets it has is seen only when it runs
    given = [name for name in sockets if not chosen or name.lower() in chosen]
    found = {match[0]: match[1] for match in _DESCRIPTOR.finditer(command)}
    mistakes = []
    for text, name in found.items():
        exact = text == f"{{fd:{name}}}"
        if _EXPANDED.search(name) or (exact and (name in given or name.lower() in given)):
            continue
        meant = next((one for one in shared if one.lower() == name.lower()), None)
        suggestion = did_you_mean(name, shared)
        if not exact:
            if meant is None and not suggestion:
                continue  # {fd: 3} may as well be a program's own text
            what = f"{text} is not replaced; write {{fd:{meant}}}" if meant else f"{text} is not replaced{suggestion}"
        elif meant is not None and chosen:
            what = f"{text} is not replaced, as --socket does not choose {meant!r}; add --socket {meant}"
        elif meant is not None:
            whole = " ".join([*sockets, meant])
            what = f"{text} needs a socket that the section does not name; write {prefix}sockets = {whole}"
        elif name.isdecimal() and len(shared) > 0:
            one = next(iter(given or shared))
            what = f"{text} needs the name of a socket, not a number; write {{fd:{one}}}"
        else:
            known = suggestion or f" (there are: {', '.join(sorted(shared))})" if shared else " (there are none)"
            what = f"{text} needs a socket, and there is no {name!r}{known}"
        mistakes.append(Mistake(section, key, what))
    return mistakes


def check_foreign(
    section: str, options: Mapping[str, str], prefix: str, shared: Collection[str], *, is_ours: bool
) -> list[Mistake]:
    """Refuse those of *options*, of a program's *section* and not ours by their names, that were meant for us.

    Args:
        prefix: What the names of our keys begin with there.
        shared: The names of the sockets that there are.
        is_ours: Whether the section has keys of ours; in another one ``ready`` may be a third party's.
    """
    whole = [prefix + key for key in _PROGRAM]
    mistakes = []
    for key, value in options.items():
        names_ours = key == "sockets" and bool(set(value.replace(",", " ").split()).intersection(shared))
        if key in _PROGRAM and (is_ours or names_ours):
            mistakes.append(Mistake(section, key, f"no such key; did you mean '{prefix}{key}'?"))
        elif _is_like(key.lower()[: len(prefix)], prefix) and (suggestion := did_you_mean(key, whole)):
            mistakes.append(Mistake(section, key, f"no such key{suggestion}"))
    return mistakes


def _is_like(beginning: str, prefix: str) -> bool:
    """Whether the *beginning* of a key is *prefix*, misspelt; that of ``socket_timeout`` or ``websocket_`` is not."""
    return bool(get_close_matches(beginning, [prefix], cutoff=0.75))


_WHY_NOT = {
    Means.SUSPEND: "only a program that uses the library can keep: start it without `sockshare exec`, and have it call"
    " sockshare.attach() and registration()",
    Means.COOPERATE: "a program behind `exec --registration` can't keep, as it lets go only by ending: leave"
    " --registration out",
}


def check_timeouts(spec: ProgramSpec, graceful_timeout: float, has_before_signal: bool) -> list[Mistake]:
    """Refuse a circus watcher whose reload could outlast circus's patience.

    With ``hooks.before_signal`` circus's own reload holds the stop signal back until the reload has come to it, but
    SIGKILL still comes at *graceful_timeout* (seconds): everything must be over by then.
    """
    # Rounded: 0.1 + 0.2 is to be 0.3 here.
    needed = round(spec.ready_timeout + spec.ready_hold + max(spec.quiesce, spec.settle) + spec.drain_timeout, 6)
    if not has_before_signal or needed < graceful_timeout:
        return []
    message = (
        f"{graceful_timeout:g} s is too short for hooks.before_signal: circus kills then, and"
        f" ready_timeout + ready_hold + quiesce + drain_timeout are {needed:g} s;"
        f" write at least {math.floor(needed) + 1}"
    )
    return [Mistake(f"watcher:{spec.name}", "graceful_timeout", message)]
