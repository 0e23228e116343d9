"""What ``sockshare doctor`` is told: the facts that its rules (`core.diagnosis`) judge, looked up at this moment."""

from __future__ import annotations

from typing import Any

from sockshare.core import diagnosis
from sockshare.core.diagnosis import Finding
from sockshare.core.errors import ManagerError
from sockshare.kernel import processes
from sockshare.kernel.features import features

from .hostlink import HostLink
from .reloading import Reloading
from .retirements import Retirements
from .state import State
from .status import status_document


async def examine(
    state: State, reloading: Reloading, retirements: Retirements, host: HostLink
) -> tuple[list[Finding], dict[str, Any]]:
    """Every finding, the worst first, and the document of `status` that it is about."""
    silent = None
    try:
        await host.ask("processes")
    except ManagerError as error:
        silent = str(error)
    facts = await status_document(state, reloading, retirements, host)
    for entry in facts["sockets"]:
        for holder in entry["holders"]:
            holder["open"] = _has(holder["pid"], entry["inode"])
            holder["refusal"] = state.observer.refusal(holder["pid"])
    missing = [(one.name, one.without) for one in features() if not one.present]
    found = diagnosis.findings({**facts, "silent": silent, "impossible": state.observer.impossible, "kernel": missing})
    return found, facts


def _has(pid: int, inode: int) -> bool | None:
    """Whether *pid* or a descendant has the socket *inode* open; None where that can't be seen."""
    try:
        return any(inode in _sockets(member) for member in processes.tree(pid))
    except PermissionError:
        return None


def _sockets(pid: int) -> dict[int, int]:
    try:
        return processes.socket_descriptors(pid)
    except ProcessLookupError:
        return {}
