"""Rule 3: duplicates are used for I/O independently, in both directions, by several processes.

Winsock leaves it to the processes to coordinate what they do; so does the kernel, which gives each byte, message and
connection to exactly one of them.
"""

from __future__ import annotations

import pytest

from .theatre import KINDS, MET, Theatre


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_serves_clients_by_its_duplicate(one_house: Theatre, kind: str) -> None:
    """Three processes of two programs take clients off one socket and answer them, in any order, each client once."""
    for puppet in one_house.holders:
        puppet.do("take", name=kind)
    clients = [one_house.client(kind) for _ in one_house.holders]
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    # The last shall be first: nobody waits for another's turn.
    for number, puppet in enumerate(reversed(one_house.holders)):
        if KINDS[kind].listens:
            puppet.do("accept", key=kind, connection="one")
            text, address = puppet.do("receive", key="one")[0], None
        else:
            text, address = puppet.do("receive", key=kind)
        assert text == str(number)
        puppet.do("send", key=kind if address else "one", text=f"to {number}", to=address)
    assert not any(puppet.do("waiting", key=kind) for puppet in one_house.holders)
    for number, client in enumerate(clients):
        assert client.recv(100) == b"to %d" % number


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_reads_and_writes_one_connection(one_house: Theatre, kind: str) -> None:
    """Who accepted a connection, who inherited it and who was passed it exchange data on it, in both directions."""
    client, processes = one_house.meet(kind)
    for number, reader in enumerate(processes):
        writer = processes[(number + 1) % 3]
        client.send(b"question %d" % number)
        assert reader.do("receive", key=MET)[0] == f"question {number}"
        assert not any(puppet.do("waiting", key=MET) for puppet in processes)
        writer.do("send", key=MET, text=f"answer {number}")
        assert client.recv(100) == b"answer %d" % number


@pytest.mark.parametrize("kind", KINDS)
def test_processes_write_in_their_order(one_house: Theatre, kind: str) -> None:
    """What several processes send one after the other arrives in that order: there is one stream, one queue."""
    client, processes = one_house.meet(kind)
    texts = [f"<{number}>" for number in range(30)]
    for number, text in enumerate(texts):
        processes[number % 3].do("send", key=MET, text=text)
    received = b""
    while len(received) < len("".join(texts)):
        received += client.recv(1000)
    assert received.decode() == "".join(texts)
