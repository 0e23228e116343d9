"""What a giver and a receiver are to say is of one kind: named tuples are equal whatever their names."""

from __future__ import annotations

from sockshare.core.handover import (
    Committed,
    Drop,
    Giving,
    Intake,
    Keep,
    Offered,
    Own,
    Release,
    SendCommit,
    SendTake,
    SendWithdraw,
    Sent,
    Taking,
    Tick,
    Took,
    Withdrawn,
)


def kinds(effects: list[object]) -> list[type]:
    return [type(effect) for effect in effects]


def test_what_was_taken_is_committed_and_then_released() -> None:
    """COMMIT first; only when it is in the lane the copies are closed."""
    giving = Giving()
    (number,) = giving.offer(1, 10.0)
    assert kinds([*giving.feed(Took([number]))]) == [SendCommit]
    assert kinds([*giving.feed(Sent([number]))]) == [Release]


def test_what_was_not_taken_in_time_is_withdrawn_and_then_kept() -> None:
    """WITHDRAW first; only when it is in the lane the connection is used again."""
    giving = Giving()
    (number,) = giving.offer(1, 10.0)
    assert kinds([*giving.feed(Tick(), 10.0)]) == [SendWithdraw]
    assert kinds([*giving.feed(Sent([number]))]) == [Keep]


def test_receiver_owns_what_is_committed_and_drops_what_is_withdrawn() -> None:
    """And says TAKE of both."""
    taking = Taking(Intake())
    assert kinds([*taking.feed(Offered([1, 2]))]) == [SendTake]
    assert kinds([*taking.feed(Committed([1]))]) == [Own]
    assert kinds([*taking.feed(Withdrawn([2]))]) == [Drop]
