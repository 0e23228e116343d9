"""Who claims a registration, and the gates of those that use the library.

A gate is kept by the host as well, under ``gate:KEY``: the next broker finds it there, armed or not, whatever its
process does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

from sockshare.core.registration_steps import Means
from sockshare.kernel.gate import Gate
from sockshare.kernel.peers import Identity

from .endpoint import Caller
from .hostlink import HostLink

log = logging.getLogger(__name__)

#: What the name of a gate begins with, at the door and in the host's store; the key of its claim follows.
GATE = "gate:"
#: The same of a tally.
TALLY = "tally:"


class Claimant:
    """One claim, as the broker needs it beside the rules."""

    __slots__ = (
        "caller",
        "eligible",
        "epolls",
        "gate",
        "identity",
        "key",
        "managed",
        "means",
        "process",
        "program",
        "socket",
        "taken",
        "tally",
    )

    def __init__(
        self, key: str, socket: str, identity: Identity, managed: int, process: str, program: str, means: Means
    ) -> None:
        self.key = key
        self.socket = socket
        self.identity = identity
        self.managed = managed  # the pid of the managed process that it is or descends from
        self.process = process
        self.program = program
        self.means = means
        self.gate: Gate | None = None
        self.caller: Caller | None = None  # whom to tell, once it has asked this broker
        self.eligible = False
        self.tally: int | None = None  # an eventfd, to which its process says what it takes, where turns are taken
        self.taken = 0  # how much that was
        self.epolls: set[int] = set()  # descriptors of those of the managed process that the socket was in


class Gates:
    """The gates of one broker.

    Args:
        link: To the host, which keeps them.
        kept: What the host kept from the broker before: key to descriptor, which becomes this object's.
    """

    def __init__(self, link: HostLink, kept: Mapping[str, int]) -> None:
        self._link = link
        self._kept: dict[str, Gate] = {}
        for key, fd in kept.items():
            if not key.startswith(GATE):
                # A later broker's: it stays with the host, until there is one of that version again.
                log.warning("registration: %s, which the host keeps, was passed over: it is of a later version", key)
                os.close(fd)
                continue
            try:
                self._kept[key] = Gate(fd)
            except OSError as error:
                log.error("registration: what the host kept as %s is of no use: %s", key, error)
                os.close(fd)
                link.forget(key)

    def make(self, key: str) -> Gate:
        """A new gate for the claim *key*, which the host keeps too.

        Raises:
            OSError: No descriptor is left.
        """
        gate = Gate()
        self._link.keep(GATE + key, gate.fileno())
        return gate

    def present(self, key: str, gate: Gate) -> None:
        """*gate*, which a process has shown, is that of the claim *key*."""
        self._link.keep(GATE + key, gate.fileno())

    def take_up(self, key: str) -> Gate | None:
        """The gate of the claim *key* that the host kept from the broker before."""
        return self._kept.pop(GATE + key, None)

    def sweep(self, sockets: Collection[int]) -> None:
        """Take *sockets* out of every gate that was kept: whoever put them there is not here any more."""
        for key, gate in list(self._kept.items()):
            for fd in sockets:
                try:
                    gate.sweep(fd)
                except OSError as error:
                    log.error("registration: %s: %s", key, error)

    def forget_unclaimed(self) -> None:
        """Drop what no claim has taken up: its process had not got it yet, and asks again."""
        for key, gate in self._kept.items():
            gate.close()
            self._link.forget(key)
        self._kept.clear()

    def drop(self, key: str, gate: Gate) -> None:
        """The claim *key* is over."""
        try:
            gate.disarm()
        except OSError as error:
            log.error("registration: can't disarm a gate: %s", error)
        gate.close()
        self._link.forget(GATE + key)


def event(what: str, epoch: int, reason: str = "") -> dict[str, Any]:
    """What a claimant is told (docs/protocol.md)."""
    return {"event": {"registration": what, "epoch": epoch, "reason": reason}}
