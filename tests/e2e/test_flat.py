"""Reloads leave nothing behind in any of the processes that stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.rehearsal import all_ready, assert_replaced, assert_shape, shape
from tests.support.circusd import Circusd, resident

Circusds = Callable[..., Circusd]


@pytest.mark.parametrize(
    ("times", "growth"), [(5, 1024), pytest.param(50, 2048, marks=(pytest.mark.soak, pytest.mark.timeout(900)))]
)
def test_descriptors_and_memory_are_flat_over_reloads(circusd: Circusds, times: int, growth: int) -> None:
    """The same descriptors, and at most *growth* KiB more in host and broker."""
    stage = circusd("udp", leave=True, watcher={"sockshare.ready_hold": "0.1", "sockshare.quiesce": "0.1"})
    stage.start()
    all_ready(stage)
    for number in range(times + 2):
        if number == 2:  # the first ones import what they need
            before = shape(stage)
            memory = resident(stage.host()), resident(stage.broker())
        pids = stage.pids()
        stage.deploy(f"v{number}")
        assert_replaced(stage, pids, stage.reload())
    assert_shape(stage, before)
    grown = resident(stage.host()) - memory[0], resident(stage.broker()) - memory[1]
    assert max(grown) < growth, grown
