"""Patches the way in which circusd passes a plugin its section: as one word of a command line, unquoted.

``circus.plugins.get_plugin_cmd`` imports the plugin's module, and then writes the command, which is read as by a shell:
a value with a space ends the plugin before it can say a word, and an empty one takes the key after it along.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping

from circus import plugins


def install() -> None:
    """Have every section that is written from now on come through as it is; repeating it changes nothing."""
    original = plugins._cfg2str
    if getattr(original, "quotes", False):
        return

    @functools.wraps(original)
    def _cfg2str(config: Mapping[str, object]) -> str:
        # A blank is taken off again by what reads it (`circus.plugins._str2cfg`).
        text = str(original({key: " " if value == "" else value for key, value in config.items()}))
        return shlex.quote(text) if any(letter.isspace() for letter in text) else text

    _cfg2str.quotes = True  # type: ignore[attr-defined]
    plugins._cfg2str = _cfg2str
