"""What a user may see of the status.

One rule. Who may command the manager (root, its user, who may write to its endpoint) sees everything. Who runs programs
under it sees those, and the sockets that they use; of other programs' processes on those sockets it sees that they are
there, and nothing that was said of them. Everybody else sees that a broker runs, in which state, and the names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .diagnosis import Finding, subject_of

ALL, OWN, NAMES = "all", "own", "names"

_OF_EVERYBODY = ("version", "state", "manager")
_PART = (
    "only what concerns the programs that run under your uid is told; root and the manager's user are told everything"
)
_NAMES = "no program runs under your uid here, so nothing is told; ask as root, or as the manager's user"
#: What somebody said of a process, or it of itself.
_SAID = ("status", "warning", "not_kept")


def visible(document: Mapping[str, Any], own: Collection[str] | None) -> dict[str, Any]:
    """What of *document*, that of ``sockshare status --json``, a user may see.

    Args:
        own: The programs that run under this user; None: the user may see everything.

    Returns:
        The document, with ``view``: all, own, or names. Of a program or socket that is not shown, the name is left.
    """
    if own is None:
        return {**document, "view": ALL}
    used = {name for program in document["programs"] if program["name"] in own for name in program["sockets"]}
    seen = {
        **{key: document[key] for key in _OF_EVERYBODY},
        "view": OWN if own else NAMES,
        "broker": {"pid": document["broker"]["pid"]},
        "mistakes": document["mistakes"] if own else [],
        "warnings": [],
        "sockets": [_socket(one, own) if one["name"] in used else {"name": one["name"]} for one in document["sockets"]],
        "programs": [one if one["name"] in own else {"name": one["name"]} for one in document["programs"]],
    }
    return {**seen, "scan": document["scan"]} if own else seen


def visible_findings(
    findings: Iterable[Finding], document: Mapping[str, Any], own: Collection[str] | None
) -> list[Finding]:
    """What of *findings*, those of ``sockshare doctor`` about *document*, a user may see; see `visible`."""
    if own is None:
        return list(findings)
    seen = [entry for entry in visible(document, own)["sockets"] if "holders" in entry]
    subjects = {f"socket {entry['name']}" for entry in seen} | {f"program {name}" for name in own}
    subjects |= {subject_of(holder) for entry in seen for holder in entry["holders"] if holder["program"] in own}
    told = [one for one in findings if one.subject in subjects]
    return [*told, Finding("note", "you", _PART if own else _NAMES, unseen=True)]


def _socket(entry: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    processes = {holder["process"] for holder in entry["holders"] if holder["program"] in own}
    seen = {
        **entry,
        "holders": [
            holder if holder["program"] in own else {**holder, **dict.fromkeys(_SAID)} for holder in entry["holders"]
        ],
        "others": [other if other["process"] in processes else {**other, "command": None} for other in entry["others"]],
    }
    if "last_move" in seen:
        seen["last_move"] = None
    return seen
