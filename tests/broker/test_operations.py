"""Requests of commands, to a real broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.broker.stage import stage


def test_process_that_has_died_is_not_replaced_while_its_manager_has_yet_to_bury_it() -> None:
    """As it does when it ends in the moment of the request: nobody would hear of its death, and wait for it."""
    with stage() as one, subprocess.Popen([sys.executable, "-c", ""]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        one.verbs.managed |= {dead.pid: "web_0", os.getpid(): "web_1"}
        done = one.sockshare("reload", "web", "--dry-run", "--json")
        steps = [json.loads(line) for line in done.stdout.splitlines()]
        assert {step["process"] for step in steps if step.get("process")} == {"web_1"}, done
