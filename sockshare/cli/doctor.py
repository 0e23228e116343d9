"""``sockshare doctor``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sockshare.client import managers
from sockshare.core.errors import ExitStatus, NoBroker

from .connection import Endpoint, connect
from .status import refused

_Finding = dict[str, Any]


def run(endpoint: Endpoint, *, as_json: bool) -> int:
    """Show what is wrong as far as it is seen, a line each.

    3 when anything is, 2 for a refused configuration, 75 without a broker.
    """
    try:
        broker = connect(endpoint)
    except NoBroker as error:
        # Where the sentence has several reasons, they come as lines of their own; one reason may be all of it.
        said = str(error).partition("\n")[0].rstrip(" ;:")
        others = [one for one in _managers() if one["sentence"] not in said]
        _show([_problem("broker", said), *others], as_json=as_json)
        return ExitStatus.NO_BROKER
    if broker.state == "refused" and broker.mistakes:
        return refused(broker, as_json=as_json)
    broker.check()
    try:
        findings: list[_Finding] = broker.ask("doctor")["findings"]
    finally:
        broker.close()
    _show(findings, as_json=as_json)
    return ExitStatus.NOT_SERVING if any(one["level"] == "problem" for one in findings) else ExitStatus.OK


def _managers() -> list[_Finding]:
    """Why those that run here have no broker for this user: usually what is missing is in their configuration."""
    return [_problem(subject, sentence) for subject, sentence in managers.reasons()]


def _problem(subject: str, sentence: str) -> _Finding:
    return {"level": "problem", "subject": subject, "sentence": sentence}


def _show(findings: Sequence[_Finding], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"version": 1, "findings": findings}, indent=1))
        return
    for one in findings:
        print(f"{one['level']}: {one['subject']}: {one['sentence']}")
        for line in one.get("lines", ()):
            print(f"  | {line}")
    if any(one["level"] == "problem" for one in findings):
        return
    unseen = any(one.get("unseen") for one in findings)
    print("nothing wrong is seen, but not all can be seen: see the notes" if unseen else "all is well")
