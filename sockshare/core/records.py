"""The journal's records, read once, in one place: of this version, of a neighbour, or garbage.

Fields that are not known are passed over. A field that a later version adds has to have a default. A record that can't
be read all the same is left out, with one sentence: nothing after this place meets a field that is missing, or is of
another type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

_T = TypeVar("_T")


class ProcessFacts(msgspec.Struct, frozen=True):
    """``process:PID``: what is known of a managed process."""

    start: int  # clock ticks since boot: the pid alone may be another process's by now
    generation: int
    ready: str | None = None
    status: str = ""
    warning: str = ""
    program: str = ""
    family: frozenset[tuple[int, int]] = frozenset()  # pid and start of each process of its tree, before it was stopped


class Generation(msgspec.Struct, frozen=True):
    """``generation:PROGRAM``."""

    last: int


class Since(msgspec.Struct, frozen=True):
    """``displaced:PID:SOCKET`` and ``quiesced:PID``: of the process that started then."""

    start: int


class Admitted(msgspec.Struct, frozen=True):
    """``admitted``: the users who may command the manager, and were not known when the broker began."""

    uids: frozenset[int]


class Answer(msgspec.Struct, frozen=True):
    """What the command of a reload is told in the end."""

    result: str
    exit: int
    reason: str
    seconds: float = 0.0
    stderr: str = ""
    cost: dict[str, Any] | None = None  # of `core.cost`, by name


class Learned(msgspec.Struct, frozen=True):
    """``learned:PROGRAM``: its processes have cut requests when they were left to their stop signal."""

    cut: int
    signal: int


class Last(msgspec.Struct, frozen=True):
    """``last:PROGRAM``: what came of the last reload."""

    key: str
    answer: Answer


class Before(msgspec.Struct, frozen=True):
    """What the old process of a reload had shown of itself."""

    said: frozenset[str]
    registered: frozenset[str]


class Running(msgspec.Struct, frozen=True):
    """``reload:PROGRAM`` and ``retirement:PID``: a reload that is under way."""

    rollout: dict[str, Any]  # `core.rollout` reads it
    mode: str
    sockets: frozenset[str]
    before: Before
    stderr: tuple[str | None, int]
    answer: Answer | None
    failures: int = 0  # how many brokers have ended by a bug in it


class Unread(NamedTuple):
    """A record that can't be read."""

    why: str
    record: Any


@dataclass(slots=True)
class Records:
    """What a journal holds, by what the keys of each kind go on with.

    Attributes:
        registrations: By socket; `core.registration` reads them.
        unreadable: Those that can't be read, by their key.
    """

    processes: dict[int, ProcessFacts] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    last: dict[str, Last] = field(default_factory=dict)
    reloads: dict[str, Running] = field(default_factory=dict)
    retirements: dict[str, Running] = field(default_factory=dict)
    registrations: dict[str, dict[str, Any]] = field(default_factory=dict)
    displaced: dict[tuple[int, str], int] = field(default_factory=dict)
    quiesced: dict[int, int] = field(default_factory=dict)
    admitted: frozenset[int] = frozenset()
    learned: dict[str, Learned] = field(default_factory=dict)
    unreadable: dict[str, Unread] = field(default_factory=dict)


def read(journal: Mapping[str, Any]) -> Records:
    """All that is in *journal*; a kind of record that is not known, a later version's, stays unread."""
    records = Records()
    for key, record in journal.items():
        kind, _, rest = key.partition(":")
        reader = _READERS.get(kind)
        if reader is None:
            continue
        try:
            reader(records, rest, record)
        except ValueError as error:
            records.unreadable[key] = Unread(str(error), record)
    return records


def reload_key(record: Any) -> str | None:
    """The key of the command whose reload *record* is of, also where nothing else of it can be read."""
    try:
        key = record["rollout"]["plan"]["key"]
    except (KeyError, TypeError):
        return None
    return key if isinstance(key, str) else None


def named(kind: Callable[..., _T], fields: Mapping[str, Any]) -> _T:
    """The named tuple *kind* of its *fields* by name.

    Raises:
        ValueError: One is missing that has no default, or one is of another type.
    """
    defaults: Mapping[str, Any] = getattr(kind, "_field_defaults")  # noqa: B009  NamedTuple itself is no type
    names: tuple[str, ...] = getattr(kind, "_fields")  # noqa: B009
    missing = [name for name in names if name not in fields and name not in defaults]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    values = [fields[name] if name in fields else defaults[name] for name in names]
    return msgspec.convert(values, kind)  # type: ignore[no-any-return]


def _process(records: Records, pid: str, record: Any) -> None:
    records.processes[int(pid)] = msgspec.convert(record, ProcessFacts)


def _generation(records: Records, program: str, record: Any) -> None:
    records.generations[program] = msgspec.convert(record, Generation).last


def _last(records: Records, program: str, record: Any) -> None:
    records.last[program] = msgspec.convert(record, Last)


def _reload(records: Records, program: str, record: Any) -> None:
    records.reloads[program] = msgspec.convert(record, Running)


def _retirement(records: Records, pid: str, record: Any) -> None:
    records.retirements[pid] = msgspec.convert(record, Running)


def _registration(records: Records, socket: str, record: Any) -> None:
    records.registrations[socket] = msgspec.convert(record, dict[str, Any])


def _displaced(records: Records, rest: str, record: Any) -> None:
    pid, _, socket = rest.partition(":")
    records.displaced[int(pid), socket] = msgspec.convert(record, Since).start


def _quiesced(records: Records, pid: str, record: Any) -> None:
    records.quiesced[int(pid)] = msgspec.convert(record, Since).start


def _admitted(records: Records, _: str, record: Any) -> None:
    records.admitted = msgspec.convert(record, Admitted).uids


def _learned(records: Records, program: str, record: Any) -> None:
    records.learned[program] = msgspec.convert(record, Learned)


_READERS: dict[str, Callable[[Records, str, Any], None]] = {
    "process": _process,
    "generation": _generation,
    "last": _last,
    "reload": _reload,
    "retirement": _retirement,
    "registration": _registration,
    "displaced": _displaced,
    "quiesced": _quiesced,
    "admitted": _admitted,
    "learned": _learned,
}
