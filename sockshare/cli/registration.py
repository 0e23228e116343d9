"""``sockshare registration move``, ``quiesce`` and ``wake``: one question each, one sentence for an answer."""

from __future__ import annotations

import time

from sockshare.client import finding
from sockshare.client.dialogue import Dialogue
from sockshare.core.errors import ExitStatus


def move(endpoint: str | None, socket: str, process: str) -> int:
    """Hand the registration of *socket* to *process*."""
    return _ask(endpoint, "move", f"{socket}: {process}", socket=socket, process=process)


def quiesce(endpoint: str | None, process: str) -> int:
    """Have *process* get nothing more."""
    return _ask(endpoint, "quiesce", process, process=process)


def wake(endpoint: str | None, process: str) -> int:
    """End `quiesce`."""
    return _ask(endpoint, "wake", process, process=process)


def _ask(endpoint: str | None, op: str, whom: str, **fields: object) -> int:
    found = finding.find(endpoint, command=True)
    finding.check(found)
    dialogue = Dialogue(found.directory)
    try:
        answer = dialogue.ask(op, deadline=time.monotonic() + finding.PATIENCE, **fields)
    finally:
        dialogue.close()
    print(f"{whom}: {answer['reason']}")
    return ExitStatus.OK
