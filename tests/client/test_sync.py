"""The library against a broker process that does as it is told."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import sockshare
from sockshare.client.dialogue import Dialogue
from sockshare.client.door import NoDescriptor

from .host import TIMEOUT, Host, descriptors


def in_child(work: Callable[[], None]) -> int:
    """Run *work* in a forked child; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    watched = os.pidfd_open(pid)
    try:
        if not select.select([watched], [], [], TIMEOUT)[0]:
            os.kill(pid, 9)
    finally:
        os.close(watched)
        _, waited = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(waited)


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """This process may open *left* more descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fd for fd in range(1024) if is_open(fd)) + 8, before[1]))
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


@contextmanager
def default_timeout(seconds: float | None) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def test_socket_is_the_managers_own_when_asked_for(host: Host) -> None:
    """A duplicate has the inode, the address and the kind of the manager's socket, and is close-on-exec."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        assert (share.program, share.process) == ("web", "web:1")
        assert share.sockets() == ("web", "api", "udp")
        for name in share.sockets():
            sock = share.socket(name)
            assert os.fstat(sock.fileno()).st_ino == host.inode(name)
            assert sock.getsockname() == host.sockets[name].getsockname()
            assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, host.sockets[name].type, sock.proto)
            assert not os.get_inheritable(sock.fileno())


def test_descriptors_are_as_before_when_share_is_closed(host: Host) -> None:
    """Closing gives back every descriptor, and closing twice is nothing."""
    host.start()
    before = descriptors()
    for _ in range(5):
        share = sockshare.attach(str(host.directory))
        share.socket("web")
        share.close()
        share.close()
        with pytest.raises(sockshare.SockshareError, match="closed"):
            share.ready()
    assert descriptors() == before


def test_one_duplicate_is_made_when_eight_threads_ask(host: Host) -> None:
    """All threads of a process have the same object, and the broker was asked once."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        host.wait_for("attach")
        together = threading.Barrier(8)
        found: list[socket.socket] = []

        def ask() -> None:
            together.wait(TIMEOUT)
            found.append(share.socket("web"))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        share.ready()
        assert len(found) == 8
        assert len({id(sock) for sock in found}) == 1
    host.kill()
    assert [line for line in host.said() if line.startswith("redeemed")] == ["redeemed web"]


def test_another_duplicate_is_made_when_program_closed_its_own(host: Host) -> None:
    """A socket object that the program has closed is not given again."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        share.socket("web").close()
        assert os.fstat(share.socket("web").fileno()).st_ino == host.inode("web")


@pytest.mark.parametrize("default", [None, 0.0, 5.0])
@pytest.mark.parametrize("blocking", [True, False])
def test_shared_flags_are_unchanged_when_socket_is_made(host: Host, blocking: bool, default: float | None) -> None:
    """Whatever the default time-out is, O_NONBLOCK of the shared description stays, and the object knows it."""
    host.sockets["web"].setblocking(blocking)
    host.start()
    with default_timeout(default), sockshare.attach(str(host.directory)) as share:
        sock = share.socket("web")
        assert os.get_blocking(host.sockets["web"].fileno()) is blocking
        assert sock.gettimeout() == (None if blocking else 0.0)
        if not blocking:
            with pytest.raises(BlockingIOError):
                sock.accept()


def test_forked_child_has_its_sockets_and_its_own_connection(host: Host) -> None:
    """After a fork the duplicates stay valid in the child, it can ask on, and the parent is not disturbed."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        web = share.socket("web")

        def child() -> None:
            assert share.socket("web") is web
            assert os.fstat(web.fileno()).st_ino == host.inode("web")
            assert os.fstat(share.socket("api").fileno()).st_ino == host.inode("api")
            share.ready("child")
            share.close()

        assert in_child(child) == 0
        share.ready("parent")
        assert os.fstat(share.socket("api").fileno()).st_ino == host.inode("api")


def test_fork_is_not_stopped_when_another_thread_is_asking(host: Host) -> None:
    """A child of a process whose other thread waits for the broker can ask at once."""
    host.start(deaf=["ready"])
    with sockshare.attach(str(host.directory), timeout=3.0) as share:
        ended = threading.Event()

        def ask() -> None:
            try:
                share.ready()
            except sockshare.NoBroker:
                ended.set()

        thread = threading.Thread(target=ask)
        thread.start()
        host.wait_for("ready")
        assert in_child(lambda: share.socket("web").close()) == 0
        thread.join(TIMEOUT)
        assert ended.is_set()


def test_clear_error_is_raised_when_a_fork_asks_on_an_inherited_connection(host: Host) -> None:
    """An inherited ZeroMQ socket is never used: recv on one spins for ever."""
    host.start()
    dialogue = Dialogue(str(host.directory))

    def child() -> None:
        with pytest.raises(sockshare.SockshareError, match="fork"):
            dialogue.ask("status", deadline=time.monotonic() + 1)
        dialogue.close()

    try:
        assert in_child(child) == 0
        assert dialogue.ask("ready", deadline=time.monotonic() + TIMEOUT)["ok"] is True
    finally:
        dialogue.close()


def test_call_is_answered_when_broker_is_killed_and_restarted_meanwhile(host: Host) -> None:
    """A blocked caller gets its answer from the next broker, and soon."""
    host.start(deaf=["ready"])
    with sockshare.attach(str(host.directory)) as share:
        done = threading.Event()

        def ask() -> None:
            share.ready()
            done.set()

        thread = threading.Thread(target=ask)
        thread.start()
        host.wait_for("ready")
        host.kill()
        host.start()
        host.wait_for("up")
        assert done.wait(2.0)
        thread.join(TIMEOUT)


@pytest.mark.parametrize("moment", ["asked", "ticket", "redeem"])
def test_socket_is_handed_out_when_broker_dies_in_between(host: Host, moment: str) -> None:
    """A ticket of a dead broker is worth nothing; the library asks the next one for another."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        host.kill()
        host.start(exit_at=moment)
        found: list[socket.socket] = []
        thread = threading.Thread(target=lambda: found.append(share.socket("web")))
        thread.start()
        host.wait_dead()
        host.start()
        thread.join(TIMEOUT)
        assert [os.fstat(sock.fileno()).st_ino for sock in found] == [host.inode("web")]


def test_ticket_is_not_spent_when_this_process_is_out_of_descriptors(host: Host) -> None:
    """At RLIMIT_NOFILE: a clear OSError, no acknowledgement, nothing leaked; afterwards it works."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        before = descriptors()
        with few_descriptors(1), pytest.raises(NoDescriptor, match="RLIMIT_NOFILE"):
            share.socket("web")
        with few_descriptors(0), pytest.raises(NoDescriptor, match="RLIMIT_NOFILE"):
            share.socket("web")
        assert descriptors() == before
        share.ready()
        host.kill()
        assert not [line for line in host.said() if line.startswith("acknowledged")]
        host.start()
        assert os.fstat(share.socket("web").fileno()).st_ino == host.inode("web")
        assert host.wait_for("acknowledged") == "1"


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ({"no_descriptor": True}, sockshare.ProtocolError),
        ({"garbage_dialogue": "[]"}, sockshare.ProtocolError),
        ({"garbage_dialogue": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")}, sockshare.ProtocolError),
        ({"garbage_door": "what?"}, sockshare.ProtocolError),
        ({"garbage_door": "+[]"}, sockshare.ProtocolError),
        ({"state": "refused", "mistakes": ["one", "two"]}, sockshare.BadConfiguration),
        ({"uid_known": False}, sockshare.NotPermitted),
        ({"refuse_tickets": 9}, sockshare.TicketRefused),
        ({"errors": {"ticket": {"error": "NotPermitted", "message": "can't", "exit": 7}}}, sockshare.NotPermitted),
        ({"errors": {"ticket": {"error": "Unheard", "message": "can't"}}}, sockshare.SockshareError),
    ],
)
def test_broker_that_misbehaves_gives_one_of_our_errors(
    host: Host, behaviour: dict[str, object], error: type[Exception]
) -> None:
    """Whatever the broker says, an error of ours comes of it, and no descriptor stays."""
    host.start(**behaviour)
    before = descriptors()
    with pytest.raises(error) as raised, sockshare.attach(str(host.directory)) as share:
        share.socket("web")
    assert raised.type is error
    for mistake in behaviour.get("mistakes", ()):  # type: ignore[attr-defined]
        assert mistake in str(raised.value).splitlines()[-2:] or mistake in str(raised.value)
    assert descriptors() == before


def test_unknown_socket_is_named_with_the_brokers_suggestion(host: Host) -> None:
    """The broker's sentence reaches the caller, with its type and exit status."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        with pytest.raises(sockshare.UnknownSocket, match="did you mean 'web'") as raised:
            share.socket("wbe")
        assert raised.value.exit_status == sockshare.ExitStatus.UNKNOWN_NAME


def test_ticket_reaches_the_process_it_was_made_for(host: Host) -> None:
    """duplicate() makes 16 bytes for another process, redeem() there gives the socket, once."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        reading, writing = os.pipe()

        def child() -> None:
            ticket = os.read(reading, 16)
            assert os.fstat(share.redeem(ticket).fileno()).st_ino == host.inode("web")
            with pytest.raises(sockshare.TicketRefused):
                share.redeem(ticket)

        try:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    child()
                    status = 0
                finally:
                    os._exit(status)
            ticket = share.duplicate("web", pid)
            assert len(ticket) == 16
            with pytest.raises(sockshare.TicketRefused):
                share.redeem(ticket)
            os.write(writing, ticket)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            os.close(reading)
            os.close(writing)
        with pytest.raises(sockshare.ProtocolError, match="16 bytes"):
            share.redeem(b"short")


def test_own_object_is_returned_when_a_ticket_is_for_a_held_socket(host: Host) -> None:
    """One duplicate per process and socket, also by way of a ticket."""
    host.start()
    with sockshare.attach(str(host.directory)) as share:
        web = share.socket("web")
        before = descriptors()
        assert share.redeem(share.duplicate("web", os.getpid())) is web
        assert descriptors() == before
        api = share.redeem(share.duplicate("api", os.getpid()))
        assert share.socket("api") is api
    assert api.fileno() == -1


def test_no_broker_is_said_when_none_answers_in_time(host: Host) -> None:
    """A door that is absent, deserted or silent ends in NoBroker, which is a ConnectionError, after the time-out."""
    with pytest.raises(sockshare.NoBroker):
        sockshare.attach(str(host.directory), timeout=0.2)
    host.open()
    with pytest.raises(ConnectionError):
        sockshare.attach(str(host.directory), timeout=0.2)
    host.door.close()
    with pytest.raises(sockshare.NoBroker, match="refused"):
        sockshare.attach(str(host.directory), timeout=0.2)
    with pytest.raises(sockshare.NoBroker, match="too long"):
        sockshare.attach("/tmp/" + "x" * 120, timeout=0.2)


def test_first_attach_waits_when_the_broker_is_still_starting(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    """attach() waits for a broker that comes late, and says so once."""
    names: list[str] = []

    def attach() -> None:
        with sockshare.attach(str(host.directory)) as share:
            names.append(share.program)

    thread = threading.Thread(target=attach)
    thread.start()
    deadline = time.monotonic() + TIMEOUT
    said = ""
    while "waiting for the broker" not in said and time.monotonic() < deadline:
        said += capfd.readouterr().err
    host.start()
    thread.join(TIMEOUT)
    assert names == ["web"]
    assert said.count("waiting") == 1


def test_zmq_is_not_imported_before_attach() -> None:
    """`import sockshare` is light, and has its names all the same."""
    code = (
        "import sys, sockshare; light = 'zmq' not in sys.modules and 'asyncio' not in sys.modules;"
        "sockshare.attach, sockshare.Share, sockshare.aio, sockshare.NoBroker;"
        "print(light, 'zmq' in sys.modules, hasattr(sockshare, 'nonsense'))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True", "True", "False"]
