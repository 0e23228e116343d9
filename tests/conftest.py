"""What a failing test shows, and the circusds that tests start."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import circusd as support
from tests.support.alike import ALIKE

# A shell has what it runs in the background ignore SIGINT, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before what is marked is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in ALIKE:
            item.add_marker(pytest.mark.soak)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed:
        for stage in support.running:
            report.sections.append((f"circusd {stage.mark}", stage.logs()))


@pytest.fixture
def circusd() -> Iterator[Callable[..., support.Circusd]]:
    """Start circusds as :func:`tests.support.circusd.circusd` does; all of them end with the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(support.circusd(*arguments, **options))
