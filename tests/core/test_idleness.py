"""The rules by which a connection is idle or busy, one by one and over time."""

from __future__ import annotations

import pytest

from sockshare.core.idleness import QUIET, History, Sample, Verdict, is_answered, judge

#: A client asked, was answered and acknowledged it; some time ago, and nothing has moved since.
ANSWERED = Sample(
    receive_queue=0,
    notsent=0,
    unacked=0,
    segment=1448,
    bytes_received=100,
    bytes_sent=500,
    segments_received=4,
    data_segments_received=1,
    last_received=80,
    last_sent=76,
    last_acknowledged=76,
)
TIE = ANSWERED._replace(last_received=80, last_sent=80, last_acknowledged=80)


@pytest.mark.parametrize(
    ("rule", "sample", "verdict"),
    [
        ("an answer after the request", ANSWERED, Verdict.IDLE),
        ("a request that was not read", ANSWERED._replace(receive_queue=1), Verdict.BUSY),
        ("an answer that still goes out", ANSWERED._replace(notsent=1), Verdict.BUSY),
        ("a long answer that still goes out", ANSWERED._replace(notsent=1448, unacked=3), Verdict.BUSY),
        ("the tail of an answer", ANSWERED._replace(notsent=1447, unacked=1), Verdict.IDLE),
        ("a client that has not asked", ANSWERED._replace(bytes_received=0, bytes_sent=0), Verdict.IDLE),
        ("a first request", ANSWERED._replace(bytes_sent=0), Verdict.BUSY),
        ("a request after the answer", ANSWERED._replace(last_received=72), Verdict.BUSY),
        ("a tie, and nothing acknowledged", TIE._replace(unacked=1), Verdict.IDLE),
        ("a tie, acknowledged later", TIE._replace(last_acknowledged=76), Verdict.IDLE),
        ("a tie", TIE, Verdict.UNKNOWN),
    ],
)
def test_one_moment_is_judged_by_the_first_rule_that_answers(rule: str, sample: Sample, verdict: Verdict) -> None:
    """Each rule of the order, with the sample that reaches it."""
    assert judge(sample) is verdict, rule


def test_answer_that_has_gone_is_told_from_one_at_work() -> None:
    """Though there is a request that was not read."""
    asked = ANSWERED._replace(receive_queue=20, last_received=72)
    assert is_answered(asked)
    assert is_answered(TIE)
    assert not is_answered(asked._replace(notsent=1))
    assert not is_answered(asked._replace(unacked=1))
    assert not is_answered(asked._replace(last_received=77))


@pytest.mark.parametrize(
    ("witness", "later", "verdict"),
    [
        ("only the server has spoken", TIE._replace(bytes_sent=900), Verdict.IDLE),
        ("only the client has", TIE._replace(bytes_received=200), Verdict.BUSY),
        ("the client acknowledged again", TIE._replace(segments_received=5), Verdict.BUSY),
        ("both have spoken", TIE._replace(bytes_sent=900, bytes_received=200), Verdict.BUSY),
    ],
)
def test_tie_is_decided_by_what_has_changed(witness: str, later: Sample, verdict: Verdict) -> None:
    """What one moment can't tell, two can."""
    history = History()
    history.add(TIE)
    assert history.add(later) is verdict, witness


def test_verdict_stays_while_nothing_moves() -> None:
    """A connection that was seen to become idle is idle at the next look."""
    history = History()
    history.add(TIE)
    history.add(TIE._replace(bytes_sent=900))
    assert history.add(TIE._replace(bytes_sent=900)) is Verdict.IDLE
    assert history.verdict is Verdict.IDLE
    assert history.last == TIE._replace(bytes_sent=900)


def test_unknown_is_busy_until_it_has_been_quiet() -> None:
    """Better wait for an idle connection than cut a request."""
    quiet = int(QUIET * 1000)
    young = TIE._replace(last_received=quiet - 4, last_sent=quiet - 4, last_acknowledged=quiet - 4)
    assert History().add(young) is Verdict.BUSY
    old = TIE._replace(last_received=quiet, last_sent=quiet, last_acknowledged=quiet)
    assert History().add(old) is Verdict.IDLE
