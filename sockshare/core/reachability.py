"""The state of a shared socket, from facts: whether its clients reach it, and whether somebody accepts there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

OK, UNREACHABLE, UNSERVED, PAUSED = "ok", "unreachable", "unserved", "paused"


class Verdict(NamedTuple):
    """What is said of one socket; a state that can't be told is None, and then `unseen` says why."""

    state: str | None
    why: str = ""
    unseen: str = ""


#: Why clients don't reach a socket whose processes don't keep up.
FULL = "its queue is full"
#: Seconds for which one connection has to wait until it is said that nobody accepts it.
STALLED_AFTER = 5.0


def judge(
    entry: Mapping[str, Any], *, fault: str, unseen: str, is_full: bool, stalled: float = 0.0, silent: str = ""
) -> Verdict:
    """The state of the socket *entry*, as ``sockshare status --json`` has it.

    Args:
        fault: Why clients don't reach it; "": no reason is seen.
        unseen: Why that could not be looked at; "": it could.
        is_full: Whether its queue takes nobody in any more.
        stalled: For how many seconds one and the same connection has waited.
        silent: Why the manager does not say which processes there are, beside those of *entry*; "": it does.
    """
    if fault:
        return Verdict(UNREACHABLE, fault)
    if is_full:
        waiting = "" if entry["queue"] is None else f" ({entry['queue']} of {entry['backlog']})"
        return Verdict(UNREACHABLE, f"{FULL}{waiting}")
    holders = entry["holders"]
    if stalled >= STALLED_AFTER and any(_serves(one) for one in holders):
        return Verdict(UNSERVED, f"a connection has waited for {stalled:.0f} s, and nobody has accepted it")
    if any(_serves(one) for one in holders):
        return Verdict(None, "", unseen) if unseen else Verdict(OK)
    if silent:
        return Verdict(None, "", silent)
    if any(_is_paused(one) for one in holders):
        return Verdict(PAUSED, "its processes are quiesced")
    if any(one["ready"] is None for one in holders):
        return Verdict(None, "", "whether a process serves it can't be seen")
    if not holders:
        return Verdict(UNSERVED, "no process serves it")
    if all(one["open"] is False for one in holders):
        return Verdict(UNSERVED, "no process that is to serve it has it open")
    return Verdict(UNSERVED, "no process that has it is ready")


def _serves(holder: Mapping[str, Any]) -> bool:
    return bool(holder["ready"]) and not holder["suspended"] and not _is_paused(holder)


def _is_paused(holder: Mapping[str, Any]) -> bool:
    return bool(holder["paused"] or holder.get("quiesced"))


def culprit(ended: Iterable[str], stopping: Iterable[str], holders: Iterable[str], *, complete: bool) -> str:
    """Who did something to a socket, in words for after what it was.

    Args:
        ended: The processes that have it by their section, and ended at that moment.
        stopping: Those that were being replaced then.
        holders: Those that had it open.
        complete: Whether *holders* are all that there are.
    """
    names = list(dict.fromkeys(ended))  # a zombie may be noticed more than once
    if len(names) == 1:
        return f"as {names[0]} ended"
    if names:
        return f"as one of {', '.join(names)} ended"
    names = list(stopping)
    if len(names) == 1:
        return f"as {names[0]} was being replaced"
    names = list(holders)
    if len(names) == 1:
        return f"by {names[0]}, the only process that {'has' if complete else 'is seen to have'} it open"
    return f"can't tell by whom of {', '.join(names)}" if names else "can't tell by whom"
