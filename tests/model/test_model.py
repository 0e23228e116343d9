"""spin checks every run of the protocol in registration.pml, and finds each of the eight wrong designs in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("registration.pml")
COMPILER = shutil.which("cc") or shutil.which("gcc")
SPIN = shutil.which("spin")

pytestmark = pytest.mark.skipif(
    SPIN is None or COMPILER is None,
    reason="checking the model needs spin and a C compiler (Debian: apt-get install spin gcc)",
)

#: MiB that a search may have, and seconds.
MEMORY, SECONDS = 3500, 240


def search(at: Path, *defines: str) -> str:
    """What spin's verifier prints; it stops at the first run that breaks a law."""
    assert SPIN is not None
    assert COMPILER is not None
    options = [f"-D{define}" for define in defines]
    # No deadlock is an error: that nothing can happen any more is where the model itself looks who holds.
    made = ["-O1", "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY}", "-o", "pan", "pan.c"]
    subprocess.run([SPIN, *options, "-a", MODEL], cwd=at, check=True, capture_output=True, timeout=60)
    subprocess.run([COMPILER, *made], cwd=at, check=True, capture_output=True, timeout=120)
    ran = subprocess.run(["./pan", "-E", "-m100000", "-w22"], cwd=at, capture_output=True, text=True, timeout=SECONDS)
    return ran.stdout + ran.stderr


@pytest.mark.parametrize(
    "defines",
    [
        ("KILLS=1", "DEATHS=1", "MOVES=2"),
        ("KILLS=2", "DEATHS=0", "MOVES=2"),
        ("KILLS=2", "DEATHS=1", "MOVES=2", "GATES=2"),
        pytest.param(("KILLS=2", "DEATHS=1", "MOVES=2"), marks=pytest.mark.soak),
    ],
    ids=" ".join,
)
def test_no_run_breaks_a_law(defines: tuple[str, ...], tmp_path: Path) -> None:
    """The search is exhaustive: not cut short by memory or depth, and every state is looked at."""
    found = search(tmp_path, *defines)
    assert "errors: 0" in found, found
    assert not re.search(r"max search depth too small|Search not completed|out of memory", found), found
    states = re.search(r"(\d+) states, stored", found)
    assert states is not None, found
    assert int(states[1]) > 100_000, found


@pytest.mark.parametrize(
    "wrong",
    [
        "TIME_GRANTS",
        "GRANT_BEFORE_RECORD",
        "NO_RECORD",
        "EPOCH_RESET",
        "OLD_CONNECTION",
        "NO_EPOCH",
        "BARE_PID",
        "NOT_SWEPT",
    ],
)
def test_wrong_design_breaks_a_law(wrong: str, tmp_path: Path) -> None:
    """There is a run that shows it."""
    found = search(tmp_path, "KILLS=1", "DEATHS=1", "MOVES=3", wrong)
    assert re.search(r"assertion violated", found), found
    assert "errors: 1" in found, found
