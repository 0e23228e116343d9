"""Troubles: what can't be done just now, each a sentence that is gone when it can be done again."""

from __future__ import annotations


class Troubles:
    """The troubles of one process, by subject."""

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}

    @property
    def sentences(self) -> list[str]:
        """All that there are."""
        return list(self._sentences.values())

    def say(self, subject: str, sentence: str) -> bool:
        """Let *sentence* be the trouble of *subject*, "" if it has none; whether that is new."""
        if sentence == self._sentences.get(subject, ""):
            return False
        if sentence:
            self._sentences[subject] = sentence
        else:
            del self._sentences[subject]
        return True
