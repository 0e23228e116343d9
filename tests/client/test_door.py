"""The door from outside, where it answers in parts."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from sockshare.client import door
from sockshare.core.errors import TicketRefused


def test_nothing_is_kept_when_one_of_several_packets_is_refused(tmp_path: Path) -> None:
    """More tickets than one packet carries: what came for the first is closed when the second is refused."""
    answered: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.settimeout(10)
        listener.bind(str(tmp_path / "door"))
        listener.listen()

        def serve() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                with sock:
                    count = (len(sock.recv(4096)) - 1) // door.TICKET_SIZE
                    answered.append(count)
                    if len(answered) == 1:
                        socket.send_fds(sock, [b"+" + b"\0".join([b"web"] * count)], [0] * count)
                        sock.recv(1)
                    else:
                        refusal = {"error": "TicketRefused", "message": "can't redeem ticket", "exit": 7}
                        sock.send(b"-" + json.dumps(refusal).encode())

        serving = threading.Thread(target=serve)
        serving.start()
        before = len(os.listdir("/proc/self/fd"))
        try:
            with pytest.raises(TicketRefused):
                door.redeem(str(tmp_path), [os.urandom(door.TICKET_SIZE)] * 17, time.monotonic() + 10)
        finally:
            serving.join()
        assert answered == [16, 1]
        assert len(os.listdir("/proc/self/fd")) == before
