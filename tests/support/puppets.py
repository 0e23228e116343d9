"""Managed processes on strings: what a test tells ``apps/puppet.py`` to do."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.door import Reply

TIMEOUT = 120.0  # s for one request: some of them are ten thousand


class Puppet:
    """One managed process."""

    def __init__(self, stage: Circusd, pid: int) -> None:
        self.pid = pid
        path = f"{stage.directory}/puppet-{pid}"
        wait_until(lambda: os.path.exists(path), 30, f"puppet {pid} listens")
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(TIMEOUT)
        self._sock.connect(path)
        self._stream = self._sock.makefile("rw")

    def do(self, name: str, /, **fields: Any) -> Any:
        """The puppet's answer; AssertionError if it could not do it."""
        answer = self._ask(name, fields)
        assert "ok" in answer, f"{name}: {answer}"
        return answer["ok"]

    def _ask(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        self._stream.write(json.dumps({"do": name, **fields}) + "\n")
        self._stream.flush()
        answer: dict[str, Any] = json.loads(self._stream.readline())
        return answer

    def fails(self, name: str, /, **fields: Any) -> str:
        """Why the puppet could not do it: the exception's type and text; AssertionError if it could."""
        answer = self._ask(name, fields)
        assert "error" in answer, f"{name}: {answer}"
        return str(answer["error"])

    def reply(self, name: str, /, **fields: Any) -> Reply:
        """The same for what answers with a door's reply."""
        return Reply(*self.do(name, **fields))

    def close(self) -> None:
        """Let go of the string."""
        self._stream.close()
        self._sock.close()


@contextmanager
def puppets(count: int) -> Iterator[tuple[Circusd, list[Puppet]]]:
    """A circusd with so many puppets in one program that may have the socket ``web``."""
    with circusd("puppet", leave=True, numprocesses=count) as stage:
        stage.start()
        wait_until(lambda: len(circus_pids(stage)) == count, 10, "the puppets run", 0.05)
        strings: list[Puppet] = []
        try:
            strings += [Puppet(stage, pid) for pid in stage.pids()]
            for string in strings:
                assert string.do("ask", op="attach")["ok"]
            yield stage, strings
        finally:
            for string in strings:
                string.close()


def circus_pids(stage: Circusd) -> list[int]:
    """The program's pids; none while circusd does not answer yet."""
    try:
        return stage.pids()
    except TimeoutError:
        return []
