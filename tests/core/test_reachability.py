"""The state of a socket, by what is known of it and of its processes."""

from __future__ import annotations

from typing import Any

import pytest

from sockshare.core.reachability import Verdict, culprit, judge

SERVES = {"ready": True, "suspended": False, "paused": False, "open": True}


def entry(*holders: dict[str, Any]) -> dict[str, Any]:
    return {"queue": 3, "backlog": 2, "holders": list(holders)}


@pytest.mark.parametrize(
    ("holders", "facts", "state"),
    [
        ([SERVES], {}, "ok"),
        ([{**SERVES, "open": None}], {}, "ok"),  # it may not be looked into, and has said that it is ready
        ([{**SERVES, "ready": False}, SERVES], {}, "ok"),
        ([SERVES], {"fault": "it was shut down"}, "unreachable"),
        ([], {"fault": "it was shut down"}, "unreachable"),
        ([SERVES], {"is_full": True}, "unreachable"),
        ([], {}, "unserved"),
        ([{**SERVES, "ready": False}], {}, "unserved"),
        ([{**SERVES, "suspended": True}], {}, "unserved"),
        ([{**SERVES, "ready": False, "open": False}], {}, "unserved"),  # it has another in this one's place
        ([{**SERVES, "paused": True}], {}, "paused"),
        ([{**SERVES, "suspended": True, "quiesced": True}], {}, "paused"),
        ([SERVES], {"stalled": 4.9}, "ok"),
        ([SERVES], {"stalled": 5.1}, "unserved"),
        ([{**SERVES, "paused": True}], {"stalled": 5.1}, "paused"),
        ([{**SERVES, "ready": None}], {}, None),
        ([SERVES], {"unseen": "guard = off"}, None),
        ([], {"unseen": "guard = off"}, "unserved"),
        ([], {"silent": "it does not answer"}, None),
        ([{**SERVES, "ready": False}], {"silent": "it does not answer"}, None),
        ([SERVES], {"silent": "it does not answer"}, "ok"),
        ([SERVES], {"silent": "it does not answer", "stalled": 5.1}, "unserved"),
    ],
)
def test_state_is_what_clients_meet(holders: list[dict[str, Any]], facts: dict[str, Any], state: str | None) -> None:
    """Out of reach comes first; what can't be seen is not said to be; each but `ok` has its reason."""
    found = judge(entry(*holders), **{"fault": "", "unseen": "", "is_full": False, **facts})
    assert found.state == state
    assert bool(found.why) == (state in ("unreachable", "unserved", "paused"))
    assert bool(found.unseen) == (state is None)


def test_full_queue_is_counted() -> None:
    """Where its length is known."""
    full = {"fault": "", "unseen": "", "is_full": True}
    assert judge(entry(SERVES), **full) == Verdict("unreachable", "its queue is full (3 of 2)")  # type: ignore[arg-type]
    known = {**entry(SERVES), "queue": None}
    assert judge(known, **full) == Verdict("unreachable", "its queue is full")  # type: ignore[arg-type]


def test_culprit_is_named_where_only_one_can_be_it() -> None:
    """The one that ended then; else the one that was being replaced; else the only holder; else all who may be it."""
    assert culprit(["a", "a"], ["b"], ["c"], complete=True) == "as a ended"
    assert culprit(["a", "b"], [], [], complete=True) == "as one of a, b ended"
    assert culprit([], ["b"], ["c"], complete=True) == "as b was being replaced"
    assert culprit([], ["b", "c"], ["d"], complete=True) == "by d, the only process that has it open"
    assert culprit([], [], ["c"], complete=False) == "by c, the only process that is seen to have it open"
    assert culprit([], [], ["c", "d"], complete=True) == "can't tell by whom of c, d"
    assert culprit([], [], [], complete=True) == "can't tell by whom"
