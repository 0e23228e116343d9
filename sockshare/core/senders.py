"""Whose notifications count for a process: facts of the kernel in, verdict out.

A process without CAP_SETUID and CAP_SYS_ADMIN can state only its own pid and uids (unix(7), SCM_CREDENTIALS), so no
stranger can forge any of the facts. Not every sender is there to be looked at: systemd-notify(1) exits at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple


class Sender(NamedTuple):
    """Who sent a notification for a process, the *leader*, when it was looked at."""

    pid: int  # 0: a process of another pid namespace
    uid: int  # as it was when it sent
    uids: frozenset[int]  # that the process of this pid has now: real, effective, saved, of files; none: it is gone
    descends: bool  # it is the leader, descends from it, or is in the session that the leader made
    grouped: bool  # it is in the process group that the leader made


def refusal(sender: Sender, tree: Callable[[], Collection[int]]) -> str:
    """Why what *sender* says does not count; empty if it does.

    Args:
        tree: The uids of the leader and its descendants; asked only if they matter.
    """
    if sender.pid <= 0:
        return "it is in another pid namespace"
    if sender.descends:
        # Root may have become another user since; nobody else can without becoming root first.
        if sender.uid == 0 or sender.uid in sender.uids:
            return ""
        return "its pid is another process's by now"
    if sender.uids and not sender.grouped:
        return "it is no process of that tree"
    # Gone, or in the group only, which every process of the manager's session may join (setpgid(2)): its user decides.
    # Not root without more ado: a setuid program says for its user what its user likes.
    if sender.uid in tree():
        return ""
    if sender.uids:
        return "it has only joined that process group"
    return "it has ended, and no process of that tree has its user id"
