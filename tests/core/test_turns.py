"""Turns: order within a process, turns among processes, bounds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sockshare.core.spec import MOST_SOCKETS
from sockshare.core.turns import Bounds, Turns

SMALL = Bounds(at_once=2, waiting=3, size=100)
LARGE = Bounds(at_once=3, waiting=5, size=150)


def taken(turns: Turns, uid: int = 1) -> list[tuple[int, bytes]]:
    """All that may begin now."""
    found = []
    while (one := turns.take(uid)) is not None:
        found.append(one)
    return found


def test_requests_of_a_process_begin_in_their_order_so_many_at_once() -> None:
    """The next one begins when one has ended."""
    turns = Turns(SMALL, LARGE)
    assert all(turns.add(1, 10, name) for name in (b"a", b"b", b"c"))
    assert taken(turns) == [(10, b"a"), (10, b"b")]
    assert taken(turns) == []
    turns.done(1, 10)
    assert taken(turns) == [(10, b"c")]


def test_processes_take_turns_when_their_user_is_at_its_bound() -> None:
    """Who asked for much does not keep who asked for little."""
    turns = Turns(Bounds(8, 100, 1000), Bounds(1, 100, 1000))
    for number in range(50):
        turns.add(1, 10, b"many%d" % number)
    turns.add(1, 11, b"one")
    turns.add(1, 12, b"other")
    began = []
    for _ in range(4):
        [(pid, item)] = taken(turns)
        began.append(item)
        turns.done(1, pid)
    assert began == [b"many0", b"one", b"other", b"many1"]


def test_users_do_not_wait_for_each_other() -> None:
    """The bound of one is nothing to another."""
    turns = Turns(SMALL, LARGE)
    for pid in range(10, 15):
        turns.add(1, pid, b"a")
    assert len(taken(turns, 1)) == LARGE.at_once
    turns.add(2, 20, b"b")
    assert taken(turns, 2) == [(20, b"b")]


def test_request_beyond_a_bound_is_refused_and_nothing_has_changed() -> None:
    """By number and by bytes, of a process and of a user; what has begun counts no more."""
    turns = Turns(SMALL, LARGE)
    assert [turns.add(1, 10, b"a") for _ in range(4)] == [True, True, True, False]
    assert [turns.add(1, 11, bytes(size)) for size in (60, 41, 40)] == [True, False, True]
    assert not turns.add(1, 12, b"c")  # five of the user wait
    assert not turns.add(3, 30, bytes(101))
    assert len(turns) == 5
    assert len(taken(turns)) == 3
    assert turns.add(1, 12, b"c")
    assert not turns.add(1, 13, bytes(150))


def test_program_may_ask_for_all_its_sockets_at_once() -> None:
    """As many claims as a program may have sockets, as after each death of the broker."""
    turns = Turns()
    assert all(turns.add(0, 10, bytes(200)) for _ in range(MOST_SOCKETS))


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "done"]), st.integers(1, 2), st.integers(1, 3))))
def test_nothing_is_lost_and_no_bound_is_exceeded(steps: list[tuple[str, int, int]]) -> None:
    """What was let in begins once, in order; what is under way stays in bounds; at the end nothing is remembered."""
    turns = Turns(SMALL, LARGE)
    waiting: dict[tuple[int, int], list[bytes]] = {}
    under_way: Counter[tuple[int, int]] = Counter()

    def take(uid: int) -> bool:
        one = turns.take(uid)
        if one is None:
            return False
        pid, item = one
        assert waiting[uid, pid].pop(0) == item
        under_way[uid, pid] += 1
        assert under_way[uid, pid] <= SMALL.at_once
        assert sum(count for key, count in under_way.items() if key[0] == uid) <= LARGE.at_once
        return True

    for number, (step, uid, pid) in enumerate(steps):
        if step == "add" and turns.add(uid, uid * 10 + pid, b"%d" % (number % 10)):
            waiting.setdefault((uid, uid * 10 + pid), []).append(b"%d" % (number % 10))
        elif step == "take":
            take(uid)
        elif step == "done" and under_way[uid, uid * 10 + pid]:
            under_way[uid, uid * 10 + pid] -= 1
            turns.done(uid, uid * 10 + pid)
    while any(under_way.values()) or any(waiting.values()):
        began = [take(uid) for uid in (1, 2)]
        for uid, pid in +under_way:
            under_way[uid, pid] -= 1
            turns.done(uid, pid)
            began.append(True)
        assert any(began)
    assert len(turns) == 0
    assert not turns._users
