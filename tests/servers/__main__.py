"""``python -m tests.servers [SERVER]...``: reload each server under load as `auto` does, and see what it lost.

A request may be lost only if the last line of its reload says so. With ``--write`` the rows of docs/servers.md are
written anew for what was run; the others stay.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.rehearsal import all_ready, measure
from tests.support.circusd import PROGRAMS, Circusd, Reload, circusd
from tests.support.load import Load, Result
from tests.support.supervisord import supervisord

from .catalogue import SERVERS, Server

#: 60 new connections and 5 requests of a second each a second, and 2 clients that keep their connections.
LOAD = ("fresh:60", "keepalive:2x10", "slow:5")
SHORT = {"sockshare.ready_hold": "0.5"}
#: Seconds of load before the first reload, and after each.
BEFORE, AFTER = 1.5, 1.5
MANAGERS: dict[str, Callable[..., AbstractContextManager[Circusd]]] = {"circus": circusd, "supervisor": supervisord}
PAGE = Path(__file__).parents[2] / "docs" / "servers.md"
BEGIN, END = "<!-- measured: python -m tests.servers --write -->", "<!-- end -->"
HEAD = """\
| server | version | manager | what `auto` chooses | reloads | requests | lost | said cut | longest wait | a reload |
|---|---|---|---|---|---|---|---|---|---|
"""


class Measured(NamedTuple):
    """What became of one server under one manager."""

    server: str
    version: str
    manager: str
    chosen: str
    reloads: int
    requests: int
    lost: int
    cut: int
    worst: float  # seconds that a fast request took
    seconds: float
    trouble: str  # why it does not count; empty: it does

    @property
    def row(self) -> str:
        """A row of the table."""
        cells = [f"`{self.server}`", self.version, self.manager, self.chosen, str(self.reloads), f"{self.requests:,}"]
        cells += [str(self.lost), str(self.cut), f"{self.worst * 1000:.0f} ms", f"{self.seconds:.1f} s"]
        return f"| {' | '.join(cells)} |"


def install(room: Path, chosen: Sequence[Server]) -> dict[str, str]:
    """An environment in *room* with what *chosen* need; the version of each package, if it could be installed."""
    python = room / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(room)], check=True)
    for package in dict.fromkeys(name for one in chosen for name in (one.package, *one.needs) if name):
        done = subprocess.run([python, "-m", "pip", "install", "-q", package], capture_output=True, text=True)
        if done.returncode:
            print(f"can't install {package}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    pairs = (line.partition("==") for line in listed.stdout.lower().splitlines())
    return {name.replace("_", "-"): version for name, _, version in pairs}


def version_of(one: Server, installed: dict[str, str]) -> str | None:
    """What is there of *one*; None if it can't be run here."""
    if one.package:
        return installed.get(one.package)
    tool = shutil.which(one.tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if tool is None:
        return None
    said = subprocess.run([tool, "version" if one.tool == "go" else "-v"], capture_output=True, text=True)
    found = re.search(r"[0-9]+(\.[0-9]+)+", said.stdout + said.stderr)
    return found[0] if found else "?"


def run(
    name: str, one: Server, version: str, manager: str, room: Path, reloads: int, keys: Mapping[str, str]
) -> Measured:
    """Reload it so often under load."""
    PROGRAMS[name] = one.command.replace("{bin}", str(room / "bin"))
    troubles: list[str] = []
    done: list[Reload] = []
    with MANAGERS[manager](name, watcher={**SHORT, **one.watcher, **keys}) as stage:
        all_ready(stage)
        with Load(stage.port, *(LOAD if one.takes_slow else LOAD[:-1])) as load:
            measure(BEFORE)
            for number in range(reloads):
                stage.deploy(f"r{number}")
                done.append(stage.reload())
                measure(AFTER)
            result = load.stop()
        for reload in done:
            troubles += _troubles(reload, result)
        if troubles or result.failures:
            print("\n".join([*troubles, *_evidence(done, result), stage.logs()]), file=sys.stderr)
    cut = sum(_cost(reload)["cut"] for reload in done)
    seconds = sum(reload.ended - reload.began for reload in done) / len(done)
    chosen = _chosen(done[-1])
    worst = result.of("fresh", "keepalive").worst
    lost = len(result.failures)
    return Measured(
        name, version, manager, chosen, len(done), len(result), lost, cut, worst, seconds, "; ".join(troubles)
    )


def _troubles(reload: Reload, result: Result) -> Iterator[str]:
    """What is not as it should be: a reload that failed, or a loss of which its last line does not tell."""
    if reload.status:
        yield f"a reload exited {reload.status}: {reload.stdout}{reload.stderr}"
        return
    lost = [one for one in result.failures if reload.began <= one.done and one.due <= reload.ended + AFTER]
    cost = _cost(reload)
    # What still drains then is in the log, and in `status`.
    is_said = cost["cut"] or cost["met"] or cost["unseen"] or "takes nothing new" in reload.steps[-1]["reason"]
    if lost and not is_said:
        yield f"{len(lost)} requests were lost, and its last line does not say so: {reload.steps[-1]}"


def _evidence(done: Sequence[Reload], result: Result) -> Iterator[str]:
    for reload in done:
        yield f"reload at {reload.began:.3f}:\n{reload.stdout}"
    for one in result.failures:
        yield f"lost: {one.kind} due {one.due:.3f}, after {one.latency:.3f} s: {one.outcome} {one.detail}"


def _cost(reload: Reload) -> dict[str, Any]:
    return (reload.steps and reload.steps[-1].get("cost")) or {"cut": 0, "met": 0, "unseen": ""}


def _chosen(reload: Reload) -> str:
    said = [str(step["reason"]) for step in reload.steps if step["step"] == "drain"]
    return re.sub(r"\bweb(:\w+)?\b", "it", said[0]) if said else "?"


def write(row: Measured) -> None:
    """Put *row* in the place of the one that the page has of the same server and manager."""
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    table, _, tail = rest.partition(END)
    known = {tuple(line.split(" | ")[:3:2]): line for line in table.splitlines() if line.startswith("| `")}
    known[f"| `{row.server}`", row.manager] = row.row
    order = list(SERVERS)
    lines = sorted(known.items(), key=lambda item: (order.index(item[0][0][3:-1]), item[0][1]))
    today = datetime.datetime.now(datetime.timezone.utc).date()
    where = (
        f"Measured last on {today}, Python {platform.python_version()}, Linux {platform.release().split('-')[0]}.\n\n"
    )
    PAGE.write_text(f"{head}{BEGIN}\n{where}{HEAD}" + "".join(f"{line}\n" for _, line in lines) + f"{END}{tail}")


def main() -> int:
    """Run what was asked for; 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"one of: {'; '.join(SERVERS)}")
    parser.add_argument("--manager", action="append", choices=MANAGERS)
    parser.add_argument("--reloads", type=int, default=5)
    parser.add_argument("--venv", type=Path, help="where the servers are, or are to be installed")
    parser.add_argument("--write", action="store_true", help="write the rows into docs/servers.md")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key, as sockshare.drain")
    arguments = parser.parse_args()
    keys = dict(pair.split("=", 1) for pair in arguments.set)
    unknown = [name for name in arguments.servers if name not in SERVERS]
    if unknown:
        parser.error(f"no such server: {', '.join(unknown)}")
    names = arguments.servers or list(SERVERS)
    room = (arguments.venv or Path(tempfile.gettempdir(), f"sockshare-servers-{os.getuid()}")).absolute()
    installed = install(room, [SERVERS[name] for name in names])
    wrong = 0
    for name in names:
        version = version_of(SERVERS[name], installed)
        if version is None:
            print(f"{name}: not run: it is not here", flush=True)
            continue
        for manager in arguments.manager or list(MANAGERS):
            began = time.monotonic()
            try:
                row = run(name, SERVERS[name], version, manager, room, arguments.reloads, keys)
            except Exception as error:
                wrong += 1
                print(f"{name}: {manager}: {type(error).__name__}: {error}", flush=True)
                continue
            wrong += bool(row.trouble)
            if arguments.write and not row.trouble:
                write(row)
            print(f"{row.row} {row.trouble or 'ok'} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
