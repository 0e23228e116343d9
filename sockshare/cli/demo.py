"""``sockshare demo [circus|supervisor]``: a manager, versions of a program good and bad, load, and a table of zeros."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from rich.console import Console

from sockshare.core.errors import ExitStatus

from .acts import Demo


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: its processes go with it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _demo_of(manager: str) -> type[Demo]:
    if manager == "circus":
        return Demo
    from .demo_supervisor import SupervisorDemo

    return SupervisorDemo


def main(arguments: Sequence[str]) -> int:
    """Run ``sockshare demo`` with *arguments*; the exit status is 0 only if nothing failed."""
    parser = argparse.ArgumentParser(prog="sockshare demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("manager", nargs="?", default="circus", choices=["circus", "supervisor"])
    parser.add_argument("--no-compare", action="store_true", help="leave out the manager alone")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitStatus.USAGE
    missing = [name for name in (options.manager, "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"sockshare: can't run the demo: {missing[0]} is missing; install sockshare[demo]", file=sys.stderr)
        return ExitStatus.INTERNAL
    with _interruptible():
        # Without a terminal the width would be 80, which wraps the table.
        console = Console() if sys.stdout.isatty() else Console(width=max(120, int(os.environ.get("COLUMNS") or 0)))
        demo = _demo_of(options.manager)(console, compare=not options.no_compare)
        try:
            return demo.play()
        except (TimeoutError, RuntimeError) as error:
            print(f"sockshare: {error}", file=sys.stderr)
            return ExitStatus.INTERNAL
