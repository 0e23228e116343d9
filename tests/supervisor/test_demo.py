"""``sockshare demo supervisor``, as `tests.e2e.test_demo` has it for circus."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e import test_demo
from tests.e2e.test_demo import home

__all__ = ["home"]


@pytest.mark.soak
def test_table_of_zeros_ends_the_demo(home: Path) -> None:
    """Exit 0, no request failed in any act of sockshare, and nothing is left: process or file."""
    command = test_demo.start(home, "supervisor")
    try:
        output, _ = command.communicate(timeout=150)
        assert command.returncode == 0, output
        rows = [line for line in output.splitlines() if re.search(r"│\s+\d+ │", line)]
        assert len(rows) == 7, output
        for row in rows[:-1]:  # the last one is supervisord alone
            assert re.findall(r"\d+", row.split("│", 2)[2])[1:5] == ["0"] * 4, output
        assert not test_demo.processes_below(home)
        assert not list(home.iterdir())
    finally:
        test_demo.end(command, home)
