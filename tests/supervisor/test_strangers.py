"""As `tests/e2e/test_strangers.py`, where what could be held up is supervisord's own loop."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from sockshare.kernel.connections import connections_of, established
from tests.e2e.rehearsal import all_ready, loaded
from tests.e2e.test_strangers import Starter, forge_readiness, on_old_kernel
from tests.support.load import describe
from tests.support.strangers import SOMEBODY, strangers
from tests.support.supervisord import BROKER, Supervisord, supervisord, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which only root may")


@pytest.fixture
def start() -> Iterator[Starter]:
    with strangers() as starter:
        yield starter


def test_forged_readiness_counts_for_nothing(supervisord: Callable[..., Supervisord], start: Starter) -> None:
    """See `forge_readiness`."""
    stage = supervisord("uvicorn", watcher={"sockshare_ready": "notify"})
    forge_readiness(stage, start)


def restarted(stage: Supervisord, pid: int) -> bool:
    """Whether both processes run, and none is *pid*."""
    return len(set(stage.pids()) - {pid}) == 2


@pytest.mark.parametrize("old", [False, True], ids=["refused", "taken"])
def test_supervisord_goes_on_when_lingering_connections_come(start: Starter, old: bool) -> None:
    """As a process dies supervisord closes what is in its socket, with and without a broker: it answers all the while,
    and the program is restarted and serves."""
    with supervisord("uvicorn", numprocesses=2, leave=True) as stage:
        if old:
            on_old_kernel(stage)
        stage.up()
        all_ready(stage)
        slowest, in_hand = 0.0, 0
        with loaded(stage, "fresh:20") as load:
            for stopped in (False, True):
                if stopped:
                    stage.ctl("stop", BROKER)
                pid = stage.pids()[0]
                path = stage.runtime / "notify" / str(pid)
                stage.kill(pid, signal.SIGSTOP)  # its death is to come when the connections are there
                in_hand += len(connections_of([pid], established(socket.AF_INET, stage.port))[pid])
                sent = start(SOMEBODY, "linger", 3, path)
                if stopped:
                    assert sent.done() == (3 if old else 0)
                stage.kill(pid)
                until = time.monotonic() + 0.5
                while time.monotonic() < until or path.exists():
                    began = time.monotonic()
                    assert stage.alive()
                    slowest = max(slowest, time.monotonic() - began)
                if stopped:
                    stage.ctl("start", BROKER)
                wait_until(partial(restarted, stage, pid), 10, "it runs again")
                all_ready(stage)
            result = load.stop()
            assert len(result.failures) <= in_hand, describe(result)  # those die with their process
        print(f"the slowest answer took {slowest * 1000:.0f} ms")
        assert slowest < 1
