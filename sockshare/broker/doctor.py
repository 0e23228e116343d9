"""What ``sockshare doctor`` is told: the facts that its rules (`core.diagnosis`) judge, looked up at this moment."""

from __future__ import annotations

from typing import Any

from sockshare.core import diagnosis
from sockshare.core.diagnosis import Finding
from sockshare.core.errors import ManagerError
from sockshare.kernel import reach
from sockshare.kernel.features import features

from .hostlink import HostLink
from .observer import Observer
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
    return await state.holders.worker.do(_findings, facts, state.observer, silent), facts


def _closed(address: str) -> str:
    """Whom the permissions of a path keep out."""
    scheme, _, path = address.partition("://")
    if not scheme.startswith("unix") or not path.startswith("/"):
        return ""
    try:
        return reach.closed_to(path)
    except OSError:
        return ""  # that it is gone is said otherwise


def _findings(facts: dict[str, Any], observer: Observer, silent: str | None) -> list[Finding]:
    owned: dict[int, frozenset[int] | None] = {}
    for entry in facts["sockets"]:
        entry["closed"] = _closed(str(entry["address"]))
        for holder in entry["holders"]:
            pid = holder["pid"]
            if pid not in owned:
                owned[pid] = observer.owned(pid)
            its = owned[pid]
            holder["open"] = None if its is None else entry["inode"] in its
            holder["refusal"] = observer.refusal(pid)
    missing = [(one.name, one.without) for one in features() if not one.present]
    kernel = {"impossible": observer.impossible, "kernel": missing}
    return diagnosis.findings({**facts, "silent": silent, **kernel})
