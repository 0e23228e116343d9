"""What the doctor says of which facts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sockshare.core.diagnosis import Finding, findings

WELL: dict[str, Any] = {
    "manager": {"kind": "supervisor", "pid": 10},
    "warnings": [],
    "silent": None,
    "impossible": None,
    "kernel": [],
    "sockets": [
        {
            "name": "web",
            "queue": 0,
            "backlog": 128,
            "drops": 0,
            "state": "ok",
            "why": None,
            "mended": None,
            "closed": "",
            "holders": [
                {
                    "pid": 20,
                    "program": "site",
                    "process": "site:web",
                    "ready": True,
                    "registered": True,
                    "suspended": False,
                    "not_kept": None,
                    "warning": "",
                    "open": True,
                    "refusal": None,
                }
            ],
        }
    ],
    "programs": [{"name": "site", "sockets": ["web"], "reload": {"state": "idle"}}],
}


def changed(where: str, **fields: Any) -> dict[str, Any]:
    """WELL, with *fields* in one part of it."""
    facts = copy.deepcopy(WELL)
    parts = {
        "top": facts,
        "manager": facts["manager"],
        "socket": facts["sockets"][0],
        "holder": facts["sockets"][0]["holders"][0],
        "program": facts["programs"][0],
    }
    parts[where].update(fields)
    return facts


def test_nothing_is_found_where_all_is_well() -> None:
    """Silence, not a list of what was looked at; also of a socket that has no queue."""
    assert findings(WELL) == []
    assert findings(changed("socket", queue=None, backlog=None)) == []
    assert findings(changed("socket", queue=127)) == []


HOLDER = "site:web (pid 20)"


@pytest.mark.parametrize(
    ("facts", "level", "subject", "said"),
    [
        (changed("top", warnings=["there is no X"]), "problem", "supervisord", "there is no X"),
        (changed("top", silent="late"), "problem", "supervisord", "does not answer (late)"),
        (changed("top", impossible="no such bits"), "problem", "kernel", "can't be suspended: no such bits"),
        (changed("top", kernel=[("A", "so what")]), "note", "kernel", "no A: so what"),
        (changed("program", sockets=[]), "note", "socket web", "sockshare_sockets = web in the [program:]"),
        (changed("socket", holders=[]), "problem", "socket web", "`supervisorctl start site`"),
        (changed("socket", queue=128), "problem", "socket web", "(128 of 128)"),
        (changed("socket", state="unreachable", why="it was shut down"), "problem", "socket web", "was shut down"),
        (
            changed("socket", state="unserved", why="nobody has it"),
            "problem",
            "socket web",
            "nobody has it, connections",
        ),
        (
            changed("socket", closed="only root"),
            "note",
            "socket web",
            "only root; if its clients are others: socket_m",
        ),
        (changed("socket", drops=7), "note", "socket web", "dropped 7"),
        (changed("socket", unseen="no sock_diag"), "note", "socket web", "no sock_diag"),
        (
            changed("socket", mended={"times": 2, "last": "it was gone; published again", "ago": 3.0}),
            "note",
            "socket web",
            "published again (3 s ago, the last of 2 times)",
        ),
        (changed("holder", warning="uv forks"), "problem", HOLDER, "uv forks"),
        (changed("holder", suspended=True), "problem", HOLDER, "held off its socket"),
        (changed("holder", open=False), "problem", HOLDER, "`sockshare exec --`"),
        (changed("holder", refusal="it is root's"), "problem", HOLDER, "it is root's"),
        (changed("holder", registered=False, not_kept="it selects"), "note", HOLDER, "it selects"),
    ],
)
def test_each_thing_is_said_in_a_line(facts: dict[str, Any], level: str, subject: str, said: str) -> None:
    """Its level, whom it is about, and what to do."""
    found = findings(facts)
    assert (level, subject) in [one[:2] for one in found]
    assert any(said in one.sentence for one in found), found
    if not (subject == HOLDER and level == "problem" and "held off" in said):  # then nobody serves the socket either
        assert len(found) == 1, found


def test_process_that_is_not_ready_is_a_problem_of_the_socket_too() -> None:
    """Both are said: what clients feel, and why."""
    assert [one.subject for one in findings(changed("holder", ready=False))] == ["socket web", HOLDER]


def test_words_are_the_managers() -> None:
    """Of circus one says watcher, and circusctl."""
    facts = changed("manager", kind="circus")
    facts["sockets"][0]["holders"] = []
    assert "`circusctl start site`" in findings(facts)[0].sentence


def test_reload_that_runs_is_no_problem() -> None:
    """One process has just started, another is held off its socket: as it should be. Problems come before notes."""
    facts = changed("program", reload={"state": "hold"})
    holder = facts["sockets"][0]["holders"][0]
    facts["sockets"][0]["holders"] += [{**holder, "pid": 21, "open": False, "ready": False, "suspended": True}]
    assert findings(facts) == []
    facts |= {"kernel": [("A", "so what")], "silent": "late"}
    assert [one.level for one in findings(facts)] == ["problem", "note"]


def test_what_holds_for_all_is_said_once() -> None:
    """Where nothing can be suspended it is not said of each process; nor twice of one that has two sockets."""
    facts = changed("top", impossible="no such bits")
    facts["sockets"][0]["holders"][0]["refusal"] = "it is root's"
    assert [one.subject for one in findings(facts)] == ["kernel"]
    facts = changed("holder", warning="uv forks")
    facts["sockets"] *= 2
    assert findings(facts) == [Finding("problem", HOLDER, "uv forks")]
