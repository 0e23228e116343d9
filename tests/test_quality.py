"""The one test command also lints, checks types, and demands every branch of the pure rules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, **environment: str) -> None:
    """Run a module of this Python in the checkout; its output is the failure."""
    ran = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout


MYPY = pytest.param(
    ("mypy", "--strict"),
    id="mypy --strict",
    marks=pytest.mark.skipif(zmq.pyzmq_version_info() < (27,), reason="types are checked against a pyzmq of today"),
)


@pytest.mark.parametrize("command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), MYPY], ids=" ".join)
def test_nothing_is_found_by_tool(command: tuple[str, ...]) -> None:
    """The source is as the tools want it."""
    run(*command)


def test_every_branch_of_core_is_run_by_its_tests(tmp_path: Path) -> None:
    """The pure rules have no line and no branch that tests/core does not reach."""
    data = {"COVERAGE_FILE": str(tmp_path / "coverage"), "COVERAGE_RCFILE": str(ROOT / "setup.cfg")}
    # What goes by chance reaches nothing that the tables do not, and takes longer than all of them.
    tests = ["tests/core", "-k", "not wrong_design and not machine"]
    run("coverage", "run", "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests, **data)
    run("coverage", "report", "--fail-under=100", **data)
