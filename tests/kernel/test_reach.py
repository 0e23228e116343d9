"""What keeps clients from a real socket is seen, and what can be mended is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sockshare.cli.stage import free_port
from sockshare.kernel import binding, reach
from sockshare.kernel.binding import Binding
from sockshare.kernel.file_watch import FileWatch
from sockshare.kernel.reach import Fault, Kind, Place

SHUT_BOTH, SHUT_READING, SHUT_WRITING = socket.SHUT_RDWR, socket.SHUT_RD, socket.SHUT_WR


@contextmanager
def shared(address: str, **more: object) -> Iterator[tuple[socket.socket, Place | None]]:
    """A socket at *address*, and where its clients look for it."""
    bound = Binding(binding.parse(address), **more)  # type: ignore[arg-type]
    sock = binding.make(bound)
    try:
        yield sock, reach.place(sock, "", "/")
    finally:
        binding.remove(sock, bound)


def address_of(scheme: str, directory: Path) -> str:
    host = "[::1]" if scheme.endswith("6") else "127.0.0.1"
    scheme = scheme.removesuffix("6")
    return f"unix://{directory}/s".replace("unix", scheme) if "unix" in scheme else f"{scheme}://{host}:{free_port()}"


def shut(sock: socket.socket, how: int) -> None:
    """As another process may: through a duplicate."""
    with sock.dup() as duplicate:
        try:
            duplicate.shutdown(how)
        except OSError:  # what a datagram socket answers that has no peer; it is shut down all the same
            pass


def reachable(sock: socket.socket) -> bool:
    """Whether a client can come to *sock*, and be answered."""
    with socket.socket(sock.family, sock.type) as client:
        client.settimeout(5)
        try:
            if sock.type == socket.SOCK_DGRAM:
                client.bind("" if sock.family == socket.AF_UNIX else (sock.getsockname()[0], 0))
            client.connect(sock.getsockname())
            if sock.type == socket.SOCK_DGRAM:
                client.send(b"x")
                sock.sendto(b"y", sock.recvfrom(1)[1])
        except OSError:
            return False
    return True


@pytest.mark.parametrize("how", [SHUT_BOTH, SHUT_READING, SHUT_WRITING])
@pytest.mark.parametrize("scheme", ["tcp", "tcp6", "udp", "udp6", "unix", "unixgram", "unixseqpacket"])
def test_shut_down_socket_is_seen_if_clients_are_kept_out(tmp_path: Path, scheme: str, how: int) -> None:
    """Of every kind, whichever direction was shut down; and of one that they still reach nothing is said."""
    with shared(address_of(scheme, tmp_path)) as (sock, at):
        assert reach.look(sock, at) is None
        assert reachable(sock)
        shut(sock, how)
        found = reach.look(sock, at)
        assert (found is None) == reachable(sock)
        assert found is None or found.kind is Kind.SHUT_DOWN


@pytest.mark.parametrize("scheme", ["tcp", "tcp6"])
def test_tcp_listener_is_revived_any_number_of_times(tmp_path: Path, scheme: str) -> None:
    """At its port, with its backlog, by any duplicate."""
    with shared(address_of(scheme, tmp_path)) as (sock, at):
        for _ in range(5):
            shut(sock, SHUT_BOTH)
            assert reach.listen_again(sock, 17)
            assert reach.look(sock, at) is None
            assert reachable(sock)
            assert reach.load(sock).limit == 17


@pytest.mark.parametrize("scheme", ["udp", "unix"])
def test_others_can_not_be_revived(tmp_path: Path, scheme: str) -> None:
    """It is said that they were not, and nothing is made worse."""
    with shared(address_of(scheme, tmp_path)) as (sock, at):
        shut(sock, SHUT_BOTH)
        assert not reach.listen_again(sock, 17)
        assert reach.look(sock, at) is not None


def test_listener_whose_port_is_lost_is_not_revived_elsewhere() -> None:
    """A port that the kernel chose goes with the shutdown; nobody would look for another."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        shut(sock, SHUT_BOTH)
        assert not reach.listen_again(sock, 17)


@pytest.mark.parametrize("scheme", ["udp", "unixgram"])
def test_datagram_socket_hears_everybody_again_after_a_connect(tmp_path: Path, scheme: str) -> None:
    """connect(2) through any duplicate shuts all but one client out; it is taken back."""
    with shared(address_of(scheme, tmp_path)) as (sock, at), ExitStack() as stack:
        peer = stack.enter_context(socket.socket(sock.family, sock.type))
        peer.bind(str(tmp_path / "peer") if sock.family == socket.AF_UNIX else ("127.0.0.1", 0))
        with sock.dup() as duplicate:
            duplicate.connect(peer.getsockname())
        found = reach.look(sock, at)
        assert found is not None
        assert found.kind is Kind.CONNECTED
        reach.disconnect(sock)
        assert reach.look(sock, at) is None
        assert reachable(sock)


def bind_another(path: Path, stack: ExitStack) -> None:
    """A server that binds the path itself, and lives."""
    path.unlink()
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(str(path))


def leave_another(path: Path, stack: ExitStack) -> None:
    """One that has ended since."""
    with ExitStack() as ended:
        bind_another(path, ended)


def remove(path: Path, stack: ExitStack) -> None:
    path.unlink()


def rename(path: Path, stack: ExitStack) -> None:
    path.rename(path.with_name("elsewhere"))


def write_file(path: Path, stack: ExitStack) -> None:
    path.unlink()
    path.write_text("mine")


@pytest.mark.parametrize(
    ("act", "kind", "mended"),
    [
        (remove, Kind.GONE, True),
        (rename, Kind.GONE, True),
        (leave_another, Kind.TAKEN, True),
        (bind_another, Kind.TAKEN, False),
        (write_file, Kind.TAKEN, False),
    ],
)
def test_path_is_published_again_where_it_is_nobody_s(
    tmp_path: Path, act: Callable[[Path, ExitStack], None], kind: Kind, mended: bool
) -> None:
    """What lives there is left alone; the file's owner and mode are as before."""
    path = tmp_path / "s"
    with shared(f"unix://{path}", mode=0o640) as (sock, at), FileWatch() as watch, ExitStack() as stack:
        assert at is not None
        watch.add(str(path))
        before = path.stat()
        act(path, stack)
        assert os.read(watch.fileno(), 4096), "it is told at once"
        found = reach.look(sock, at)
        assert found is not None
        assert found.kind is kind
        assert reach.publish_again(at) is mended
        assert (reach.look(sock, at) is None) is mended
        if mended:
            after = path.stat()
            assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
            assert reachable(sock)


def test_path_of_somebody_else_s_making_is_published_again(tmp_path: Path) -> None:
    """circusd's has no second name, until it is given one; of an earlier life's is made no use."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(binding.private(str(path)))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        at = reach.place(sock, "", "/")
        assert at is not None
        reach.keep_name(at)
        reach.keep_name(at)
        path.unlink()
        assert reach.look(sock, at) == Fault(Kind.GONE, f"{path} is gone")
        assert reach.publish_again(at)
        assert reach.look(sock, at) is None
        path.unlink()
        Path(binding.private(str(path))).unlink()
        assert not reach.publish_again(at)


def test_server_finds_its_socket_by_its_path(tmp_path: Path) -> None:
    """nginx and puma ask getsockname(2) for where what they have inherited is bound."""
    with shared(f"unix://{tmp_path}/s") as (sock, _):
        assert sock.getsockname() == f"{tmp_path}/s"


def test_what_waits_and_what_was_dropped_is_counted() -> None:
    """Of a listener whose queue is full, and of a datagram socket whose memory is."""
    with socket.socket() as sock, ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        found = reach.load(sock)
        assert found[:3] == (2, 1, True)
        assert found.drops
    with shared(f"udp://127.0.0.1:{free_port()}") as (sock, _), socket.socket(type=socket.SOCK_DGRAM) as client:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert reach.load(sock)[2:] == (False, 0)
        for _ in range(100):
            client.sendto(b"x", sock.getsockname())
        found = reach.load(sock)
        assert found.is_full
        assert found.drops


def test_permissions_that_keep_clients_out_are_said(tmp_path: Path) -> None:
    """Of the path itself, and of a directory on the way; where nothing is more closed than the path, nothing."""
    path = tmp_path / "d" / "s"
    path.parent.mkdir(0o755)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o700)
        assert f"may connect to it: {path} has mode 0700" in reach.closed_to(str(path))
        path.chmod(0o770)
        assert reach.closed_to(str(path)) == ""
        path.chmod(0o777)
        path.parent.chmod(0o750)
        assert f"{path.parent} has mode 0750, of " in reach.closed_to(str(path))


def test_no_fault_is_seen_where_a_file_system_never_showed_the_kernels_numbers(tmp_path: Path) -> None:
    """Such is overlayfs of several file systems before Linux 5.8: a socket that clients reach isn't called another."""
    with shared(f"unix://{tmp_path}/s") as (sock, at):
        assert at is not None
        assert at.is_comparable
        other = at._replace(file=at.file + 1)
        assert reach.look(sock, other) == Fault(Kind.TAKEN, f"{at.path} is another socket")
        assert reach.look(sock, other._replace(is_comparable=False)) is not None  # its device is the same
        with pytest.raises(LookupError, match=r"can't see whether .* is this socket"):
            reach.look(sock, other._replace(is_comparable=False, device=at.device + 1))
