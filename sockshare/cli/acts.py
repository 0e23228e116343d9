"""The acts of ``sockshare demo``, under a circusd: versions of a program good and bad, load, and a table of zeros.

Nothing is assumed but the extras of ``sockshare[demo]``; everything happens in a temporary directory, on a free port
of 127.0.0.1, as whoever runs it, and is gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sockshare.core.errors import ExitStatus

from .measured import Load, Result
from .stage import Stage, free_port, wait_until

LOAD = ("fresh:100", "keepalive:4x5", "slow:2")
SECONDS = 0.4  # of load before and after what an act does

INI = """\
[socket:web]
host = 127.0.0.1
port = {port}

[plugin:sockshare]
use = circus_sockshare.SockShare
use_sockets = True
runtime_dir = {runtime}
logfile = {directory}/sockshare.log

[watcher:web]
cmd = {sockshare} exec -- {uvicorn} app:app --fd {{fd:web}} --no-access-log --log-level warning
numprocesses = 2
copy_env = True
stderr_stream.class = FileStream
stderr_stream.filename = {directory}/web.err
sockshare.sockets = web
sockshare.ready_timeout = 3
sockshare.ready_hold = 0.5
"""

STOCK_INI = """\
[socket:web]
host = 127.0.0.1
port = {port}

[watcher:web]
cmd = {uvicorn} app:app --fd $(circus.sockets.web) --no-access-log --log-level warning
numprocesses = 2
copy_env = True
use_sockets = True
"""

APP = """\
import asyncio, json, os, sys, time

VERSION = {version!r}
{at_import}


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    body = json.dumps({{"version": VERSION, "pid": os.getpid()}}).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""
GOOD = "time.sleep(1)  # as a program that has much to import"
CRASHES = 'sys.exit("no such module: databse")'
HANGS = "time.sleep(3600)"


class Act(NamedTuple):
    """One line of the table."""

    name: str
    result: Result
    wrong: str  # what was not as it had to be; empty if all was
    stock: bool = False


class Demo:
    """The acts, in order; :meth:`play` returns the exit status."""

    stage_type: type[Stage] = Stage
    logs: tuple[str, ...] = ("circusd.log", "sockshare.log", "web.err")

    def __init__(self, console: Console, *, compare: bool) -> None:
        self.console = console
        self.compare = compare
        self.acts: list[Act] = []
        self.stage = self.stage_type()
        self.port = free_port()
        self.version = 0

    def say(self, text: str, style: str = "") -> None:
        """One line, plain where the output is no terminal."""
        self.console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def play(self) -> int:
        """Everything; 0 only if no request of an act of sockshare failed and each act ended as it must."""
        with self.stage, self.stage_type() as stock:
            try:
                self._play(stock)
            except (TimeoutError, RuntimeError):
                self._show_logs()
                raise
        self.console.print(self._table())
        return self._verdict()

    def _play(self, stock: Stage) -> None:
        ini = self._ini(INI, self.stage, self.port)
        self._deploy(self.stage)
        self.say("circus.ini:", "bold")
        self.say("\n".join(f"    {line}" for line in ini.splitlines()))
        self.say(f"\nstarting circusd, its programs on 127.0.0.1:{self.port}, and load: {', '.join(LOAD)} a second")
        self.stage.start()
        self.stage.wait_for_answer(self.port)
        self._wait_for_all()
        stock_port = free_port()
        self._deploys()
        if self.compare:
            self._ini(STOCK_INI, stock, stock_port)
            self._deploy(stock)
            stock.start()  # it comes up while the host is away in the other one
        self._act("host of the broker killed", self._kill_host)
        if self.compare:
            stock.wait_for_answer(stock_port)
            self._stock(stock, stock_port)

    def _deploys(self) -> None:
        for number in range(1, 4):
            self._act(f"reload {number}, to a version with a 1 s import", self._good)
        self._act("deploy of one that crashes", self._crash)
        self._act("deploy of one that hangs", self._hang)
        self._act("reload with the broker killed in the middle", self._kill_broker)

    def _show_logs(self) -> None:
        """What there is to see when something never came, before it is removed."""
        for name in self.logs:
            self.say(f"--- {name}\n{self.stage.tail(self.stage.directory / name)}", "yellow")

    def _verdict(self) -> int:
        wrong = [act for act in self.acts if not act.stock and (act.wrong or act.result.failures)]
        for act in wrong:
            self.say(f"{act.name}: {act.wrong or f'{len(act.result.failures)} requests failed'}", "red")
            for record in act.result.failures[:5]:
                self.say(f"    {record.kind} {record.outcome} after {record.latency:.2f} s {record.detail}")
        return ExitStatus.INTERNAL if wrong else ExitStatus.OK

    def _ini(self, text: str, stage: Stage, port: int) -> str:
        beside = os.path.join(os.path.dirname(sys.executable), "")
        installed = all(os.access(f"{beside}{name}", os.X_OK) for name in ("sockshare", "uvicorn"))
        prefix = "" if installed else f"{sys.executable} -m "
        ini = text.format(
            port=port,
            runtime=stage.runtime,
            directory=stage.directory,
            sockshare=f"{prefix}sockshare",
            uvicorn=f"{prefix}uvicorn",
        )
        stage.write(ini)
        return ini

    def _deploy(self, stage: Stage, at_import: str = GOOD) -> str:
        """Write the next version of the program; nothing runs it yet."""
        self.version += 1
        version = f"v{self.version}"
        # Bytecode is told by its source's size and second: of two versions in one second the older would run.
        shutil.rmtree(stage.directory / "__pycache__", ignore_errors=True)
        (stage.directory / "app.py").write_text(APP.format(version=version, at_import=at_import))
        return version

    def _act(self, name: str, play: Callable[[], str]) -> None:
        self.say(f"\n{name}", "bold")
        with Load(self.port, *LOAD) as load:
            time.sleep(SECONDS)
            wrong = play()
            time.sleep(SECONDS)
            result = load.stop()
        self.acts.append(Act(name, result, wrong))
        summary = result.summary()
        style = "red" if wrong or result.failures else "green"
        self.say(f"    {len(result)} requests, {summary['failed']} failed, worst {worst(result):.0f} ms", style)

    def _reload(self, expected: ExitStatus, version: str, meanwhile: Callable[[str], None] = lambda _: None) -> str:
        """Run the command; say what was wrong, if anything: status, who answers, who runs."""
        before = self.stage.pids()
        self.say("    $ sockshare reload web")
        command = self.stage.command("reload", "web", "--json")
        with command:
            # In a session of its own, so that Ctrl-C of the demo is not two: the end of the stage is its end too.
            assert command.stdout is not None
            for line in command.stdout:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    step = json.loads(line)
                    detail = " ".join(str(step[key]) for key in ("process", "pid", "reason") if step.get(key))
                    self.say(f"    {step.get('seconds', 0):5.2f} s  {step['step']:<12}{detail}")
                    meanwhile(step["step"])
            errors = command.stderr.read() if command.stderr is not None else ""
        for line in errors.splitlines():
            self.say(f"    {line}")
        status, pids = command.returncode, self.stage.pids()
        self.say(f"    exit status {status}")
        if expected == ExitStatus.OK:
            if status != expected:
                return f"exit status {status}, not {expected.value}"
            answered = self.stage.ask(self.port)
            kept = set(before) & set(pids)
            return f"{kept or answered} of the old version is left" if kept or answered != version else ""
        if status not in (expected, ExitStatus.ROLLED_BACK):
            return f"exit status {status}, not {expected.value}"
        return "" if pids == before else f"{before} became {pids}"

    def _good(self) -> str:
        return self._reload(ExitStatus.OK, self._deploy(self.stage))

    def _crash(self) -> str:
        return self._reload(ExitStatus.ROLLED_BACK, self._deploy(self.stage, CRASHES))

    def _hang(self) -> str:
        return self._reload(ExitStatus.TIMED_OUT, self._deploy(self.stage, HANGS))

    def _kill_broker(self) -> str:
        killed: list[int] = []

        def kill(step: str) -> None:
            if step == "switch" and not killed:
                killed.append(self._status()["broker"])
                self.stage.kill(killed[0])
                self.say(f"    (killed the broker, pid {killed[0]})", "yellow")

        wrong = self._reload(ExitStatus.OK, self._deploy(self.stage), kill)
        return wrong if killed else wrong or "no broker was killed"

    def _kill_host(self) -> str:
        [host] = self.stage.pids("plugin:sockshare")
        pids = self.stage.pids()
        self.stage.kill(host)
        self.say(f"    killed pid {host}; circusd starts another one within its check_delay (1 s)")
        wait_until(lambda: self.stage.pids("plugin:sockshare") not in ([], [host]), 10, "there is a host", 0.1)
        wait_until(lambda: self.stage.sockshare("status").returncode == 0, 10, "status answers", 0.1)
        return "" if self.stage.pids() == pids else f"{pids} became {self.stage.pids()}"

    def _stock(self, stock: Stage, port: int) -> None:
        name = "for comparison: circusctl reload, circus alone"
        self.say(f"\n{name}", "bold")
        with Load(port, *LOAD) as load:
            time.sleep(SECONDS)
            self._deploy(stock)
            self.say("    $ circusctl reload web")
            stock.call("reload", name="web", waiting=True)
            time.sleep(1.5)  # the new ones' import
            result = load.stop()
        self.acts.append(Act(name, result, "", stock=True))
        self.say(f"    {len(result)} requests, {len(result.failures)} failed, worst {worst(result):.0f} ms", "yellow")

    def _status(self) -> dict[str, int]:
        """The pids of manager and broker."""
        document = json.loads(self.stage.sockshare("status", "--json").stdout)
        return {name: int(document[name]["pid"]) for name in ("manager", "broker")}

    def _wait_for_all(self) -> None:
        """Return once the program's processes all serve: the first answer came from one of them."""

        def is_ready() -> bool:
            done = self.stage.sockshare("status", "--json")
            if done.returncode != 0:
                return False
            holders = [holder for sock in json.loads(done.stdout)["sockets"] for holder in sock["holders"]]
            return sum(bool(holder["ready"]) for holder in holders) == 2

        wait_until(is_ready, 20, "both processes are ready", 0.1)

    def _table(self) -> Table:
        table = Table(title="requests", title_justify="left")
        table.add_column("act")
        for name in ("requests", "failed", "refused", "reset", "timed out", "worst ms"):
            table.add_column(name, justify="right")
        for act in self.acts:
            counts = [act.result.count(name) for name in ("refused", "reset", "timed_out")]
            cells = [len(act.result), len(act.result.failures), *counts, round(worst(act.result))]
            style = "yellow" if act.stock else "red" if act.wrong or act.result.failures else "green"
            table.add_row(escape(act.name), *(str(cell) for cell in cells), style=style)
        table.caption = "worst: from the moment a request was due; those to /slow, which take 1 s, are not in it"
        table.caption_justify = "left"
        return table


def worst(result: Result) -> float:
    """The longest latency, in milliseconds, of the requests that are answered at once."""
    return result.of("fresh", "keepalive").worst * 1000
