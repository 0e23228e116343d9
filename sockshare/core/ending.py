"""How the old processes of a program are ended: by which signal, and whether their connections are ended before it."""

from __future__ import annotations

import signal
from typing import NamedTuple

from .records import Learned
from .servers import Server
from .spec import ProgramSpec


class Ending(NamedTuple):
    """What is done, with the sentences for people."""

    signal: int
    drain: str = ""  # why they are drained from outside first; empty: they are left to the signal
    by_signal: str = ""  # why they are left to it
    cut: str = ""  # why that may cut requests, and what to do against it


def signal_of(server: Server | None, managers: int) -> int:
    """The stop signal of *server*, where the manager has *managers*: TERM, the default of both, is no choice."""
    if server is None or server.signal is None or managers != signal.SIGTERM:
        return managers
    return server.signal


def ending(
    spec: ProgramSpec,
    number: int,
    *,
    key: str,
    server: Server | None,
    learned: Learned | None,
    process: str,
    catches: bool,
    runtime: str,
) -> Ending:
    """How processes of *spec* are ended, by the signal *number*.

    Args:
        key: How its section spells ``drain``.
        server: What they run, if it is known.
        learned: What became of the last one that was left to its signal.
        process: The name of one of them.
        catches: Whether that has a handler for *number*.
        runtime: The language runtime that has one in any case; empty for others.
    """
    name = name_of(number)
    whom = server.name if server else process
    manner = (server and number != server.signal and server.manner) or "ends too soon"
    if spec.drain == "signal":
        cut = f"{whom} {manner} on {name}; {key} = observe ends its connections first"
        return Ending(number, by_signal=f"by {name}, as its section says drain = signal", cut=cut)
    drained = f"they came after the last look, before {name}"
    if spec.drain != "auto":
        return Ending(number, drain=f"its section says drain = {spec.drain}", cut=drained)
    why = _why_from_outside(number, server=server, learned=learned, process=process, catches=catches, runtime=runtime)
    by_signal = f"{whom} drains itself on {name}" if server else f"it is left to its handler of {name}"
    cut = f"{whom} {manner} on {name}; the next reload ends its connections first"
    return Ending(number, drain=why, cut=drained) if why else Ending(number, by_signal=by_signal, cut=cut)


def _why_from_outside(
    number: int, *, server: Server | None, learned: Learned | None, process: str, catches: bool, runtime: str
) -> str:
    name = name_of(number)
    if learned is not None:
        count = f"{learned.cut} request{' was' if learned.cut == 1 else 's were'}"
        return f"{count} cut when it was left to {name_of(learned.signal)}"
    if not catches:
        return f"{process} would die of signal {number} at once, it has no handler for it"
    if server is not None and not server.drains:
        return f"{server.name} {server.manner} on {name}"
    if server is not None:
        own = server.signal or signal.SIGTERM
        return "" if number == own else f"{server.name} drains itself on {name_of(own)}, not on {name}"
    if runtime:
        return f"{process} runs on {runtime}, which handles signal {number} whether or not its program does"
    return ""


def name_of(number: int) -> str:
    """TERM for 15."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"signal {number}"
