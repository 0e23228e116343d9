"""What is believed to show that a new process serves."""

from __future__ import annotations

import pytest

from sockshare.core.readiness import Evidence, Expectation

NOTHING = Evidence(frozenset(), frozenset())
WEB = frozenset({"web"})


def seen(*said: str, registered: frozenset[str] = frozenset(), unseen: str = "") -> Evidence:
    return Evidence(frozenset(said), registered, unseen)


@pytest.mark.parametrize(
    ("mode", "before", "now", "shown"),
    [
        ("hold", NOTHING, NOTHING, "hold"),
        ("client", NOTHING, NOTHING, None),
        ("client", NOTHING, seen("notify", registered=WEB), None),
        ("client", NOTHING, seen("client"), "client"),
        ("notify", NOTHING, seen("client", registered=WEB), None),
        ("notify", NOTHING, seen("notify"), "notify"),
        ("registration", NOTHING, seen("notify"), None),
        ("registration", NOTHING, seen(registered=WEB), "registration"),
        ("registration", seen(registered=WEB), NOTHING, None),
        ("auto", seen(registered=WEB), seen("client"), "client"),
        ("auto", seen(registered=WEB), seen("notify"), None),
        ("auto", seen(registered=WEB), seen(registered=WEB), "registration"),
        ("auto", seen("notify"), NOTHING, None),
        ("auto", NOTHING, seen(registered=WEB), "registration"),
        ("auto", NOTHING, seen("notify", registered=WEB), "registration"),
        # A crash loop of gunicorn's: it says READY=1 before it imports what does not exist.
        ("auto", seen("notify"), seen("notify"), None),
        ("auto", seen("notify"), seen("notify", unseen="not permitted"), "notify"),
        ("auto", seen(registered=WEB), seen("notify", unseen="not permitted"), "notify"),
        # The old one may never have served: that asks for nothing less.
        ("auto", NOTHING, NOTHING, None),
        ("auto", NOTHING, seen(unseen="not permitted"), None),
    ],
)
def test_new_process_is_ready_when_it_has_shown_what_its_mode_asks(
    mode: str, before: Evidence, now: Evidence, shown: str | None
) -> None:
    """Each mode believes its own sign; `auto` asks for at least what the old process did."""
    assert Expectation(mode, WEB, before).shown_by(now) == shown


def test_every_socket_must_be_registered_when_the_old_process_had_every_one() -> None:
    """Half of it is not ready."""
    both = frozenset({"web", "admin"})
    expectation = Expectation("auto", both, seen(registered=both))
    assert expectation.shown_by(seen(registered=WEB)) is None
    assert expectation.shown_by(seen(registered=both)) == "registration"


def test_program_without_sockets_is_judged_by_what_it_says() -> None:
    """There is nothing that it could register; that it lives shows nothing."""
    expectation = Expectation("auto", frozenset(), NOTHING)
    assert expectation.shown_by(seen("notify")) == "notify"
    assert expectation.shown_by(NOTHING) is None


@pytest.mark.parametrize(
    ("mode", "before", "words"),
    [
        ("registration", NOTHING, "its event registration of web"),
        ("auto", seen(registered=WEB), "its event registration of web, as the old process has"),
        ("client", NOTHING, "ready() of the sockshare library"),
        ("auto", seen("client"), "ready() of the sockshare library"),
        ("notify", NOTHING, "READY=1 on its NOTIFY_SOCKET"),
        ("hold", NOTHING, "nothing but that it lives (ready = hold)"),
    ],
)
def test_what_is_waited_for_is_said(mode: str, before: Evidence, words: str) -> None:
    """A time-out names what did not come."""
    assert Expectation(mode, WEB, before).awaited == words


HOLD = "if it serves all the same, write sockshare.ready = hold in its section"


@pytest.mark.parametrize(
    ("mode", "sockets", "before", "now", "words"),
    [
        ("notify", WEB, NOTHING, NOTHING, "no sign of READY=1 on its NOTIFY_SOCKET"),
        ("auto", WEB, NOTHING, NOTHING, f"no sign of its event registration of web; {HOLD}"),
        (
            "auto",
            WEB,
            seen(registered=WEB),
            NOTHING,
            "no sign of its event registration of web, as the old process has",
        ),
        ("auto", WEB, NOTHING, seen(unseen="no right"), f"can't see whether it serves: no right; {HOLD}"),
        (
            "auto",
            frozenset(),
            NOTHING,
            NOTHING,
            f"nothing of it can be seen, for its section names no socket, and it has not said READY=1; {HOLD}",
        ),
        (
            "auto",
            WEB,
            seen("notify"),
            seen("notify"),
            "it said READY=1, but there is no sign of its event registration of web; if that is enough, write"
            " sockshare.ready = notify in its section",
        ),
    ],
)
def test_what_is_lacking_is_said_with_a_remedy(
    mode: str, sockets: frozenset[str], before: Evidence, now: Evidence, words: str
) -> None:
    """But for a version that shows less than the one before it: it is broken, and is not to be believed."""
    expectation = Expectation(mode, sockets, before)
    assert expectation.shown_by(now) is None
    assert expectation.lacking(now, "sockshare.ready") == words
