"""What a user may see: a pure rule."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import pytest

from sockshare.core.diagnosis import Finding
from sockshare.core.visibility import visible, visible_findings


def holder(program: str, pid: int) -> dict[str, Any]:
    said = {"status": f"SECRET of {program}", "warning": f"SECRET of {program}", "not_kept": f"SECRET of {program}"}
    return {"program": program, "process": f"{program}:1", "pid": pid, "ready": True, **said}


def other(process: str | None) -> dict[str, Any]:
    return {"pid": 9, "process": process, "command": f"SECRET of {process}"}


DOCUMENT: dict[str, Any] = {
    "version": 1,
    "state": "serving",
    "manager": {"kind": "circus", "pid": 1},
    "broker": {"pid": 2, "refusals": 3},
    "mistakes": ["mistake"],
    "warnings": ["SECRET of the manager"],
    "scan": {"looked": 5},
    "sockets": [
        {
            "name": "both",
            "holders": [holder("a", 3), holder("b", 4)],
            "others": [other("a:1"), other("b:1"), other(None)],
        },
        {"name": "one", "holders": [holder("a", 3)], "others": [], "last_move": {"reason": "SECRET of b"}},
        {"name": "theirs", "holders": [holder("b", 4)], "others": []},
    ],
    "programs": [
        {"name": "a", "sockets": ["both", "one"], "reload": {"last": {"reason": "SECRET of a"}}},
        {"name": "b", "sockets": ["both", "theirs"], "reload": {"last": {"reason": "SECRET of b"}}},
    ],
}


def secrets(document: object) -> set[str]:
    """Whose words are in *document*."""
    return {part.split('"')[0] for part in json.dumps(document).split("SECRET of ")[1:]}


def test_everything_is_seen_by_who_may_command() -> None:
    """And it is said that it is everything."""
    assert visible(DOCUMENT, None) == {**DOCUMENT, "view": "all"}


@pytest.mark.parametrize(
    ("own", "view", "said"), [({"a"}, "own", {"a", "a:1"}), ({"b"}, "own", {"b", "b:1"}), (set(), "names", set())]
)
def test_nothing_is_seen_that_others_said(own: Collection[str], view: str, said: set[str]) -> None:
    """Neither of their processes, nor their commands, nor their last reload, nor the manager's warnings."""
    seen = visible(DOCUMENT, own)
    assert seen["view"] == view
    assert secrets(seen) == said
    assert [one["name"] for one in seen["sockets"]] == ["both", "one", "theirs"]
    assert [one["name"] for one in seen["programs"]] == ["a", "b"]
    assert seen["broker"] == {"pid": 2}
    assert ("scan" in seen, seen["mistakes"]) == ((True, ["mistake"]) if own else (False, []))


def test_process_of_another_program_is_seen_on_a_socket_that_both_use() -> None:
    """Who asks wonders who else takes its connections."""
    [both, one, theirs] = visible(DOCUMENT, {"a"})["sockets"]
    assert [(found["pid"], found["ready"]) for found in both["holders"]] == [(3, True), (4, True)]
    assert [found["command"] is None for found in both["others"]] == [False, True, True]
    assert one["last_move"] is None
    assert theirs == {"name": "theirs"}


def test_findings_are_those_of_one_s_own() -> None:
    """With a note that there may be more."""
    subjects = ["socket both", "socket theirs", "a:1 (pid 3)", "b:1 (pid 4)", "kernel", "circusd"]
    found = [Finding("problem", subject, "it is so") for subject in subjects]
    assert visible_findings(found, DOCUMENT, None) == found
    assert [one.subject for one in visible_findings(found, DOCUMENT, {"a"})] == ["socket both", "a:1 (pid 3)", "you"]
    [one] = visible_findings(found, DOCUMENT, set())
    assert (one.level, one.subject, one.unseen) == ("note", "you", True)
