"""Rule 2: the threads of a process use one descriptor, with no duplication.

Winsock: "shared socket descriptors" are between processes; any thread of a process may use its socket descriptors.
"""

from __future__ import annotations

import pytest

from .theatre import KINDS, MET, Theatre

THREADS = 4


@pytest.mark.parametrize("kind", KINDS)
def test_threads_have_one_descriptor_of_shared_socket(one_house: Theatre, kind: str) -> None:
    """Threads that ask for the socket have the same object and descriptor, and serve clients by it at once."""
    puppet = one_house.first
    before = puppet.do("descriptors")
    clients = {f"client {number}": one_house.client(kind) for number in range(THREADS)}
    for text, client in clients.items():
        client.send(text.encode())
    served = puppet.do("serve_by_threads", name=kind, count=THREADS)
    assert len({fileno for fileno, _, _ in served}) == 1
    assert len({identity for _, identity, _ in served}) == 1
    assert sorted(text for _, _, text in served) == sorted(clients)
    assert puppet.do("descriptors") == before + 1
    for text, client in clients.items():
        assert client.recv(100) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_use_one_connection(one_house: Theatre, kind: str) -> None:
    """Threads read and write one connected socket by one descriptor; each byte or message is one thread's."""
    client, (puppet, _, _) = one_house.meet(kind)
    before = puppet.do("descriptors")
    for byte in (b"a", b"b", b"c", b"d"):
        client.send(byte)
    assert sorted(puppet.do("echo_by_threads", key=MET, count=THREADS, size=1)) == ["a", "b", "c", "d"]
    assert puppet.do("descriptors") == before
    echoed = b""
    while len(echoed) < THREADS:
        echoed += client.recv(THREADS)
    assert sorted(echoed) == sorted(b"abcd")
