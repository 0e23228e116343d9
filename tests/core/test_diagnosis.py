"""What the doctor says of which facts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sockshare.core.diagnosis import Finding, findings, port_in_use

WELL: dict[str, Any] = {
    "manager": {"kind": "supervisor", "pid": 10},
    "broker": {"pid": 11},
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
    "causes": {},
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


PLACE: dict[str, Any] = {
    "process": "site",
    "state": "FATAL",
    "spawn_error": "",
    "ended": "exited with status 1",
    "stopped": False,
    "crashes": 1,
    "path": "",
}


def down(command: str = "x", workers: int = 0, **fields: Any) -> dict[str, Any]:
    """WELL, but nothing of the program serves, and this is told of its place."""
    facts = changed("socket", holders=[])
    cause = {"command": command, "places": [{**PLACE, **fields}], "workers": {"web": workers}, "looked": 0.3}
    return {**facts, "causes": {"site": cause}, "control": "supervisorctl -c /x.conf"}


def test_nothing_is_found_where_all_is_well() -> None:
    """Silence, not a list of what was looked at; also of a socket that has no queue."""
    assert findings(WELL) == []
    assert findings(changed("socket", queue=None, backlog=None)) == []
    assert findings(changed("socket", queue=128)) == []  # a moment's burst, and one more than the backlog is let in


HOLDER = "site:web (pid 20)"


def test_program_that_is_started_on_demand_is_no_problem_before() -> None:
    """Its sockets wait for their first connection."""
    facts = changed("socket", holders=[])
    facts["programs"][0]["on_demand"] = True
    [found] = findings(facts)
    assert (found.level, "until a connection comes (site)" in found.sentence) == ("note", True)


@pytest.mark.parametrize(
    ("facts", "level", "subject", "said"),
    [
        (changed("top", warnings=["there is no X"]), "problem", "supervisord", "there is no X"),
        (
            changed("top", mistakes=["[x] y: z"]),
            "problem",
            "supervisord",
            "[x] y: z; what of that section was in force",
        ),
        (changed("top", silent="late"), "problem", "supervisord", "does not answer (late)"),
        (changed("top", impossible="no such bits"), "problem", "kernel", "can't be suspended: no such bits"),
        (changed("top", kernel=[("A", "so what")]), "note", "kernel", "no A: so what"),
        (changed("program", sockets=[]), "note", "socket web", "sockshare_sockets = web in the [program:]"),
        (changed("socket", holders=[]), "problem", "socket web", "`supervisorctl start site`"),
        (
            changed("socket", state="unreachable", why="its queue is full (129 of 128)"),
            "problem",
            "socket web",
            "(129 of 128): add processes, or raise its backlog",
        ),
        (changed("socket", state="unreachable", why="it was shut down"), "problem", "socket web", "was shut down"),
        (
            changed("socket", state="unserved", why="nobody has it"),
            "problem",
            "socket web",
            "nobody has it, connections wait: its processes hang, or are too few for their work: `sockshare reload",
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
        (changed("holder", suspended=True), "problem", HOLDER, "`kill 11`"),
        (changed("holder", shell={"server": "pid 21: x", "script": "/s.sh"}), "problem", HOLDER, "`exec` before"),
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
    if not (
        subject == HOLDER and level == "problem" and facts["sockets"][0]["holders"][0]["suspended"]
    ):  # then nobody serves the socket either
        assert len(found) == 1, found


def test_process_that_is_not_ready_is_a_problem_of_the_socket_too() -> None:
    """Both are said: what clients feel, and why."""
    assert [one.subject for one in findings(changed("holder", ready=False))] == ["socket web", HOLDER]


START, UPDATE = "`supervisorctl -c /x.conf start site`", "`supervisorctl -c /x.conf update`"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (down(ended=None), f"it is FATAL, and was never started: {START}"),
        (down(state="STOPPED", stopped=True), f"it is STOPPED: somebody has stopped it: {START}"),
        (down(), f"it is FATAL: it exited with status 1; its command or its log has the reason, then {START}"),
        (down(lines=["no table"], crashes=3), "it is FATAL: it exited with status 1, 3 times within a minute; mend"),
        (
            down(spawn_error="can't find command 'x'", path="/v/bin/x"),
            f"it is FATAL: it can't be started: can't find command 'x'; write /v/bin/x in its command, then {UPDATE}",
        ),
        (
            down(spawn_error="can't find command 'x'"),
            f"can't find command 'x'; mend its command, then {UPDATE}; or install what it names, then {START}",
        ),
        (down(spawn_error="EMFILE"), f"it can't be started: EMFILE; once that is mended, {START}"),
        (
            down(lines=["OSError: [Errno 98] Address already in use: ('', 81)"], occupants=" by pid 9 (y)"),
            f"it exited with status 1: address in use (port 81) by pid 9 (y), then {START}",
        ),
        (down(lines=["fork: Resource temporarily unavailable"]), f"mend what its last lines say, then {START}"),
        (down(lines=["bind() failed: EADDRINUSE"]), "address in use (port not said)"),
        (
            down(lines=["BlockingIOError: [Errno 11] x"]),
            f"write blocking = true in [sockshare:web], then `supervisorctl -c /x.conf update`, then {START}",
        ),
        (down("x {fd:web}"), "nothing replaces {fd:web} in its command: let it begin with `sockshare exec --`"),
        (down(process="site:a"), "site:a is FATAL"),
    ],
)
def test_cause_of_a_program_that_does_not_run_is_told(facts: dict[str, Any], said: str) -> None:
    """The manager's state, how it ended, and what to do; the socket that nobody serves refers to it."""
    found = {one.subject: one for one in findings(facts)}
    assert said in found["program site"].sentence
    assert found["program site"].level == "problem"
    assert found["socket web"].sentence == "no process serves it, connections wait: see program site"


def test_program_that_binds_the_shared_address_itself_is_told_to_take_the_socket() -> None:
    """Whoever has the address is its own manager: there is nobody to be ended."""
    facts = down(lines=["OSError: [Errno 98] Address already in use: ('', 81)"])
    facts["sockets"][0]["address"] = "tcp://127.0.0.1:81"
    said = next(one.sentence for one in findings(facts) if one.subject == "program site")
    assert "it binds port 81 itself, which is the shared socket web: let it take the descriptor {fd:web}" in said


def test_last_lines_go_with_the_cause() -> None:
    """They are what its author needs to see; not of one that its manager stopped."""
    assert findings(down(lines=["a", "b"]))[0].lines == ("a", "b")
    assert findings(down(lines=["a"], stopped=True))[0].lines == ()


def test_program_that_serves_and_crashes_is_a_note() -> None:
    """As does one process of several; and one that has crashed a little is none."""
    facts = {**WELL, "causes": down(state="RUNNING", crashes=3)["causes"]}
    assert [(one.level, one.subject) for one in findings(facts)] == [("note", "program site")]
    assert findings({**WELL, "causes": down(state="RUNNING", crashes=2)["causes"]}) == []


def test_program_that_was_stopped_is_a_note_where_others_serve_its_sockets() -> None:
    """That is what was wanted. One that failed is a problem all the same."""
    stopped = down(state="STOPPED", stopped=True)["causes"]["site"]
    failed = down()["causes"]["site"]
    facts = {**WELL, "programs": [*WELL["programs"], {**WELL["programs"][0], "name": "other"}]}
    assert [one.level for one in findings({**facts, "causes": {"other": stopped}})] == ["note"]
    assert [one.level for one in findings({**facts, "causes": {"other": failed}})] == ["problem"]


def test_program_without_sockets_is_a_note_where_it_failed() -> None:
    """It is not ours to serve; one that has done its work is as it should be."""
    facts = {**WELL, "programs": [*WELL["programs"], {**WELL["programs"][0], "name": "job", "sockets": []}]}
    assert [one.level for one in findings({**facts, "causes": {"job": down()["causes"]["site"]}})] == ["note"]
    assert findings({**facts, "causes": {"job": down(state="EXITED")["causes"]["site"]}}) == []


def test_descriptor_that_nobody_replaces_is_told_of_one_that_runs() -> None:
    """Behind `sockshare exec` it is replaced."""
    facts = {**WELL, "causes": down("x {fd:web}", state="RUNNING")["causes"]}
    assert "nothing replaces {fd:web}" in findings(facts)[0].sentence
    assert findings({**WELL, "causes": down("sockshare exec -- x {fd:web}", state="RUNNING")["causes"]}) == []


def test_workers_that_end_all_the_time_are_told_of_blocking() -> None:
    """A preforker restarts them, and its manager sees nothing of it."""
    facts = {**WELL, "causes": down(state="RUNNING", workers=60)["causes"]}
    assert "(60 in 0.3 s)" in findings(facts)[0].sentence
    assert "blocking = true in [sockshare:web]" in findings(facts)[0].sentence
    assert findings({**WELL, "causes": down(state="RUNNING", workers=9)["causes"]}) == []


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("[Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use", 8000),
        ("[ERROR] Connection in use: ('127.0.0.1', 8001)", 8001),
        ("nginx: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)", 80),
        ("Error: listen EADDRINUSE: address already in use :::3000", 3000),
        ("listen tcp :8080: bind: address already in use", 8080),
        ("OSError: [Errno 98] Address already in use", 0),
        ("served 98 requests on port 80", None),
    ],
)
def test_port_is_read_out_of_what_servers_say(line: str, port: int | None) -> None:
    """Each in its own words; 0 where none is named."""
    assert port_in_use(["something else :1234", line]) == port


def test_quiesced_process_is_to_be_woken() -> None:
    """By its name; nothing has gone wrong with the broker. With nobody else to serve it is a problem of the socket."""
    found = findings(changed("holder", suspended=True, quiesced=True))
    assert [(one.level, one.subject) for one in found] == [("problem", "socket web"), ("note", HOLDER)]
    assert all("`sockshare wake site:web`" in one.sentence for one in found)
    assert findings(changed("holder", quiesced=True)) == found  # a gate holds it: it has nothing to suspend


def test_what_can_not_be_seen_is_not_said_to_be_missing() -> None:
    """A note, with what would let the broker see."""
    facts = changed("holder", ready=None, registered=None, suspended=None, open=None, unseen="no rights")
    found = findings(facts)
    assert [(one.level, one.subject) for one in found] == [("note", "socket web")]
    assert "can't see whether it is served: no rights" in found[0].sentence
    assert found[0].unseen
    holders = facts["sockets"][0]["holders"]
    holders.append({**WELL["sockets"][0]["holders"][0], "pid": 21, "process": "site:web2"})
    [one] = findings(facts)
    assert (one.level, one.subject, one.unseen) == ("note", HOLDER, True)
    assert one.sentence.startswith("can't see whether it serves web: no rights; give the broker")
    facts["programs"][0]["reload"] = {"state": "warm"}
    assert not findings(facts), "it has just started"


def test_remedy_is_one_that_lets_it_be_seen() -> None:
    """Rights where those are missing; where nothing but epoll can be seen on this machine, a word of the program."""
    blind = {"ready": None, "registered": None, "suspended": None, "unseen": "only epoll is seen"}
    assert "give the broker CAP_SYS_PTRACE" in findings(changed("holder", **blind, refusal="Yama"))[-1].sentence
    assert "let the program say READY=1" in findings(changed("holder", **blind))[-1].sentence


def test_silent_manager_is_not_taken_for_one_that_runs_nothing() -> None:
    """Which processes there are can't be seen: of its sockets that is a note, and nobody is to start anything."""
    facts = changed("socket", holders=[], state=None, unseen="it did not answer")
    found = findings({**facts, "silent": "it did not answer"})
    assert [(one.level, one.subject) for one in found] == [("problem", "supervisord"), ("note", "socket web")]
    assert "can be seen: it did not answer" in found[1].sentence
    assert found[1].unseen


def test_process_that_stands_by_is_as_it_should_be() -> None:
    """It is held off an exclusive socket until its turn comes; killing the broker would change nothing."""
    facts = changed("holder", standing="held")
    holder = facts["sockets"][0]["holders"][0]
    facts["sockets"][0]["holders"].append({**holder, "pid": 21, "suspended": True, "standing": "waiting"})
    by_gate = {**holder, "pid": 22, "registered": False, "standing": "waiting"}
    facts["sockets"][0]["holders"].append(by_gate)
    assert findings(facts) == []


def test_nothing_is_to_be_started_that_the_manager_starts_by_itself() -> None:
    """It is between two processes of a program just now."""
    [found] = findings({**changed("socket", holders=[]), "causes": down(state="STARTING", crashes=0)["causes"]})
    assert found.sentence.endswith("supervisord has just started one, or is about to: ask again in a moment")


def test_socket_is_not_said_to_be_there_where_that_was_not_seen() -> None:
    """Of one that may not be looked into, or that has no socket yet as it is starting."""
    [_, found] = findings(changed("holder", ready=False, open=None))
    assert found.sentence.startswith("it has not said that it is ready, nor is it seen to wait")


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


def test_what_is_left_over_is_a_problem_while_no_reload_runs() -> None:
    """What may serve is not said to; the reload that runs ends it."""
    one = {"pid": 30, "command": "nc -l", "socket": "web", "unseen": None, "remedy": "look at it"}
    facts = changed("program", leftovers=[one, {**one, "unseen": "not permitted"}])
    assert findings(facts) == [
        Finding("problem", "program site", f"pid 30 (nc -l) is left over, and {serves} web beside it: look at it")
        for serves in ("serves", "may serve")
    ]
    assert findings(changed("program", leftovers=[one], reload={"state": "sweep"})) == []


def test_what_holds_for_all_is_said_once() -> None:
    """Where nothing can be suspended it is not said of each process; nor twice of one that has two sockets."""
    facts = changed("top", impossible="no such bits")
    facts["sockets"][0]["holders"][0]["refusal"] = "it is root's"
    assert [one.subject for one in findings(facts)] == ["kernel"]
    facts = changed("holder", warning="uv forks")
    facts["sockets"] *= 2
    assert findings(facts) == [Finding("problem", HOLDER, "uv forks")]
