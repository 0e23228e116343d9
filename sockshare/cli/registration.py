"""``sockshare registration move``, ``quiesce`` and ``wake``: one question each, one sentence for an answer."""

from __future__ import annotations

from sockshare.core.errors import ExitStatus

from .connection import Endpoint, connect


def move(endpoint: Endpoint, socket: str, process: str) -> int:
    """Hand the registration of *socket* to *process*."""
    return _ask(endpoint, "move", f"{socket}: {process}", socket=socket, process=process)


def quiesce(endpoint: Endpoint, process: str) -> int:
    """Have *process* get nothing more."""
    return _ask(endpoint, "quiesce", process, process=process)


def wake(endpoint: Endpoint, process: str) -> int:
    """End `quiesce`."""
    return _ask(endpoint, "wake", process, process=process)


def _ask(endpoint: Endpoint, op: str, whom: str, **fields: object) -> int:
    broker = connect(endpoint)
    broker.check()
    try:
        answer = broker.ask(op, **fields)
    finally:
        broker.close()
    print(f"{whom}: {answer['reason']}")
    return ExitStatus.OK
