"""``sockshare status``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from sockshare.core import reachability
from sockshare.core.errors import ExitStatus

from .connection import Connection, Endpoint, connect

_Document = dict[str, Any]


#: What is said where not everything is shown.
_VIEWS = {
    "own": "only programs that run under your uid are shown, and their sockets; of others the names",
    "names": "only names are shown: no program runs under your uid here",
}
#: So many process ids of one command are shown in one line.
_PIDS_SHOWN = 8


class Table(NamedTuple):
    """Rows to show under headings."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def run(endpoint: Endpoint, *, as_json: bool) -> int:
    """Show the status; 2 for a refused configuration, 3 when a socket is not reached by clients, or not served."""
    broker = connect(endpoint)
    if broker.state == "refused" and broker.mistakes:
        return refused(broker, as_json=as_json)
    broker.check()
    try:
        document: _Document = broker.ask("status")["status"]
    finally:
        broker.close()
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        _show(document)
    missing = not_serving(document)
    sockets = {entry["name"]: entry for entry in document.get("sockets", ())}
    unreachable = [entry for entry in sockets.values() if entry.get("state") == reachability.UNREACHABLE]
    for name in missing:
        if sockets.get(name) not in unreachable:
            why = sockets.get(name, {}).get("why") or "no ready process holds this socket"
            print(f"sockshare: {name}: {why}", file=sys.stderr)
    for entry in unreachable:
        print(f"sockshare: {entry['name']}: clients don't reach this socket: {entry['why']}", file=sys.stderr)
    if document.get("mistakes"):
        return ExitStatus.USAGE
    return ExitStatus.NOT_SERVING if missing or unreachable else ExitStatus.OK


def refused(broker: Connection, *, as_json: bool) -> int:
    """Show the mistakes of a broker that only has those to tell."""
    if as_json:
        document = {"version": 1, "broker": {"pid": broker.pid}, "state": "refused", "mistakes": broker.mistakes}
        print(json.dumps(document, indent=1))
    print(f"sockshare: can't serve: the configuration was refused ({len(broker.mistakes)} mistakes)", file=sys.stderr)
    if not as_json:
        for mistake in broker.mistakes:
            print(mistake)
    return ExitStatus.USAGE


def not_serving(document: _Document) -> list[str]:
    """The names of the sockets that some program names, and that no ready process serves."""
    ready = {
        entry["name"]
        for entry in document.get("sockets", ())
        if any(
            holder.get("ready") and not holder.get("suspended") and not holder.get("quiesced")
            for holder in entry.get("holders", ())
        )
        and entry.get("state") != reachability.UNSERVED
    }
    # Of others this user may see no more than the name; and some processes, or which there are, the broker can't see.
    unseen = {
        entry["name"]
        for entry in document.get("sockets", ())
        if "holders" not in entry
        or any(holder.get("unseen") for holder in entry["holders"])
        or entry.get("state", "") is None
    }
    programs = document.get("programs", ())
    if any("sockets" in program for program in programs):
        # What is started at its first connection serves once there is one.
        standing = [one for one in programs if not one.get("on_demand") or one.get("active")]
        named = {name for program in standing for name in program.get("sockets", ())}
    else:
        named = {entry["name"] for entry in document.get("sockets", ())} if programs else set()
    return sorted(named - ready - unseen)


def tables(document: _Document) -> list[Table]:
    """What is shown of *document*."""
    sockets: list[tuple[str, ...]] = []
    holders: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    programs: list[tuple[str, ...]] = []
    for entry in document.get("sockets", ()):
        registration = _registration(entry)
        queue = f"{_text(entry.get('queue'))}/{_text(entry.get('backlog'))}"
        state = "?" if _is_unseen(entry) else entry.get("state")
        cells: list[Any] = [entry["name"], entry.get("address"), state, registration, queue]
        sockets.append(tuple(_text(cell) for cell in cells))
        for holder in entry.get("holders", ()):
            registered = _registered(holder)
            cells = [holder.get("process"), holder.get("pid"), entry["name"], holder.get("generation")]
            ready = "?" if holder.get("unseen") and holder.get("ready") is None else holder.get("ready")
            cells += [ready, registered, holder.get("kept_by"), holder.get("connections")]
            holders.append(tuple(_text(cell) for cell in cells))
        alike: dict[tuple[str, str], list[int]] = {}
        for other in entry.get("others", ()):
            alike.setdefault((_text(other.get("process")), _text(other.get("command"))), []).append(other["pid"])
        others += [(entry["name"], _pids(pids), below, command) for (below, command), pids in alike.items()]
    for program in document.get("programs", ()):
        reload = program.get("reload") or {}
        last = reload.get("last") or {}
        state = "?" if program.get("unseen") else program.get("state")
        cells = [program["name"], state, _step(reload)]
        cells += [last.get("result"), last.get("seconds"), last.get("reason", "")]
        programs.append(tuple(_text(cell) for cell in cells))
    return [
        Table(("SOCKET", "ADDRESS", "STATE", "REGISTRATION", "QUEUE"), sockets),
        Table(("PROCESS", "PID", "SOCKET", "GENERATION", "READY", "REGISTERED", "KEPT BY", "CONNECTIONS"), holders),
        Table(("SOCKET", "ALSO OPEN IN PID", "BELOW", "COMMAND"), others),
        Table(("PROGRAM", "STATE", "RELOAD", "LAST", "SECONDS", "REASON"), programs),
    ]


def remarks(document: _Document) -> list[str]:
    """What the tables would have one believe wrongly."""
    scan = document.get("scan") or {}
    said = []
    if scan.get("refused"):
        said.append(f"the broker may not look into {scan['refused']} of them")
    if scan.get("unfinished"):
        said.append(f"for {scan['unfinished']} the time did not suffice")
    remarks = [_VIEWS[document["view"]]] if document.get("view") in _VIEWS else []
    remarks += [f"?: {why}" for why in _unseen(document)]
    remarks += [f"a socket may be open in more processes: {', and '.join(said)}"] if said else []
    for program in document.get("programs", ()):
        for one in program.get("leftovers", ()):
            whose = f"{program['name']}: pid {one['pid']} ({one['command']})"
            remarks.append(f"{whose} is left over, on {one['socket']}: {one['remedy']}")
    if scan.get("left_out"):
        remarks.append(f"{scan['left_out']} more processes have a socket open than are shown")
    return remarks


def _step(reload: _Document) -> str:
    """Where it is, and who drains."""
    draining = [f"{one['process']} (pid {one['pid']})" for one in reload.get("draining", ())]
    return ", ".join([_text(reload.get("state")), *(f"{one} drains" for one in draining)])


def _unseen(document: _Document) -> list[str]:
    """Why some things can't be seen, each once."""
    sockets = [entry for entry in document.get("sockets", ()) if _is_unseen(entry)]
    holders = [holder for entry in document.get("sockets", ()) for holder in entry.get("holders", ())]
    every = [*sockets, *holders, *document.get("programs", ())]
    return list(dict.fromkeys(str(one["unseen"]) for one in every if one.get("unseen")))


def _is_unseen(entry: _Document) -> bool:
    """Whether it can't be told in which state a socket is."""
    return entry.get("state") is None and bool(entry.get("unseen"))


def _registration(entry: _Document) -> str:
    """Its policy, and what has come of it."""
    if "holders" not in entry:
        return "-"
    counted = [
        f"{entry[what]} {what if entry[what] != 1 else what[:-1]}"
        for what in ("moves", "stalls", "violations")
        if entry.get(what)
    ]
    return ", ".join([_text(entry.get("registration", "shared")), *counted])


def _registered(holder: _Document) -> str:
    """Whether it has the registration, and if not why."""
    if holder.get("paused") or holder.get("quiesced"):
        return "quiesced"
    if holder.get("unseen"):
        return "?"
    if holder.get("standing") == "held" and holder.get("held_for") is not None:
        return f"held for {holder['held_for']:.0f} s"
    if holder.get("standing") == "revoking":
        return "to let go"
    if holder.get("suspended"):
        return "suspended"
    return "stands by" if holder.get("standing") == "waiting" else _text(holder.get("registered"))


def _pids(pids: Sequence[int]) -> str:
    shown = " ".join(map(str, pids[:_PIDS_SHOWN]))
    return shown if len(pids) <= _PIDS_SHOWN else f"{shown} and {len(pids) - _PIDS_SHOWN} more"


def plain(table: Table) -> str:
    """*table* in aligned columns."""
    rows: Sequence[tuple[str, ...]] = [table.headings, *table.rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _show(document: _Document) -> None:
    manager, broker = document.get("manager") or {}, document.get("broker") or {}
    name = {"circus": "circusd", "supervisor": "supervisord"}.get(manager.get("kind", ""), "manager")
    title = f"{name} (pid {_text(manager.get('pid'))}), broker (pid {_text(broker.get('pid'))})"
    title = "\n".join(
        [
            title,
            *(f"REFUSED: {mistake}" for mistake in document.get("mistakes", ())),
            *(f"WARNING: {warning}" for warning in document.get("warnings", ())),
        ]
    )
    shown = [table for table in tables(document) if table.rows]
    if not sys.stdout.isatty():
        said = ["\n".join(remarks(document))] if remarks(document) else []
        print("\n\n".join([title, *(plain(table) for table in shown), *said]))
        return
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console()
    console.print(Text(title))
    for table in shown:
        drawn = Drawn(box=None, pad_edge=False, header_style="bold")
        for heading in table.headings:
            drawn.add_column(heading, overflow="fold")
        for row in table.rows:
            # As text: what stands in [ ] is no markup of ours.
            drawn.add_row(*(Text(cell) for cell in row))
        console.print()
        console.print(drawn)
    for remark in remarks(document):
        console.print(Text(remark))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
