"""WebSocket clients stay connected through reloads, and hear each message once, in order. The chat is the example."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sockshare.cli.stage import Stage, free_port, wait_until
from sockshare.cli.supervisor_stage import SupervisorStage

ROOT = Path(__file__).resolve().parents[2]
START = {"circus": "[socket:chat]", "supervisor": "[rpcinterface:sockshare]"}
FILES = {"circus": "circus/websocket-chat/circus.ini", "supervisor": "supervisor/websocket-chat/supervisord.conf"}


def account_of(manager: str, *, rooms: int, size: int, reloads: int, rate: float) -> dict[str, Any]:
    """What *rooms* of *size* clients have heard during *reloads*, and what became of these."""
    with Stage() if manager == "circus" else SupervisorStage() as stage:
        program = ROOT / "examples" / manager / "websocket-chat" / "chat.py"
        text = (ROOT / "examples" / FILES[manager]).read_text()
        port = free_port()
        # The stage has the other sections, on paths of its own.
        text = text[text.index(START[manager]) :].replace("8000", str(port))
        text = text.replace("python chat.py", f"{sys.executable} {program}")
        stage.write(
            text.replace("use_sockets = True", f"use_sockets = True\nruntime_dir = {stage.runtime}").replace(
                ":make_rpcinterface", f":make_rpcinterface\nruntime_dir = {stage.runtime}"
            )
        )
        stage.start()
        wait_until(lambda: stage.sockshare("status").returncode == 0, 40, "the chat serves", 0.2)
        with subprocess.Popen(
            [sys.executable, "-m", "tests.support.chatters", str(port), str(rooms), str(size), str(rate)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as chatters:
            assert chatters.stdin is not None
            assert chatters.stdout is not None
            try:
                assert chatters.stdout.readline() == "begun\n"
                ran = [stage.sockshare("reload", "chat") for _ in range(reloads)]
                chatters.stdin.write("\n")
                chatters.stdin.flush()
                account: dict[str, Any] = json.loads(chatters.stdout.read())
            finally:
                chatters.kill()
        assert [(one.returncode, one.stderr) for one in ran] == [(0, "")] * reloads, [one.stdout for one in ran]
        assert all("it has handed over what it had" in one.stdout for one in ran)
        return account


def check(account: dict[str, Any], clients: int) -> None:
    assert account["ended"] == []
    assert account["wrong"] == []
    assert account["missing"] == []
    assert account["clients"] == clients
    assert account["heard"] > account["said"] > clients


@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_clients_never_notice_a_reload(manager: str) -> None:
    """0 disconnects; 0 messages lost, repeated or out of order."""
    check(account_of(manager, rooms=3, size=10, reloads=2, rate=2.0), 30)


@pytest.mark.soak
@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_200_clients_never_notice_10_reloads(manager: str) -> None:
    """The same, as many as were promised."""
    account = account_of(manager, rooms=20, size=10, reloads=10, rate=1.0)
    print({key: account[key] for key in ("clients", "said", "heard", "longest")})
    check(account, 200)
