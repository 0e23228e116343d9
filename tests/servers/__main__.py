"""``python -m tests.servers [SERVER]...``: reload each server under load as `auto` does, and see what it lost.

No more requests may be lost than the last line of their reload says. With ``--write`` the rows of docs/servers.md are
written anew for what was run; the others stay.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sockshare.cli.stage import free_port
from tests.e2e.rehearsal import all_ready, measure
from tests.support.apps.native import find
from tests.support.circusd import PROGRAMS, Circusd, Reload, circusd
from tests.support.load import Load, Record, Result
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
    if one.front and find("nginx") is None:
        return None
    if one.package:
        return installed.get(one.package)
    tool = find(one.tool)
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
    with ExitStack() as ending:
        path = f"{ending.enter_context(tempfile.TemporaryDirectory())}/web"
        sock = {key: value.replace("{path}", path) for key, value in one.sock.items()}
        if "path" in sock:
            sock = {"host": "", "port": "", **sock} if manager == "circus" else {"socket": f"unix://{path}"}
        stage = ending.enter_context(
            MANAGERS[manager](name, leave=True, watcher={**SHORT, **one.watcher, **keys}, sock=sock)
        )
        port = ending.enter_context(_front(stage, one.front.replace("{path}", path))) if one.front else stage.port
        stage.start()
        try:
            stage.wait_for_answer(port)
        except TimeoutError:
            print(stage.logs(), file=sys.stderr)
            raise
        all_ready(stage)
        with Load(port, *(LOAD if one.takes_slow else LOAD[:-1])) as load:
            measure(BEFORE)
            for number in range(reloads):
                stage.deploy(f"r{number}")
                done.append(stage.reload())
                measure(AFTER)
            result = load.stop()
        for number, reload in enumerate(done):
            lost = [one for one in result.failures if _culprit(one, done) == number]
            troubles += _troubles(reload, lost)
        if troubles or result.failures:
            print("\n".join([*troubles, *_evidence(done, result), stage.logs()]), file=sys.stderr)
    cut = sum(_cost(reload)["cut"] for reload in done)
    seconds = sum(reload.ended - reload.began for reload in done) / len(done)
    chosen = _chosen(done[-1])
    worst = result.of("fresh", "keepalive").worst
    failed = len(result.failures)
    return Measured(
        name, version, manager, chosen, len(done), len(result), failed, cut, worst, seconds, "; ".join(troubles)
    )


@contextmanager
def _front(stage: Circusd, passes: str) -> Iterator[int]:
    """An nginx that passes each request on as *passes* says, once, on a connection of its own; its port."""
    port = free_port()
    home = stage.directory / "front"
    home.mkdir()
    passes = passes.replace("{directory}", str(stage.directory)).replace("{port}", str(stage.port))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)
    (home / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {home}/pid; error_log {home}/errors; events {{}}\n"
        f"http {{ access_log off; {temporary} proxy_next_upstream off; fastcgi_next_upstream off;\n"
        f"server {{ listen 127.0.0.1:{port} backlog=512; location / {{ {passes} }} }} }}\n"
    )
    command = [find("nginx") or "nginx", "-p", str(home), "-e", f"{home}/errors", "-c", str(home / "nginx.conf")]
    with subprocess.Popen(command) as process:
        try:
            yield port
        finally:
            process.terminate()


def _culprit(lost: Record, done: Sequence[Reload]) -> int:
    """The number of the reload that has cost this request: the last that had begun as it failed, or as it was due."""
    moment = lost.due if lost.outcome == "timed_out" else lost.done
    return max(sum(reload.began <= moment for reload in done) - 1, 0)


def _troubles(reload: Reload, lost: Sequence[Record]) -> Iterator[str]:
    """What is not as it should be: a reload that failed, or a loss of which its last line does not tell."""
    if reload.status:
        yield f"a reload exited {reload.status}: {reload.stdout}{reload.stderr}"
        return
    cost = _cost(reload)
    # What still drains then is in the log, and in `status`.
    is_open = cost["unseen"] or "takes nothing new" in reload.steps[-1]["reason"]
    if len(lost) > cost["cut"] + cost["met"] and not is_open:
        yield f"{len(lost)} requests were lost, and its last line does not say so many: {reload.steps[-1]}"


def _evidence(done: Sequence[Reload], result: Result) -> Iterator[str]:
    for reload in done:
        yield f"reload from {reload.began:.3f} to {reload.ended:.3f}:\n{reload.stdout}"
    for one in result.failures:
        by = f"reload {_culprit(one, done)}"
        yield f"lost by {by}: {one.kind} due {one.due:.3f}, {one.latency:.3f} s: {one.outcome} {one.detail}"


def _cost(reload: Reload) -> dict[str, Any]:
    return (reload.steps and reload.steps[-1].get("cost")) or {"cut": 0, "met": 0, "unseen": ""}


def _chosen(reload: Reload) -> str:
    said = [str(step["reason"]) for step in reload.steps if step["step"] == "drain"]
    # What the reload before has left to be drained is told of, too.
    said = [reason for reason in said if not re.match("[0-9]+ connections? left", reason)]
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
