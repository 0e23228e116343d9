"""Whose notifications count."""

from __future__ import annotations

import pytest

from sockshare.core.senders import Sender, refusal

APP, OTHER, ROOT = 1000, 2000, 0
NONE: frozenset[int] = frozenset()


def of(*uids: int) -> frozenset[int]:
    return frozenset(uids)


@pytest.mark.parametrize(
    ("sender", "tree", "word"),
    [
        pytest.param(Sender(9, APP, of(APP), True, True), {APP}, "", id="of the tree"),
        pytest.param(Sender(9, OTHER, of(OTHER), True, False), {APP}, "", id="of the tree, with a user of its own"),
        pytest.param(Sender(9, ROOT, of(APP), True, True), {APP}, "", id="of the tree, root when it sent"),
        pytest.param(Sender(9, OTHER, of(APP), True, True), {APP, OTHER}, "another process's", id="a pid used again"),
        pytest.param(Sender(9, APP, of(APP), False, True), {APP}, "", id="of the group"),
        pytest.param(Sender(9, OTHER, of(OTHER), False, True), {APP}, "joined", id="has joined the group"),
        pytest.param(Sender(9, ROOT, of(ROOT), False, True), {APP}, "joined", id="root has joined the group"),
        pytest.param(Sender(9, APP, NONE, False, False), {APP}, "", id="gone, of the tree's user"),
        pytest.param(Sender(9, OTHER, NONE, False, False), {APP}, "has ended", id="gone, of another user"),
        pytest.param(Sender(9, ROOT, NONE, False, False), {APP}, "has ended", id="gone, root, where none is"),
        pytest.param(Sender(9, ROOT, NONE, False, False), {APP, ROOT}, "", id="gone, root, where one is"),
        pytest.param(Sender(9, OTHER, of(OTHER), False, False), {APP}, "no process", id="a stranger"),
        pytest.param(Sender(9, APP, of(APP), False, False), {APP}, "no process", id="a stranger of the tree's user"),
        pytest.param(Sender(9, ROOT, of(ROOT), False, False), {ROOT}, "no process", id="a stranger that is root"),
        pytest.param(Sender(0, APP, NONE, False, False), {APP}, "namespace", id="of another pid namespace"),
        pytest.param(Sender(-1, APP, NONE, False, False), {APP}, "namespace", id="no pid at all"),
    ],
)
def test_only_the_tree_has_a_say(sender: Sender, tree: set[int], word: str) -> None:
    """Who is there is judged by its place; who is gone, or only joined the group, by its user."""
    why = refusal(sender, lambda: tree)
    assert word in why
    assert bool(why) == bool(word)


def test_tree_is_looked_at_only_where_it_decides() -> None:
    """A flood from a living stranger costs one look at that stranger."""

    def tree() -> set[int]:
        raise AssertionError

    assert refusal(Sender(9, OTHER, of(OTHER), False, False), tree)
    assert refusal(Sender(0, OTHER, NONE, False, False), tree)
    assert not refusal(Sender(9, APP, of(APP), True, False), tree)
