"""The circusds and supervisords of this machine, and why one of them has no broker for a command: what people are told.

Only what has already failed comes here: all of /proc is looked at, and configurations are read.
"""

from __future__ import annotations

import configparser
import glob
import os
import shlex
import time
from collections.abc import Iterator
from typing import NamedTuple

from sockshare.core.command_lines import in_words
from sockshare.kernel import meeting, peers, processes

from . import door

#: Where supervisord looks for its configuration, from its own directory (its documentation, "Configuration File").
_SUPERVISORD = ("supervisord.conf", "etc/supervisord.conf", "/etc/supervisord.conf", "/etc/supervisor/supervisord.conf")
#: The section that loads us, the key that does, and what its value begins with.
_LOADS = {
    "supervisord": ("rpcinterface:", "supervisor.rpcinterface_factory", "supervisor_sockshare"),
    "circusd": ("plugin:", "use", "circus_sockshare"),
}
_OURS = {"supervisord": "[rpcinterface:sockshare]", "circusd": "[plugin:sockshare]"}
_LONGEST_COMMAND = 80
#: So many managers are asked why at most, so many processes of one that has ended are shown, and are to be killed.
_ASKED, _SHOWN, _KILLED = 32, 8, 64
#: Seconds that a manager has for the start of its broker; and by which the times of a process and of a file may differ.
_STARTS, _COARSE = 5.0, 0.03


class Manager(NamedTuple):
    """One that runs."""

    pid: int
    name: str
    uid: int
    file: str  # its configuration; empty where that can't be told

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, uid {self.uid}, {self.file or 'configuration not known'})"


def running() -> Iterator[Manager]:
    """All that can be seen, by pid."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        words = meeting.arguments(pid)
        if meeting.is_manager(words):
            try:
                yield manager(pid, words)
            except ProcessLookupError:
                continue


def manager(pid: int, words: list[str] | None = None) -> Manager:
    """What process *pid*, a manager with the arguments *words*, is.

    Raises:
        ProcessLookupError: It is gone.
    """
    words = meeting.arguments(pid) if words is None else words
    name = meeting.manager_name(words)
    return Manager(pid, name, meeting.user(pid), _file(pid, name, words))


def _file(pid: int, name: str, words: list[str]) -> str:
    at = next((at for at, word in enumerate(words) if meeting.is_manager([os.path.basename(word)])), None)
    if at is None:  # python -m supervisor.supervisord
        at = next((at for at, word in enumerate(words) if word.endswith((".supervisord", ".circusd"))), len(words))
    rest = words[at + 1 :]
    try:
        directory = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        directory = ""
    given = ""
    for at, word in enumerate(rest):
        if name == "circusd" and not word.startswith("-") and word.endswith((".ini", ".conf", ".cfg")):
            given = word
        elif name == "supervisord" and word in ("-c", "--configuration"):
            given = "".join(rest[at + 1 : at + 2])
        elif name == "supervisord" and word.startswith(("-c", "--configuration=")):
            given = word.removeprefix("--configuration=").removeprefix("-c")
    if given:
        return os.path.join(directory, given) if directory or os.path.isabs(given) else ""
    candidates = [os.path.join(directory, one) for one in _SUPERVISORD] if name == "supervisord" and directory else []
    return next(filter(os.path.exists, candidates), "")


def why_no_broker(one: Manager) -> str:
    """Why a command of this user has no broker of *one*, after its name, and what to do; empty where it has."""
    own = os.geteuid()
    if own != 0 and one.uid not in (0, own):  # not looked at: its directories may be hidden from us
        return "it is another user's; run the command as that user, or as root"
    try:
        point = meeting.find(one.pid)
        if point is None and own != one.uid and any(map(os.path.lexists, meeting.places(one.pid))):
            return f"uid {own} may not look into its runtime directory; run the command as root"
    except ProcessLookupError:
        return "it has ended just now"
    if point is None:
        return _why_no_point(one)
    if own != one.uid and own == 0:
        return f"it is another user's; say --endpoint {point}"
    if door.accepts(point):
        return ""
    reason = door.read(point, meeting.STOPPED)
    return f"its broker does not answer at {point}: {reason or 'it is being started anew; ask again'}"


def _why_no_point(one: Manager) -> str:
    loads = _loads(one)
    section = _OURS[one.name]
    again = f"`{control(one)} reload`" if one.name == "supervisord" else "end circusd, and start it again"
    if loads is None:
        return f"it has no broker; can't read its configuration: does it have {section}, and was it started since?"
    if not loads:
        return f"it has no broker: its configuration has no {section}; add it, then {again}"
    if one.uid == os.geteuid():
        obstacle = meeting.obstacle(one.uid)
        if obstacle is not None:
            return f"it has no broker: it can't make its runtime directory ({obstacle}); set runtime_dir in {section}"
    try:
        changed = os.stat(one.file).st_mtime
    except OSError:  # written anew just now
        changed = time.time()
    started = _started(one.pid)
    if started + _COARSE < changed:
        return f"it has no broker: its configuration was changed since it was started; {again}"
    if time.time() - started < _STARTS:
        return "it has no broker yet: it was started just now; ask again"
    return f"it has no broker, though its configuration has {section}: its log has the reason"


def control(one: Manager) -> str:
    """How a supervisord's own command is called."""
    return f"supervisorctl -c {shlex.quote(one.file)}" if one.file else "supervisorctl"


def _loads(one: Manager) -> bool | None:
    """Whether its configuration loads sockshare; None if that can't be read."""
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";", "#"))
    try:
        with open(one.file) as file:
            parser.read_file(file)
        for path in _included(one, parser):
            parser.read(path)
    except (OSError, configparser.Error, UnicodeDecodeError):
        return None
    prefix, key, beginning = _LOADS[one.name]
    return any(
        section.startswith(prefix) and parser.get(section, key, fallback="").startswith(beginning)
        for section in parser.sections()
    )


def _included(one: Manager, parser: configparser.RawConfigParser) -> list[str]:
    here = os.path.dirname(one.file)
    if one.name == "supervisord":
        patterns = parser.get("include", "files", fallback="").replace("%(here)s", here).split()
    else:
        patterns = parser.get("circus", "include", fallback="").split()
        patterns += [os.path.join(one, "*.ini") for one in parser.get("circus", "include_dir", fallback="").split()]
    return [path for pattern in patterns for path in sorted(glob.glob(os.path.join(here, pattern)))]


def _started(pid: int) -> float:
    """When *pid* was started, seconds since the epoch; the clock may have been set since."""
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    try:
        return time.time() - uptime + peers.start_time(pid) / os.sysconf("SC_CLK_TCK")
    except ProcessLookupError:
        return time.time()


def _where(one: Manager) -> str:
    """Where the broker of *one* is, for who has looked elsewhere."""
    try:
        return f"its broker answers; say --endpoint {meeting.find(one.pid)}"
    except ProcessLookupError:
        return "it has ended just now"


def orphans() -> list[tuple[int, str]]:
    """Processes that were given sockets by a manager which has ended, with their commands; as far as we may look."""
    found = []
    accept: dict[str, bool] = {}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            environment = processes.content(f"/proc/{pid}/environ")
            if b"SOCKSHARE_FD_" not in environment or any(_is_manager(one) for one in peers.ancestors(pid)):
                continue
            endpoint = processes.variable(pid, "SOCKSHARE_ENDPOINT")
            command = in_words(processes.command(pid), _LONGEST_COMMAND)
        except OSError:
            continue
        if endpoint is not None and endpoint not in accept:
            accept[endpoint] = door.accepts(endpoint)
        if endpoint is None or not accept[endpoint]:  # else a living manager's, which has daemonized
            found.append((pid, command))
    return found


def _is_manager(pid: int) -> bool:
    try:
        return meeting.is_manager(meeting.arguments(pid)) or meeting.find(pid) is not None
    except ProcessLookupError:
        return False


def reasons(asked: int = _ASKED) -> list[tuple[str, str]]:
    """Why this user has no broker: whom it is about, and the reason with what to do; at least one.

    Args:
        asked: So many managers are looked at, this user's first.
    """
    managers = sorted(running(), key=lambda one: one.uid != os.geteuid())  # who asks means its own first
    said = [(str(one), why_no_broker(one) or _where(one)) for one in managers[:asked]]
    if len(managers) > asked:
        said.append((f"{len(managers) - asked} more managers", "not looked at; say --endpoint DIR"))
    left = orphans()
    if left:
        pids = " ".join(str(pid) for pid, _ in left[:_KILLED])
        listed = ", ".join(f"pid {pid} ({command})" for pid, command in left[:_SHOWN])
        listed += f", and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        again = ", and ask again," if len(left) > _KILLED else ""
        end = f"they hold its sockets; end them (`kill {pids}`){again} before it is started again"
        said.append(("a manager that has ended", f"{len(left)} of its processes run on: {listed}; {end}"))
    return said or [
        ("manager", "no circusd and no supervisord runs here; start one, with sockshare in its configuration")
    ]
