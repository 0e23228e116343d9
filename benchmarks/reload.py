"""``python -m benchmarks.reload``: this reload beside what circus, supervisord and gunicorn have of their own.

The same application with the same import time under the same open-loop load, each way in a manager of its own. Every
latency counts from the moment the request was due, so a stall shows in all the requests that it held up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from benchmarks import figures
from benchmarks.client import ask
from sockshare.cli.measured import Load, Result
from sockshare.cli.stage import wait_until
from tests.support.circusd import Circusd, circusd
from tests.support.supervisord import Supervisord, supervisord

FAST = ("fresh", "keepalive")
BUSY = 5  # errno of circusd's answer


class Way(NamedTuple):
    """One way to bring a new version up."""

    name: str
    program: str
    stock: bool
    start: Callable[[Circusd], None]
    processes: int = 2
    watcher: Mapping[str, str] = {}


def ours(stage: Circusd) -> None:
    """`sockshare reload web`."""
    done = stage.reload()
    if done.status:
        raise RuntimeError(str(done))


def theirs(command: str, **properties: object) -> Callable[[Circusd], None]:
    """A command of circus, as circusctl sends it."""

    def start(stage: Circusd) -> None:
        answer = stage.call(command, timeout=120, name="web", **properties)
        while answer.get("errno") == BUSY:  # with another command, such as its own start while a hook blocks
            time.sleep(0.05)
            answer = stage.call(command, timeout=120, name="web", **properties)
        if answer.get("status") != "ok":
            raise RuntimeError(f"circusd says {answer}")

    return start


WAYS = (
    Way("sockshare reload, uvicorn", "uvicorn", False, ours),
    Way("circusctl reload, uvicorn", "uvicorn", True, theirs("reload", graceful=True, waiting=True)),
    Way("circusctl reload --sequential, uvicorn", "uvicorn", True, theirs("reload", sequential=True, waiting=True)),
    Way(
        "circusctl reload, after_spawn hook that blocks, uvicorn",
        "uvicorn",
        True,
        theirs("reload", graceful=True, waiting=True),
        watcher={"hooks.after_spawn": "benchmarks.hooks.after_spawn"},
    ),
    Way("sockshare reload, gunicorn gthread", "gthread", False, ours),
    Way("circusctl reload, gunicorn gthread", "gthread", True, theirs("reload", graceful=True, waiting=True)),
    Way("circusctl signal HUP, gunicorn gthread", "gthread", True, theirs("signal", signum="hup")),
    *(
        way
        for name, program, watcher in (
            ("threaded http.server", "threaded", {}),
            ("node", "node", {}),
            ("Flask, development server", "flask", {}),
            ("waitress", "waitress", {"stop_signal": "SIGINT"}),
        )
        for way in (
            Way(f"sockshare reload, {name}", program, False, ours, watcher=watcher),
            Way(f"circusctl reload, {name}", program, True, theirs("reload", graceful=True, waiting=True)),
        )
    ),
)


def control(command: str, *arguments: str) -> Callable[[Circusd], None]:
    """A command of supervisorctl."""

    def start(stage: Circusd) -> None:
        assert isinstance(stage, Supervisord)
        done = stage.ctl(command, *arguments)
        if done.returncode:
            raise RuntimeError(f"supervisorctl says {done.stdout}{done.stderr}")

    return start


SUPERVISOR_WAYS = (
    Way("sockshare reload, uvicorn", "uvicorn", False, ours),
    # Without a shared socket only one process can have the port.
    Way("supervisorctl restart, uvicorn (1 process)", "uvicorn", True, control("restart", "web"), 1),
    Way("sockshare reload, gunicorn gthread", "gthread", False, ours),
    Way("supervisorctl restart, gunicorn gthread (1 process)", "gthread", True, control("restart", "web"), 1),
    Way("supervisorctl signal HUP, gunicorn gthread", "gthread", True, control("signal", "HUP", "web"), 1),
)


class Outcome(NamedTuple):
    """What the clients saw of one way."""

    quiet: Result
    loud: Result
    seconds: float


def measure(
    way: Way, reloads: int, import_seconds: float, kinds: list[str], settle: float, manager: str = "circus"
) -> Outcome:
    """Reload so many times under load.

    Raises:
        RuntimeError: The manager or sockshare refused.
        TimeoutError: The new version did not answer alone in the end.
    """
    started = circusd if manager == "circus" else supervisord
    options: dict[str, Any] = {"watcher": way.watcher} if way.watcher else {}
    with started(
        way.program, stock=way.stock, numprocesses=way.processes, import_seconds=import_seconds, **options
    ) as stage:
        wait_until(lambda: answers_alone(stage, "v1"), 60, "the first version answers", 0.05)
        with Load(stage.port, *kinds) as load:
            time.sleep(settle)  # the load itself is what this waits for: so many seconds of it without a reload
            began = time.monotonic()
            for number in range(2, reloads + 2):
                stage.deploy(f"v{number}")
                way.start(stage)
                # `signal` returns before anything has happened.
                wait_until(partial(answers_alone, stage, f"v{number}"), 60, "only the new version answers", 0.05)
            ended = time.monotonic()
            time.sleep(settle)
            result = load.stop()
    # A request that was in flight when the first reload began is that reload's to lose.
    loud = Result((record for record in result.records if record.done >= began), result.worst_lag)
    quiet = Result((record for record in result.records if record.done < began), result.worst_lag)
    return Outcome(quiet, loud, (ended - began) / reloads)


def answers_alone(stage: Circusd, version: str) -> bool:
    """Whether *version*, and no other, answers now: of two processes the other would be seen."""
    return all((answer := ask(stage.port)) and answer.version == version for _ in range(20))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reload", description=__doc__.partition("\n")[0])
    parser.add_argument("--manager", choices=["circus", "supervisor"], default="circus")
    parser.add_argument("--reloads", type=int, default=3, help="of each way")
    parser.add_argument("--import-seconds", type=float, default=2.0, help="that the application takes to import")
    parser.add_argument("--settle", type=float, default=2.0, help="seconds of load before and after")
    parser.add_argument("--only", default="", help="ways whose name contains this")
    parser.add_argument("kinds", nargs="*", default=["fresh:100", "keepalive:4x10", "slow:5"], metavar="KIND")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = [
        ("", "requests", "failed", "longest stall", "p99", "without a reload", "p99", "s/reload")
    ]
    notes = ["stall and p99 are of the fast requests; failed is of all"]
    for way in WAYS if options.manager == "circus" else SUPERVISOR_WAYS:
        if options.only not in way.name:
            continue
        try:
            seen = measure(way, options.reloads, options.import_seconds, options.kinds, options.settle, options.manager)
        except (RuntimeError, TimeoutError) as error:
            notes.append(f"{way.name}: {error}")
            continue
        loud, quiet = seen.loud.of(*FAST), seen.quiet.of(*FAST)
        rows.append(
            (
                way.name,
                str(len(seen.loud)),
                str(len(seen.loud.failures)),
                figures.milliseconds(loud.worst),
                figures.milliseconds(loud.quantile(0.99)),
                figures.milliseconds(quiet.worst),
                figures.milliseconds(quiet.quantile(0.99)),
                f"{seen.seconds:.1f}",
            )
        )
    load = " ".join(options.kinds)
    what = f"{options.reloads} reloads under {options.manager}, 2 processes where nothing else is said"
    title = f"{what}, import {options.import_seconds:g} s, load {load} (a second)"
    figures.show(title, rows, notes)


if __name__ == "__main__":
    main()
