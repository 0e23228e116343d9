"""The supervisords that tests start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support import supervisord as support


@pytest.fixture
def supervisord() -> Iterator[Callable[..., support.Supervisord]]:
    """Start supervisords as :func:`tests.support.supervisord.supervisord` does; all of them end with the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(support.supervisord(*arguments, **options))
