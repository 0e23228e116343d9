"""The descriptor store: what a broker gives its host to keep is there for the next one."""

from __future__ import annotations

import os
import resource
import select
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockshare.host.store import DescriptorStore
from tests.host.embedded import embedded
from tests.host.test_host import SETTLE, descriptors, do, run, shared

__all__ = ["shared"]  # the fixture

ASK = {"verb": "settle", **SETTLE}


@contextmanager
def limit(soft: int) -> Iterator[None]:
    """A soft limit of descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def key_in(fd: int) -> str:
    """What the stub has written into the pipe that it gave under a key: the key."""
    return os.read(fd, 64).decode()


def test_kept_descriptors_come_with_the_hello_when_broker_was_killed(tmp_path: Path, shared: socket.socket) -> None:
    """After all others; a key given again has the later one, a forgotten one is closed, and the host lists them."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report = await do(one, keep=["gate:a", "gate:b", "gate:c", "gate:a"], forget=["gate:b", "gate:x"], ask=ASK)
            first, dropped, third, again = report["kept"]
            open_here = {os.fstat(fd).st_ino for fd in one.host.descriptors()}
            assert {third, again} <= open_here
            assert not {first, dropped} & open_here
            for _ in range(3):
                one.kill()
                one.verbs.reports.get_nowait()  # of the one that was killed
                report, answer = await one.verbs.report()
                assert report["hello"]["kept"] == ["gate:c", "gate:a"]
                assert report["inodes"][3:] == [third, again]
                one.verbs.reports.put_nowait((report, answer))

    run(body)


def test_kept_descriptors_count_when_broker_dies_right_after_it_sent_them(
    tmp_path: Path, shared: socket.socket
) -> None:
    """What was written to the link before a SIGKILL is in the next hello; more than one message carries, too."""
    keys = [f"gate:{number}" for number in range(300)]

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report = await do(one, keep=keys, do="die")
            assert report["hello"]["kept"] == keys
            said = [key_in(fd) for fd in one.host.descriptors() if stat.S_ISFIFO(os.fstat(fd).st_mode)]
            assert said == keys, "a key has another's descriptor"
            assert len(set(report["inodes"])) == 3 + len(keys)

    with limit(4096):
        run(body)


def test_what_is_not_one_descriptor_is_not_kept(
    tmp_path: Path, shared: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """It is closed and logged, and the broker serves on."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report = await do(one, keep=["gate:a"], copies=2, ask=ASK)
            assert report["answer"]["ok"]
            before = descriptors()
            report = await do(one, keep=["gate:b"], copies=0, ask=ASK)
            assert descriptors() == before
            one.kill()
            one.verbs.reports.get_nowait()
            report, _ = await one.verbs.report()
            assert report["hello"]["kept"] == []

    run(body)
    assert "gate:a came with 2 descriptors" in caplog.text
    assert "gate:b came with 0 descriptors" in caplog.text


def test_no_more_is_kept_than_leaves_the_manager_its_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """A quarter of RLIMIT_NOFILE; beyond it the newcomer is closed and logged, while what is kept can be replaced."""
    before = descriptors()
    store = DescriptorStore()
    with limit(256):
        for number in range(70):
            store.keep(f"gate:{number}", [os.dup(0)])
        assert list(store.kept) == [f"gate:{number}" for number in range(64)]
        assert descriptors() == before + 64
        assert "store: it is full (64 descriptors); gate:64 is not kept" in caplog.text
        with select.epoll() as epoll:
            replacement = os.dup(epoll.fileno())
        store.keep("gate:7", [replacement])
        assert store.kept["gate:7"] == replacement
        store.forget("gate:0")
        store.keep("gate:70", [os.dup(0)])
        assert "gate:70" in store.kept
    store.close()
    assert store.kept == {}
    assert descriptors() == before
