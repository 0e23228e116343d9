"""Who may do what, by real processes of other users: a program's own, another program's, a stranger, a commander."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.lone import Lone, Peer, lone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="being other users needs root")

WEB, API, STRANGER, DEPLOY = 65534, 65533, 65532, 65531
KEY = "a" * 32
PROGRAMS = [{"name": "web", "sockets": ["web", "turns"]}, {"name": "api", "sockets": ["api", "turns"]}]
SOCKETS = [{"name": "web"}, {"name": "api"}, {"name": "turns", "registration": "rotate"}]
COMMANDS: dict[str, dict[str, str]] = {
    "reload": {"program": "web", "key": KEY},
    "cancel": {"program": "web", "key": KEY},
    "move": {"socket": "turns", "process": "web:1"},
    "quiesce": {"process": "web:1"},
    "wake": {"process": "web:1"},
}


class Cast(NamedTuple):
    """A host, and who comes to its broker: of two programs, and of none."""

    host: Lone
    web: Peer
    api: Peer
    root: Peer
    stranger: Peer
    like_web: Peer  # of the same user, and no managed process


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """One that other users can reach: pytest keeps them out of its own."""
    with tempfile.TemporaryDirectory(prefix="ss-") as made:
        Path(made).chmod(0o711)
        yield Path(made, "r")


@pytest.fixture(scope="module")
def cast(directory: Path) -> Iterator[Cast]:
    with lone(directory, programs=PROGRAMS, sockets=SOCKETS, uids=[0, WEB, API]) as host:
        web, api = host.managed("web", WEB), host.managed("api", API)
        yield Cast(host, web, api, host.peer(0), host.peer(STRANGER), host.peer(WEB))


@pytest.mark.parametrize("op", COMMANDS)
def test_command_is_refused_to_a_program_s_own_user(cast: Cast, op: str) -> None:
    """It may have its sockets, and change nothing for others; root is not refused."""
    web, fields = cast.web, COMMANDS[op]
    assert web.ask("attach")["ok"]
    answer = web.ask(op, **fields)
    assert (answer.get("error"), answer.get("exit")) == ("NotPermitted", 7), answer
    assert f"as uid {WEB}" in answer["message"]
    assert cast.api.refused(op, **fields) == "NotPermitted"
    assert cast.like_web.refused(op, **fields) == "NotPermitted"
    assert "as uid" not in cast.root.ask(op, **fields).get("message", "")


def test_zeromq_speaks_to_known_users_only(cast: Cast) -> None:
    """A stranger is hung up on before the first word, and told at the door why."""
    web, stranger = cast.web, cast.stranger
    assert web.do("greeted")
    assert not stranger.do("greeted")
    said = json.loads(stranger.at_door("H").text[1:])
    assert said["uid_known"] is False
    assert json.loads(web.at_door("H").text[1:])["uid_known"] is True


def test_ticket_is_made_only_for_a_process_that_may_have_the_socket(cast: Cast) -> None:
    """Who may have it can't pass it to another program, nor to a process that is of none."""
    host, web, api = cast.host, cast.web, cast.api
    assert web.ask("ticket", socket="web", pid=web.pid)["ok"]
    assert web.ask("ticket", socket="turns", pid=api.pid)["ok"]  # both may have that one
    assert web.refused("ticket", socket="web", pid=api.pid) == "NotPermitted"
    assert web.refused("ticket", socket="web", pid=cast.like_web.pid) == "NotPermitted"
    assert web.refused("ticket", socket="web", pid=host.pid) == "NotPermitted"
    assert api.refused("ticket", socket="web") == "NotPermitted"
    assert api.refused("ticket", socket="web", pid=web.pid) == "NotPermitted"
    assert api.refused("inherit", sockets=["web"]) == "NotPermitted"


def test_ticket_of_another_user_is_worth_nothing(cast: Cast) -> None:
    """Overheard, it gives no descriptor, and its owner can still redeem it."""
    web = cast.web
    ticket = web.do("ticket", socket="turns")
    for thief in (cast.api, cast.stranger, cast.like_web, cast.root):
        reply = thief.do("redeem", ticket=ticket)
        assert json.loads(reply[0][1:])["error"] == "TicketRefused"
        assert not reply[1]
    assert web.do("redeem", ticket=ticket)[1]


def test_claim_is_nobody_s_but_its_process_s(cast: Cast) -> None:
    """Its tally, its gate, its end, its place: with the key alone another user has none of them."""
    web, key = cast.web, "b" * 32
    epoch = web.do("claim", socket="turns", key=key)
    for thief in (cast.api, cast.stranger, cast.like_web, cast.root):
        for packet in (f"Stally:{key}", f"P{key}"):
            reply = thief.at_door(packet)
            assert not reply.granted, packet
            assert json.loads(reply.text[1:])["error"] == "NotPermitted", packet
        assert not thief.at_door("F").granted
    for thief in (cast.api, cast.like_web):
        assert thief.refused("release", socket="turns", key=key, epoch=epoch) == "NotPermitted"
        assert thief.refused("claim", socket="turns", key=key, gate=True, epoch=epoch) == "NotPermitted"
    assert web.at_door(f"Stally:{key}").granted
    assert web.at_door(f"P{key}").text == "+"
    assert web.ask("release", socket="turns", key=key, epoch=epoch)["released"]


def test_status_shows_a_user_what_concerns_it(cast: Cast) -> None:
    """Root everything; a program's user its program whole, and of another on the same socket that it is there."""
    web, api = cast.web, cast.api
    assert api.ask("ready", status="the password is 1234")["ok"]
    everything = cast.root.ask("status")["status"]
    assert everything["view"] == "all"
    assert [one["status"] for one in holders(everything, "api")] == ["the password is 1234"] * 2
    seen = web.ask("status")["status"]
    assert seen["view"] == "own"
    assert "password" not in json.dumps(seen)
    by_name = {entry["name"]: entry for entry in seen["sockets"]}
    assert by_name["api"] == {"name": "api"}
    assert by_name["web"]["holders"][0]["pid"] == web.pid
    assert {one["program"] for one in by_name["turns"]["holders"]} == {"web", "api"}
    assert [set(one) == {"name"} for one in seen["programs"]] == [False, True]
    subjects = {one["subject"] for one in web.ask("doctor")["findings"]}
    assert not [subject for subject in subjects if "api" in subject]
    assert "you" in subjects
    assert [one for one in cast.root.ask("doctor")["findings"] if f"(pid {api.pid})" in one["subject"]]


def holders(document: dict[str, Any], program: str) -> list[dict[str, Any]]:
    return [one for entry in document["sockets"] for one in entry["holders"] if one["program"] == program]


def endpoint_of(directory: Path, mode: int) -> Path:
    """A circusd's endpoint that belongs to the user, and the group, DEPLOY."""
    endpoint = directory.with_name("circus") / "endpoint"
    endpoint.parent.mkdir(exist_ok=True)
    endpoint.touch()
    os.chown(endpoint, DEPLOY, DEPLOY)
    endpoint.chmod(mode)
    return endpoint


def circusd_with(directory: Path, endpoint: str) -> AbstractContextManager[Lone]:
    place = directory.with_name("s")  # the other one is in use
    return lone(place, programs=PROGRAMS, sockets=SOCKETS, uids=[0, WEB, API], endpoint=endpoint)


def test_who_may_write_to_circusd_s_endpoint_may_command(directory: Path) -> None:
    """By the file's owner, group and mode, those of what leads there, and the groups that the process has."""
    endpoint = endpoint_of(directory, 0)
    with circusd_with(directory, f"ipc://{endpoint}") as host:
        owner = host.peer(DEPLOY)
        by_group, by_further_group = host.peer(STRANGER, gid=DEPLOY), host.peer(STRANGER - 10, groups=[5, DEPLOY])
        by_none = host.peer(STRANGER - 20, groups=[5])

        def may(peer: Peer) -> bool:
            # Which a broker says that is about to end for it, and the next one, which lets the user in.
            return bool(json.loads(peer.at_door("H").text[1:])["uid_known"])

        for mode, refused in (
            (0o555, [owner, by_group, by_further_group, by_none]),
            (0o575, [owner, by_none]),  # the owner's bits decide, though its group might
            (0o755, [by_group, by_further_group, by_none]),
        ):
            endpoint.chmod(mode)
            assert [may(peer) for peer in refused] == [False] * len(refused), oct(mode)
            assert not any(peer.do("greeted") for peer in refused)
        endpoint.chmod(0o777)
        endpoint.parent.chmod(0o710)
        assert not may(by_none)  # it can't come there
        endpoint.parent.chmod(0o711)
        for mode, permitted in ((0o755, owner), (0o775, by_group), (0o775, by_further_group), (0o777, by_none)):
            endpoint.chmod(mode)
            assert may(permitted)
            assert permitted.ask("status")["status"]["view"] == "all"
            assert permitted.refused("quiesce", process="wbe:1") == "UnknownProgram"
        broker = host.broker()
        assert may(owner)
        assert host.broker() == broker  # it was admitted once and for all
        endpoint.chmod(0o555)
        assert owner.refused("quiesce", process="wbe:1") == "NotPermitted"
        assert owner.ask("status")["status"]["view"] == "names"


def test_endpoint_owner_is_let_in_from_the_start(directory: Path) -> None:
    """No broker has to end for that user."""
    with circusd_with(directory, f"ipc://{endpoint_of(directory, 0o755)}") as host:
        owner, broker = host.peer(DEPLOY), host.broker()
        assert owner.do("greeted")
        assert owner.refused("quiesce", process="wbe:1") == "UnknownProgram"
        assert host.broker() == broker


def test_everybody_is_let_in_where_everybody_may_write(directory: Path) -> None:
    """Such an endpoint lets all users restart programs."""
    with circusd_with(directory, f"ipc://{endpoint_of(directory, 0o777)}") as host:
        stranger = host.peer(STRANGER)
        assert stranger.do("greeted")
        assert stranger.refused("quiesce", process="wbe:1") == "UnknownProgram"


def test_nobody_may_command_by_a_tcp_endpoint(directory: Path) -> None:
    """The kernel does not say who comes there, whatever a file of that name would say."""
    with circusd_with(directory, f"tcp://{endpoint_of(directory, 0o777)}") as host:
        assert not json.loads(host.peer(DEPLOY).at_door("H").text[1:])["uid_known"]


def test_stranger_sees_names_where_every_user_may_connect(directory: Path) -> None:
    """Where it is not known as which users programs run, nobody is filtered out; the rest is the rule's."""
    with lone(directory.with_name("s"), programs=PROGRAMS, sockets=SOCKETS, uids=[]) as host:
        host.managed("web", WEB)
        stranger = host.peer(STRANGER)
        seen = stranger.ask("status")["status"]
        assert seen == {
            "version": 1,
            "state": "serving",
            "view": "names",
            "manager": {"kind": "circus", "pid": host.pid},
            "broker": {"pid": host.broker()},
            "mistakes": [],
            "warnings": [],
            "sockets": [{"name": "web"}, {"name": "api"}, {"name": "turns"}],
            "programs": [{"name": "web"}, {"name": "api"}],
        }
        findings = stranger.ask("doctor")["findings"]
        assert [one["subject"] for one in findings] == ["you"]
        for op, fields in COMMANDS.items():
            assert stranger.refused(op, **fields) == "NotPermitted"
