"""What ``sockshare doctor`` is told: the facts that its rules (`core.diagnosis`) judge, looked up at this moment."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from sockshare.core import diagnosis, ends, wrappers
from sockshare.core.command_lines import in_words
from sockshare.core.diagnosis import Finding
from sockshare.core.errors import ManagerError
from sockshare.kernel import occupants, processes, reach
from sockshare.kernel.features import features

from .hostlink import HostLink
from .leftovers import Leftovers
from .observer import Observer
from .reloading import Reloading
from .retirements import Retirements
from .state import State
from .status import describe

#: So many processes are asked after at most that do not run.
_ASKED = 16
#: Seconds that worker processes are watched for, and between two looks at them.
_WATCHED = 0.3
_APART = 0.02
#: Where circusctl finds circusd by itself.
_ENDPOINT = "tcp://127.0.0.1:5555"


async def examine(
    state: State, reloading: Reloading, retirements: Retirements, leftovers: Leftovers, host: HostLink
) -> tuple[list[Finding], dict[str, Any]]:
    """Every finding, the worst first, and the document of `status` that it is about."""
    silent, programs = None, {}
    try:
        programs = (await host.ask("processes"))["programs"]
    except ManagerError as error:
        silent = str(error)
    facts = await describe(state, reloading, retirements, leftovers, programs, silent)
    workers = await _count_workers(state, facts)
    causes = await _causes(state, host, programs)
    for name, cause in causes.items():
        cause["workers"] = workers.get(name, {})
    told = {**facts, "silent": silent, "control": _control(state.manager), "causes": causes}
    signals = {name: int(one.get("stop_signal", 15)) for name, one in programs.items()}
    return await state.holders.worker.do(_findings, told, state.observer, signals), facts


def _closed(address: str) -> str:
    """Whom the permissions of a path keep out."""
    scheme, _, path = address.partition("://")
    if not scheme.startswith("unix") or not path.startswith("/"):
        return ""
    try:
        return reach.closed_to(path)
    except OSError:
        return ""  # that it is gone is said otherwise


def _findings(facts: dict[str, Any], observer: Observer, signals: Mapping[str, int]) -> list[Finding]:
    for entry in facts["sockets"]:
        entry["closed"] = _closed(str(entry["address"]))
        # What has ended since it was looked at would seem to have nothing, and to be nobody's.
        entry["holders"] = [holder for holder in entry["holders"] if processes.alive(holder["pid"])]
        for holder in entry["holders"]:
            pid = holder["pid"]
            if holder["open"] is False and _waits_for_sockets(pid):
                holder["open"] = None
            holder["refusal"] = observer.refusal(pid)
            holder["shell"] = _shell(pid, entry["inode"], signals.get(holder["program"], 15))
    missing = [(one.name, one.without) for one in features() if not one.present]
    return diagnosis.findings({**facts, "impossible": observer.impossible, "kernel": missing})


def _waits_for_sockets(pid: int) -> bool:
    """Whether *pid* is ``sockshare exec`` still: it has not become its command, and has no socket yet."""
    try:
        return bool(re.search(r"sockshare(/__main__\.py)? exec ", " ".join(processes.command(pid))))
    except OSError:
        return False


def _control(manager: Mapping[str, Any]) -> str:
    """How the manager's own command is called to reach this one."""
    if manager["kind"] == "circus":
        endpoint = manager.get("endpoint") or _ENDPOINT
        return "circusctl" if endpoint == _ENDPOINT else f"circusctl --endpoint {shlex.quote(endpoint)}"
    return f"supervisorctl -c {shlex.quote(manager['file'])}" if manager.get("file") else "supervisorctl"


async def _causes(state: State, host: HostLink, programs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """See `diagnosis._of_program`; of a host of the version before nothing is told."""
    left = _ASKED
    causes: dict[str, dict[str, Any]] = {}
    for name, facts in programs.items():
        spec = state.programs.get(name)
        if spec is None or "places" not in facts:
            continue
        places = []
        for place in facts["places"]:
            last = place["last"]
            found = {**place, "ended": None, "stopped": bool(last and last["stopped"])}
            if last is not None:
                found["ended"] = ends.describe(last["status"])
                if diagnosis.is_down(place) and not last["stopped"] and left:
                    left -= 1
                    found["lines"] = await _lines(host, last["pid"])
                    port = diagnosis.port_in_use(found["lines"])
                    if port:
                        held = await state.holders.worker.do(occupants.of_port, "tcp", "", port)
                        found["occupants"] = occupants.describe(held)
            found["path"] = _beside(place["spawn_error"])
            places.append(found)
        causes[name] = {"command": facts.get("command"), "places": places, "looked": _WATCHED}
    return causes


async def _lines(host: HostLink, pid: int) -> list[str]:
    try:
        return str((await host.ask("report", pid=pid)).get("output") or "").splitlines()
    except ManagerError:
        return []


def _beside(error: str) -> str:
    """The whole path of the command that can't be found, where it stands beside our own interpreter."""
    named = re.search(r"(?:can't find command|No such file or directory:) '([^'/]+)'", error)
    path = os.path.join(os.path.dirname(sys.executable), named[1]) if named else ""
    return path if path and os.access(path, os.X_OK) else ""


async def _count_workers(state: State, facts: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By program and socket, how many worker processes ended while we looked; of sockets that are not blocking."""
    looked = {
        (holder["program"], entry["name"]): holder["pid"]
        for entry in facts["sockets"]
        for holder in entry["holders"]
        if not state.sockets[entry["name"]].blocking
    }
    pids = set(looked.values())
    seen: dict[int, set[int]] = {pid: set() for pid in pids}
    for _ in range(round(_WATCHED / _APART) if pids else 0):
        for pid, found in (await state.holders.worker.do(_forks, pids)).items():
            seen[pid] |= found
        await asyncio.sleep(_APART)
    left = await state.holders.worker.do(_children, pids)
    counted: dict[str, dict[str, int]] = {}
    for (program, name), pid in looked.items():
        counted.setdefault(program, {})[name] = len(seen[pid] - left[pid])
    return counted


def _forks(pids: set[int]) -> dict[int, set[int]]:
    """The children of each that are copies of it, as workers are; what it executes besides may end at will."""
    return {pid: {one for one in processes.children(pid) if _is_copy(one)} for pid in pids}


def _is_copy(pid: int) -> bool:
    try:
        return not processes.has_executed(pid)
    except ProcessLookupError:
        return False


def _children(pids: set[int]) -> dict[int, set[int]]:
    return {pid: set(processes.children(pid)) for pid in pids}


def _shell(pid: int, inode: int, stop_signal: int) -> dict[str, str] | None:
    """The server below *pid*, which is a shell that would leave it alone at the stop signal; None if it is none."""
    try:
        command = processes.command(pid)
        if not command or not wrappers.is_shell(command[0]) or processes.catches(pid, stop_signal):
            return None
        servers = [one for one in processes.children(pid) if inode in processes.socket_descriptors(one)]
        if not servers:
            return None
        server = in_words(processes.command(servers[0]))
    except (OSError, ProcessLookupError):
        return None
    scripts = [word for word in command[1:] if not word.startswith("-")]
    script = "its command" if "-c" in command[1:] or not scripts else scripts[0]
    return {"server": f"pid {servers[0]}: {server}", "script": script}
