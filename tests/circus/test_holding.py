"""What circus wants to stop and is held: it is let go whenever there is nobody to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from circus.process import RUNNING, UNEXISTING

from circus_sockshare import holding

PATIENCE = 10.0


class Stage:
    """A watcher with one process, which is held, and the circusd around it."""

    def __init__(self, graceful_timeout: float = 1000.0) -> None:
        host = SimpleNamespace(
            name="plugin:sockshare",
            cmd="circus_sockshare.SockShare",
            is_stopped=lambda: False,
            processes={1: SimpleNamespace(status=RUNNING)},
        )
        self.events: list[str] = []
        self.active = True
        self.arbiter = SimpleNamespace(
            ctrl=SimpleNamespace(commands={"sockshare": None}), watchers=[host], _stopping=False, _restarting=False
        )
        self.process = SimpleNamespace(pid=4242, status=RUNNING)
        self.watcher = SimpleNamespace(
            name="web",
            arbiter=self.arbiter,
            graceful_timeout=graceful_timeout,
            is_active=lambda: self.active,
            notify_event=lambda name, fields: self.events.append(name),
            processes={4242: self.process},
        )
        self.held = holding._Held(self.watcher, self.process)
        self.outcome = asyncio.ensure_future(self.held._decide())

    async def is_kept(self) -> bool:
        """What becomes of it."""
        return await asyncio.wait_for(self.outcome, PATIENCE)


def play(body: Callable[[], Awaitable[Any]]) -> None:
    """Run *body*; nothing stays held."""

    async def main() -> None:
        try:
            await body()
        finally:
            holding._held.clear()
            holding._unclaimed_since.clear()

    asyncio.run(main())


def test_claimed_process_is_stopped_when_its_time_is_over() -> None:
    """A broker that hangs does not keep circus: after `graceful_timeout` it is stopped as without us."""

    async def body() -> None:
        stage = Stage(graceful_timeout=0.3)
        assert holding.claim(4242)
        assert not await stage.is_kept()

    play(body)


@pytest.mark.parametrize("what", ["watcher", "circusd", "process", "host"])
def test_nothing_is_held_when_there_is_nobody_to_hold_it_for(what: str) -> None:
    """The watcher is stopped, circusd ends, the process has died, the plugin was taken out."""

    async def body() -> None:
        stage = Stage()
        assert holding.claim(4242)
        await asyncio.sleep(0)
        if what == "watcher":
            stage.active = False
        elif what == "circusd":
            stage.arbiter._stopping = True
        elif what == "process":
            stage.process.status = UNEXISTING
        else:
            stage.arbiter.watchers.clear()
        assert not await stage.is_kept()

    play(body)


@pytest.mark.parametrize("keep", [True, False])
def test_word_of_the_broker_decides(keep: bool) -> None:
    """What is kept is not stopped; circus is told so."""

    async def body() -> None:
        stage = Stage()
        assert holding.claim(4242)
        assert holding.release(4242, keep=keep)
        assert await stage.is_kept() is keep
        if keep:
            held = holding._Held(stage.watcher, stage.process)
            assert holding.release(4242, keep=True)
            assert await held.stop_or_keep(None, None) is False
            assert not holding.is_held(4242)

    play(body)


def test_broker_is_told_until_it_has_claimed() -> None:
    """The first word may be lost with a broker that dies."""

    async def body() -> None:
        stage = Stage()
        while len(stage.events) < 2:
            await asyncio.sleep(0.01)
        assert set(stage.events) == {"held"}
        assert holding.claim(4242)
        said = len(stage.events)
        await asyncio.sleep(3 * holding._LOOK_EVERY)
        assert len(stage.events) == said
        assert holding.release(4242, keep=True)
        assert await stage.is_kept()

    play(body)
