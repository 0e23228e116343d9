"""Versions: who understands whom; the hello and the journal of a neighbour, and what can't be read."""

from __future__ import annotations

from typing import Any

import pytest

from sockshare.core import records, versions
from sockshare.core.hello import Hello, Unreadable, read_hello, read_programs
from sockshare.core.registration import Registration
from sockshare.core.registration_steps import Policy
from sockshare.core.rollout import Rollout
from sockshare.core.steps import Plan
from tests.recorded import MANAGERS, recorded

HELLO: dict[str, Any] = {
    "type": "hello",
    "version": versions.LINK,
    "package": "9.9",
    "manager": {"kind": "circus", "pid": 10, "uid": 0},
    "directory": "/run/x",
    "listeners": ["broker", "door"],
    "sockets": [{"name": "web"}],
    "programs": [{"name": "web", "sockets": ["web"]}],
}


@pytest.mark.parametrize(
    ("theirs", "understood"),
    [(3, False), (4, True), (5, True), (6, True), (7, False), (0, False), (-5, False), (None, False), ("5", False)],
)
def test_neighbours_understand_each_other(theirs: object, understood: bool) -> None:
    """One version older or newer, and nothing else; True is not 1."""
    assert versions.are_neighbours(5, theirs) is understood
    assert not versions.are_neighbours(1, True)
    assert versions.understood(5) == "versions 4 to 6"
    assert versions.understood(1) == "versions 1 to 2"


@pytest.mark.parametrize("change", [-1, 0, 1])
def test_hello_of_a_neighbour_is_read(change: int) -> None:
    """What it has besides is passed over, in each part; what it has not yet has its default."""
    later: dict[str, Any] = {
        **HELLO,
        "version": versions.LINK + change,
        "shape": {"a": [1]},
        "manager": {**HELLO["manager"], "systemd": True},
        "sockets": [{"name": "web", "shape": "round"}],
        "programs": [{"name": "web", "sockets": ["web"], "canary": 5}],
        "listeners": ["broker", "door", "metrics"],
    }
    hello = read_hello(later, 5)
    assert (hello.programs, hello.sockets) == (read_hello(HELLO, 3).programs, read_hello(HELLO, 3).sockets)
    assert (hello.journal, hello.kept, hello.notify, hello.mistakes, hello.uids) == ({}, [], [], [], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": versions.LINK + 2}, f"version {versions.LINK + 2}, and this broker reads"),
        ({"version": None}, "of version None"),
        ({"directory": None}, "directory"),
        ({"programs": [{"name": "web", "ready": "by magic"}]}, "by magic"),
        ({"manager": {"kind": "circus", "pid": 10}}, "uid"),
        ({"kept": ["gate:1"]}, "counts 4 descriptors, and 3 came"),
        ({"listeners": ["broker", "window"]}, "no listener 'door'"),
    ],
    ids=str,
)
def test_unreadable_hello_is_one_sentence_with_what_to_restart(change: dict[str, Any], words: str) -> None:
    """Whatever is wrong with it: whose it is, why, and what to do about it."""
    with pytest.raises(Unreadable) as raised:
        read_hello({**HELLO, **change}, 3)
    sentence = str(raised.value)
    assert sentence.startswith("can't serve circus (pid 10): its hello ")
    assert words in sentence
    assert sentence.endswith("restart the plugin (circusctl restart plugin:sockshare), or install sockshare 9.9 again")
    assert "\n" not in sentence


def test_garbage_is_unreadable_too() -> None:
    """A sentence, whatever is missing from it."""
    with pytest.raises(Unreadable, match="restart the manager, or install the sockshare that it runs again"):
        read_hello({"type": "hello", "version": versions.LINK, "manager": []}, 0)


def test_later_programs_are_read_as_those_of_the_hello() -> None:
    """A change of the configuration that can't be read is as bad as a hello."""
    hello = read_hello(HELLO, 3)
    read = read_programs({"type": "programs", "programs": [{"name": "api", "canary": 1}], "news": 1}, hello)
    assert [spec.name for spec in read.programs] == ["api"]
    with pytest.raises(Unreadable, match=r"can't serve circus \(pid 10\): can't read its programs"):
        read_programs({"type": "programs"}, hello)


@pytest.mark.parametrize("manager", MANAGERS)
def test_recorded_hellos_are_read(manager: str) -> None:
    """Those of the version before, with journals of reloads in whose middle the broker died, to the last record."""
    said = [one for one in recorded(manager) if one.message["type"] == "hello"]
    assert len(said) >= 3
    kinds = set()
    for one in said:
        hello = read_hello(one.message, one.fds)
        found = records.read(hello.journal)
        assert not found.unreadable
        for running in (*found.reloads.values(), *found.retirements.values()):
            rollout, _ = Rollout.recover(running.rollout, 0.0)
            assert rollout.plan.program == "web"
        kinds |= {key.partition(":")[0] for key in hello.journal}
        assert {key.partition(":")[0] for key in hello.kept} <= {"gate"}
    common = {"process", "generation", "last", "reload", "registration", "quiesced"}
    assert common <= kinds
    if manager == "circus":
        assert "retirement" in kinds


@pytest.mark.parametrize("manager", MANAGERS)
def test_every_recorded_line_of_the_journal_is_read(manager: str) -> None:
    """Also those that no hello had, one by one."""
    lines = [one.message for one in recorded(manager) if one.message["type"] == "journal" and one.message["record"]]
    for line in lines:
        found = records.read({line["key"]: line["record"]})
        assert found.unreadable == {}
        assert found != records.Records(), line["key"]


PLAN = Plan("web", "k", (), 1, 1.0, 1.0, 0.0, 1.0, "it")
RUNNING: dict[str, Any] = {
    "rollout": Rollout(PLAN).record(),
    "mode": "auto",
    "sockets": ["web"],
    "before": {"said": [], "registered": []},
    "stderr": [None, 0],
    "answer": None,
}


@pytest.mark.parametrize(
    ("key", "record"),
    [
        ("process:11", {"start": 1, "generation": 2, "ready": None, "status": "", "warning": ""}),
        ("generation:web", {"last": 3}),
        ("last:web", {"key": "k", "answer": {"result": "ok", "exit": 0, "reason": "", "seconds": 1.0, "stderr": ""}}),
        ("reload:web", RUNNING),
        ("retirement:11", RUNNING),
        ("displaced:11:web", {"start": 1}),
        ("quiesced:11", {"start": 1}),
        ("admitted", {"uids": [1000]}),
        ("learned:web", {"cut": 2, "signal": 15}),
    ],
)
def test_record_is_read_with_more_and_left_out_with_less(key: str, record: dict[str, Any]) -> None:
    """A later version's fields are passed over; a field that is missing, or of another type, costs that record only."""
    whole = records.read({key: {**record, "later": 1}})
    assert whole.unreadable == {}
    assert whole == records.read({key: record})
    least = next(iter(record))
    wrongs: list[Any] = [{name: one for name, one in record.items() if name != least}, {**record, least: 1.5}, [], 7]
    for wrong in wrongs:
        found = records.read({key: wrong, "generation:api": {"last": 1}})
        assert list(found.unreadable) == [key]
        assert found.unreadable[key].record == wrong
        assert found.generations == {"api": 1}


def test_record_of_no_pid_is_left_out() -> None:
    """The key is read as the record is."""
    assert list(records.read({"process:x": {"start": 1, "generation": 1}, "quiesced:": {"start": 1}}).unreadable) == [
        "process:x",
        "quiesced:",
    ]


def test_unknown_kind_of_record_is_passed_over() -> None:
    """It is a later broker's, and there for it when it is back."""
    assert records.read({"canary:web": {"a": 1}, "registration:web": {"b": 2}}) == records.Records(
        registrations={"web": {"b": 2}}
    )


def test_renamed_field_of_a_rollout_is_refused_and_an_added_one_is_not() -> None:
    """Its plan too: what is new has a default, what is gone has none."""
    record = Rollout(PLAN).record()
    later = {**record, "canary": 1, "plan": {**record["plan"], "share": 5}}
    assert Rollout.recover(later, 0.0)[0].plan == PLAN
    del later["plan"]["alone"]
    assert Rollout.recover(later, 0.0)[0].plan == PLAN
    wrong: dict[str, Any] = {"state": "dancing", "deadline": "soon", "plan": {}, "pending": [[1]], "failure": [99, ""]}
    for name, value in wrong.items():
        with pytest.raises(ValueError):  # noqa: PT011  whatever it says
            Rollout.recover({**record, name: value}, 0.0)
    del record["old_gone"]
    with pytest.raises(ValueError, match="'old_gone'"):
        Rollout.recover(record, 0.0)


def test_key_of_a_reload_is_found_where_nothing_else_can_be_read() -> None:
    """Its command has to be told."""
    assert records.reload_key({"rollout": {"plan": {"key": "k"}}, "mode": 1}) == "k"
    garbages: list[Any] = [None, [], {}, {"rollout": {"plan": {"key": 1}}}, {"rollout": "x"}]
    for garbage in garbages:
        assert records.reload_key(garbage) is None


def test_hello_is_typed() -> None:
    """What the broker goes on with has its parts by name."""
    hello = read_hello(HELLO, 3)
    assert isinstance(hello, Hello)
    assert (hello.manager.kind, hello.manager.pid, hello.manager.uid) == ("circus", 10, 0)


def test_claim_of_a_later_version_is_taken_up() -> None:
    """It may have more to say of a claim, at the end."""
    hello = next(one.message for one in recorded("circus") if one.message["type"] == "hello" and one.message["journal"])
    record = records.read(hello["journal"]).registrations["web"]
    later = {**record, "claims": [{**claim, "claim": [*claim["claim"], "later"], "x": 1} for claim in record["claims"]]}
    found, _ = Registration.recover(Policy.of("exclusive"), later, 1)
    assert len(found.claims) == len(record["claims"]) > 1
