"""A connection that is handed over has one owner or is closed, whoever dies when; and it goes where it should."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sockshare.core.handover import (
    PATIENCE,
    RETRY,
    Candidate,
    Committed,
    Decline,
    Declined,
    Drop,
    Ended,
    GiveUp,
    Giving,
    Intake,
    Keep,
    Kept,
    Offered,
    Own,
    Release,
    Reported,
    SendCommit,
    SendDecline,
    SendTake,
    SendWithdraw,
    Sent,
    Taking,
    Tick,
    Took,
    Unreadable,
    Unsent,
    Withdrawn,
    choose,
)


def offered(giving: Giving, count: int = 1, deadline: float = 5.0) -> list[int]:
    return list(giving.offer(count, deadline))


# The giver's end.


def test_connection_is_released_only_when_commit_is_in_the_lane() -> None:
    """TAKE asks for COMMIT; the copies are closed once that was sent, and not before."""
    giving = Giving()
    ids = offered(giving, 2)
    assert giving.undecided == 2
    assert giving.feed(Took(ids)) == [SendCommit(ids)]
    assert giving.undecided == 2
    assert giving.feed(Sent(ids)) == [Release(ids)]
    assert giving.undecided == 0


def test_connection_is_kept_when_lane_ends_before_commit() -> None:
    """A receiver that dies before COMMIT was sent has nothing; also between TAKE and COMMIT."""
    giving = Giving()
    ids = offered(giving, 3)
    giving.feed(Took(ids[:1]))
    giving.feed(Unsent(ids[:1]), 1.0)
    giving.withdraw(ids[1:2], 1.0)
    assert giving.feed(Ended(ids[1:2])) == [Keep(ids[1:2], Kept.LATE), Keep([ids[0], ids[2]], Kept.LOST)]
    assert giving.room == 0
    assert giving.feed(Sent(ids)) == []


def test_connection_is_kept_when_the_end_of_the_lane_is_why_commit_could_not_be_said() -> None:
    """EPIPE says for sure that it is not in the lane."""
    giving = Giving()
    ids = offered(giving, 2)
    assert giving.feed(Took(ids)) == [SendCommit(ids)]
    assert giving.feed(Ended(ids[:1])) == [Release(ids[1:]), Keep(ids[:1], Kept.LOST)]


def test_connection_is_kept_only_when_withdraw_is_in_the_lane() -> None:
    """After the time-out nothing may be used before the receiver is sure to hear of it; a TAKE that crosses is late."""
    giving = Giving()
    ids = offered(giving, 1, deadline=5.0)
    assert giving.deadline == 5.0
    assert giving.feed(Tick(), 4.9) == []
    assert giving.feed(Tick(), 5.0) == [SendWithdraw(ids)]
    assert giving.feed(Took(ids)) == []
    assert giving.feed(Declined(ids, Decline.UNREADABLE)) == []
    assert giving.feed(Sent(ids)) == [Keep(ids, Kept.LATE)]
    assert giving.feed(Tick(), 6.0) == []
    assert giving.deadline is None


def test_word_that_did_not_get_into_the_lane_is_said_again() -> None:
    """No room, or no memory, is no end of a lane: nothing is decided before COMMIT or WITHDRAW is in it."""
    giving = Giving()
    (first,), (second,) = offered(giving), offered(giving)
    assert giving.feed(Took([first]), 1.0) == [SendCommit([first])]
    assert giving.feed(Unsent([first]), 1.0) == []
    assert giving.deadline == 1.0 + RETRY
    assert giving.withdraw([second], 1.0, Kept.SHUT) == [SendWithdraw([second])]
    assert giving.feed(Unsent([second]), 1.0) == []
    assert giving.feed(Tick(), 1.1) == [SendCommit([first]), SendWithdraw([second])]
    assert giving.undecided == 2
    assert giving.feed(Sent([first])) == [Release([first])]
    assert giving.feed(Sent([second])) == [Keep([second], Kept.SHUT)]


def test_commit_that_could_not_be_said_in_time_is_withdrawn() -> None:
    """As long as it is sure that COMMIT is not in the lane, the giver can change its mind."""
    giving = Giving()
    ids = offered(giving, 1, deadline=5.0)
    giving.feed(Took(ids), 1.0)
    giving.feed(Unsent(ids), 1.0)
    assert giving.feed(Tick(), 5.0) == [SendWithdraw(ids)]
    giving.feed(Unsent(ids), 5.0)
    assert giving.feed(Tick(), 5.0 + RETRY) == [SendWithdraw(ids)]


def test_commit_that_may_have_been_said_is_never_withdrawn() -> None:
    """Whoever said it was interrupted: it is said again, however often that fails, and nothing else is."""
    giving = Giving()
    ids = offered(giving, 1, deadline=5.0)
    assert giving.feed(Took(ids), 1.0) == [SendCommit(ids)]
    assert giving.withdraw(ids, 1.0) == [SendCommit(ids)]
    assert giving.feed(Unsent(ids), 1.0) == []
    assert giving.withdraw(ids, 1.1) == [SendCommit(ids)]
    assert giving.feed(Sent(ids)) == [Release(ids)]
    again = offered(giving)
    giving.feed(Took(again), 2.0)
    assert giving.feed(Ended()) == [Release(again)], "it may be the receiver's, which may have read it"


def test_lane_that_takes_no_word_is_given_up_as_by_the_dead() -> None:
    """All in it is the receiver's, which sees the lane's end and adopts; that end comes last."""
    giving = Giving()
    ids = offered(giving, 2, deadline=5.0)
    giving.withdraw(ids[:1], 1.0)
    giving.feed(Unsent(ids[:1]), 1.0)
    assert giving.feed(Tick(), 1.0 + PATIENCE) == [SendWithdraw(ids[:1])]
    assert giving.feed(Unsent(ids[:1]), 1.0 + PATIENCE - RETRY) == []
    assert giving.feed(Unsent(ids[:1]), 1.0 + PATIENCE) == [Release(ids), GiveUp()]
    assert giving.ended
    assert giving.room == 0
    assert giving.deadline is None


def test_process_that_was_stopped_past_its_deadline_withdraws_first() -> None:
    """Patience is for a word that was tried."""
    giving = Giving()
    ids = offered(giving, 1, deadline=5.0)
    assert giving.feed(Tick(), 60.0) == [SendWithdraw(ids)]


def test_tick_is_due_at_the_earliest_deadline() -> None:
    """Each offer has its own; one that is over is forgotten."""
    giving = Giving()
    first, second = offered(giving, 1, 9.0), offered(giving, 1, 5.0)
    offered(giving, 1, 7.0)
    assert giving.deadline == 5.0
    assert giving.feed(Tick(), 6.0) == [SendWithdraw(second)]
    giving.feed(Sent(second))
    assert giving.feed(Tick(), 6.5) == []
    assert giving.deadline == 7.0
    assert giving.withdraw(second, 6.5) == []
    assert giving.withdraw([*first, 99], 6.5) == [SendWithdraw(first)]


@pytest.mark.parametrize(
    ("reason", "kept"),
    [(Decline.FULL, Kept.FULL), (Decline.CLOSED, Kept.CLOSED), (Decline.UNREADABLE, Kept.UNREADABLE)],
)
def test_declined_connection_is_kept_and_receiver_is_asked_no_more_until_it_reports(
    reason: Decline, kept: Kept
) -> None:
    """What is declined is the giver's at once; a receiver that is full, or takes none, gets none until it says so."""
    giving = Giving()
    ids = offered(giving, 2)
    assert giving.feed(Declined(ids, reason)) == [Keep(ids, kept)]
    assert (giving.room == 0) == (reason is not Decline.UNREADABLE)
    assert giving.feed(Declined(ids, reason)) == []
    giving.feed(Reported(0, 0, 64))
    assert giving.room == 64


def test_window_bounds_what_is_not_received() -> None:
    """What was offered counts until it is kept, or the program has received it."""
    giving = Giving(window=3)
    ids = offered(giving, 2)
    assert giving.room == 1
    with pytest.raises(ValueError, match="room for 1"):
        giving.offer(2, 1.0)
    giving.feed(Took(ids))
    giving.feed(Sent(ids))
    assert giving.room == 1
    giving.feed(Reported(1, 2, 3))
    assert giving.room == 2
    giving.feed(Reported(5, 2, 4))
    assert giving.room == 4
    giving.feed(Reported(0, 2, 0))
    assert giving.room == 0


def test_load_is_what_was_reported_and_what_is_on_its_way() -> None:
    """Between two reports the giver counts what it has given itself."""
    giving = Giving()
    giving.feed(Reported(0, 7, 64))
    ids = offered(giving, 2)
    assert giving.load == 9
    giving.feed(Reported(0, 9, 64))  # it comes with TAKE
    giving.feed(Took(ids))
    giving.feed(Sent(ids))
    assert giving.load == 9
    giving.feed(Reported(2, 1, 64))
    assert giving.load == 1


# The receiver's end.


def test_connection_is_owned_only_when_committed() -> None:
    """Taken is not owned."""
    taking = Taking(Intake())
    assert taking.feed(Offered([1, 2])) == [SendTake([1, 2])]
    assert taking.undecided == [1, 2]
    assert taking.feed(Committed([2])) == [Own([2], adopted=False)]
    assert taking.feed(Committed([2])) == []


def test_connection_is_dropped_when_withdrawn() -> None:
    """The giver has it back."""
    taking = Taking(Intake())
    taking.feed(Offered([1, 2]))
    assert taking.feed(Withdrawn([1, 9])) == [Drop([1])]
    assert taking.feed(Withdrawn([1])) == []
    assert taking.feed(Committed([1, 2])) == [Own([2], adopted=False)]


def test_undecided_connection_is_adopted_when_giver_dies() -> None:
    """A lane that ends without COMMIT or WITHDRAW was that of a dead giver: nobody else has the connection."""
    taking = Taking(Intake())
    taking.feed(Offered([1, 2, 3]))
    taking.feed(Withdrawn([2]))
    assert taking.feed(Ended()) == [Own([1, 3], adopted=True)]
    assert taking.feed(Ended()) == []


def test_receiver_declines_what_there_is_no_room_for() -> None:
    """Room is of the receiver, not of a lane: free again once the program has received, or the giver withdrawn."""
    intake = Intake(limit=2)
    one, other = Taking(intake), Taking(intake)
    assert one.feed(Offered([1])) == [SendTake([1])]
    assert other.feed(Offered([1, 2])) == [SendTake([1]), SendDecline([2], Decline.FULL)]
    assert other.report(2) == Reported(0, 2, 2)
    assert other.declined  # it still waits to hear of room
    one.feed(Committed([1]))
    assert intake.room == 0
    one.received()
    assert intake.room == 1
    assert one.unreported == 1
    said = one.report(2)
    assert said == Reported(1, 2, 2)
    one.unreport(said)
    assert one.declined
    assert one.report(2) == said
    other.report(2)
    assert not other.declined
    other.feed(Withdrawn([1]))
    assert intake.room == 2


def test_receiver_that_takes_no_more_says_so() -> None:
    """Closed is not full: the giver asks no more."""
    intake = Intake()
    taking = Taking(intake)
    intake.closed = True
    assert taking.feed(Offered([1])) == [SendDecline([1], Decline.CLOSED)]
    assert taking.report(0) == Reported(0, 0, 0)


def test_what_can_not_be_read_is_declined() -> None:
    """A receiver at its RLIMIT_NOFILE has nothing of it."""
    assert Taking(Intake()).feed(Unreadable([4])) == [SendDecline([4], Decline.UNREADABLE)]


def test_offer_that_is_repeated_changes_nothing() -> None:
    """One id, one connection."""
    taking = Taking(Intake())
    taking.feed(Offered([1]))
    assert taking.feed(Offered([1])) == []


# Both ends, a lane between them, and death.


class _Interrupted(Exception):
    """Whoever said a word: nobody knows whether it was said."""


class Lane(RuleBasedStateMachine):
    """Two processes and a lane. Packets arrive in order; the dead say nothing, and what they had is closed.

    The giver is `sockshare.client.giving` in short: a word may fail to get into the lane, and whoever says it may be
    interrupted, before or after it got there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.giving, self.intake = Giving(window=4), Intake(limit=3)
        self.taking = Taking(self.intake)
        self.to_receiver: deque[Any] = deque()
        self.to_giver: deque[Any] = deque()
        self.giver_lives = self.receiver_lives = True
        self.given_up = False  # the giver has ended the lane
        self.failures: deque[str] = deque()  # of the next words
        self.disturbed = False
        self.now = 0.0
        self.copies: set[int] = set()  # the giver's descriptors
        self.used_by_giver: set[int] = set()  # kept: the program has it back
        self.held: set[int] = set()  # the receiver's descriptors
        self.owned: set[int] = set()
        self.every: set[int] = set()

    # The giver.

    def giver_feeds(self, event: Any) -> None:
        self.perform_giver(self.giving.feed(event, self.now))

    def perform_giver(self, effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, SendCommit):
                self.giver_says(Committed(effect.ids), effect.ids)
            elif isinstance(effect, SendWithdraw):
                self.giver_says(Withdrawn(effect.ids), effect.ids)
            elif isinstance(effect, Release):
                self.copies -= set(effect.ids)
            elif isinstance(effect, GiveUp):
                assert not self.giving.undecided
                self.given_up = self.disturbed = True
                self.to_giver.clear()
            else:
                assert isinstance(effect, Keep)
                self.used_by_giver |= set(effect.ids)

    def giver_says(self, word: Any, ids: list[int]) -> None:
        if not self.receiver_lives:
            self.giver_feeds(Ended(ids))
            return
        failure = self.failures.popleft() if self.failures else ""
        if failure == "no room":
            self.giver_feeds(Unsent(ids))
            return
        if failure == "interrupted before":
            raise _Interrupted
        self.to_receiver.append(word)
        if failure == "interrupted after":
            raise _Interrupted
        self.giver_feeds(Sent(ids))

    def giver_does(self, act: Callable[[], None]) -> None:
        """What is interrupted is decided at once, as who is interrupted leaves `hand_over`."""
        try:
            act()
        except _Interrupted:
            self.failures = deque(one for one in self.failures if one == "no room")
            self.disturbed = True
            self.decide(self.copies - self.used_by_giver)

    def decide(self, ids: set[int]) -> None:
        self.perform_giver(self.giving.withdraw(sorted(ids), self.now))
        while any(self.giving.has(id) for id in ids):
            self.now += RETRY
            self.giver_feeds(Tick())
        self.copies -= ids - self.used_by_giver

    @precondition(lambda self: self.giver_lives and self.giving.room > 0)
    @rule(data=st.data(), patience=st.integers(1, 3))
    def offer(self, data: Any, patience: int) -> None:
        ids = self.giving.offer(data.draw(st.integers(1, self.giving.room)), self.now + patience)
        self.every |= set(ids)
        self.copies |= set(ids)
        if self.receiver_lives:
            self.to_receiver.append(Offered(list(ids)))
        else:
            self.giver_feeds(Ended())

    @precondition(lambda self: self.giver_lives and bool(self.to_giver))
    @rule()
    def giver_reads(self) -> None:
        self.giver_does(lambda: self.giver_feeds(self.to_giver.popleft()))

    @precondition(lambda self: self.giver_lives)
    @rule(seconds=st.sampled_from([RETRY, PATIENCE, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.giver_does(lambda: self.giver_feeds(Tick()))

    @precondition(lambda self: self.giver_lives and self.giving.undecided > 0)
    @rule(id=st.integers(1, 12), at_once=st.booleans())
    def giver_gives_up(self, id: int, at_once: bool) -> None:
        if at_once and id in self.copies - self.used_by_giver:
            self.giver_does(lambda: self.decide({id}))
        elif not at_once:
            self.giver_does(lambda: self.perform_giver(self.giving.withdraw([id], self.now)))

    @rule(
        what=st.sampled_from(
            ["no room", "interrupted before", "interrupted after", "no room for long", "room", "death"]
        )
    )
    def something_befalls_the_giver(self, what: str) -> None:
        if what == "room":
            self.failures.clear()
        elif what == "no room for long":  # longer than it has patience: what it may not say, it gives up
            self.failures.extend(["no room"] * 1000)
            self.disturbed = True
        elif what == "death":
            self.giver_dies()
        else:
            self.failures.append(what)

    def giver_dies(self) -> None:
        self.giver_lives = False
        self.copies.clear()
        self.used_by_giver.clear()
        self.to_giver.clear()

    @precondition(lambda self: self.giver_lives and not self.receiver_lives and not self.to_giver)
    @rule()
    def giver_hears_of_the_end(self) -> None:
        self.giver_feeds(Ended())

    # The receiver.

    @property
    def lane_has_ended(self) -> bool:
        return (self.given_up or not self.giver_lives) and not self.to_receiver

    def receiver_feeds(self, event: Any) -> None:
        for effect in self.taking.feed(event):
            if isinstance(effect, SendTake):
                self.say(Took(effect.ids))
                self.say(self.taking.report(len(self.owned)))
            elif isinstance(effect, SendDecline):
                self.held -= set(effect.ids)
                self.say(Declined(effect.ids, effect.reason))
            elif isinstance(effect, Drop):
                self.held -= set(effect.ids)
            else:
                assert effect.adopted == isinstance(event, Ended)
                self.owned |= set(effect.ids)

    def say(self, event: Any) -> None:
        if self.giver_lives and not self.given_up:
            self.to_giver.append(event)

    @precondition(lambda self: self.receiver_lives and bool(self.to_receiver))
    @rule(full=st.booleans())
    def receiver_reads(self, full: bool) -> None:
        event = self.to_receiver.popleft()
        if isinstance(event, Offered):
            if full:  # of descriptors
                self.receiver_feeds(Unreadable(event.ids))
                return
            self.held |= set(event.ids)
        self.receiver_feeds(event)

    @precondition(lambda self: self.receiver_lives and bool(self.owned))
    @rule()
    def program_receives(self) -> None:
        if self.intake.waiting > len(self.taking.undecided):
            self.taking.received()
            self.say(self.taking.report(len(self.owned)))

    @precondition(lambda self: self.receiver_lives and self.every)
    @rule(dies=st.sampled_from([False, False, True]))
    def receiver_dies(self, dies: bool) -> None:
        if not dies:
            return
        self.receiver_lives = False
        self.held.clear()
        self.owned.clear()
        self.to_receiver.clear()

    @precondition(lambda self: self.receiver_lives and self.lane_has_ended)
    @rule()
    def receiver_hears_of_the_end(self) -> None:
        self.receiver_feeds(Ended())

    @invariant()
    def never_two_owners(self) -> None:
        assert not self.used_by_giver & self.owned
        assert self.used_by_giver <= self.copies
        assert self.owned <= self.held
        # Room was counted right.
        assert 0 <= self.intake.waiting <= self.intake.limit

    @invariant()
    def the_living_have_what_is_on_its_way(self) -> None:
        in_flight = {id for packet in self.to_receiver if isinstance(packet, Offered) for id in packet.ids}
        if self.giver_lives and self.receiver_lives and not self.disturbed:
            assert self.every <= self.copies | self.held | in_flight

    @rule()
    def nothing_happens(self) -> None:
        """There is always a rule."""

    def teardown(self) -> None:
        """All is read to the end: every connection has one owner, or is closed; the living hold what they own."""
        self.failures.clear()
        while (self.giver_lives and self.to_giver) or (self.receiver_lives and self.to_receiver):
            if self.giver_lives and self.to_giver:
                self.giver_reads()
            if self.receiver_lives and self.to_receiver:
                self.receiver_reads(full=False)
        if self.giver_lives:
            if not self.receiver_lives:
                self.giver_feeds(Ended())
            else:
                self.decide(self.copies - self.used_by_giver)
                while self.to_receiver:
                    self.receiver_feeds(self.to_receiver.popleft())
        if self.receiver_lives and self.lane_has_ended:
            self.receiver_feeds(Ended())
        owners = Counter([*self.used_by_giver, *self.owned])
        assert all(count == 1 for count in owners.values())
        assert self.copies == self.used_by_giver, "the giver holds what it does not own"
        assert self.held == self.owned, "the receiver holds what it does not own"
        if self.giver_lives and self.receiver_lives and not self.disturbed:
            assert set(owners) == self.every


TestLane = Lane.TestCase
TestLane.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# Routing.


def candidates(*loads: int, room: int = 1) -> list[Candidate]:
    return [Candidate(f"chat:{index}", index, load, room) for index, load in enumerate(loads)]


def test_least_loaded_gets_the_next_and_equals_take_turns() -> None:
    """Equals share what comes, so that an idle program is not one busy process."""
    assert choose(candidates(3, 1, 2), "least_loaded", 0) == 1
    assert [choose(candidates(1, 1, 1), "least_loaded", turn) for turn in range(4)] == [0, 1, 2, 0]


def test_round_robin_passes_over_the_full() -> None:
    """A full one loses its turn."""
    here = candidates(9, 0, 0)
    here[1] = here[1]._replace(room=0)
    assert [choose(here, "round_robin", turn) for turn in range(3)] == [0, 2, 2]


@pytest.mark.parametrize("route", ["least_loaded", "round_robin"])
@pytest.mark.parametrize("key", [None, b"room"])
def test_nobody_gets_it_when_all_are_full_or_none_is_there(route: str, key: bytes | None) -> None:
    """The giver is told at once."""
    assert choose([], route, 0, key) is None
    assert choose(candidates(0, 0, room=0), route, 0, key) is None


@given(key=st.binary(max_size=80), count=st.integers(2, 8), gone=st.integers(0, 7))
def test_key_stays_where_it_is_when_others_go(key: bytes, count: int, gone: int) -> None:
    """Only the keys of a receiver that has gone change places."""
    here = candidates(*range(count))
    chosen = choose(here, "least_loaded", 0, key)
    assert chosen is not None
    assert choose(list(reversed(here)), "round_robin", 3, key) == count - 1 - chosen
    left = [one for index, one in enumerate(here) if index != gone % count]
    again = choose(left, "least_loaded", 0, key)
    assert again is not None
    if chosen != gone % count:
        assert left[again] == here[chosen]


def test_key_is_never_sent_elsewhere_because_its_receiver_is_full() -> None:
    """Sticky means: that one, or nobody."""
    here = candidates(0, 0, 0)
    chosen = choose(here, "least_loaded", 0, b"room")
    assert chosen is not None
    here[chosen] = here[chosen]._replace(room=0)
    assert choose(here, "least_loaded", 0, b"room") is None


def test_keys_spread() -> None:
    """Many keys make use of all receivers, forked ones of one name too."""
    here = [Candidate("chat:1", pid, 0, 1) for pid in range(4)]
    counts = Counter(choose(here, "least_loaded", 0, str(number).encode()) for number in range(400))
    assert len(counts) == 4
    assert min(counts.values()) > 50
