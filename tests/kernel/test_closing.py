"""What lingers is closed by threads, and what takes no descriptors at once."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sockshare.kernel import binding, closing, listeners
from sockshare.kernel.binding import Address, Binding
from tests.support.circusd import wait_until
from tests.support.strangers import SOMEBODY, Stranger, strangers

TIMEOUT = 10.0
pytestmark = pytest.mark.timeout(20)  # what lingers does so for an hour
Starter = Callable[..., Stranger]


@pytest.fixture
def start() -> Iterator[Starter]:
    with strangers() as starter:
        yield starter


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that other users may pass through."""
    with tempfile.TemporaryDirectory(prefix="ss-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


def test_work_is_done_however_much_there_is() -> None:
    """More than there may be threads waits for its turn; when all is done, no thread is left."""
    release = threading.Event()
    events = [closing.apart(release.wait) for _ in range(closing.MOST + 50)]
    assert closing.unfinished() == closing.MOST + 50
    assert sum(thread.name == "sockshare-close" for thread in threading.enumerate()) == closing.MOST
    release.set()
    assert all(event.wait(TIMEOUT) for event in events)
    wait_until(lambda: not closing.unfinished(), TIMEOUT, "all threads ended")


def test_threads_go_on_when_a_work_fails() -> None:
    """Closing what is closed already is no reason to close nothing any more."""
    assert closing.apart(lambda: os.close(-1)).wait(TIMEOUT)
    wait_until(lambda: not closing.unfinished(), TIMEOUT, "the thread ended")
    assert closing.apart(lambda: None).wait(TIMEOUT)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_no_thread_is_needed_where_no_descriptor_can_be(family: socket.AddressFamily) -> None:
    """A socket of another family has none in its queue, and one that refuses them neither."""
    sock = socket.socket(family)
    if family == socket.AF_UNIX and not listeners.refuse_descriptors(sock):
        pytest.skip("this kernel refuses none (SO_PASSRIGHTS, Linux 6.16)")
    closing.close(sock)
    assert not closing.unfinished()
    assert sock.fileno() == -1


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which only root may")
def test_process_that_is_forked_next_does_not_wait_for_what_lingers(directory: Path, start: Starter) -> None:
    """It has no copy of the descriptor, which it would close last: a manager starts the next process as one dies."""
    path = directory / "s"
    strangers_there = []
    for _ in range(10):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(path))
        path.chmod(0o666)
        strangers_there.append(start(SOMEBODY, "linger", 1, path))
        assert strangers_there[-1].done() == 1
        path.unlink()
        closing.close(sock)
        # With something to call in between it forks as supervisord does; else the parent stands still until exec(2).
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork(2): that is what this is about
            assert subprocess.call(["true"], preexec_fn=int) == 0
    for stranger in strangers_there:
        stranger.close()
    wait_until(lambda: not closing.unfinished(), TIMEOUT, "all are closed")


class Late:
    """A lock that the threads which close get a moment after all others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if threading.current_thread().name == "sockshare-close":
            threading.Event().wait(0.02)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_closed_socket_is_no_descriptor_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the thread that closes it gets to it."""
    monkeypatch.setattr(closing, "_lock", Late())
    monkeypatch.setattr(closing, "_BEGUN_WITHIN", 20.0)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    fd = one.fileno()
    closing.close(one)
    with other, pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    wait_until(lambda: not closing.unfinished(), TIMEOUT, "it is closed")


def test_what_nobody_has_sent_to_is_closed_although_there_can_be_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an exit function of Python 3.12.0 and 3.12.1. What may linger is left to the exit itself, which does not
    wait."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    closed, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kept, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.send(b"with a connection, perhaps")
    fd = kept.fileno()
    with other, sender:
        closing.close(closed)
        assert closing.unfinished() == 0
        with pytest.raises(ConnectionRefusedError):
            other.send(b"")
        closing.close(kept)
        assert closing.unfinished() == 1
        os.fstat(fd)
        monkeypatch.undo()
        assert closing.apart(int).wait(TIMEOUT)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which only root may")
@pytest.mark.parametrize("scheme", ["unixgram", "unix", "unixseqpacket"])
def test_shared_socket_is_removed_although_what_waits_on_it_lingers(
    directory: Path, start: Starter, scheme: str
) -> None:
    """It is the programs' socket and takes descriptors; the manager that removes it closes what nobody has read."""
    where = Binding(Address(scheme, "", 0, str(directory / "s")), mode=0o666)
    sock = binding.make(where, 16)
    if scheme == "unixgram":
        stranger = start(SOMEBODY, "linger", 2, directory / "s")
    else:
        stranger = start(SOMEBODY, "pack", "stream" if scheme == "unix" else "seqpacket", 2, directory / "s")
    assert stranger.done() == 2
    began = time.monotonic()
    binding.remove(sock, where)
    assert time.monotonic() - began < 1
    assert closing.unfinished() == 1
    assert not list(directory.iterdir())
    stranger.close()
    wait_until(lambda: not closing.unfinished(), TIMEOUT, "it is closed")
