"""Whoever is killed at whatever step: a connection has exactly one owner, or ends in one clean close."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from sockshare.cli.stage import Stage, free_port, wait_until
from tests.handover.cast import APPS, INI

WATCHER = """
[watcher:killing]
cmd = {python} {apps}/killing.py
copy_env = True
sockshare.sockets = web
stderr_stream.class = FileStream
stderr_stream.filename = {directory}/killing.err
"""


def play(count: int, seed: int, timeout: float) -> dict[str, Any]:
    """The account of *count* hand-overs of which one in a hundred meets a death."""
    with Stage() as stage:
        stage.environment["APP_DIRECTORY"] = str(stage.directory)
        stage.environment["SOCKSHARE_ENDPOINT"] = str(stage.runtime)
        (stage.directory / "killing.json").write_text(json.dumps({"count": count, "every": 100, "seed": seed}))
        text = INI + WATCHER
        stage.write(
            text.format(
                port=free_port(), runtime=stage.runtime, directory=stage.directory, python=sys.executable, apps=APPS
            )
        )
        stage.start()
        account = stage.directory / "account.json"
        try:
            wait_until(account.exists, timeout, "the play has ended", 0.1)
        except TimeoutError:
            print(stage.tail(stage.directory / "killing.err"))
            print(stage.tail(stage.directory / "sockshare.log"))
            raise
        found: dict[str, Any] = json.loads(account.read_text())
        return found


def check(account: dict[str, Any], count: int) -> None:
    outcomes, kills = account["outcomes"], sum(account["kills"].values())
    assert account["wrong"] == []
    assert sum(outcomes.values()) == count
    assert outcomes["received"] > 0.9 * count
    # Of one that is killed ends what it had in hand: what it was giving, or what waited in it.
    assert outcomes.get("closed", 0) <= kills * 40
    # Whoever is there has no more than before the deaths: no connection, and no lane of the dead.
    both = zip(account["after"]["children"], account["before"]["children"], strict=True)
    assert all(after <= before for after, before in both), account
    # Another broker may know of another process: the parent of the play, which has left its share.
    assert account["after"]["broker"][0] <= account["before"]["broker"][0] + 2


def test_connection_has_one_owner_or_ends_whoever_is_killed() -> None:
    """2,000 hand-overs, SIGKILL of giver, receiver or broker in one of a hundred."""
    check(play(2000, 1, 90), 2000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_100000_connections_have_one_owner_or_end_whoever_is_killed() -> None:
    """The same, a thousand deaths long."""
    account = play(100_000, 2, 1500)
    print(account)
    check(account, 100_000)
