"""Datagrams need no hand-over: they wait in the one shared socket, and a reload loses none of them."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from sockshare.cli.stage import wait_until
from tests.support.circusd import Circusd, circusd
from tests.support.supervisord import supervisord

BURST, PAUSE = 60, 0.05  # datagrams, which wait in the kernel until they are read, and seconds


@pytest.mark.parametrize("manager", [circusd, supervisord], ids=["circus", "supervisord"])
def test_no_datagram_is_lost_in_a_reload(manager: Callable[..., AbstractContextManager[Circusd]]) -> None:
    """Each of the bursts before, during and after a reload is answered to the last datagram."""
    with manager("udp", leave=True) as stage, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        stage.start()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        sock.setblocking(False)
        # Not connected: what came before anybody listened would be an error of a later call.
        address = ("127.0.0.1", stage.port)

        def first_answer() -> bool:
            sock.sendto(b"?", address)
            return bool(select.select([sock], [], [], 0.5)[0])

        wait_until(first_answer, 20, "the program answers")
        wait_until(lambda: stage.sockshare("status").returncode == 0, 20, "all serve", 0.1)
        take(sock, 1.0)
        over = threading.Event()
        sent = []

        def send() -> None:
            while not over.wait(PAUSE):
                for _ in range(BURST):
                    sock.sendto(b"?", address)
                sent.append(BURST)

        sending = threading.Thread(target=send)
        answered = []
        sending.start()
        try:
            reloading = threading.Thread(target=lambda: answered.append(stage.reload()))
            reloading.start()
            count = 0
            while reloading.is_alive():
                if select.select([sock], [], [], 0.1)[0]:
                    sock.recv(65536)
                    count += 1
        finally:
            over.set()
            sending.join()
            reloading.join()
        count += take(sock, 2.0)
        assert answered[0].status == 0, answered[0]
        assert len(sent) > 10
        assert count == sum(sent)


def take(sock: socket.socket, quiet: float) -> int:
    """How many answers come until there is none for *quiet* seconds."""
    count = 0
    while select.select([sock], [], [], quiet)[0]:
        sock.recv(65536)
        count += 1
    return count
