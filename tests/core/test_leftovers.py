"""Whose a process is that has a shared socket open."""

from __future__ import annotations

import pytest

from sockshare.core.leftovers import Ended, Leftover, Origin, Suspect, origin

LIVE = {10: 1000, 20: 1500}
ENDED = {30: Ended("web", 500, frozenset({(30, 500), (31, 510), (32, 520)})), 40: Ended("chat", 600)}
ORPHAN = Suspect(99, 700, (99, 1), 99, 99, None)


@pytest.mark.parametrize(
    ("suspect", "expected"),
    [
        pytest.param(ORPHAN._replace(ancestors=(99, 98, 10, 1)), Origin(10, True), id="below-a-live-one"),
        pytest.param(ORPHAN._replace(pid=10, ancestors=(10, 1)), Origin(10, True), id="a-live-one-itself"),
        # A daemon of the new version: its parent has ended, and the managed process lives.
        pytest.param(ORPHAN._replace(session=10), Origin(10, True), id="session-of-a-live-one"),
        pytest.param(ORPHAN._replace(group=20, session=5), Origin(20, True), id="group-of-a-live-one"),
        pytest.param(ORPHAN._replace(session=30), Origin(30, False), id="session"),
        pytest.param(ORPHAN._replace(session=5, group=40), Origin(40, False), id="group"),
        pytest.param(ORPHAN._replace(pid=32, start=520), Origin(30, False), id="family"),
        pytest.param(ORPHAN._replace(pid=32, start=521), None, id="reused-pid"),
        pytest.param(ORPHAN._replace(session=31), Origin(30, False), id="session-of-the-family"),
        pytest.param(ORPHAN._replace(session=31, start=505), None, id="older-than-its-session"),
        pytest.param(ORPHAN._replace(notifies=40), Origin(40, False), id="notify-socket"),
        pytest.param(ORPHAN._replace(notifies=40, start=599), None, id="older-than-its-notify-socket"),
        pytest.param(ORPHAN._replace(notifies=10, start=1001), Origin(10, True), id="notify-socket-of-a-live-one"),
        # The number is that of a live process, which is younger: the notify socket was another's.
        pytest.param(ORPHAN._replace(notifies=20, start=1400), None, id="notify-socket-of-a-younger-one"),
        pytest.param(ORPHAN, None, id="stranger"),
    ],
)
def test_process_belongs_to_the_managed_one_that_it_comes_from(suspect: Suspect, expected: Origin | None) -> None:
    """By descent, else by session, group, record or environment; a stranger to none."""
    assert origin(suspect, LIVE, ENDED) == expected


def test_remedy_fits_what_is_known() -> None:
    """Only what is known to be left of a program that runs is ended by its reload; a master goes with its worker."""
    known = Leftover(99, "uvicorn app:app", "web", 30, (99, 700))
    assert known.remedy("web") == "`sockshare reload web` ends it, and so does `kill 99`"
    assert known.remedy("web", runs=False) == "end it by `kill 99`"
    assert known._replace(root=(98, 690)).remedy("web").endswith("`kill 98 99`")
    stranger = known._replace(origin=None).remedy("web")
    assert "`kill 99`" in stranger
    assert "reload" not in stranger
    assert "can't be seen (not permitted)" in known._replace(unseen="not permitted").remedy("web")
    assert str(known) == "pid 99 (uvicorn app:app)"
