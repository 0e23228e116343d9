"""A broker for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.host import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host without a broker yet; all that it starts ends with the test."""
    host = Host(tmp_path / "run")
    try:
        yield host
    finally:
        host.close()
