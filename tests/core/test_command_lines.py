"""How command lines are shown."""

from __future__ import annotations

from sockshare.core.command_lines import in_words


def test_command_says_nothing_to_the_terminal() -> None:
    """Its bytes are its user's; a long one is cut."""
    assert in_words(["x", "a b", "\x1b[2J\n", "\udcff"]) == "x 'a b' '?[2J?' '�'"
    assert in_words(["x" * 9], 9) == "x" * 9
    assert in_words(["x" * 10], 9) == "xxxxxx..."
