"""Who understands whom: the versions of what hosts, brokers and clients of different releases say to each other.

One side may be upgraded while the other runs on. Neighbours, one version apart, serve each other: a field that one of
them does not know is passed over, one that it misses has a default, and a message or a verb that it does not know is
passed over or refused with a sentence. So a version is raised by one, at most once a minor release, for a change that
the neighbour can do without, and by two for any other.
"""

from __future__ import annotations

#: Of the link, with its hello, its journal (in memory and in its file) and its descriptor store.
LINK = 2
#: Of the dialogue and the door.
DIALOGUE = 1


def are_neighbours(ours: int, theirs: object) -> bool:
    """Whether one of version *ours* and one of version *theirs*, as it was received, serve each other."""
    return type(theirs) is int and abs(theirs - ours) <= 1


def understood(ours: int) -> str:
    """The versions that one of version *ours* understands, in words."""
    return f"versions {max(1, ours - 1)} to {ours + 1}"
