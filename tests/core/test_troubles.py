"""Troubles: what is told, and when it is over."""

from __future__ import annotations

from sockshare.core.troubles import Troubles


def test_trouble_is_told_until_it_is_over() -> None:
    """A sentence for each subject, the last one; what changes nothing is no news."""
    troubles = Troubles()
    assert not troubles.say("door", "")
    assert troubles.say("door", "can't accept: a")
    assert not troubles.say("door", "can't accept: a")
    assert troubles.say("journal", "can't write: b")
    assert troubles.say("door", "can't accept: c")
    assert troubles.sentences == ["can't accept: c", "can't write: b"]
    assert troubles.say("door", "")
    assert troubles.sentences == ["can't write: b"]
