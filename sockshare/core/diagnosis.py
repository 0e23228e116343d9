"""What is to be said of a broker, its manager and its programs: the rules of ``sockshare doctor``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from .reachability import UNREACHABLE, UNSERVED


class Finding(NamedTuple):
    """One thing that was found, in a sentence that says what to do."""

    level: Literal["problem", "note"]  # a note is a limit to know of; all may be well with it
    subject: str
    sentence: str


class Words(NamedTuple):
    """What things are called under a manager."""

    manager: str
    section: str
    sockets_key: str
    control: str
    opens: str  # what lets more users connect to a path


_WORDS = {
    "circus": Words(
        "circusd",
        "watcher",
        "sockshare.sockets",
        "circusctl",
        "umask in its section (in decimal), or chmod o+x of the directory",
    ),
    "supervisor": Words(
        "supervisord",
        "program",
        "sockshare_sockets",
        "supervisorctl",
        "socket_mode = 0770 with socket_owner = USER:GROUP, or socket_mode = 0777; or chmod o+x of the directory",
    ),
}


def findings(facts: Mapping[str, Any]) -> list[Finding]:
    """Everything that is to be said of *facts*, the worst first.

    Args:
        facts: The document of ``sockshare status --json``, and besides: `silent`, why the manager does not answer, or
            None; `impossible`, why no registration can be suspended here, or None; `kernel`, a list of what is missing
            and what is so without it; and of each holder `open`, whether it has the socket (None: not known), and
            `refusal`, why its registrations may not be touched, or None.
    """
    words = _WORDS[facts["manager"]["kind"]]
    found = [
        *_of_manager(facts, words),
        *_of_kernel(facts),
        *(one for entry in facts["sockets"] for one in _of_socket(entry, facts["programs"], words)),
        *_of_processes(facts, words),
    ]
    return sorted(dict.fromkeys(found), key=lambda one: one.level != "problem")


def _of_manager(facts: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    for warning in facts["warnings"]:
        yield Finding("problem", words.manager, warning)
    if facts["silent"] is not None:
        sentence = (
            f"it does not answer ({facts['silent']}): reloads wait for it; is it stopped, or in a hook that blocks?"
        )
        yield Finding("problem", words.manager, sentence)


def _of_kernel(facts: Mapping[str, Any]) -> Iterator[Finding]:
    if facts["impossible"] is not None:
        yield Finding(
            "problem",
            "kernel",
            f"registrations can't be suspended: {facts['impossible']}; until they can, a reload sends the old one its"
            " stop signal without it",
        )
    for name, without in facts["kernel"]:
        yield Finding("note", "kernel", f"no {name}: {without}")


def _of_socket(entry: Mapping[str, Any], programs: Iterable[Mapping[str, Any]], words: Words) -> Iterator[Finding]:
    name, holders = entry["name"], entry["holders"]
    users = [program["name"] for program in programs if name in program["sockets"]]
    if not users:
        sentence = (
            f"no section names it; write {words.sockets_key} = {name} in the [{words.section}:] that is to serve it"
        )
        yield Finding("note", f"socket {name}", sentence)
    elif not holders:
        starts = " or ".join(f"`{words.control} start {user}`" for user in users)
        yield Finding("problem", f"socket {name}", f"no process serves it, connections wait: {starts}")
    elif not any(holder["ready"] and not holder["suspended"] for holder in holders):
        yield Finding(
            "problem", f"socket {name}", "no process that serves it is ready, connections wait: see the processes"
        )
    elif entry["state"] == UNSERVED:
        yield Finding("problem", f"socket {name}", f"{entry['why']}, connections wait: see the processes")
    yield from _of_reach(entry, words)


def _of_reach(entry: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    subject = f"socket {entry['name']}"
    queue, backlog = entry["queue"], entry["backlog"]
    if queue is not None and backlog and queue >= backlog:
        sentence = (
            f"its queue is full ({queue} of {backlog}): add processes, or raise its backlog (and net.core.somaxconn)"
        )
        yield Finding("problem", subject, sentence)
    elif entry["state"] == UNREACHABLE:
        yield Finding("problem", subject, f"clients don't reach it: {entry['why']}")
    elif entry["drops"]:
        sentence = (
            f"the kernel has dropped {entry['drops']} that came to it since it was made: its queue was full, as a rule"
        )
        yield Finding("note", subject, sentence)
    if entry["closed"]:
        yield Finding("note", subject, f"{entry['closed']}; if its clients are others: {words.opens}")
    if entry["mended"] is not None:
        times = entry["mended"]["times"]
        often = f", the last of {times} times" if times > 1 else ""
        yield Finding("note", subject, f"{entry['mended']['last']} ({entry['mended']['ago']:.0f} s ago{often})")
    if entry.get("unseen"):
        yield Finding("note", subject, f"not all of it can be seen: {entry['unseen']}")


def _of_processes(facts: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    reloading = {one["name"] for one in facts["programs"] if one["reload"]["state"] != "idle"}
    for entry in facts["sockets"]:
        for holder in entry["holders"]:
            sentences = list(_of_holder(entry["name"], holder, holder["program"] in reloading, facts, words))
            for level, sentence in sentences:
                yield Finding(level, subject_of(holder), sentence)


def subject_of(holder: Mapping[str, Any]) -> str:
    """What findings call a process that holds a socket."""
    return f"{holder['process']} (pid {holder['pid']})"


_Said = tuple[Literal["problem", "note"], str]


def _of_holder(
    name: str, holder: Mapping[str, Any], reloading: bool, facts: Mapping[str, Any], words: Words
) -> Iterator[_Said]:
    if holder["warning"]:
        yield "problem", holder["warning"]
    if reloading:
        return  # one has just started, the other is held off its socket: as it should be
    if holder["open"] is False:
        section = f"[{words.section}:{holder['program']}]"
        sentence = f"it does not have the socket {name}: let the command in {section} begin with `sockshare exec --`"
        yield (
            "problem",
            (
                f"{sentence}, or let the program call sockshare.attach(); if the socket is another one than when it was"
                f" started: `sockshare reload {holder['program']}`"
            ),
        )
        return
    if not holder["ready"]:
        yield "problem", f"it has the socket {name}, and has not said that it is ready nor waits for connections on it"
    if holder["suspended"]:
        yield (
            "problem",
            "it is held off its socket, and no reload runs: kill the broker, and the next one lets it go",
        )
    if facts["impossible"] is not None:
        return
    if holder["refusal"] is not None:
        yield (
            "problem",
            (
                f"it can't be suspended before it is stopped: {holder['refusal']}; run {words.manager} as root, or as"
                " the program's user, so that a reload loses nothing"
            ),
        )
    elif holder["ready"] and not holder["registered"] and not holder["suspended"]:
        yield "note", f"{holder['not_kept']}; at a reload its waiting thread is held instead, where that is possible"
