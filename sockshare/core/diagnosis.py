"""What is to be said of a broker, its manager and its programs: the rules of ``sockshare doctor``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from .reachability import FULL, UNREACHABLE, UNSERVED


class Finding(NamedTuple):
    """One thing that was found, in a sentence that says what to do."""

    level: Literal["problem", "note"]  # a note is a limit to know of; all may be well with it
    subject: str
    sentence: str
    lines: tuple[str, ...] = ()  # what a process wrote last
    unseen: bool = False  # it says what could not be looked at, so that nobody may say that all is well


class Words(NamedTuple):
    """What things are called under a manager."""

    manager: str
    section: str
    sockets_key: str
    control: str
    blocking: str  # where a socket is made blocking
    applied: str  # what has that, or a changed command, take effect
    opens: str  # what lets more users connect to a path


_WORDS = {
    "circus": Words(
        "circusd",
        "watcher",
        "sockshare.sockets",
        "circusctl",
        "{0}.blocking = True in [plugin:sockshare]",
        "`{0} reloadconfig`",
        "umask in its section (in decimal), or chmod o+x of the directory",
    ),
    "supervisor": Words(
        "supervisord",
        "program",
        "sockshare_sockets",
        "supervisorctl",
        "blocking = true in [sockshare:{0}]",
        "`{0} update`",
        "socket_mode = 0770 with socket_owner = USER:GROUP, or socket_mode = 0777; or chmod o+x of the directory",
    ),
}


def findings(facts: Mapping[str, Any]) -> list[Finding]:
    """Everything that is to be said of *facts*, the worst first.

    Args:
        facts: The document of ``sockshare status --json``, and besides: `silent`, why the manager does not answer, or
            None; `impossible`, why no registration can be suspended here, or None; `kernel`, a list of what is missing
            and what is so without it; and of each holder `open`, whether it has the socket (None: not known), and
            `refusal`, why its registrations may not be touched, or None. `causes` has by program what is told of one
            that names sockets: see `_of_program`. `control` is how the manager's own command is called here.
    """
    words = _WORDS[facts["manager"]["kind"]]
    if facts.get("control"):
        words = words._replace(control=facts["control"])
    control = words.control
    words = words._replace(applied=words.applied.format(control))
    found = [
        *_of_manager(facts, words),
        *_of_kernel(facts),
        *(one for name, cause in facts.get("causes", {}).items() for one in _of_program(name, cause, facts, words)),
        *(one for entry in facts["sockets"] for one in _of_socket(entry, facts, words)),
        *_of_processes(facts, words),
        *_of_leftovers(facts),
    ]
    return sorted(dict.fromkeys(found), key=lambda one: one.level != "problem")


def _of_manager(facts: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    for mistake in facts.get("mistakes", ()):
        yield Finding("problem", words.manager, f"{mistake}; what of that section was in force, if any, goes on")
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


def _of_socket(entry: Mapping[str, Any], facts: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    name, holders = entry["name"], entry["holders"]
    users = [program["name"] for program in facts["programs"] if name in program["sockets"]]
    subject = f"socket {name}"
    down = [user for user in users if not _is_well(facts, user)]
    unseen = next((holder["unseen"] for holder in holders if holder.get("unseen")), None)
    if not users:
        sentence = (
            f"no section names it; write {words.sockets_key} = {name} in the [{words.section}:] that is to serve it"
        )
        yield Finding("note", subject, sentence)
    elif not holders and any(one.get("on_demand") for one in facts["programs"] if one["name"] in users):
        yield Finding("note", subject, f"no process serves it until a connection comes ({', '.join(users)})")
    elif not _is_served(entry) and facts["silent"] is not None:
        pass  # there may be others than those that the manager has told of: `_of_reach` says that it is not seen
    elif not holders:
        yield Finding("problem", subject, f"no process serves it, connections wait: {_start(users, facts, words)}")
    elif not _is_served(entry):
        if unseen is not None:
            sentence = f"can't see whether it is served: {unseen}; {_sight(holders)}"
            yield Finding("note", subject, sentence, unseen=True)
        elif all(holder.get("quiesced") for holder in holders):
            wakes = " and ".join(f"`sockshare wake {holder['process']}`" for holder in holders)
            yield Finding("problem", subject, f"all that serve it are quiesced, connections wait: {wakes}")
        else:
            others = "".join(f", and program {user}" for user in down)
            sentence = f"no process that serves it is ready, connections wait: see the processes{others}"
            yield Finding("problem", subject, sentence)
    elif entry["state"] == UNSERVED:
        reloads = " or ".join(f"`sockshare reload {user}`" for user in users)
        sentence = f"its processes hang, or are too few for their work: {reloads}, or add processes"
        yield Finding("problem", subject, f"{entry['why']}, connections wait: {sentence}")
    yield from _of_reach(entry, words)


def _start(users: Iterable[str], facts: Mapping[str, Any], words: Words) -> str:
    """What to do where no process serves a socket that the programs *users* are to serve."""
    down = [user for user in users if not _is_well(facts, user)]
    if down:
        return f"see {' and '.join(f'program {user}' for user in down)}"
    if any(user in facts.get("causes", {}) for user in users):
        return f"{words.manager} has just started one, or is about to: ask again in a moment"
    return " or ".join(f"`{words.control} start {user}`" for user in users)


def _sight(holders: Iterable[Mapping[str, Any]]) -> str:
    """What lets the broker see whether *holders* serve."""
    if any(holder.get("refusal") is not None or holder["open"] is None for holder in holders):
        return "give the broker CAP_SYS_PTRACE, or run it as the program's user"
    return "let the program say READY=1 (sd_notify(3)) when it serves"


def _of_reach(entry: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    subject = f"socket {entry['name']}"
    if entry["state"] == UNREACHABLE and entry["why"].startswith(FULL):
        backlog = "" if entry["backlog"] is None else ", or raise its backlog (and net.core.somaxconn)"
        yield Finding("problem", subject, f"clients don't reach it: {entry['why']}: add processes{backlog}")
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
        yield Finding("note", subject, f"not all of it can be seen: {entry['unseen']}", unseen=True)


#: What servers and runtimes say of an address that they can't bind, and of an accept(2) that would have to wait.
_IN_USE = re.compile(r"address (?:is )?already in use|EADDRINUSE|connection in use|errno[ =]98\b", re.IGNORECASE)
_WOULD_BLOCK = re.compile(
    r"resource temporarily unavailable|EAGAIN|EWOULDBLOCK|BlockingIOError|errno[ =]11\b", re.IGNORECASE
)
#: The same of a limit of processes or threads.
_LIMITED = re.compile(r"\bv?fork|thread|clone", re.IGNORECASE)
_PORT = re.compile(r"(?:[:,] ?|port[ =])(\d{2,5})\b")
#: A process that ended so often within a minute is one that can't stay.
_CRASHES = 3
#: Worker processes of one server that ended within the short time of a look.
_WORKERS = 10


def port_in_use(lines: Iterable[str]) -> int | None:
    """The port that the process which wrote *lines* could not bind; None if it does not say so."""
    for line in lines:
        if _IN_USE.search(line):
            ports = [int(port) for port in _PORT.findall(line) if 0 < int(port) < 65536]
            return ports[-1] if ports else 0
    return None


def _is_well(facts: Mapping[str, Any], program: str) -> bool:
    cause = facts.get("causes", {}).get(program)
    return cause is None or not any(map(is_down, cause["places"]))


def is_down(place: Mapping[str, Any]) -> bool:
    """Whether a process, as the manager tells of its *place*, does not run, or ends again and again."""
    return place["state"] not in ("RUNNING", "STARTING", "active", "starting") or place["crashes"] >= _CRASHES


def _of_program(name: str, cause: Mapping[str, Any], facts: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    """What is to be said of the program *name*.

    *cause* has its `command`, and `places`: of each process that the manager has for it the `process` (name), `state`,
    `spawn_error`, how the last one `ended` in words (None: none has), whether that one was `stopped`, the `crashes` of
    the last minute, the `lines` that it wrote last, and `occupants`, who has the port that it could not bind; and by
    socket `workers`, how many worker processes ended during a look at a socket that is not blocking.
    """
    serves = any(
        holder["program"] == name and _serves(holder) for entry in facts["sockets"] for holder in entry["holders"]
    )
    unreplaced = _unreplaced(cause["command"])
    wanted = [entry for entry in facts["sockets"] if name in _users(facts, entry["name"])]
    waits = any(one.get("on_demand") for one in facts["programs"] if one["name"] == name)  # for a first connection
    may_be_idle = waits or not wanted
    down = [place for place in cause["places"] if is_down(place) and not (may_be_idle and _is_idle(place))]
    for place in down[:_SHOWN]:
        sentence, lines = _why_down(name, place, facts, words)
        # One that somebody has stopped, and others stand in for, is as it was wanted; what has no sockets is not ours.
        is_note = serves or not wanted or (_is_idle(place) and all(map(_is_served, wanted)))
        if unreplaced and not place["spawn_error"]:
            sentence = f"{sentence}; {_no_exec(unreplaced)}"
        yield Finding("note" if is_note else "problem", f"program {name}", sentence, lines)
    if unreplaced and not down:
        yield Finding("problem", f"program {name}", _no_exec(unreplaced))
    for socket, workers in cause.get("workers", {}).items():
        if workers >= _WORKERS:
            sentence = (
                f"its worker processes end as soon as they are started ({workers} in {cause['looked']:g} s): a server"
                f" that waits in accept is told EAGAIN by a socket that is not blocking; write"
                f" {words.blocking.format(socket)}, then {words.applied}"
            )
            yield Finding("problem", f"program {name}", sentence)


def _is_idle(place: Mapping[str, Any]) -> bool:
    """Whether nothing has failed: it was stopped, never started, or has done its work."""
    failed = place["spawn_error"] or place["state"] in ("FATAL", "BACKOFF") or place["crashes"] >= _CRASHES
    return not failed


def _is_served(entry: Mapping[str, Any]) -> bool:
    return any(map(_serves, entry["holders"]))


def _serves(holder: Mapping[str, Any]) -> bool:
    return bool(holder["ready"]) and not holder["suspended"] and not holder.get("quiesced")


#: Of a program with hundreds of processes so many are told of.
_SHOWN = 8


def _unreplaced(command: str | None) -> str:
    """The ``{fd:NAME}`` in *command* that nothing replaces, if there is one."""
    found = re.search(r"\{fd:[^}\s]*\}", command or "")
    return "" if found is None or re.search(r"sockshare\S*\s+exec\b", command or "") else found[0]


def _no_exec(what: str) -> str:
    return f"nothing replaces {what} in its command: let it begin with `sockshare exec --`"


def _why_down(
    name: str, place: Mapping[str, Any], facts: Mapping[str, Any], words: Words
) -> tuple[str, tuple[str, ...]]:
    """Why one process of the program *name* does not run, with what to do; and what it wrote last."""
    start = f"`{words.control} start {place['process']}`"
    state = f"{'it' if place['process'] == name else place['process']} is {place['state']}"
    lines = tuple(place.get("lines", ()))
    if place["spawn_error"]:
        return f"{state}: it can't be started: {place['spawn_error']}; {_spawn_advice(place, start, words)}", ()
    if place["ended"] is None:
        return f"{state}, and was never started: {start}", ()
    if place["stopped"]:
        return f"{state}: somebody has stopped it: {start}", ()
    often = f", {place['crashes']} times within a minute" if place["crashes"] > 1 else ""
    said = f"{state}: it {place['ended']}{often}"
    again = "" if place["state"] in ("RUNNING", "STARTING", "BACKOFF", "active", "starting") else f", then {start}"
    port = port_in_use(lines)
    if port is not None:
        return f"{said}: {_in_use(port, place, facts, words, again)}", lines
    mine = [entry["name"] for entry in facts["sockets"] if name in _users(facts, entry["name"])]
    if mine and any(_WOULD_BLOCK.search(line) and not _LIMITED.search(line) for line in lines):
        where = " and ".join(words.blocking.format(socket) for socket in mine)
        accepts = f"it waits in accept on a socket that is not blocking; write {where}, then {words.applied}"
        return f"{said}: {accepts}{again}", lines
    what = "mend what its last lines say" if lines else "its command or its log has the reason"
    return f"{said}; {what}{again}", lines


def _users(facts: Mapping[str, Any], socket: str) -> list[str]:
    return [program["name"] for program in facts["programs"] if socket in program["sockets"]]


def _in_use(port: int, place: Mapping[str, Any], facts: Mapping[str, Any], words: Words, again: str) -> str:
    for entry in facts["sockets"]:
        if port and str(entry.get("address", "")).endswith(f":{port}"):
            return (
                f"it binds port {port} itself, which is the shared socket {entry['name']}: let it take the descriptor"
                f" {{fd:{entry['name']}}} instead, then {words.applied}"
            )
    return f"address in use (port {port or 'not said'}){place.get('occupants', '')}{again}"


#: What managers and execve(2) say of a command that can't be run.
_NO_COMMAND = re.compile(r"command|no such file|exec|permission|not a directory", re.IGNORECASE)


def _spawn_advice(place: Mapping[str, Any], start: str, words: Words) -> str:
    if place.get("path"):
        return f"write {place['path']} in its command, then {words.applied}"
    if _NO_COMMAND.search(place["spawn_error"]):
        return f"mend its command, then {words.applied}; or install what it names, then {start}"
    return f"once that is mended, {start}"


def _of_processes(facts: Mapping[str, Any], words: Words) -> Iterator[Finding]:
    reloading = {one["name"] for one in facts["programs"] if one["reload"]["state"] != "idle"}
    for entry in facts["sockets"]:
        for holder in entry["holders"]:
            sentences = list(_of_holder(entry["name"], holder, holder["program"] in reloading, facts, words))
            for level, sentence in sentences:
                yield Finding(level, subject_of(holder), sentence)
            if holder["program"] in reloading or not _is_served(entry):
                continue  # it has just started; or it is said of the socket
            if holder.get("unseen") and not holder["ready"]:
                sentence = f"can't see whether it serves {entry['name']}: {holder['unseen']}; {_sight([holder])}"
                yield Finding("note", subject_of(holder), sentence, unseen=True)


def _of_leftovers(facts: Mapping[str, Any]) -> Iterator[Finding]:
    for program in facts["programs"]:
        for one in program.get("leftovers", ()) if program["reload"]["state"] == "idle" else ():
            whose = f"pid {one['pid']} ({one['command']})"
            said = f"{whose} is left over, and serves {one['socket']} beside it: {one['remedy']}"
            if one["unseen"]:
                said = f"{whose} is left over, and may serve {one['socket']} beside it: {one['remedy']}"
            yield Finding("problem", f"program {program['name']}", said)


def subject_of(holder: Mapping[str, Any]) -> str:
    """What findings call a process that holds a socket."""
    return f"{holder['process']} (pid {holder['pid']})"


#: Where a registration is for some only, who waits for it is held off the socket as it should be, and who lets go too.
_IN_LINE = ("waiting", "revoking")
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
        newer = f"if the socket was added or changed since it started, run `sockshare reload {holder['program']}`"
        sentence = f"let the command in {section} begin with `sockshare exec --`, or let the program call"
        yield "problem", f"it does not have the socket {name}: {newer}; else {sentence} sockshare.attach()"
        return
    if holder.get("shell"):
        yield (
            "problem",
            (
                f"it is a shell, which waits for its server ({holder['shell']['server']}): the stop signal would end it"
                f" alone; write `exec` before the server in {holder['shell']['script']}"
            ),
        )
    if not holder["ready"] and not holder.get("unseen"):
        has = f"it has the socket {name}, and has" if holder["open"] else "it has"
        missing = f"not said that it is ready, nor is it seen to wait for connections on {name}"
        yield "problem", f"{has} {missing}; is it starting still, or does its log say why?"
    if holder.get("quiesced"):
        yield "note", f"it is quiesced, and gets no new connections: `sockshare wake {holder['process']}`"
    elif holder["suspended"] and holder.get("standing") not in _IN_LINE:
        yield (
            "problem",
            (
                "it is held off its socket, and no reload runs: the next broker lets it go:"
                f" `kill {facts['broker']['pid']}`"
            ),
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
    elif holder["ready"] and holder["not_kept"] and not holder["registered"] and not holder["suspended"]:
        yield "note", f"{holder['not_kept']}; at a reload its waiting thread is held instead, where that is possible"
