"""Whom a path lets in from its first moment on, whatever is done to it afterwards."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockshare.kernel import binding, listeners
from sockshare.kernel.binding import Binding

OWNER = 65534

_looks: list[Look] = []


class Look:
    """What was seen of the sockets in *directory*: the owner and the mode of each, at each moment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen: set[tuple[int, int]] = set()
        self._looking = False

    def look(self) -> None:
        """Look now; not at our own looking."""
        if not self._looking:
            self._looking = True
            try:
                for entry in os.scandir(self.directory):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISSOCK(status.st_mode):
                        self.seen.add((status.st_uid, stat.S_IMODE(status.st_mode)))
            finally:
                self._looking = False


def _audit(event: str, arguments: object) -> None:
    # Python tells of each system call of interest before it makes it (PEP 578). A hook stays for the process's life.
    for look in _looks:
        look.look()


@contextmanager
def looking(directory: Path) -> Iterator[Look]:
    """Look at *directory* at every step, without a umask, which would help."""
    if not hasattr(sys, "_looks_at_modes"):
        sys.addaudithook(_audit)
        sys._looks_at_modes = True  # type: ignore[attr-defined]
    look, umask = Look(directory), os.umask(0)
    _looks.append(look)
    try:
        yield look
        look.look()
    finally:
        _looks.remove(look)
        os.umask(umask)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_our_own_sockets_never_have_another_mode(tmp_path: Path, kind: int, mode: int) -> None:
    """With a chmod after bind alone anybody could connect in between."""
    with looking(tmp_path) as look:
        listeners.make(str(tmp_path / "link"), kind, mode=mode).close()
    assert {seen for _, seen in look.seen} == {mode}


@pytest.mark.parametrize("mode", [0o600, 0o770])
def test_shared_paths_never_have_another_mode(tmp_path: Path, mode: int) -> None:
    """`socket_mode` holds from the first moment."""
    bound = Binding(binding.parse(f"unix://{tmp_path}/web.sock"), mode=mode)
    with looking(tmp_path) as look:
        sock = binding.make(bound)
    binding.remove(sock, bound)
    assert {seen for _, seen in look.seen} == {mode}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a path away")
def test_shared_path_is_for_nobody_else_until_it_is_its_owner_s(tmp_path: Path) -> None:
    """`socket_mode` is for the group of `socket_owner`, not for the manager's."""
    bound = Binding(binding.parse(f"unix://{tmp_path}/web.sock"), owner=(OWNER, OWNER), mode=0o770)
    with looking(tmp_path) as look:
        sock = binding.make(bound)
    binding.remove(sock, bound)
    assert {mode & 0o077 for uid, mode in look.seen if uid != OWNER} == {0}
    assert (OWNER, 0o770) in look.seen
