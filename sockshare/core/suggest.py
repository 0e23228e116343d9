"""The did-you-mean at the end of a sentence."""

from __future__ import annotations

from collections.abc import Iterable

# difflib compares every letter with every letter, and the word may be a peer's: longer ones are not worth the time.
_LONGEST = 64


def did_you_mean(word: str, candidates: Iterable[str], prefix: str = "") -> str:
    """Return ``"; did you mean 'web'?"`` for the candidate most like *word*, or ``""`` when none is like it.

    Upper and lower case are the same here, since both are typed by mistake for each other. *prefix* is shown in front
    of the candidate and not compared: what all have in common would make any two of them alike.
    """
    if len(word) > _LONGEST:
        return ""
    # Imported here because `sockshare exec` needs it only when something is wrong.
    from difflib import get_close_matches

    by_lower = {candidate.lower(): candidate for candidate in candidates}
    closest = get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean '{prefix}{by_lower[closest[0]]}'?" if closest else ""
