"""What this kernel has of the things that sockshare uses where it can; what it can't do without is `host.support`'s."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from . import listeners, peers
from .epoll_rights import yama


class Feature(NamedTuple):
    """One thing that the kernel has, or has not."""

    name: str
    present: bool
    without: str  # what is so where it is missing


def features() -> list[Feature]:
    """Try each, once; takes less than a millisecond and changes nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pidfd = peers.pidfd_of_peer(ours)
        if pidfd is not None:
            os.close(pidfd)
        refuses = listeners.refuse_descriptors(ours)
    scope = yama()
    return [
        Feature(
            "SO_PEERPIDFD (Linux 6.5)", pidfd is not None, "who shows a ticket is known by its pid and start time only"
        ),
        Feature(
            "pidfd with an inode of its own (Linux 6.9)",
            bool(peers.identity(os.getpid()).inode),
            "a process is told from a later one of its pid by its start time only",
        ),
        Feature(
            "SO_PASSRIGHTS (Linux 6.16)",
            refuses,
            "descriptors that strangers send are closed by threads, not refused, and may hold up ZeroMQ's own",
        ),
        Feature("freedom from Yama's ptrace_scope", scope == 0, _RESTRICTED.get(scope, "")),
    ]


_RESTRICTED = {
    1: "it is 1, so only a broker that is root, or has CAP_SYS_PTRACE, can suspend registrations",
    2: "it is 2, so only a broker that is root, or has CAP_SYS_PTRACE, can suspend registrations",
    3: "it is 3, so no registration can be suspended",
}
