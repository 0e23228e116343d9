"""The theatres, one under each manager; the sockets and actors of a test are as they were when it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .theatre import Mailbox, Theatre, theatre


@pytest.fixture(scope="package")
def circus_house() -> Iterator[Theatre]:
    """Under a circusd."""
    with theatre("circus") as house:
        yield house


@pytest.fixture(scope="package")
def supervisor_house() -> Iterator[Theatre]:
    """Under a supervisord."""
    with theatre("supervisor", spare=True) as house:
        yield house


@pytest.fixture(params=["circus", "supervisor"])
def house(request: pytest.FixtureRequest) -> Iterator[Theatre]:
    """A scene under each manager, for what the managers have a part in."""
    started: Theatre = request.getfixturevalue(f"{request.param}_house")
    with started.scene():
        yield started


@pytest.fixture
def one_house(supervisor_house: Theatre) -> Iterator[Theatre]:
    """A scene, for what only the kernel has a part in."""
    with supervisor_house.scene():
        yield supervisor_house


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """Our own, for descriptors."""
    mailbox = Mailbox()
    try:
        yield mailbox
    finally:
        mailbox.close()
