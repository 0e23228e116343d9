"""By which signal old processes end, and whether their connections are ended before it."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from sockshare.core.ending import Ending, ending, signal_of
from sockshare.core.records import Learned
from sockshare.core.servers import SERVERS
from sockshare.core.spec import ProgramSpec

TERM, INT, QUIT = int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIGQUIT)


def of(server: str | None = None, number: int = TERM, drain: Any = "auto", **options: Any) -> Ending:
    """An `ending` of a process with a handler."""
    facts = {"learned": None, "process": "web:1", "catches": True, "runtime": "", **options}
    found = None if server is None else SERVERS[server]
    return ending(ProgramSpec("web", drain=drain), number, key="sockshare.drain", server=found, **facts)


@pytest.mark.parametrize(
    ("server", "managers", "number"),
    [
        ("nginx", TERM, QUIT),
        ("nginx", INT, INT),
        ("uvicorn", TERM, TERM),
        (None, TERM, TERM),
        (None, QUIT, QUIT),
    ],
)
def test_server_gets_its_own_signal_unless_another_was_chosen(server: str | None, managers: int, number: int) -> None:
    """TERM is what both managers have by default."""
    assert signal_of(server and SERVERS[server], managers) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (of("uvicorn"), ""),
        (of("nginx", QUIT), ""),
        (of(), ""),
        (of("daphne"), "daphne stops at once on TERM"),
        (of("nginx", TERM), "nginx drains itself on QUIT, not on TERM"),
        (of("uvicorn", catches=False), "web:1 would die of signal 15 at once, it has no handler for it"),
        (of(runtime="node"), "web:1 runs on node, which handles signal 15 whether or not its program does"),
        (of("uvicorn", learned=Learned(2, TERM)), "2 requests were cut when it was left to TERM"),
        (of(learned=Learned(1, INT)), "1 request was cut when it was left to INT"),
        (of("uvicorn", drain="observe"), "its section says drain = observe"),
        (of("daphne", drain="signal", learned=Learned(1, TERM)), ""),
    ],
)
def test_why_it_is_drained_from_outside(found: Ending, why: str) -> None:
    """What was seen goes before what is known of a server, and what the section says before both."""
    assert found.drain == why
    assert bool(found.by_signal) is not bool(why)


def test_sentences_say_what_to_do() -> None:
    """A handler alone is not called a drain; and what may be cut has its cause and its remedy."""
    assert of("uvicorn").by_signal == "uvicorn drains itself on TERM"
    assert of().by_signal == "it is left to its handler of TERM"
    assert of(number=40).by_signal == "it is left to its handler of signal 40"
    assert of().cut == "web:1 ends too soon on TERM; the next reload ends its connections first"
    assert of("daphne").cut == of(drain="observe").cut == "they came after the last look, before TERM"
    assert of("daphne", drain="signal").cut == (
        "daphne stops at once on TERM; sockshare.drain = observe ends its connections first"
    )
