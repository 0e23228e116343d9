"""Finds the programs that somebody means by what they type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from .errors import UnknownProgram
from .suggest import did_you_mean

#: As supervisorctl has it; a program of that name comes first.
ALL = "all"


def programs_named(
    names: Iterable[str], processes: Mapping[str, Collection[str]], sharing: Collection[str]
) -> dict[str, bool]:
    """The programs that *names* mean, in that order; of each, whether it was named by itself.

    A name is that of a program or of one of its processes (``web:1``, ``site:web``), ``GROUP:*`` for every program with
    a process in the group, or `ALL` for those *sharing* a socket.

    Args:
        processes: The names of each program's processes.

    Raises:
        UnknownProgram: Some names mean nothing; a line for each.
    """
    found: dict[str, bool] = {}
    unknown = []
    for name in names:
        if name in processes:
            found[name] = True
            continue
        several = name == ALL or _group(name) is not None
        meant = _meant(name, processes, sharing)
        if not meant:
            unknown.append(no_such_program(name, processes))
        for program in meant:
            found[program] = found.get(program, False) or not several
    if unknown:
        raise UnknownProgram("\n".join(unknown))
    return found


def _group(name: str) -> str | None:
    """The group of ``GROUP:*``, which may also be written ``GROUP:``."""
    group, colon, rest = name.rpartition(":")
    return group if colon and rest in ("", "*") else None


def _meant(name: str, processes: Mapping[str, Collection[str]], sharing: Collection[str]) -> list[str]:
    if name == ALL:
        return [program for program in processes if program in sharing]
    group = _group(name)
    if group is None:
        return [program for program, its in processes.items() if name in its]
    return [program for program, its in processes.items() if any(one.partition(":")[0] == group for one in its)]


def no_such_program(name: str, processes: Mapping[str, Collection[str]]) -> str:
    """The sentence for a *name* that means nothing among the programs with these names of *processes*."""
    if name == ALL:
        return "can't reload all: no program's section names a socket"
    every = [one for its in processes.values() for one in its]
    groups = [f"{one.partition(':')[0]}:*" for one in every if ":" in one]
    if f"{name}:*" in groups:
        return f"can't reload {name!r}: no such program; did you mean '{name}:*'?"
    return f"can't reload {name!r}: no such program{did_you_mean(name, [*groups, *every, *processes])}"
