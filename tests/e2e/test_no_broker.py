"""Commands that are told of no broker: on a machine of its own, as no other manager may be seen there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRIVATE = "mount -t tmpfs -o mode=755 tmpfs /run && exec "


@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--pid", "--mount", "true"], capture_output=True).returncode != 0,
    reason="only root may have namespaces of its own, and become other users",
)
@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_command_without_an_endpoint_finds_the_manager_or_says_why_not(manager: str) -> None:
    """The tests of `no_broker.py`, where no other process is to be seen, and no other meeting point."""
    tests = Path(__file__).with_name("no_broker.py")
    alone = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--mount",
        "sh",
        "-c",
        f'{PRIVATE}"$@"',
        "sh",
    ]
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", manager, str(tests)]
    done = subprocess.run(
        [*alone, *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
