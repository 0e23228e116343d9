"""``python -m tests.recorded.record``: record what host and broker of this checkout say to each other.

Run it once at the commit of a release, with both managers; each line of ``VERSION-MANAGER.jsonl`` is one message:
``{"from": "host" or "broker", "fds": how many descriptors came with it, "message": {...}}``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sockshare.core.versions import LINK
from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.supervisord import supervisord

HERE = Path(__file__).parent
#: Put before everything else that the manager's processes import: writes down what the host says and hears.
TAP = """\
import json, os, sys
if "sockshare.broker" not in sys.orig_argv and (
    any("circus_sockshare" in word for word in sys.orig_argv) or "supervisor.supervisord" in sys.orig_argv
):
    from sockshare.kernel.channel import Channel
    send, decode = Channel.send, Channel._decode
    def note(whose, message, fds):
        message = {key: value for key, value in message.items() if key != "fds"}
        with open(os.environ["RECORDED"], "a") as file:
            file.write(json.dumps({"from": whose, "fds": len(fds), "message": message}) + "\\n")
    def sending(self, message, fds=()):
        note("host", message, fds)
        return send(self, message, fds)
    def decoding(self, line):
        message, fds = decode(self, line)
        note("broker", message, fds)
        return message, fds
    Channel.send, Channel._decode = sending, decoding
"""
HOOK = "circus_sockshare.hooks.before_signal"
KEYS = {"sockshare.ready_hold": "0.5", "sockshare.ready_timeout": "20"}


def noted(path: Path, kind: str) -> int:
    """How many journal lines with a record of *kind* were recorded in *path*."""
    messages = [json.loads(line)["message"] for line in path.read_text().splitlines()]
    journal = [one for one in messages if one["type"] == "journal" and one["record"]]
    return sum(one["key"].startswith(kind) for one in journal)


def kill_in_mid_reload(stage: Circusd, recorded: Path, kind: str, before: int) -> None:
    """SIGKILL the broker when the journal has a new record of *kind*, so that the next hello has it."""

    def is_noted() -> bool:
        return noted(recorded, kind) > before

    wait_until(is_noted, 20, f"the journal has a {kind}")
    time.sleep(0.3)  # the new process has been started; in time for its import of a second
    stage.kill(stage.broker())


def record(start: Callable[..., Any], manager: str) -> None:
    """Record one manager: two processes with gates, a reload, one in whose middle the broker dies, and commands."""
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        (Path(scratch) / "sitecustomize.py").write_text(TAP)
        recorded = Path(scratch) / "messages"
        watcher = dict(KEYS)
        options: dict[str, Any] = {"plugin": {"web.registration": "exclusive"}}
        if manager == "circus":
            watcher |= {"hooks.before_signal": HOOK, "graceful_timeout": "70"}
        else:
            options = {"sock": {"registration": "exclusive"}}
        stage = stack.enter_context(
            start("gated", leave=True, numprocesses=2, import_seconds=1.0, watcher=watcher, **options)
        )
        stage.environment["PYTHONPATH"] = f"{scratch}:{stage.environment['PYTHONPATH']}"
        stage.environment["RECORDED"] = str(recorded)
        stage.up()
        wait_until(lambda: stage.sockshare("status").returncode == 0, 20, "all is ready", 0.2)
        stage.sockshare("doctor")
        name = json.loads(stage.sockshare("status", "--json").stdout)["sockets"][0]["holders"][0]["process"]
        stage.sockshare("quiesce", name)
        stage.kill(stage.broker())
        wait_until(lambda: stage.sockshare("status").returncode == 0, 20, "all is ready", 0.2)
        stage.sockshare("wake", name)
        print(stage.reload())
        before = noted(recorded, "reload:")
        with stage.command("reload", "web") as command:
            kill_in_mid_reload(stage, recorded, "reload:", before)
            print(command.communicate(timeout=60))
        if manager == "circus":
            stage.call("reload", name="web")
            kill_in_mid_reload(stage, recorded, "retirement:", 0)
            wait_until(lambda: stage.sockshare("status").returncode == 0, 60, "all is ready", 0.2)
        (HERE / f"{LINK}-{manager}.jsonl").write_text(recorded.read_text())


if __name__ == "__main__":
    for manager, start in (("circus", circusd), ("supervisor", supervisord)):
        if manager in sys.argv[1:] or not sys.argv[1:]:
            record(start, manager)
