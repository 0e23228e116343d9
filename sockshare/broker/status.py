"""The document of ``sockshare status --json``: what the manager, the kernel and the broker know at this moment."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from sockshare.core import reachability
from sockshare.core.errors import ManagerError
from sockshare.core.leftovers import Leftover
from sockshare.core.registration_steps import Means, Standing
from sockshare.kernel import connections, listeners
from sockshare.kernel.holders import Scan

from . import holders
from .hostlink import HostLink
from .leftovers import Leftovers
from .line import Line
from .observer import Facts
from .reloading import Reloading
from .retirements import Retirements
from .roster import Managed
from .state import State

VERSION = 1
#: Seconds for which a queue has to be full to be called so.
_FULL_FOR = 0.05


async def status_document(
    state: State, reloading: Reloading, retirements: Retirements, leftovers: Leftovers, host: HostLink
) -> dict[str, Any]:
    """The document, as interface version 1 has it; every part that can't be learned is null."""
    silent = None
    try:
        programs = (await host.ask("processes"))["programs"]
    except ManagerError as error:
        programs, silent = {}, str(error)
    return await describe(state, reloading, retirements, leftovers, programs, silent)


async def describe(
    state: State,
    reloading: Reloading,
    retirements: Retirements,
    leftovers: Leftovers,
    programs: Mapping[str, Any],
    silent: str | None,
) -> dict[str, Any]:
    """The document about *programs*, as the manager has told of them; or *silent*, why it has not."""
    specs = dict(state.programs)  # a new configuration is the next document's
    if silent is None:
        listed = {name: facts["processes"] for name, facts in programs.items() if name in specs}
        members = {name: state.roster.enter_all(name, processes) for name, processes in listed.items()}
    else:  # those that the broker knows live all the same, and serve
        members = {name: state.roster.of_program(name) for name in specs}
    scan = await state.holders.look()
    look, do = state.observer.facts, state.holders.worker.do
    facts = {
        one.pid: await do(look, one.pid, specs[program].sockets) for program, its in members.items() for one in its
    }
    connected = await do(_connected, state.shared)
    sockets = []
    for name in state.sockets:
        users = [one for program, spec in specs.items() if name in spec.sockets for one in members.get(program, ())]
        sockets.append(_socket(state, name, users, scan, facts, connected[name]))
        await asyncio.sleep(0)  # of hundreds of sockets: others have their turn
    left = await leftovers.find(None if silent is not None else programs, scan)
    left_out = await _add_others(state, sockets, members, scan)
    await _judge(state, sockets, silent or "")
    return {
        "version": VERSION,
        "state": "refused" if state.mistakes else "serving",
        "mistakes": [*state.mistakes, *state.refused_sections],
        "warnings": state.warnings,
        "manager": {"kind": state.manager["kind"], "pid": state.manager["pid"]},
        "broker": {"pid": os.getpid(), "refusals": state.refusals},
        "sockets": sockets,
        "programs": [
            {
                **_program(state, reloading, retirements, name, programs.get(name), silent),
                "leftovers": [_leftover(name, one, programs.get(name)) for one in left.get(name, ())],
            }
            for name in state.programs
        ],
        "scan": {
            "looked": scan.looked,
            "refused": len(scan.refused),
            "unfinished": len(scan.unfinished),
            "left_out": left_out,
            "seconds": round(scan.seconds, 4),
        },
    }


async def _judge(state: State, sockets: list[dict[str, Any]], silent: str) -> None:
    """Add to each of *sockets* whether clients reach it, and somebody accepts there."""
    full = set()
    for entry in sockets:
        if state.guard.load(entry["name"]).is_full:
            full.add(entry["name"])
        await asyncio.sleep(0)
    if full:  # a moment's burst is none of it
        await asyncio.sleep(_FULL_FOR)
    for entry in sockets:
        name = entry["name"]
        facts = state.guard.facts(name)
        is_full = name in full and state.guard.load(name).is_full
        verdict = reachability.judge(
            entry,
            fault=facts["fault"],
            unseen=facts["unseen"],
            is_full=is_full,
            stalled=facts["stalled"],
            silent=silent,
        )
        entry["state"], entry["why"] = verdict.state, verdict.why or None
        unseen = [verdict.unseen, "" if entry["drops"] is not None else "the kernel does not say what it has dropped"]
        if any(unseen):
            entry["unseen"] = "; ".join(filter(None, unseen))
        entry["mended"] = facts["mended"]
        await asyncio.sleep(0)


async def _add_others(
    state: State, sockets: list[dict[str, Any]], members: dict[str, list[Managed]], scan: Scan
) -> int:
    """Add to each of *sockets* who else has it; how many of them there was no room for."""
    names = {one.pid: one.name for listed in members.values() for one in listed}
    source = holders.source(state.manager["pid"])
    left_out = 0
    for entry in sockets:
        # A managed process whose section does not name this socket is one of the others.
        known = source.union(holder["pid"] for holder in entry["holders"])
        found = await state.holders.others(scan, entry["inode"], names, known)
        entry["others"] = found.shown
        left_out += found.left_out
    return left_out


def _program(
    state: State,
    reloading: Reloading,
    retirements: Retirements,
    name: str,
    facts: dict[str, Any] | None,
    silent: str | None,
) -> dict[str, Any]:
    running = retirements.under_way(name)
    reload: dict[str, Any] = {"state": running.step if running else "idle", "draining": []}
    if running is not None:
        reload["draining"] = [{"process": old.name, "pid": old.pid} for old in running.draining]
    last = reloading.last.get(name)
    if last is not None:
        answer = last["answer"]
        reload["last"] = {key: answer[key] for key in ("result", "seconds", "reason")}
    return {
        "name": name,
        **_state(facts, silent, state.manager_name),
        "active": None if facts is None else facts["active"],
        "on_demand": facts is not None and bool(facts.get("on_demand")),
        "numprocesses": None if facts is None else facts["numprocesses"],
        "sockets": list(state.programs[name].sockets),
        "reload": reload,
    }


def _leftover(program: str, one: Leftover, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "pid": one.pid,
        "command": one.command,
        "socket": one.socket,
        "unseen": one.unseen or None,
        "remedy": one.remedy(program, runs=facts is not None and bool(facts["active"])),
    }


def _state(facts: Mapping[str, Any] | None, silent: str | None, manager: str) -> dict[str, Any]:
    """The manager's state of a program; null with the reason where it is not told."""
    if silent is not None:
        return {"state": None, "unseen": silent}
    if facts is None:
        return {"state": None, "unseen": f"{manager} does not run it yet"}
    if facts.get("state") is None:
        return {"state": None, "unseen": f"the sockshare in {manager} is older than the broker, and does not tell"}
    return {"state": facts["state"]}


def _socket(
    state: State,
    name: str,
    members: Iterable[Managed],
    scan: Scan,
    facts: Mapping[int, Mapping[str, Facts]],
    established: frozenset[int] | None,
) -> dict[str, Any]:
    inode, fd = state.shared[name]
    duplicate = socket.socket(fileno=os.dup(fd))
    try:
        address = state.sockets[name].address or listeners.address(duplicate)
    finally:
        duplicate.close()
    holders = []
    for managed in members:
        seen = facts[managed.pid][name]
        is_open = None if seen.owned is None else inode in seen.owned
        holder = {
            **_holder(state, name, managed, seen, established),
            "holds": scan.holds(managed.pid, inode),
            "open": is_open,
        }
        # What it has said, it may have said of a socket that was in this one's place.
        holders.append({**holder, "ready": holder["ready"] and is_open is not False})
    line = state.registrations.line(name)
    load = state.guard.load(name)
    return {
        "name": name,
        "address": address,
        "registration": state.sockets[name].registration,
        **({} if line is None else _counted(line)),
        "inode": inode,
        "queue": load.length,
        "backlog": load.limit,
        "drops": load.drops,
        "holders": holders,
    }


def _counted(line: Line) -> dict[str, Any]:
    if line.is_shared:
        return {}
    return {
        "moves": line.moves,
        "violations": line.violations,
        "stalls": line.stalls,
        "overlaps": _overlaps(line),
        "last_move": line.last_move,
    }


def _overlaps(line: Line) -> dict[str, Any]:
    """For how long registrations out of turn went unnoticed at the most, milliseconds."""
    seen = sorted(line.overlaps)
    if not seen:
        return {"count": 0, "p99_ms": None, "worst_ms": None}
    p99 = seen[min(len(seen) - 1, int(len(seen) * 0.99))]
    return {"count": len(seen), "p99_ms": round(p99 * 1000, 1), "worst_ms": round(seen[-1] * 1000, 1)}


def _holder(
    state: State, name: str, managed: Managed, facts: Facts, established: frozenset[int] | None
) -> dict[str, Any]:
    found, why_not = facts.registrations, facts.not_kept
    count = None if established is None or facts.owned is None else len(established & facts.owned)
    kept_by = "suspend" if why_not is None else None
    registered = any(not entry.suspended for entry in found)
    suspended = all(entry.suspended for entry in found) if found else facts.held
    claims = list(state.registrations.claims_of(managed.pid, name))
    entries = [entry for _, entry in claims if entry is not None]
    first = next(
        (entry for entry in entries if entry.standing is not Standing.WAITING), entries[0] if entries else None
    )
    if claims:
        kept_by, why_not = claims[0][0].means.value, None
        if claims[0][0].means is not Means.SUSPEND:
            registered = first is not None and first.standing is not Standing.WAITING
            suspended = False
    ready: bool | None = managed.ready is not None or bool(found) or bool(entries) or facts.waited
    seen: dict[str, Any] = {"ready": ready, "registered": registered, "suspended": suspended}
    if facts.unseen and not claims:
        # What was said is known all the same; that nothing is seen says nothing.
        seen = {"ready": ready or None, "registered": None, "suspended": None, "unseen": facts.unseen}
    return {
        "pid": managed.pid,
        "program": managed.program,
        "process": managed.name,
        "generation": managed.generation,
        **seen,
        "quiesced": state.registrations.is_quiesced(managed.pid),
        "kept_by": kept_by,
        "not_kept": why_not,
        "standing": None if first is None else first.standing.value,
        "epoch": None if first is None or first.standing is Standing.WAITING else first.epoch,
        "held_for": None
        if first is None or first.standing is Standing.WAITING
        else round(_boottime() - first.since / 1e9, 3),
        "paused": bool(entries) and all(entry.paused for entry in entries),
        "connections": count,
        "status": managed.status,
        "warning": managed.warning,
    }


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _connected(shared: Mapping[str, tuple[int, int]]) -> dict[str, frozenset[int] | None]:
    return {name: _established(fd) for name, (_, fd) in shared.items()}


def _established(fd: int) -> frozenset[int] | None:
    """The inodes of the connections that came to the socket *fd*; None if that is not known."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        if not listeners.is_tcp(sock):
            return None
        try:
            host, port, *_ = sock.getsockname()
            return frozenset(one.inode for one in connections.established(sock.family, port, host))
        except OSError:
            return None
