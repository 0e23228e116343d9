"""The laws of who holds the registration, on the pure state machine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sockshare.core.registration import ACK_TIMEOUT, Registration
from sockshare.core.registration_steps import (
    NOTES,
    SUPPORTED,
    Advance,
    Arm,
    Claim,
    Claimed,
    Disarm,
    Disarmed,
    Effect,
    Entry,
    Event,
    Gone,
    Means,
    MoveTo,
    NotDisarmed,
    Note,
    Paused,
    Policy,
    Record,
    Registered,
    Released,
    Resumed,
    Stalled,
    Standing,
    Stop,
    Tell,
    Tick,
    supports,
)

WAITING, HELD, REVOKING = Standing
GATE, SUSPEND, COOPERATE = Means


def claim(key: str, means: Means = GATE) -> Claim:
    """The claim of the process of the same name, whose identity is made of it."""
    pid = ord(key)
    return Claim(key, pid, (pid, pid * 10, pid * 100), f"web:{key}", "web", means)


class Drive:
    """Feeds a registration, answers each Disarm as the broker does, and keeps what came out.

    The claims a, b, c... are made of *means*, in this order; each event comes one nanosecond after the one before, so
    that the first claim's epoch is 1. Those in `stuck` can't be disarmed.
    """

    def __init__(self, registration: str | int = "exclusive", *means: Means) -> None:
        self.policy = Policy.of(registration)
        self.registration = Registration(self.policy)
        self.now = 0
        self.stuck: set[str] = set()
        self.notes: list[Note] = []
        self.journal: dict[str, Any] = {}
        for key, one in zip("abcd", means, strict=False):
            self.feed(Claimed(claim(key, one)))

    def feed(self, *events: Event) -> list[Effect]:
        """What is done for *events*, notes apart, the answers' effects after those that asked."""
        done: list[Effect] = []
        for event in events:
            self.now += 1
            self._perform(self.registration.feed(event, self.now), done)
        return done

    def after(self, nanoseconds: int) -> list[Effect]:
        self.now += nanoseconds - 1
        return self.feed(Tick())

    def restart(self, *dead: str, registration: str | int | None = None) -> list[Effect]:
        """The broker is killed; the next one has only the record, and sees who is dead."""
        policy = self.policy if registration is None else Policy.of(registration)
        self.registration, effects = Registration.recover(policy, self.journal, self.now)
        for key in dead:
            effects += self.registration.feed(Gone(claim(key).identity), self.now)
        done: list[Effect] = []
        self._perform(effects, done)
        return done

    def _perform(self, effects: list[Effect], done: list[Effect]) -> None:
        answers: list[Event] = []
        for effect in effects:
            if isinstance(effect, Note):
                self.notes.append(effect)
                continue
            done.append(effect)
            if isinstance(effect, Record):
                self.journal = json.loads(json.dumps(self.registration.record()))
            elif isinstance(effect, Disarm) and effect.key in self.stuck:
                answers.append(NotDisarmed(effect.key, effect.epoch, "no rights"))
            elif isinstance(effect, Disarm):
                answers.append(Disarmed(effect.key, effect.epoch))
        for answer in answers:
            self._perform(self.registration.feed(answer, self.now), done)

    def find(self, key: str) -> Entry:
        entry = self.registration.find(key)
        assert entry is not None
        return entry

    @property
    def line(self) -> str:
        """The claims in order, a holder with its epoch, one that is to let go with a question mark."""
        marks = {WAITING: "{0}", HELD: "{0}={1}", REVOKING: "{0}={1}?"}
        return " ".join(
            marks[entry.standing].format(entry.claim.key, entry.epoch) for entry in self.registration.claims
        )

    @property
    def noted(self) -> list[str]:
        return [f"{note.what} {note.key}" for note in self.notes]


def held(key: str, epoch: int) -> list[Effect]:
    """What a grant does."""
    return [Record(), Arm(key, epoch), Tell(key, "held", epoch, "")]


def moved(former: str, epoch: int, key: str, now: int, reason: str) -> list[Effect]:
    """What a move does, in this order: shut, recorded, opened."""
    told = Tell(former, "revoked", epoch, reason)
    return [Disarm(former, epoch), Record(), told, Arm(key, now), Tell(key, "held", now, "")]


def recorded(effects: list[Effect]) -> list[Effect]:
    """The same move, of which something is recorded as soon as it is begun."""
    return [effects[0], Record(), *effects[1:]]


IN_ITS_TURN = "its turn is over"
HUNG = "it did not take what waited"

#: policy, means of the claims a, b, c...; events before; the event; what is done for it; the line after it.
CASES: dict[str, tuple[str | int, list[Means], list[Event], Event, list[Effect], str]] = {
    # Claims.
    "first claim holds": ("exclusive", [], [], Claimed(claim("a")), held("a", 1), "a=1"),
    "second claim waits": ("exclusive", [GATE], [], Claimed(claim("b")), [Record()], "a=1 b"),
    "claim is there already": ("exclusive", [GATE], [], Claimed(claim("a")), [], "a=1"),
    "claim is born paused": ("exclusive", [], [], Claimed(claim("a"), paused=True), [Record()], "a"),
    "all hold when shared": ("shared", [GATE], [], Claimed(claim("b")), held("b", 2), "a=1 b=2"),
    "two hold of two": (2, [GATE], [], Claimed(claim("b")), held("b", 2), "a=1 b=2"),
    "third waits when two hold": (2, [GATE, GATE], [], Claimed(claim("c")), [Record()], "a=1 b=2 c"),
    "unmodified program is disarmed as it claims": (
        "exclusive",
        [GATE],
        [],
        Claimed(claim("b", SUSPEND)),
        [Disarm("b", 0), Record()],
        "a=1 b",
    ),
    "unmodified program that holds at once is not": (
        "exclusive",
        [],
        [],
        Claimed(claim("a", SUSPEND)),
        held("a", 1),
        "a=1",
    ),
    # Releases.
    "next in line holds after a release": (
        "exclusive",
        [GATE] * 3,
        [],
        Released("a", 1),
        [Disarm("a", 1), *held("b", 4)],
        "b=4 c",
    ),
    "release of a stale epoch": ("exclusive", [GATE] * 2, [], Released("a", 0), [], "a=1 b"),
    "waiting one withdraws": (
        "exclusive",
        [GATE] * 2,
        [],
        Released("b", 0),
        [Disarm("b", 0), Record()],
        "a=1",
    ),
    "withdrawal comes after the grant": ("exclusive", [GATE], [], Released("a", 0), [], "a=1"),
    "release of nobody's claim": ("exclusive", [GATE], [], Released("b", 0), [], "a=1"),
    "program that ran under exec gives up": (
        "exclusive",
        [COOPERATE, GATE],
        [],
        Released("a", 1),
        held("b", 3),
        "b=3",
    ),
    # Deaths.
    "next in line holds after a death": (
        "exclusive",
        [GATE] * 3,
        [],
        Gone(claim("a").identity),
        held("b", 4),
        "b=4 c",
    ),
    "waiting one dies": ("exclusive", [GATE] * 2, [], Gone(claim("b").identity), [Record()], "a=1"),
    "another process with the same pid dies": ("exclusive", [GATE] * 2, [], Gone((97, 1, 1)), [], "a=1 b"),
    # Moves.
    "moved to a named claim": (
        "exclusive",
        [GATE] * 3,
        [],
        MoveTo("c"),
        moved("a", 1, "c", 4, "moved to web:c"),
        "a b c=4",
    ),
    "former holder keeps its place": (
        "exclusive",
        [GATE] * 3,
        [MoveTo("c")],
        Gone(claim("c").identity),
        held("a", 5),
        "a=5 b",
    ),
    "longest holder makes room": (2, [GATE] * 3, [], MoveTo("c"), moved("a", 1, "c", 4, "moved to web:c"), "a b=2 c=4"),
    "moved to the holder": ("exclusive", [GATE] * 2, [], MoveTo("a"), [], "a=1 b"),
    "moved to a paused claim": ("exclusive", [GATE] * 2, [Paused("b")], MoveTo("b"), [], "a=1 b"),
    "moved to nobody": ("exclusive", [GATE] * 2, [], MoveTo("x"), [], "a=1 b"),
    # Pauses.
    "paused holder": (
        "exclusive",
        [GATE] * 3,
        [],
        Paused("a"),
        recorded(moved("a", 1, "b", 4, "paused")),
        "a b=4 c",
    ),
    "paused holder names its successor": (
        "exclusive",
        [GATE] * 3,
        [],
        Paused("a", "c"),
        recorded(moved("a", 1, "c", 4, "paused")),
        "a b c=4",
    ),
    "its successor can't have it": (
        "exclusive",
        [GATE] * 3,
        [Paused("c")],
        Paused("a", "c"),
        recorded(moved("a", 1, "b", 5, "paused")),
        "a b=5 c",
    ),
    "paused while waiting": ("exclusive", [GATE] * 2, [], Paused("b", "a"), [Record()], "a=1 b"),
    "paused twice": ("exclusive", [GATE] * 2, [Paused("b")], Paused("b"), [], "a=1 b"),
    "nobody may hold": (
        "exclusive",
        [GATE],
        [],
        Paused("a"),
        [Disarm("a", 1), Record(), Record(), Tell("a", "revoked", 1, "paused")],
        "a",
    ),
    "resumed when nobody holds": ("exclusive", [GATE], [Paused("a")], Resumed("a"), held("a", 3), "a=3"),
    "resumed to wait": ("exclusive", [GATE] * 2, [Paused("a")], Resumed("a"), [Record()], "a b=3"),
    "resumed to be the first": (
        "exclusive",
        [GATE] * 3,
        [Paused("b")],
        Resumed("b", first=True),
        recorded(moved("a", 1, "b", 5, "web:b takes over again")),
        "b=5 a c",
    ),
    "youngest holder makes room for it": (
        2,
        [GATE] * 3,
        [Paused("a", "c")],
        Resumed("a", first=True),
        recorded(moved("c", 4, "a", 5, "web:a takes over again")),
        "a=5 b=2 c",
    ),
    "resumed first when nobody holds": (
        "exclusive",
        [GATE],
        [Paused("a")],
        Resumed("a", first=True),
        held("a", 3),
        "a=3",
    ),
    "resumed though neither paused nor stalled": ("exclusive", [GATE] * 2, [], Resumed("b"), [], "a=1 b"),
    "resumed though it holds": ("exclusive", [GATE] * 2, [], Resumed("a", first=True), [], "a=1 b"),
    # Stalls.
    "holder stalls": ("exclusive", [GATE] * 2, [], Stalled("a", 1), moved("a", 1, "b", 3, HUNG), "a b=3"),
    "stall of a stale epoch": ("exclusive", [GATE] * 2, [], Stalled("a", 9), [], "a=1 b"),
    "nobody else is there when it stalls": ("exclusive", [GATE], [], Stalled("a", 1), [], "a=1"),
    "the only other one is paused": ("exclusive", [GATE] * 2, [Paused("b")], Stalled("a", 1), [], "a=1 b"),
    "the only other one has stalled": ("exclusive", [GATE] * 2, [Stalled("a", 1)], Stalled("b", 3), [], "a b=3"),
    "stalled one is passed over": (
        "exclusive",
        [GATE] * 3,
        [Stalled("a", 1)],
        Gone(claim("b").identity),
        held("c", 5),
        "a c=5",
    ),
    "stalled one holds when nobody else can": (
        "exclusive",
        [GATE] * 2,
        [Stalled("a", 1)],
        Gone(claim("b").identity),
        held("a", 4),
        "a=4",
    ),
    "stalled one is asked for": (
        "exclusive",
        [GATE] * 2,
        [Stalled("a", 1)],
        MoveTo("a"),
        moved("b", 3, "a", 4, "moved to web:a"),
        "a=4 b",
    ),
    "stalled one is passed over no more": (
        "exclusive",
        [GATE] * 3,
        [Stalled("a", 1), Resumed("a")],
        Gone(claim("b").identity),
        held("a", 6),
        "a=6 c",
    ),
    # latest.
    "newest registration cancels the library's": (
        "latest",
        [GATE],
        [],
        Claimed(claim("b")),
        [
            Disarm("a", 1),
            Record(),
            Record(),
            Tell("a", "cancelled", 1, "cancelled by the registration of web:b"),
            Arm("b", 2),
            Tell("b", "held", 2, ""),
        ],
        "b=2",
    ),
    "newest registration suspends another program's": (
        "latest",
        [SUSPEND],
        [],
        Claimed(claim("b", SUSPEND)),
        [
            Disarm("a", 1),
            Disarm("b", 0),
            Record(),
            Record(),
            Tell("a", "revoked", 1, "cancelled by the registration of web:b"),
            Arm("b", 2),
            Tell("b", "held", 2, ""),
        ],
        "b=2 a",
    ),
    "most recently cancelled takes over": (
        "latest",
        [SUSPEND] * 3,
        [],
        Gone(claim("c").identity),
        held("b", 4),
        "b=4 a",
    ),
    "program registers again by itself": (
        "latest",
        [SUSPEND] * 2,
        [],
        Registered("a"),
        [
            Disarm("b", 2),
            Disarm("a", 0),
            Record(),
            Record(),
            Tell("b", "revoked", 2, "cancelled by the registration of web:a"),
            Arm("a", 3),
            Tell("a", "held", 3, ""),
        ],
        "a=3 b",
    ),
    "paused newcomer cancels nobody": (
        "latest",
        [GATE],
        [],
        Claimed(claim("b"), paused=True),
        [Record()],
        "b a=1",
    ),
    "paused program registers by itself": (
        "latest",
        [SUSPEND] * 2,
        [Paused("a")],
        Registered("a"),
        [Disarm("a", 0)],
        "b=2 a",
    ),
    "paused claim is not cancelled": (
        "latest",
        [GATE] * 1,
        [Paused("a")],
        Claimed(claim("b")),
        held("b", 3),
        "b=3 a",
    ),
    # rotate.
    "the next has its turn": ("rotate", [GATE] * 3, [], Advance(), moved("a", 1, "b", 4, IN_ITS_TURN), "b=4 c a"),
    "somebody has the next turn": (
        "rotate",
        [GATE] * 3,
        [],
        Advance("c"),
        moved("a", 1, "c", 4, IN_ITS_TURN),
        "c=4 a b",
    ),
    "turn of nobody": ("rotate", [GATE] * 2, [], Advance("x"), [], "a=1 b"),
    "turns go round": ("rotate", [GATE] * 2, [Advance()], Advance(), moved("b", 3, "a", 4, IN_ITS_TURN), "a=4 b"),
    "there is no other": ("rotate", [GATE], [], Advance(), [], "a=1"),
    "others are paused or have stalled": (
        "rotate",
        [GATE] * 3,
        [Paused("b"), Stalled("a", 1)],
        Advance(),
        [],
        "c=5 a b",
    ),
    "nobody has a turn": ("rotate", [], [], Advance(), [], ""),
    "turn of a policy without turns": ("exclusive", [GATE] * 2, [], Advance(), [], "a=1 b"),
    "turns go on behind one that was moved to": (
        "rotate",
        [GATE] * 3,
        [MoveTo("c")],
        Advance(),
        moved("c", 4, "a", 5, IN_ITS_TURN),
        "a=5 b c",
    ),
    # Violations.
    "waiting program is armed by itself": (
        "exclusive",
        [SUSPEND] * 2,
        [],
        Registered("b"),
        [Disarm("b", 0)],
        "a=1 b",
    ),
    "holder is armed": ("exclusive", [SUSPEND] * 2, [], Registered("a"), [], "a=1 b"),
    # Time.
    "time passes": ("exclusive", [GATE] * 2, [], Tick(), [], "a=1 b"),
}


@pytest.mark.parametrize(("registration", "means", "before", "event", "done", "line"), CASES.values(), ids=CASES)
def test_event_does_what_the_table_says(
    registration: str | int, means: list[Means], before: list[Event], event: Event, done: list[Effect], line: str
) -> None:
    """Each event does this, in this order, and leaves this line; one that does nothing changes nothing."""
    drive = Drive(registration, *means)
    drive.feed(*before)
    record = drive.registration.record()
    assert drive.feed(event) == done
    assert drive.line == line
    if not done:
        assert drive.registration.record() == record


EVENTS_OF_A: list[Event] = [
    Released("a", 1),
    Disarmed("a", 1),
    NotDisarmed("a", 1, "no rights"),
    Registered("a"),
    Stalled("a", 1),
    MoveTo("a"),
    Paused("a"),
    Resumed("a", first=True),
]


@pytest.mark.parametrize("event", EVENTS_OF_A, ids=lambda event: type(event).__name__)
def test_nothing_changes_when_the_claim_is_not_known(event: Event) -> None:
    """What has left, or never came, is not spoken of."""
    drive = Drive("exclusive")
    assert drive.feed(event) == []
    assert drive.line == ""


@pytest.mark.parametrize(
    "event",
    [Claimed(claim("a")), Disarmed("a", 1), NotDisarmed("a", 1, "x"), Registered("a"), MoveTo("a"), Resumed("a")],
    ids=lambda event: type(event).__name__,
)
def test_nothing_changes_when_a_holder_is_spoken_to_as_another(event: Event) -> None:
    """Nobody asked a holder to let go, and it needs nothing."""
    drive = Drive("exclusive", SUSPEND, SUSPEND)
    record = drive.registration.record()
    assert drive.feed(event) == []
    assert drive.registration.record() == record


class TestStuckHolder:
    """One that can't be disarmed at once: it is told, and then stopped; time grants nothing."""

    @pytest.fixture
    def drive(self) -> Drive:
        drive = Drive("exclusive", COOPERATE, GATE)
        drive.stuck = {"a"}
        return drive

    def test_is_told_once_what_was_recorded(self, drive: Drive) -> None:
        """It stays a holder, and another word that it is one changes nothing."""
        told = Tell("a", "revoked", 1, "moved to web:b")
        assert drive.feed(MoveTo("b")) == [Disarm("a", 1), Record(), told]
        assert drive.line == "a=1? b"
        assert drive.feed(NotDisarmed("a", 1, "no rights")) == []

    def test_is_stopped_once_at_the_deadline_and_keeps_the_place(self, drive: Drive) -> None:
        """Only its death makes room."""
        drive.feed(MoveTo("b"))
        assert drive.registration.deadline == drive.now + ACK_TIMEOUT
        assert drive.after(ACK_TIMEOUT - 1) == []
        reason = "it has not let go of the registration (moved to web:b)"
        assert drive.after(1) == [Stop("a", reason, claim("a").identity)]
        assert drive.after(ACK_TIMEOUT * 10) == []
        assert drive.line == "a=1? b"
        assert drive.feed(Gone(claim("a").identity)) == held("b", drive.now)

    def test_makes_room_when_it_says_so(self, drive: Drive) -> None:
        """Its answer may come late, and has to name the epoch."""
        drive.feed(MoveTo("b"))
        assert drive.feed(Disarmed("a", 2), Disarmed("a", 0)) == []
        assert drive.feed(Disarmed("a", 1)) == held("b", drive.now)
        assert drive.registration.deadline is None
        assert drive.feed(Disarmed("a", 1)) == []

    def test_makes_room_when_it_leaves(self, drive: Drive) -> None:
        """A release is as good as an answer."""
        drive.feed(MoveTo("b"))
        assert drive.feed(Released("a", 1)) == held("b", drive.now)
        assert drive.line == f"b={drive.now}"

    def test_is_disarmed_again_when_it_is_seen_armed(self, drive: Drive) -> None:
        """Rights may come back."""
        drive.feed(MoveTo("b"))
        drive.stuck.clear()
        assert drive.feed(Registered("a")) == [Disarm("a", 1), *held("b", drive.now)]

    def test_can_have_it_again_once_it_has_let_go(self, drive: Drive) -> None:
        """What is undone meanwhile is a new hold, with a new epoch."""
        drive.feed(Paused("a", "b"))
        assert drive.feed(Resumed("a", first=True)) == [Record()]
        assert drive.feed(Disarmed("a", 1)) == held("a", drive.now)
        assert drive.line == f"a={drive.now} b"

    def test_can_be_asked_for_or_paused_meanwhile(self, drive: Drive) -> None:
        """The last word counts."""
        drive.feed(MoveTo("b"), MoveTo("a"))
        drive.feed(Paused("a"), Disarmed("a", 1))
        assert drive.line == f"a b={drive.now}"

    def test_is_not_revoked_twice_for_two_that_want_its_place(self, drive: Drive) -> None:
        """Of two moves the last counts, and one place is enough for it."""
        drive.feed(Claimed(claim("c")), MoveTo("b"))
        assert drive.feed(MoveTo("c")) == []
        drive.feed(Disarmed("a", 1))
        assert drive.line == f"a b c={drive.now}"


def test_cancelled_holder_leaves_when_it_has_let_go() -> None:
    """It is told that its claim is over; until it has let go it holds, and nothing brings the claim back."""
    drive = Drive("latest", GATE)
    drive.stuck = {"a"}
    reason = "cancelled by the registration of web:b"
    assert drive.feed(Claimed(claim("b"))) == [Disarm("a", 1), Record(), Record(), Tell("a", "cancelled", 1, reason)]
    assert drive.feed(MoveTo("a"), Resumed("a", first=True)) == []
    assert drive.line == "b a=1?"
    assert drive.feed(Disarmed("a", 1)) == held("b", drive.now)
    assert drive.line == f"b={drive.now}"


def test_one_told_to_let_go_is_told_again_when_it_is_cancelled() -> None:
    """Revoked, its claim stands; cancelled, it is over."""
    drive = Drive("latest", GATE)
    drive.stuck = {"a"}
    drive.feed(Paused("a"), Resumed("a"), Claimed(claim("b")))
    assert drive.feed(Disarmed("a", 1)) == [
        Record(),
        Tell("a", "cancelled", 1, "paused"),
        Arm("b", drive.now),
        Tell("b", "held", drive.now, ""),
    ]


def test_library_claim_that_waits_is_cancelled_too() -> None:
    """Of two newcomers the newest has it."""
    drive = Drive("latest", GATE)
    drive.stuck = {"a"}
    drive.feed(Claimed(claim("b")))
    reason = "cancelled by the registration of web:c"
    assert drive.feed(Claimed(claim("c"))) == [Disarm("b", 0), Record(), Tell("b", "cancelled", 0, reason)]
    drive.feed(Disarmed("a", 1))
    assert drive.line == f"c={drive.now}"


def test_program_that_can_not_be_kept_out_counts_as_a_holder() -> None:
    """Nobody is granted a place while it has one, it was never told that it holds, and it is stopped."""
    drive = Drive("exclusive", SUSPEND)
    drive.stuck = {"b"}
    assert drive.feed(Claimed(claim("b", SUSPEND))) == [Disarm("b", 0), Record(), Record()]
    assert drive.line == "a=1 b=0?"
    assert [note.reason for note in drive.notes if note.what == "violation"] == ["it can't be kept from it: no rights"]
    assert drive.feed(Gone(claim("a").identity)) == [Record()]
    assert [type(effect) for effect in drive.after(ACK_TIMEOUT)] == [Stop]
    assert drive.feed(Disarmed("b", 0)) == held("b", drive.now)


def test_violations_are_counted_and_named() -> None:
    """A program that registers again and again by itself can be found."""
    drive = Drive("exclusive", SUSPEND, SUSPEND)
    drive.feed(Registered("b"), Registered("b"))
    assert drive.registration.counters["violation"] == 2
    assert drive.notes[-1] == Note("violation", "b", "it registered, and does not hold it")


def test_holders_change_and_are_noted() -> None:
    """The log can be read as a history, in words that are fixed."""
    drive = Drive("exclusive", GATE, GATE)
    drive.feed(MoveTo("b"), Stalled("b", 3), Released("a", 4), Gone(claim("b").identity))
    assert drive.noted == [
        *("claimed a", "granted a", "claimed b", "moved b", "revoked a", "granted b"),
        *("stalled b", "revoked b", "granted a", "released a", "granted b", "gone b"),
    ]
    assert {note.what for note in drive.notes} <= set(NOTES)
    assert drive.registration.counters["granted"] == 4


def test_epoch_rises_when_the_clock_stands_still() -> None:
    """Two grants of one nanosecond are two epochs."""
    registration = Registration(Policy.of("shared"))
    registration.feed(Claimed(claim("a")), 7)
    registration.feed(Claimed(claim("b")), 7)
    assert [entry.epoch for entry in registration.holders] == [7, 8]
    assert registration.last_epoch == 8


def test_who_could_have_the_next_turn_is_known() -> None:
    """In line order; not the holder, nor who is paused or has stalled."""
    drive = Drive("rotate", GATE, GATE, GATE, GATE)
    assert drive.registration.fresh == ["b", "c", "d"]
    drive.feed(Paused("c"), Stalled("a", 1))
    assert drive.registration.fresh == ["d"]


def test_claims_are_shown_as_they_stand() -> None:
    """What a status command needs: who, how, since when."""
    drive = Drive("exclusive", GATE, GATE)
    drive.feed(Stalled("a", 1), Paused("a"))
    assert drive.registration.claims == [
        Entry(claim("a"), WAITING, 0, 3, True, True),
        Entry(claim("b"), HELD, 3, 3, False, False),
    ]
    assert drive.registration.holders == [drive.find("b")]
    assert drive.registration.find("x") is None


class TestRestart:
    """The broker is killed; the next one has the record, and the kernel."""

    def test_holder_is_armed_again_in_its_epoch_after_the_others_were_swept(self) -> None:
        """Whoever waits can have been armed by itself meanwhile."""
        drive = Drive("exclusive", GATE, SUSPEND, COOPERATE)
        line = drive.line
        assert drive.restart() == [Disarm("b", 0), Arm("a", 1)]
        assert drive.line == line

    def test_nothing_is_granted_before_the_sweep_is_answered(self) -> None:
        """A place that is free may still be somebody's."""
        drive = Drive("exclusive", GATE, GATE, GATE)
        drive.registration, effects = Registration.recover(drive.policy, drive.journal, 50)
        assert effects == [Disarm("b", 0), Disarm("c", 0), Arm("a", 1)]
        assert drive.feed(Gone(claim("a").identity), Disarmed("c", 0)) == [Record()]
        assert drive.line == "b c"
        assert drive.feed(Disarmed("b", 0)) == held("b", drive.now)

    def test_sweep_does_not_wait_for_those_that_have_left(self) -> None:
        """Dead or gone, they can't be armed."""
        drive = Drive("exclusive", GATE, GATE, GATE)
        drive.registration, _ = Registration.recover(drive.policy, drive.journal, 50)
        drive.registration.feed(Gone(claim("a").identity), 50)
        drive.registration.feed(Gone(claim("b").identity), 50)
        assert drive.feed(Released("c", 0)) == [Disarm("c", 0), Record()]
        assert drive.feed(Claimed(claim("d"))) == held("d", drive.now)

    def test_what_can_not_be_swept_counts_as_a_holder(self) -> None:
        """It could be armed."""
        drive = Drive("exclusive", GATE, GATE, GATE)
        drive.stuck = {"b"}
        assert drive.restart("a") == [Disarm("b", 0), Disarm("c", 0), Arm("a", 1), Record(), Record()]
        assert drive.line == "b=0? c"

    def test_one_told_to_let_go_is_told_again_and_has_as_long_again(self) -> None:
        """The order may have been lost with the broker that gave it."""
        drive = Drive("exclusive", COOPERATE, GATE)
        drive.stuck = {"a"}
        drive.feed(MoveTo("b"))
        drive.after(ACK_TIMEOUT)
        told = Tell("a", "revoked", 1, "moved to web:b")
        assert drive.restart() == [Disarm("a", 1), Disarm("b", 0), Record(), told]
        assert drive.registration.deadline == drive.now + ACK_TIMEOUT

    def test_move_that_was_not_recorded_is_forgotten(self) -> None:
        """Killed between shutting one gate and opening the other, it opens the first again."""
        drive = Drive("exclusive", GATE, GATE)
        assert drive.registration.feed(MoveTo("b"), 9)[0] == Disarm("a", 1)
        assert drive.restart() == [Disarm("b", 0), Arm("a", 1)]

    def test_pause_choice_and_stall_survive(self) -> None:
        """Who may hold, and who comes next, is the same after it."""
        drive = Drive("exclusive", GATE, GATE, GATE, COOPERATE)
        drive.stuck = {"d"}
        drive.feed(Paused("a"), Stalled("b", 5), MoveTo("d"), MoveTo("c"))
        assert drive.line == "a b c d=7?"
        drive.restart()
        drive.feed(Disarmed("d", 7))
        assert drive.line == f"a b c={drive.now} d"
        drive.feed(Gone(claim("c").identity))
        assert drive.line == f"a b d={drive.now}"
        drive.feed(Gone(claim("d").identity))
        assert drive.line == f"a b={drive.now}"

    def test_cancelled_claim_is_over_after_it_too(self) -> None:
        """Its leave-taking is finished by the next broker."""
        drive = Drive("latest", GATE)
        drive.stuck = {"a"}
        drive.feed(Claimed(claim("b")))
        drive.stuck = set()
        drive.restart()
        assert drive.line == f"b={drive.now}"

    def test_epochs_rise_when_the_clock_does_not(self) -> None:
        """The last epoch is in the record."""
        drive = Drive("exclusive", GATE, GATE)
        drive.registration, _ = Registration.recover(drive.policy, drive.journal, 0)
        drive.registration.feed(Disarmed("b", 0), 0)
        drive.registration.feed(Gone(claim("a").identity), 0)
        assert drive.line == "b=2"

    def test_youngest_are_revoked_when_fewer_may_hold(self) -> None:
        """The longest holder stays."""
        drive = Drive("shared", GATE, GATE)
        done = drive.restart(registration="exclusive")
        told = Tell("b", "revoked", 2, "fewer may hold it now")
        assert done == [Disarm("b", 2), Arm("a", 1), Record(), told]
        assert drive.line == "a=1 b"

    def test_free_places_are_filled_at_once_when_there_is_nothing_to_sweep(self) -> None:
        """A standby that has not started its program is not armed."""
        drive = Drive("exclusive", COOPERATE, COOPERATE)
        done = drive.restart(registration=2)
        assert done == [Record(), Arm("a", 1), Arm("b", 2), Tell("b", "held", 2, "")]

    @pytest.mark.parametrize(
        "record",
        [{}, {"last_epoch": 1, "chosen": [], "claims": [{}]}, {"last_epoch": None, "chosen": [], "claims": []}],
        ids=str,
    )
    def test_what_is_no_record_is_refused(self, record: dict[str, Any]) -> None:
        """The broker can tell, and begins anew."""
        with pytest.raises((KeyError, TypeError, ValueError)):
            Registration.recover(Policy.of("exclusive"), record, 1)


@pytest.mark.parametrize(
    ("registration", "policy"),
    [
        ("shared", Policy("shared", 2**63 - 1)),
        ("exclusive", Policy("exclusive", 1)),
        ("latest", Policy("latest", 1)),
        ("rotate", Policy("rotate", 1)),
        (1, Policy("exclusive", 1)),
        ("16", Policy("exclusive", 16)),
    ],
)
def test_policy_is_named_by_a_word_or_a_number(registration: str | int, policy: Policy) -> None:
    """As users write it."""
    assert Policy.of(registration) == policy


@pytest.mark.parametrize("registration", ["exclusiv", "0", 0, -1, "", "1.5", "²"])
def test_what_is_no_policy_is_refused(registration: str | int) -> None:
    """With what it can be."""
    with pytest.raises(ValueError, match=r"must be shared, exclusive, latest, rotate or a number of holders"):
        Policy.of(registration)


def test_pairs_of_policy_and_means_are_these() -> None:
    """All other pairs are refused."""
    pairs = {(kind, means.value) for kind in SUPPORTED for means in Means if supports(Policy.of(kind), means)}
    refused = {("latest", "cooperate"), ("rotate", "suspend"), ("rotate", "cooperate")}
    assert pairs == {(kind, means.value) for kind in SUPPORTED for means in Means} - refused
    assert supports(Policy.of(3), COOPERATE)
