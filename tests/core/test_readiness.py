"""What is believed to show that a new process serves."""

from __future__ import annotations

import pytest

from sockshare.core.readiness import Evidence, Expectation

NOTHING = Evidence(frozenset(), frozenset())
WEB = frozenset({"web"})


def seen(*said: str, registered: frozenset[str] = frozenset()) -> Evidence:
    return Evidence(frozenset(said), registered)


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
        ("auto", seen("notify"), seen("notify"), "notify"),
        ("auto", NOTHING, seen(registered=WEB), "registration"),
        ("auto", NOTHING, NOTHING, "hold"),
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
    """There is nothing that it could register."""
    assert Expectation("auto", frozenset(), seen("notify")).shown_by(NOTHING) is None


@pytest.mark.parametrize(
    ("mode", "before", "words"),
    [
        ("registration", NOTHING, "its event registration of web"),
        ("auto", seen(registered=WEB), "its event registration of web, as the old process has"),
        ("client", NOTHING, "ready() of the sockshare library"),
        ("auto", seen("client"), "ready() of the sockshare library"),
        ("notify", NOTHING, "READY=1 on its NOTIFY_SOCKET"),
    ],
)
def test_what_is_waited_for_is_said(mode: str, before: Evidence, words: str) -> None:
    """A time-out names what did not come."""
    assert Expectation(mode, WEB, before).awaited == words
