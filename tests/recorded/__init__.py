"""What was said over the link by versions before this one, and how it was recorded (`record`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

#: The managers; the version before this one was recorded under each.
MANAGERS = ("circus", "supervisor")
#: The newest version that was recorded and is not this one.
BEFORE = 1


class Said(NamedTuple):
    """One message over the link, with so many descriptors."""

    by: str  # host, broker
    fds: int
    message: dict[str, Any]


def recorded(manager: str, version: int = BEFORE) -> list[Said]:
    """All that was said, in order."""
    text = (Path(__file__).parent / f"{version}-{manager}.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [Said(line["from"], line["fds"], line["message"]) for line in lines]
