"""Who has an address that can't be bound: the sockets that are bound to it (proc_net(5), unix(7)), and who holds them.

A TCP socket that is bound and does not listen is in no table, so an address may be taken by nobody who can be named.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from sockshare.core.command_lines import in_words

from . import holders, meeting, peers, processes

#: Seconds that a look at all processes may take.
_WITHIN = 0.25
_LISTENING = "0A"
#: So many processes are shown with their commands.
_SHOWN = 8
#: The type of a UDP socket (socket(2)).
DATAGRAM = socket.SOCK_DGRAM


class Occupant(NamedTuple):
    """One process that holds such a socket."""

    pid: int
    command: str
    manager: int  # the circusd or supervisord that it is, or descends from; 0: it is nobody's

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})"


def of_port(kind: str, host: str, port: int) -> list[Occupant]:
    """Who has the *port*, of *kind* tcp or udp, at a numeric address with which *host* would meet."""
    return of_inodes(Tables().of_port(kind, host, port))


def of_path(*paths: str) -> list[Occupant]:
    """Who has a socket that is bound to one of *paths*."""
    return of_inodes(Tables().of_path(*paths))


class Tables:
    """The kernel's tables of sockets, each read once: for who has several addresses to look for."""

    def __init__(self) -> None:
        self._lines = functools.cache(_lines)

    def of_port(self, kind: str, host: str, port: int) -> set[int]:
        """The sockets, by inode; see the function `of_port`."""
        inodes = set()
        for family, path in ((socket.AF_INET, f"/proc/net/{kind}"), (socket.AF_INET6, f"/proc/net/{kind}6")):
            inodes |= self._of_family(family, path, kind, host, port)
        return inodes

    def of_path(self, *paths: str) -> set[int]:
        """The sockets, by inode; see the function `of_path`."""
        return {int(line[6]) for line in self._lines("/proc/net/unix", 7) if len(line) > 7 and line[7] in paths}

    def _of_family(self, family: socket.AddressFamily, path: str, kind: str, host: str, port: int) -> set[int]:
        inodes = set()
        for line in self._lines(path, 10):
            address, _, at = line[1].partition(":")
            if int(at, 16) != port or (kind == "tcp" and line[3] != _LISTENING):
                continue
            if _meet(host, _numeric(family, address)):
                inodes.add(int(line[9]))
        return inodes


def of_inodes(inodes: set[int]) -> list[Occupant]:
    """Who has the sockets *inodes*, by pid; not this process itself."""
    return of_each([inodes])[0]


def of_each(wanted: Sequence[set[int]]) -> list[list[Occupant]]:
    """Who has the sockets of each of *wanted*: as `of_inodes`, by one look at all processes."""
    inodes = set().union(*wanted)
    if not inodes:
        return [[] for _ in wanted]
    held = holders.scan(inodes, _WITHIN).holders
    known = {one.pid: one for one in _occupants(sorted(held))}
    return [[one for pid, one in known.items() if held[pid] & its] for its in wanted]


def _occupants(pids: Sequence[int]) -> list[Occupant]:
    found = []
    for pid in pids:
        try:
            shown = _shown(pid)
            manager = next((one for one in peers.ancestors(pid) if meeting.is_manager(meeting.arguments(one))), 0)
        except ProcessLookupError:
            continue
        found.append(Occupant(pid, shown, manager))
    return [one for one in found if one.pid != os.getpid()]


def describe(occupants: Sequence[Occupant], *, own: int = 0) -> str:
    """*occupants* in words for after *address in use*, and how it becomes free; empty where none is seen.

    Args:
        own: A manager that ends its own programs before it binds the address: what it runs does not count.
    """
    others = [one for one in occupants if not own or one.manager != own]
    if not others:
        return ""
    by = ", ".join(str(one) for one in others[:_SHOWN])
    by += f", and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    managers = sorted({one.manager for one in others} - {0})
    if managers:
        names = " and ".join(f"pid {pid} ({in_words(meeting.arguments(pid))})" for pid in managers)
        return f" by {by}, of the manager {names}; stop it there"
    return f" by {by}; end {'it' if len(others) == 1 else 'them'}: kill {' '.join(str(one.pid) for one in others)}"


def _shown(pid: int) -> str:
    """The command of *pid*; of one that has wiped its arguments its name, in brackets as ps(1) has it."""
    command = processes.command(pid)
    if any(word.strip() for word in command):
        return in_words(command)
    try:
        return f"[{in_words([os.fsdecode(processes.content(f'/proc/{pid}/comm')).strip()])}]"
    except OSError:
        return "[ended]"


def _lines(path: str, splits: int) -> list[list[str]]:
    try:
        with open(path, errors="surrogateescape") as file:
            return [line.split(None, splits) for line in file.read().splitlines()[1:]]
    except OSError:
        return []  # no such family here


def _numeric(family: socket.AddressFamily, text: str) -> str:
    # 32-bit words, each in the order of this machine.
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))


def _meet(one: str, other: str) -> bool:
    """Whether a socket at *one* keeps another from *other*, as far as the addresses decide."""
    anywhere = ("0.0.0.0", "::", "")
    one, other = (address.removeprefix("::ffff:") for address in (one, other))
    return one == other or one in anywhere or other in anywhere
