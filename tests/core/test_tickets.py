"""A ticket gives at most one descriptor, to one process, for a few seconds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from sockshare.core.errors import TicketRefused
from sockshare.core.tickets import Reason, Refusal, Tickets

WEB, CHAT = (20, 100, 1), (21, 101, 2)  # two processes


def secret(number: int) -> bytes:
    return number.to_bytes(16, "big")


def refusal(tickets: Tickets, secrets: Sequence[bytes], identity: object, now: float) -> tuple[Reason, str]:
    """Why it is refused: what the log learns, and what the peer does."""
    with pytest.raises(TicketRefused) as refused:
        tickets.redeem(secrets, identity, now)
    assert type(refused.value) is TicketRefused
    cause = refused.value.__cause__
    assert isinstance(cause, Refusal)
    assert str(cause) == cause.reason.value
    return cause.reason, str(refused.value)


def test_redeem_gives_names_in_order_when_all_are_good() -> None:
    """The names come in the order of the secrets, not of issue."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.issue(secret(2), "chat", WEB, 0.0)
    assert tickets.redeem([secret(2), secret(1)], WEB, 0.0) == ["chat", "web"]


def test_second_redeem_is_refused_during_hand_out_and_after() -> None:
    """What is in hand-out or spent is used."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.redeem([secret(1)], WEB, 0.0)
    assert refusal(tickets, [secret(1)], WEB, 0.0) == (Reason.USED, "can't redeem ticket: it was used before")
    tickets.acknowledge([secret(1)])
    assert refusal(tickets, [secret(1)], WEB, 0.0)[0] is Reason.USED
    assert len(tickets) == 0


def test_ticket_is_good_again_when_hand_out_was_abandoned() -> None:
    """A receiver that got no descriptor may try again, until the first expiry."""
    tickets = Tickets(lifetime=5.0)
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.redeem([secret(1)], WEB, 0.0)
    tickets.abandon([secret(1)])
    assert tickets.redeem([secret(1)], WEB, 4.999) == ["web"]
    tickets.abandon([secret(1)])
    assert refusal(tickets, [secret(1)], WEB, 5.0) == (Reason.EXPIRED, "can't redeem ticket: it has expired")


def test_abandon_changes_nothing_when_ticket_is_spent_or_unknown() -> None:
    """Nothing that is spent comes back."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.redeem([secret(1)], WEB, 0.0)
    tickets.acknowledge([secret(1)])
    tickets.abandon([secret(1), secret(2)])
    assert refusal(tickets, [secret(1)], WEB, 0.0)[0] is Reason.USED


def test_acknowledge_changes_nothing_when_ticket_is_not_in_hand_out() -> None:
    """Only what was handed out is spent."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.acknowledge([secret(1), secret(2)])
    assert tickets.redeem([secret(1)], WEB, 0.0) == ["web"]


def test_stranger_is_told_the_same_of_good_spent_and_unknown_tickets() -> None:
    """Another process's secrets can't be told from made-up ones; the log can tell."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.issue(secret(2), "web", WEB, 0.0)
    tickets.redeem([secret(2)], WEB, 0.0)
    tickets.acknowledge([secret(2)])
    message = "can't redeem ticket: it is unknown, or another process's"
    assert refusal(tickets, [secret(1)], CHAT, 0.0) == (Reason.FOREIGN, message)
    assert refusal(tickets, [secret(2)], CHAT, 0.0) == (Reason.FOREIGN, message)
    assert refusal(tickets, [secret(3)], CHAT, 0.0) == (Reason.UNKNOWN, message)
    assert tickets.redeem([secret(1)], WEB, 0.0) == ["web"]


def test_refusal_of_one_leaves_the_others_good() -> None:
    """All or none: a refused packet changes nothing."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    assert refusal(tickets, [secret(1), secret(9)], WEB, 0.0)[0] is Reason.UNKNOWN
    assert tickets.redeem([secret(1)], WEB, 0.0) == ["web"]


def test_same_ticket_twice_in_one_packet_is_refused() -> None:
    """One ticket, one descriptor."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    assert refusal(tickets, [secret(1), secret(1)], WEB, 0.0)[0] is Reason.USED
    assert tickets.redeem([secret(1)], WEB, 0.0) == ["web"]


@given(number=st.integers(0, 2**128 - 1), bit=st.integers(0, 127))
def test_ticket_with_one_bit_changed_is_unknown(number: int, bit: int) -> None:
    """A secret that is nearly right is as good as none."""
    tickets = Tickets()
    tickets.issue(secret(number), "web", WEB, 0.0)
    assert refusal(tickets, [secret(number ^ 1 << bit)], WEB, 0.0)[0] is Reason.UNKNOWN


def test_issue_is_refused_when_secret_is_short_or_not_new() -> None:
    """A caller whose random source fails is told, before anything is at stake."""
    tickets = Tickets()
    with pytest.raises(ValueError, match="must have 16 bytes, not 4"):
        tickets.issue(b"1234", "web", WEB, 0.0)
    tickets.issue(secret(1), "web", WEB, 0.0)
    with pytest.raises(ValueError, match="was issued before"):
        tickets.issue(secret(1), "web", CHAT, 0.0)
    tickets.redeem([secret(1)], WEB, 0.0)
    tickets.acknowledge([secret(1)])
    with pytest.raises(ValueError, match="was issued before"):
        tickets.issue(secret(1), "web", WEB, 0.0)


def test_oldest_of_the_process_goes_when_it_has_too_many() -> None:
    """One process's greed costs that process."""
    tickets = Tickets(per_process=2)
    tickets.issue(secret(9), "web", CHAT, 0.0)
    for number in (1, 2, 3):
        tickets.issue(secret(number), "web", WEB, 0.0)
    assert len(tickets) == 3
    assert refusal(tickets, [secret(1)], WEB, 0.0)[0] is Reason.DROPPED
    assert tickets.redeem([secret(2), secret(3)], WEB, 0.0) == ["web", "web"]
    assert tickets.redeem([secret(9)], CHAT, 0.0) == ["web"]


@pytest.mark.parametrize("limits", [{"total": 1}, {"per_process": 1}])
def test_oldest_goes_when_there_are_too_many(limits: dict[str, int]) -> None:
    """A process whose only ticket is dropped for its next one can redeem the next one."""
    tickets = Tickets(**limits)
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.issue(secret(2), "web", WEB, 0.0)
    assert len(tickets) == 1
    assert tickets.redeem([secret(2)], WEB, 0.0) == ["web"]
    assert tickets.forget(WEB) == 1


def test_expire_drops_what_is_over_and_nothing_else() -> None:
    """Expiry is at issue + lifetime, in hand-out or not."""
    tickets = Tickets(lifetime=5.0)
    for number in range(4):
        tickets.issue(secret(number), "web", WEB, float(number))
    tickets.redeem([secret(1)], WEB, 3.0)
    assert tickets.expire(4.999) == 0
    assert tickets.expire(6.0) == 2
    assert refusal(tickets, [secret(0)], WEB, 6.0)[0] is Reason.EXPIRED
    tickets.acknowledge([secret(1)])
    assert len(tickets) == 2
    assert tickets.expire(100.0) == 2
    assert len(tickets) == 0


def test_forget_drops_the_tickets_of_the_dead_process_only() -> None:
    """The dead redeem nothing."""
    tickets = Tickets()
    tickets.issue(secret(1), "web", WEB, 0.0)
    tickets.issue(secret(2), "web", CHAT, 0.0)
    tickets.redeem([secret(1)], WEB, 0.0)
    assert tickets.forget(WEB) == 1
    assert tickets.forget(WEB) == 0
    tickets.acknowledge([secret(1)])
    assert refusal(tickets, [secret(1)], WEB, 0.0)[0] is Reason.UNKNOWN
    assert tickets.redeem([secret(2)], CHAT, 0.0) == ["web"]


def test_memory_of_spent_tickets_is_bounded() -> None:
    """After many round trips nothing is left but a fixed number of reasons."""
    tickets = Tickets()
    for number in range(3000):
        tickets.issue(secret(number), "web", WEB, 0.0)
        tickets.redeem([secret(number)], WEB, 0.0)
        tickets.acknowledge([secret(number)])
    assert len(tickets) == 0
    assert refusal(tickets, [secret(2999)], WEB, 0.0)[0] is Reason.USED
    assert refusal(tickets, [secret(0)], WEB, 0.0)[0] is Reason.UNKNOWN


class TicketsMachine(RuleBasedStateMachine):
    """Any order of calls, of several processes, against the promise itself."""

    secrets = Bundle("secrets")
    hand_outs = Bundle("hand_outs")

    LIFETIME = 5.0
    PER_PROCESS = 3
    TOTAL = 7

    @initialize()
    def start(self) -> None:
        self.tickets = Tickets(self.LIFETIME, self.PER_PROCESS, self.TOTAL)
        self.now = 0.0
        self.count = 0
        self.issued: dict[bytes, tuple[int, str, float]] = {}  # to whom, which socket, when
        self.handed: set[bytes] = set()
        self.received: set[bytes] = set()
        self.dead: set[bytes] = set()

    @rule(target=secrets, process=st.integers(0, 3), socket=st.sampled_from(["web", "chat"]))
    def issue(self, process: int, socket: str) -> bytes:
        self.count += 1
        new = secret(self.count << 64)
        self.tickets.issue(new, socket, process, self.now)
        self.issued[new] = (process, socket, self.now)
        return new

    @rule(target=hand_outs, shown=st.lists(secrets, min_size=1, max_size=3), process=st.integers(0, 3))
    def redeem(self, shown: list[bytes], process: int) -> object:
        try:
            names = self.tickets.redeem(shown, process, self.now)
        except TicketRefused:
            return multiple()
        assert len(set(shown)) == len(shown)
        for one, name in zip(shown, names, strict=True):
            owner, socket, issued_at = self.issued[one]
            assert (owner, socket) == (process, name)
            assert self.now < issued_at + self.LIFETIME
            assert one not in self.handed | self.received | self.dead
        self.handed.update(shown)
        return tuple(shown)

    @rule(shown=secrets)
    def redeem_as_owner_succeeds_while_it_must(self, shown: bytes) -> None:
        """The newest ticket of all, open and young, is never refused."""
        owner, socket, issued_at = self.issued[shown]
        fresh = shown == next(reversed(self.issued)) and self.now < issued_at + self.LIFETIME
        if fresh and shown not in self.handed | self.received | self.dead:
            assert self.tickets.redeem([shown], owner, self.now) == [socket]
            self.tickets.abandon([shown])

    @rule(shown=secrets, bit=st.integers(0, 127), process=st.integers(0, 3))
    def flip(self, shown: bytes, bit: int, process: int) -> None:
        flipped = secret(int.from_bytes(shown, "big") ^ 1 << bit)
        if flipped not in self.issued:
            with pytest.raises(TicketRefused):
                self.tickets.redeem([flipped], process, self.now)

    @rule(hand_out=consumes(hand_outs))
    def acknowledge(self, hand_out: tuple[bytes, ...]) -> None:
        self.tickets.acknowledge(hand_out)
        assert self.received.isdisjoint(hand_out)
        self.received.update(hand_out)
        self.handed.difference_update(hand_out)

    @rule(hand_out=consumes(hand_outs))
    def abandon(self, hand_out: tuple[bytes, ...]) -> None:
        self.tickets.abandon(hand_out)
        self.handed.difference_update(hand_out)

    @rule(seconds=st.floats(0.0, 6.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.tickets.expire(self.now)
        young = [1 for _, _, issued_at in self.issued.values() if self.now < issued_at + self.LIFETIME]
        assert len(self.tickets) <= len(young)

    @rule(process=st.integers(0, 3))
    def forget(self, process: int) -> None:
        self.tickets.forget(process)
        self.dead.update(one for one, (owner, _, _) in self.issued.items() if owner == process)

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "tickets"):
            assert len(self.tickets) <= self.TOTAL


TestTicketsMachine = TicketsMachine.TestCase
TestTicketsMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
