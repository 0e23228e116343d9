"""The broker's life as the host's child: its end is heard, and after the host's nothing is started."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from sockshare.host import life as module
from sockshare.host.life import Life
from tests.support.circusd import is_running

SLEEPER = (sys.executable, "-S", "-c", "import signal; signal.pause()")


class Stage:
    """A life, and what it told."""

    def __init__(self) -> None:
        self.links: list[socket.socket] = []
        self.told: list[str] = []
        self.life = Life(
            asyncio.get_running_loop(),
            started=self._started,
            ended=lambda: self.told.append("ended"),
            command=SLEEPER,
        )

    def _started(self, link: socket.socket) -> None:
        self.told.append("started")
        self.links.append(link)

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.told
            await asyncio.sleep(0.005)


def play(body: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    """Run *body*; no descriptor and no child is left."""

    async def main() -> None:
        stage = Stage()
        try:
            await body(stage)
        finally:
            stage.life.stop()
            for link in stage.links:
                link.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def test_end_of_a_broker_is_told_before_the_next_one_starts() -> None:
    """What it wrote last is read before its successor is told what there is."""

    async def body(stage: Stage) -> None:
        stage.life.start()
        assert stage.life.pid is not None
        os.kill(stage.life.pid, signal.SIGKILL)
        await stage.until(lambda: len(stage.told) == 3)
        assert stage.told == ["started", "ended", "started"]

    play(body)


def test_nothing_is_started_after_the_end() -> None:
    """Neither a broker that was due, nor a spare one."""

    async def body(stage: Stage) -> None:
        stage.life.start()
        first = stage.life.pid
        assert first is not None
        stage.life.stop()
        assert not is_running(first)
        # A bound for a start that was put off is how long one is put off.
        await asyncio.sleep(module._SPARE_AFTER * 1.2)
        stage.life._appoint()
        stage.life._stand_by()
        assert stage.told == ["started"]
        assert stage.life.pid is None

    play(body)
