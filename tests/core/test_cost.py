"""How a connection has ended, and what that has cost."""

from __future__ import annotations

import pytest

from sockshare.core.cost import Cost, Fate, fate, is_unanswered, sentence, total
from sockshare.core.idleness import Sample, Verdict
from tests.core.test_idleness import ANSWERED

FRESH = ANSWERED._replace(bytes_sent=0)  # its first request is in hand
ASKED_AGAIN = ANSWERED._replace(bytes_received=200, last_received=0)
CUT, WHOLE, MET, UNSEEN = Fate.CUT, Fate.WHOLE, Fate.MET, Fate.UNSEEN
BUSY, IDLE, UNKNOWN = Verdict.BUSY, Verdict.IDLE, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("what", "before", "verdict", "last", "closed_by_server", "expected"),
    [
        ("a request without an answer", FRESH, BUSY, FRESH, True, CUT),
        ("its client left", FRESH, BUSY, FRESH, False, WHOLE),
        ("answered since", FRESH, BUSY, ANSWERED, True, WHOLE),
        ("answered, and asked again", FRESH, BUSY, ASKED_AGAIN._replace(bytes_sent=600), True, CUT),
        ("a second request at work", ASKED_AGAIN, BUSY, ASKED_AGAIN._replace(last_received=70), True, CUT),
        ("a second request, never read", ASKED_AGAIN, BUSY, ANSWERED._replace(receive_queue=100), True, MET),
        ("a second request that has just come", ASKED_AGAIN, BUSY, ASKED_AGAIN._replace(last_received=48), True, MET),
        ("a second request, answered", ASKED_AGAIN, BUSY, ANSWERED._replace(bytes_sent=900), True, WHOLE),
        ("unread, so that it was reset", FRESH, BUSY, FRESH._replace(receive_queue=50), False, CUT),
        ("its client's end unread", ANSWERED, IDLE, ANSWERED._replace(receive_queue=1), False, WHOLE),
        ("idle", ANSWERED, IDLE, ANSWERED, True, WHOLE),
        ("idle, and its client's end came after", ANSWERED, IDLE, ANSWERED._replace(bytes_received=101), True, WHOLE),
        ("nothing ever came", FRESH._replace(bytes_received=0), IDLE, FRESH._replace(bytes_received=1), True, WHOLE),
        ("idle, and a request came", ANSWERED, IDLE, ASKED_AGAIN, True, MET),
        ("idle, and a request came unread", ANSWERED, IDLE, ASKED_AGAIN._replace(receive_queue=100), False, MET),
        ("a first request came", FRESH._replace(bytes_received=0), IDLE, FRESH, True, CUT),
        ("nobody could tell, and nothing came", ANSWERED, UNKNOWN, ANSWERED, True, WHOLE),
        ("nobody could tell, and a request came", ANSWERED, UNKNOWN, ASKED_AGAIN, True, MET),
        ("busy, and nobody heard", FRESH, BUSY, None, False, UNSEEN),
        ("idle, and closed in good order", ANSWERED, IDLE, None, True, WHOLE),
        ("idle, and gone without a trace", ANSWERED, IDLE, None, False, UNSEEN),  # a reset leaves none
        ("nobody could tell, and nobody heard", ANSWERED, UNKNOWN, None, True, UNSEEN),
    ],
)
def test_end_of_a_connection(
    what: str, before: Sample, verdict: Verdict, last: Sample | None, closed_by_server: bool, expected: Fate
) -> None:
    """Cut is what its server closes with a request in hand; not what its client has left."""
    assert fate(before, verdict, last, closed_by_server=closed_by_server) is expected, what


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (None, ""),
        (Cost(), ""),
        (Cost(cut=2, cause="daphne stops at once on TERM"), "2 requests were cut: daphne stops at once on TERM"),
        (
            Cost(cut=1, met=1, cause="why"),
            "1 request was cut: why; 1 request was met by the end of a kept connection: clients repeat it, unless it"
            " is a POST",
        ),
        (Cost(unseen="no broker looked"), "can't see whether requests were cut: no broker looked"),
    ],
)
def test_cost_in_words(cost: Cost | None, said: str) -> None:
    """Nothing is said only where nothing was lost; what nobody saw is no nothing."""
    assert sentence(cost) == said


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (FRESH, True),
        (FRESH._replace(bytes_received=2), True),
        (FRESH._replace(bytes_received=1), False),  # its client's end
        (FRESH._replace(bytes_received=0), False),
        (ANSWERED, False),
    ],
)
def test_connection_of_which_only_the_end_is_known_had_a_request_or_not(last: Sample, expected: bool) -> None:
    """It is unanswered if something came, and nothing went."""
    assert is_unanswered(last) is expected


def test_costs_add_up_and_the_unseen_stays_unseen() -> None:
    """One of several that nobody saw leaves the whole unknown."""
    assert total([Cost(1, 2, cause="a"), Cost(3, 4, "unseen", "b"), Cost()]) == Cost(4, 6, "unseen", "a")
    assert total([]) == Cost()
