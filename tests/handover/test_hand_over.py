"""An established connection moves with its state to where it is wanted, or stays where it is, and one is told which."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import termios
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from sockshare.cli.stage import wait_until
from sockshare.client import door
from sockshare.kernel import strike
from tests.handover.cast import PATIENCE, Actor, Cast, cast, heard


@pytest.fixture(scope="module")
def scene() -> Iterator[Cast]:
    """``web`` may give to ``chat``, which has three processes; nobody but itself to ``alone``."""
    with cast(
        web=(1, "sockshare.sockets = web"),
        chat=(3, "sockshare.receive_from = web"),
        alone=(1, "sockshare.ready = hold"),
        lazy=(1, "sockshare.receive_from = web"),
    ) as found:
        yield found


@pytest.fixture
def web(scene: Cast) -> Actor:
    return scene.actors("web")[0]


@pytest.fixture
def chat(scene: Cast) -> list[Actor]:
    """All of them have said that they take connections."""
    actors = scene.actors("chat", 3)
    for actor in actors:
        assert "TimedOut" in actor.error("receive", timeout=0.05)
    return actors


def give(scene: Cast, web: Actor, to: str, **fields: object) -> socket.socket:
    """A connection is handed over; its peer."""
    number, peer = scene.peers.connection(web)
    # Whoever has just said that it receives may not be known to the broker yet.
    wait_until(lambda: web.begin("give", number=number, to=to, **fields).result().get("ok"), PATIENCE, "it is taken")
    return peer


def receive(actors: list[Actor]) -> tuple[Actor, int, str | int]:
    """Who has received it, its number there, and the state."""
    for _ in range(40):
        for actor in actors:
            answer = actor.begin("receive", timeout=0.05).result()
            if "ok" in answer:
                return actor, *answer["ok"]
    raise AssertionError("nobody has received it")


@pytest.mark.parametrize("size", [0, 5, 65_536, 65_537, 1_000_000])
def test_connection_moves_with_its_state(scene: Cast, web: Actor, chat: list[Actor], size: int) -> None:
    """Its peer notices nothing: it is the same connection; what was unread is read by the new owner."""
    peer = give(scene, web, "chat", state="s" * size)
    actor, number, state = receive(chat)
    assert state == ("s" * size if size < 10_000 else size)
    actor.do("say", number=number, text="here")
    actor.do("close", number=number)
    assert heard(peer) == "here"


def test_state_of_16_mib_moves_and_a_longer_one_is_refused(scene: Cast, web: Actor, chat: list[Actor]) -> None:
    """The limit is said, with what to do."""
    number, peer = scene.peers.connection(web)
    assert "at most 16777216 (16 MiB)" in web.error("give_long", number=number, to="chat", size=2**24 + 1)
    web.do("give_long", number=number, to="chat", size=2**24)
    actor, received, state = receive(chat)
    assert state == 2**24
    actor.do("close", number=received)
    assert heard(peer) == ""


def test_descriptors_are_flat_over_many_hand_overs(scene: Cast, web: Actor, chat: list[Actor]) -> None:
    """Nobody keeps a copy: not the giver, not the receiver, not the broker."""
    broker = door.hello(str(scene.stage.runtime), time.monotonic() + PATIENCE).pid

    def opened() -> list[int]:
        return [*(one.do("descriptors") for one in (web, *chat)), len(os.listdir(f"/proc/{broker}/fd"))]

    receive_all(scene, web, chat, 6)
    before = opened()
    receive_all(scene, web, chat, 60)
    wait_until(lambda: opened() == before, PATIENCE, f"nothing but {before} is open")


def receive_all(scene: Cast, web: Actor, chat: list[Actor], count: int) -> None:
    for _ in range(count // 6):
        pairs = [scene.peers.connection(web) for _ in range(6)]
        assert web.do("give_many", numbers=[number for number, _ in pairs], to="chat", state="many") == []
        for _ in pairs:
            actor, number, state = receive(chat)
            assert state == "many"
            actor.do("close", number=number)
        for _, peer in pairs:
            assert heard(peer) == ""
            peer.close()


def test_named_process_gets_it(scene: Cast, web: Actor, chat: list[Actor]) -> None:
    """``to`` may be one process of the program."""
    for name in ("chat:1", "chat:3", "chat:2"):
        number, _ = scene.peers.connection(web)
        web.do("give", number=number, to=name, state=name)
        actor, received, state = receive(chat)
        assert state == name
        assert actor is chat[int(name[-1]) - 1]
        actor.do("close", number=received)


def test_key_always_goes_to_the_same_process(scene: Cast, web: Actor, chat: list[Actor]) -> None:
    """And different keys make use of more than one."""
    owners: dict[str, set[int]] = {}
    for turn in range(3):
        for room in ("red", "green", "blue", "white", "black", "grey"):
            number, _ = scene.peers.connection(web)
            web.do("give", number=number, to="chat", key=room, state=f"{room} {turn}")
            actor, received, state = receive(chat)
            assert state == f"{room} {turn}"
            owners.setdefault(room, set()).add(actor.pid)
            actor.do("close", number=received)
    assert all(len(pids) == 1 for pids in owners.values())
    assert len(set.union(*owners.values())) > 1


def test_least_loaded_gets_it_and_load_ends_with_the_connection(scene: Cast, web: Actor, chat: list[Actor]) -> None:
    """Load is what a process was handed and has not closed."""
    held: dict[int, list[int]] = {actor.pid: [] for actor in chat}

    def take(count: int) -> Counter[int]:
        found: Counter[int] = Counter()
        for _ in range(count):
            number, _ = scene.peers.connection(web)
            web.do("give", number=number, to="chat")
            actor, received, _ = receive(chat)
            held[actor.pid].append(received)
            found[actor.pid] += 1
        return found

    assert set(take(9).values()) == {3}
    for number in held[chat[1].pid]:
        chat[1].do("close", number=number)
    held[chat[1].pid].clear()
    assert "TimedOut" in chat[1].error("receive", timeout=0.05)
    assert take(3) == {chat[1].pid: 3}
    for actor in chat:
        for number in held[actor.pid]:
            actor.do("close", number=number)
        actor.error("receive", timeout=0.05)


def test_round_robin_takes_turns_whatever_the_load(scene: Cast, web: Actor, chat: list[Actor]) -> None:
    """Each third connection goes to the same process."""
    pids = []
    for _ in range(6):
        number, _ = scene.peers.connection(web)
        web.do("give", number=number, to="chat", route="round_robin")
        actor, received, _ = receive(chat)
        actor.do("close", number=received)
        pids.append(actor.pid)
    assert pids[:3] == pids[3:]
    assert len(set(pids)) == 3


def test_giver_is_told_at_once_when_all_are_full_and_has_room_again_later(scene: Cast, web: Actor) -> None:
    """What is not received counts; nothing waits in the giver, and the connection is still its own."""
    (lazy,) = scene.actors("lazy")
    assert "TimedOut" in lazy.error("receive", timeout=0.05, limit=4)
    peers = [give(scene, web, "lazy", state=str(number)) for number in range(4)]
    number, peer = scene.peers.connection(web)
    began = time.monotonic()
    assert "NoReceiver: can't hand over a connection to 'lazy': as many" in web.error("give", number=number, to="lazy")
    pairs = [scene.peers.connection(web) for _ in range(2)]
    kept = web.do("give_many", numbers=[one for one, _ in pairs], to="lazy")
    assert [error.partition(":")[0] for error in kept] == ["NoReceiver"] * 2
    assert time.monotonic() - began < 2.5, "told late"
    web.do("say", number=number, text="still mine")
    assert peer.recv(100) == b"still mine"
    for count in range(4):
        received, state = lazy.do("receive")
        assert state == str(count), "in order"
        lazy.do("close", number=received)
    for one in peers:
        assert heard(one) == ""
    web.do("give", number=number, to="lazy", state="now")
    received, state = lazy.do("receive")
    lazy.do("close", number=received)
    assert (state, heard(peer)) == ("now", "")


def test_connection_is_taken_while_its_receiver_does_something_else(scene: Cast, web: Actor) -> None:
    """A receiver that is not in receive() takes connections all the same: its givers don't wait for it."""
    (lazy,) = scene.actors("lazy")
    lazy.error("receive", timeout=0.05)
    for number in range(3):
        began = time.monotonic()
        give(scene, web, "lazy", state=str(number))
        assert time.monotonic() - began < 2.5
    for number in range(3):
        received, state = lazy.do("receive")
        assert state == str(number)
        lazy.do("close", number=received)


def test_connection_is_withdrawn_after_the_time_out(scene: Cast, web: Actor) -> None:
    """A receiver that is stopped does not answer: the giver has its connection back, and the receiver never gets it."""
    (lazy,) = scene.actors("lazy")
    lazy.error("receive", timeout=0.05)
    lazy.do("close", number=receive_one(scene, web, lazy))
    number, peer = scene.peers.connection(web)
    os.kill(lazy.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        error = web.error("give", number=number, to="lazy", timeout=0.4)
        assert "HandOverTimedOut" in error
        assert "did not answer in time (0.4 s)" in error
        assert 0.4 <= time.monotonic() - began < 3
    finally:
        os.kill(lazy.pid, signal.SIGCONT)
    assert "TimedOut" in lazy.error("receive", timeout=0.3)
    web.do("say", number=number, text="mine")
    web.do("close", number=number)
    assert heard(peer) == "mine", "the receiver has kept a copy"


def test_giver_does_not_wait_for_a_receiver_that_died_before_it_had_its_lane() -> None:
    """The broker keeps the receiver's end until it is fetched, and no longer than the receiver lives."""
    with cast(web=(1, "sockshare.sockets = web"), chat=(1, "sockshare.receive_from = web")) as scene:
        (web,), (chat,) = scene.actors("web"), scene.actors("chat")
        chat.error("receive", timeout=0.05)
        number, _ = scene.peers.connection(web)
        os.kill(chat.pid, signal.SIGSTOP)
        giving = web.begin("give", number=number, to="chat", timeout=4.0)
        wait_until(lambda: has_offered(web.pid), PATIENCE, "it is offered")
        os.kill(chat.pid, signal.SIGKILL)
        assert "NoReceiver" in giving.result()["error"]


def has_offered(pid: int) -> bool:
    """Whether what a process has sent into a lane waits there: a socket of a pair, so its peer has no name."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=strike.duplicate(pid, int(name))) as sock:
                unread = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
                if sock.type == socket.SOCK_SEQPACKET and not sock.getpeername() and any(unread):
                    return True
        except OSError:  # closed meanwhile, or not connected
            continue
    return False


def receive_one(scene: Cast, web: Actor, actor: Actor) -> int:
    number, _ = scene.peers.connection(web)
    web.do("give", number=number, to="lazy")
    return int(actor.do("receive")[0])


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ("web", "NoReceiver: can't hand over a connection to 'web': no process there takes connections"),
        ("alone", "NotPermitted: can't hand over to 'alone' as web:1: the section of alone does not let it; "
         "add web to sockshare.receive_from in [watcher:alone]"),
        ("caht", "UnknownProgram: can't hand over to 'caht': no such program or process; did you mean 'chat'?"),
        ("chat:9", "NoReceiver"),
    ],
)  # fmt: skip
def test_giver_is_told_at_once_why_nobody_takes_it(scene: Cast, web: Actor, to: str, error: str) -> None:
    """None is there, it may not, or there is no such program; the connection stays."""
    number, peer = scene.peers.connection(web)
    began = time.monotonic()
    assert error in web.error("give", number=number, to=to)
    assert time.monotonic() - began < 2.5
    web.do("close", number=number)
    assert heard(peer) == ""


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("tls", "TypeError: can't hand over a TLS connection: its keys and sequence numbers are in this process's"),
        ("number", "TypeError: can't hand over a int: a connected socket.socket is needed"),
        ("unconnected", "SockshareError: can't hand over the connection: it has no peer"),
        ("closed", "SockshareError: can't hand over the connection: the socket is closed"),
        ("listening", "SockshareError: can't hand over a listening socket: what listens is shared; use duplicate()"),
        ("file", "ValueError: can't hand over the connection: a file made of it (makefile) is open"),
    ],
)
def test_what_can_not_move_is_refused(web: Actor, chat: list[Actor], what: str, error: str) -> None:
    """In a sentence, before anything has happened."""
    assert error in web.error("give_with", what=what, to="chat")


def test_same_connection_twice_in_a_batch_is_refused(scene: Cast, web: Actor) -> None:
    """Nothing has happened to it."""
    number, peer = scene.peers.connection(web)
    assert "the same connection twice" in web.error("give_many", numbers=[number, number], to="chat")
    web.do("close", number=number)
    assert heard(peer) == ""


def test_route_that_there_is_not_is_refused(scene: Cast, web: Actor) -> None:
    """With those that there are."""
    number, _ = scene.peers.connection(web)
    error = web.error("give", number=number, to="chat", route="randomly")
    assert "must be one of least_loaded, round_robin" in error
    web.do("close", number=number)


def test_fork_of_a_receiver_takes_connections_of_its_own(scene: Cast, web: Actor) -> None:
    """A pre-fork worker uses its copy of the share; the parent's lanes are the parent's."""
    (lazy,) = scene.actors("lazy")
    child = lazy.do("forked_receives", timeout=20)
    peer = None
    for _ in range(100):  # the least loaded of two: parent or child
        number, peer = scene.peers.connection(web)
        if "ok" not in web.begin("give", number=number, to="lazy").result():
            continue
        answer = lazy.begin("receive", timeout=0.05).result()
        if "ok" not in answer:
            break
        lazy.do("close", number=answer["ok"][0])
    assert peer is not None
    assert heard(peer) == f"child {child}"
    assert lazy.do("wait_for", pid=child) == 0


def test_closing_the_share_ends_taking(scene: Cast, web: Actor) -> None:
    """What waited there is closed; givers are told that nobody is there. (Last: it leaves ``lazy`` useless.)"""
    (lazy,) = scene.actors("lazy")
    lazy.error("receive", timeout=0.05)
    waiting = give(scene, web, "lazy")
    blocked = lazy.begin("receive", timeout=None)
    number = blocked.result()["ok"][0]
    blocked = lazy.begin("receive", timeout=None)
    waiting_too = lazy.begin("receive", timeout=None)
    lazy.do("close", number=number)
    assert heard(waiting) == ""
    lazy.do("end")
    assert "share is closed" in blocked.result()["error"]
    assert "share is closed" in waiting_too.result()["error"]
    number, _ = scene.peers.connection(web)
    assert "NoReceiver" in web.error("give", number=number, to="lazy")
