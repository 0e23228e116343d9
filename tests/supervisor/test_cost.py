"""What a stop has cost must be looked at under supervisord as under circus: the same test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import test_cost
from tests.support.supervisord import Supervisord

Supervisords = Callable[..., Supervisord]


def test_requests_that_a_stop_signal_cuts_are_counted_and_the_next_reload_cuts_none(supervisord: Supervisords) -> None:
    """A handler is not a drain. What was learned survives the broker."""
    test_cost.check_what_is_learned(supervisord("abrupt", watcher=test_cost.SHORT))


@pytest.mark.soak
def test_first_reload_of_a_server_known_to_stop_at_once_cuts_none(supervisord: Supervisords, tmp_path: Path) -> None:
    """Nothing has to be lost to learn it: its name says it."""
    command = test_cost.named_daphne(tmp_path)
    test_cost.check_what_is_known(supervisord("abrupt", watcher={**test_cost.SHORT, "command": command}))
