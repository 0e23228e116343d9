"""Rule 7: one process creates sockets and establishes connections; others, to which it hands them, exchange data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.handover.cast import Actor, Cast, cast

KINDS = ["tcp", "tcp6", "udp", "unix stream", "unix datagram", "unix seqpacket"]


@pytest.fixture(scope="module")
def scene() -> Iterator[Cast]:
    """``web`` makes connections; ``chat`` does the exchange."""
    with cast(web=(1, "sockshare.sockets = web"), chat=(1, "sockshare.receive_from = web")) as found:
        yield found


@pytest.fixture
def actors(scene: Cast) -> tuple[Actor, Actor]:
    """Both, and the receiver has said that it takes connections."""
    (web,), (chat,) = scene.actors("web"), scene.actors("chat")
    chat.error("receive", timeout=0.05)
    return web, chat


@pytest.mark.parametrize("kind", KINDS)
def test_established_connection_of_every_kind_moves(actors: tuple[Actor, Actor], kind: str) -> None:
    """The same socket (inode), what was unread, its options, both directions; the giver has none of it any more."""
    web, chat = actors
    ours, peer = web.do("pair", kind=kind)
    web.do("say", number=peer, text="unread")
    before = web.do("inode", number=ours)
    web.do("set_buffer", number=ours, size=40_000)
    assert web.do("has", inode=before)
    web.do("give", number=ours, to="chat", state=kind)
    assert not web.do("has", inode=before)
    moved, state = chat.do("receive")
    assert state == kind
    assert chat.do("inode", number=moved) == before
    assert chat.do("buffer", number=moved) == 80_000  # the kernel doubles it (socket(7))
    assert chat.do("hear", number=moved) == "unread"
    chat.do("say", number=moved, text="answer")
    assert web.do("hear", number=peer) == "answer"
    web.do("say", number=peer, text="again")
    assert chat.do("hear", number=moved) == "again"
    chat.do("close", number=moved)
    web.do("close", number=peer)


def test_moved_connection_moves_on(scene: Cast, actors: tuple[Actor, Actor]) -> None:
    """Who was handed a connection may hand it over, to its own program for one: nobody is there, and it stays."""
    web, chat = actors
    number, peer = scene.peers.connection(web)
    web.do("give", number=number, to="chat", state="first")
    moved, _ = chat.do("receive")
    assert "NoReceiver" in chat.error("give", number=moved, to="chat")
    chat.do("say", number=moved, text="still here")
    assert peer.recv(100) == b"still here"
    chat.do("close", number=moved)
