"""Shows the command lines of processes to people."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

#: Characters at most.
LONGEST = 120


def in_words(command: Sequence[str], longest: int = LONGEST) -> str:
    """*command* as a shell would take it, and as much of it as is shown."""
    # Whoever starts a process chooses these bytes, and they are shown on an administrator's terminal.
    text = os.fsencode(shlex.join(command)).decode("utf-8", "replace")
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= longest else text[: longest - 3] + "..."
