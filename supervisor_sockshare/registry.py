"""The shared sockets, held by supervisord for its whole life: through restarts of programs and its own ``reload``."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sockshare.core.errors import BadConfiguration
from sockshare.kernel import binding, listeners, occupants
from sockshare.kernel.occupants import Occupant

from .sections import Socket

log = logging.getLogger(__name__)


class _Held(NamedTuple):
    declared: Socket
    sock: socket.socket


class _Refused(NamedTuple):
    """What could not be bound, and why."""

    name: str
    declared: Socket
    error: OSError


class Registry:
    """The sockets by name."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    @property
    def sockets(self) -> list[tuple[Socket, socket.socket]]:
        """All that are held, in the order in which they were declared."""
        return [(held.declared, held.sock) for held in self._held.values()]

    @property
    def names(self) -> frozenset[str]:
        """Their names."""
        return frozenset(self._held)

    def check(self, wanted: Mapping[str, Socket], *, own: int = 0) -> None:
        """Find out whether `apply` would do it; nothing changes.

        Args:
            own: The supervisord whose programs may have an address: it ends them first.

        Raises:
            BadConfiguration: It would not.
        """
        refused = []
        for name, declared in wanted.items():
            if self._find(declared) is None:
                try:
                    binding.check(declared.binding)
                except OSError as error:
                    refused.append(_Refused(name, declared, error))
        mistakes = [
            _sentence(one, found, own)
            for one, found in _occupied(refused)
            if not own or not found or {other.manager for other in found} != {own}
        ]
        if mistakes:
            raise BadConfiguration("\n".join(mistakes))

    def apply(self, wanted: Mapping[str, Socket]) -> bool:
        """Hold what is *wanted*: bind what is new, change in place what can be, close what is not there any more.

        Returns:
            Whether anything is another socket than before.

        Raises:
            BadConfiguration: Something can't be bound; then everything is as it was.
        """
        held: dict[str, _Held] = {}
        made: list[_Held] = []
        refused = []
        for name, declared in wanted.items():
            found = self._find(declared)
            if found is not None:
                held[name] = _Held(declared, found.sock)
                continue
            try:
                new = _Held(declared, binding.make(declared.binding, declared.backlog))
            except OSError as error:
                refused.append(_Refused(name, declared, error))
                continue
            made.append(new)
            held[name] = new
        if refused:
            for one in made:
                binding.remove(one.sock, one.declared.binding)
            raise BadConfiguration("\n".join(_sentence(one, found) for one, found in _occupied(refused)))
        before, self._held = self._held, held
        kept = {one.sock for one in held.values()}
        for name, one in before.items():
            if one.sock not in kept:
                log.info("%s: closed (%s)", name, one.declared.binding.address)
                binding.remove(one.sock, one.declared.binding)
        for name, one in held.items():
            self._adjust(name, one, before)
        return {name: one.sock for name, one in before.items()} != {name: one.sock for name, one in held.items()}

    def renew(self, name: str, inode: int) -> None:
        """Hold another socket at the address of *name*, in place of *inode*, which can't be reached any more.

        Raises:
            OSError: It can't be bound; then the old one is held still.
        """
        held = self._held.get(name)
        if held is None or listeners.inode(held.sock.fileno()) != inode:
            return  # it is another one already
        sock = binding.renew(held.sock, held.declared.binding, held.declared.backlog)
        listeners.prepare(sock, blocking=held.declared.spec.blocking)
        self._held[name] = held._replace(sock=sock)
        log.warning("%s: made anew at %s: nobody reached the old one any more", name, held.declared.binding.address)

    def close(self) -> None:
        """Close all and remove their paths, at supervisord's end."""
        held, self._held = self._held, {}
        for one in held.values():
            binding.remove(one.sock, one.declared.binding)

    def _find(self, declared: Socket) -> _Held | None:
        """The held socket of the same address: by that, not by its name, which may have changed."""
        for held in self._held.values():
            if (held.declared.binding.address, held.declared.binding.ipv6_only) == (
                declared.binding.address,
                declared.binding.ipv6_only,
            ):
                return held
        return None

    def _adjust(self, name: str, one: _Held, before: Mapping[str, _Held]) -> None:
        was = next((old.declared for old in before.values() if old.sock is one.sock), None)
        try:
            if was is not None and was.binding != one.declared.binding:
                binding.adjust(one.declared.binding)
            if was is not None and was.backlog != one.declared.backlog and one.declared.binding.address.listens:
                one.sock.listen(one.declared.backlog)  # a second listen(2) changes the limit and nothing else
                log.info("%s: its backlog is %d now", name, one.declared.backlog)
            listeners.prepare(one.sock, blocking=one.declared.spec.blocking)
        except OSError as error:
            log.error("%s: can't change it in place: %s", name, error)


def _sentence(one: _Refused, found: Sequence[Occupant], own: int = 0) -> str:
    by, address = occupants.describe(found, own=own), one.declared.binding.address
    return f"[sockshare:{one.name}] socket: can't bind {address}: {one.error.strerror or one.error}{by}"


def _occupied(refused: Sequence[_Refused]) -> Iterator[tuple[_Refused, list[Occupant]]]:
    """Each of *refused*, and who has its address: supervisord waits for one look at all processes, not for many."""
    tables = occupants.Tables()
    return zip(refused, occupants.of_each([_inodes(tables, one) for one in refused]), strict=True)


def _inodes(tables: occupants.Tables, one: _Refused) -> set[int]:
    """The sockets that have the address."""
    if one.error.errno != errno.EADDRINUSE:
        return set()
    address = one.declared.binding.address
    if address.path:
        return tables.of_path(address.path, binding.private(address.path))
    return tables.of_port(address.scheme, address.host, address.port)
