"""What a reload is planned from: the program's section, what the manager says of it, what there is to see."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sockshare.core.ending import Ending, ending, signal_of
from sockshare.core.readiness import Evidence, Expectation
from sockshare.core.servers import SERVERS, Server, recognise
from sockshare.core.spec import ProgramSpec
from sockshare.core.steps import Plan, Process
from sockshare.kernel import processes

from .state import State


async def make(
    state: State,
    spec: ProgramSpec,
    facts: Mapping[str, Any],
    replaced: Iterable[Mapping[str, Any]],
    *,
    key: str,
    expires: float | None = None,
) -> tuple[Plan, Expectation]:
    """The plan by which *replaced*, some of *facts*' processes, are replaced; and what their successors have to show.

    Args:
        facts: The manager's answer to `processes`, for this program.
        key: See `Plan`; so with *expires*.
    """
    members = state.roster.enter_all(spec.name, replaced)
    old = [Process(managed.pid, managed.name) for managed in members]
    surplus = tuple(one["pid"] for one in facts["processes"] if one.get("surplus"))
    added = int(facts.get("missing", 0))
    sockets = frozenset(spec.sockets)
    if not sockets:
        listeners = [await state.observer.worker.do(state.observer.listeners, managed.pid) for managed in members]
        sockets = frozenset().union(*listeners)
    look = state.registrations.evidence
    looks = await asyncio.gather(*(look(managed, sockets, patient=True) for managed in members))
    said = frozenset().union(*(evidence.said for evidence in looks))
    registered = frozenset().union(*(evidence.registered for evidence in looks))
    expectation = Expectation(spec.ready, sockets, Evidence(said, registered))
    ending = _ending(state, spec, int(facts["stop_signal"]), old)
    plan = Plan(
        program=spec.name,
        key=key,
        old=tuple(old),
        size=int(facts["numprocesses"]) + added - len(surplus),
        ready_timeout=spec.ready_timeout,
        ready_hold=spec.ready_hold,
        quiesce=max(spec.quiesce, spec.settle),  # a crash of the new one rolls back for as long
        stop_timeout=float(facts["stop_timeout"]),
        awaited=expectation.awaited,
        verify=spec.verify or "",
        drain=ending.drain,
        drain_timeout=spec.drain_timeout,
        stop_signal=ending.signal,
        is_told_signal=ending.signal != int(facts["stop_signal"]),
        by_signal=ending.by_signal,
        cut=ending.cut,
        hand_over=spec.drain == "hand_over",
        expires=expires,
        max_draining=spec.max_draining,
        surplus=surplus,
        added=added,
        configuration=facts.get("configuration"),
        ready_key=state.key("ready"),
    )
    return plan, expectation


def _ending(state: State, spec: ProgramSpec, stop_signal: int, old: Sequence[Process]) -> Ending:
    for process in old:
        try:
            server = SERVERS.get(spec.server) or server_of(process.pid)
            number = spec.stop_signal or signal_of(server, stop_signal)
            return ending(
                spec,
                number,
                key=state.key("drain"),
                server=server,
                learned=state.learned.get(spec.name),
                process=process.name,
                catches=processes.catches(process.pid, number),
                runtime=processes.runtime_with_handlers(process.pid),
            )
        except ProcessLookupError:
            continue
    return Ending(spec.stop_signal or stop_signal)


def server_of(pid: int) -> Server | None:
    """The server that *pid* is, or that it has started, if it is one that we know."""
    for one in processes.tree(pid):
        try:
            server = recognise(processes.command(one))
        except (PermissionError, ProcessLookupError):
            continue
        if server is not None:
            return server
    return None
