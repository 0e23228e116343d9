"""What supervisord has of us in its own process: whom it lets in, what it keeps open, and that it never raises."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from supervisor.medusa import asyncore_25 as asyncore

from sockshare.cli.stage import free_port
from sockshare.core.errors import BadConfiguration
from sockshare.core.spec import ProgramSpec, SocketSpec
from sockshare.host.host import Host
from sockshare.host.verbs import Answer
from sockshare.kernel import binding, holders
from sockshare.kernel.binding import Binding
from sockshare.kernel.directory import Directory
from supervisor_sockshare import life
from supervisor_sockshare.life import Life
from supervisor_sockshare.polling import PollLoop
from supervisor_sockshare.program import LINK
from supervisor_sockshare.registry import Registry
from supervisor_sockshare.sections import BROKER, Socket
from supervisor_sockshare.twins import Twins
from supervisor_sockshare.verbs import SupervisorVerbs


class Poller:
    """A poller that never sleeps."""

    def poll(self, timeout: float) -> list[Any]:
        return []


@pytest.fixture
def loop() -> Iterator[PollLoop]:
    """The loop; it watches nothing afterwards."""
    found = PollLoop()
    yield found
    for fd in found.descriptors():
        found.remove_reader(fd)
        found.remove_writer(fd)


def test_link_takes_nobody_but_our_own_brokers(tmp_path: Path, loop: PollLoop) -> None:
    """Who is a broker the kernel says, by its pid; root's other processes may connect, and are not heard."""
    served: list[socket.socket] = []
    host = SimpleNamespace(serve=served.append, drain=lambda: None)
    with subprocess.Popen(["/bin/sleep", "1000"]) as other:
        broker = SimpleNamespace(pid=other.pid, state=20)
        group = SimpleNamespace(processes={BROKER: broker})
        supervisord = SimpleNamespace(process_groups={BROKER: group})
        one = Life(loop, lambda: supervisord, cast(Host, host), Directory(str(tmp_path)))
        try:
            one.open()
            for ours, expected in ((False, 0), (True, 1)):
                broker.pid = os.getpid() if ours else other.pid
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(10)
                    sock.connect(str(tmp_path / LINK))
                    for watch in list(asyncore.socket_map.values()):
                        watch.handle_read_event()
                    assert len(served) == expected
                    if not ours:
                        assert sock.recv(1) == b""
        finally:
            other.kill()
            one.close()
            for sock in served:
                sock.close()


def test_link_that_can_not_accept_waits(tmp_path: Path, loop: PollLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of descriptors it stays readable, and supervisord would do nothing else; later it is let in."""
    monkeypatch.setattr(life, "_LET_IN_AGAIN", 0.05)
    served: list[socket.socket] = []
    host = SimpleNamespace(serve=served.append, drain=lambda: None)
    group = SimpleNamespace(processes={BROKER: SimpleNamespace(pid=os.getpid(), state=20)})
    supervisord = SimpleNamespace(process_groups={BROKER: group})
    one = Life(loop, lambda: supervisord, cast(Host, host), Directory(str(tmp_path)))
    poller = Poller()
    loop.attach(poller)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        one.open()
        (watched,) = asyncore.socket_map
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / LINK))
            lowest = os.dup(sock.fileno())
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                asyncore.socket_map[watched].handle_read_event()
                assert watched not in asyncore.socket_map
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert not served
            deadline = time.monotonic() + 10
            while watched not in asyncore.socket_map:
                assert time.monotonic() < deadline
                poller.poll(0)
                time.sleep(0.005)
            asyncore.socket_map[watched].handle_read_event()
            assert len(served) == 1
    finally:
        one.close()
        for sock in served:
            sock.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="starts processes of other users")
@pytest.mark.parametrize(("uid", "counts"), [(65534, True), (31001, False)], ids=["its own user", "another user"])
def test_group_of_a_process_counts_for_its_own_user(uid: int, counts: bool) -> None:
    """Whoever supervisord starts may join any of its groups, and would have its program's sockets by it."""

    def become(group: int, user: int) -> None:
        os.setpgid(0, group)
        os.setuid(user)

    command = ["/bin/sleep", "1000"]
    with (
        subprocess.Popen(command, preexec_fn=lambda: become(0, 65534)) as leader,
        subprocess.Popen(command, preexec_fn=lambda: become(leader.pid, uid)) as member,
    ):
        try:
            config = SimpleNamespace(name="web", sockshare_program="web")
            process = SimpleNamespace(config=config, group=SimpleNamespace(config=SimpleNamespace(name="web")))
            supervisord = SimpleNamespace(options=SimpleNamespace(pidhistory={leader.pid: process}))
            verbs = SupervisorVerbs(
                cast(PollLoop, None), lambda: supervisord, cast(Twins, None), lambda name, inode: None
            )
            told: list[dict[str, Any]] = []
            verbs.whois(member.pid, Answer(told.append))
            verbs.whois(leader.pid, Answer(told.append))
            assert [one["process"] is not None for one in told] == [counts, True]
        finally:
            member.kill()
            leader.kill()


class Counted(dict[str, Any]):
    """Groups that count how often one of them is looked at."""

    looks = 0

    def values(self) -> Any:
        """Each is a look."""
        self.looks += len(self)
        return super().values()


class Read(list[Any]):
    """What was read, which counts too."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        self.looks += len(self)
        return super().__iter__()


@pytest.mark.parametrize("count", [1, 50])
def test_each_group_is_looked_at_once_for_the_processes_of_all_programs(count: int) -> None:
    """The question comes with each reload, and supervisord does nothing else before it is answered."""
    groups, read = Counted(), Read()
    for number in range(count):
        name = f"p{number}"
        config = SimpleNamespace(name=name, sockshare_program=name, command="x", stopsignal=15, stopwaitsecs=10)
        config.redirect_stderr, config.stderr_logfile = False, None
        group = SimpleNamespace(config=SimpleNamespace(name=name), processes={})
        process = SimpleNamespace(config=config, group=group, pid=number + 1, state=20, laststart=0, spawnerr=None)
        group.processes[name] = process
        groups[name] = group
        read.append(SimpleNamespace(name=name, process_configs=[config]))
    supervisord = SimpleNamespace(process_groups=groups, options=SimpleNamespace(process_group_configs=read))
    twins = Twins(cast(Any, None), lambda: supervisord)
    verbs = SupervisorVerbs(cast(PollLoop, None), lambda: supervisord, twins, lambda name, inode: None)
    verbs.specs = {name: ProgramSpec(name) for name in groups}
    told: list[dict[str, Any]] = []
    verbs.processes(Answer(told.append))
    pids = [one["processes"][0]["pid"] for one in told[0]["programs"].values()]
    assert pids == list(range(1, count + 1))
    assert (groups.looks, read.looks) == (count, count)


def test_nothing_that_a_callback_raises_leaves_the_loop(loop: PollLoop, caplog: pytest.LogCaptureFixture) -> None:
    """It would end supervisord, and orphan what it runs. What is due besides is done all the same."""
    poller, done = Poller(), []
    loop.attach(poller)
    loop.call_later(0.0, lambda: 1 / 0)
    loop.call_later(0.0, lambda: done.append("timer"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.add_reader(ours.fileno(), lambda: 1 / 0)
        loop.add_writer(ours.fileno(), lambda: 1 / 0)
        with caplog.at_level(logging.ERROR):
            poller.poll(0)
            watch = asyncore.socket_map[ours.fileno()]
            watch.handle_read_event()
            watch.handle_write_event()
        loop.remove_reader(ours.fileno())
        loop.remove_writer(ours.fileno())
    assert done == ["timer"]
    assert len(caplog.records) == 3


TAKES_SIX = """\
import socket, sys
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
print(*(one.getsockname()[1] for one in taken), flush=True)
sys.stdin.read()
"""

CLEANUP = """\
import os, sys
from supervisor.options import ServerOptions
from supervisor_sockshare.hooks import install, plugin
from sockshare.core.spec import SocketSpec
from sockshare.kernel import binding
from supervisor_sockshare.sections import Socket
install()
spec = SocketSpec("web")
address = binding.parse("unix://" + sys.argv[1])
fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
plugin().registry.apply({"web": Socket(spec, binding.Binding(address), 16)})
ours = plugin().descriptors()
others = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
options = ServerOptions()
options.minfds = 1024
options.cleanup_fds()
def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False
print(all(map(is_open, ours)), len(ours), any(is_open(fd) for fd in fillers + others if fd >= 5))
"""


def test_sockets_are_spared_when_supervisord_closes_what_it_does_not_know(tmp_path: Path) -> None:
    """At its own reload it closes every number from 5 on; ours are between others."""
    ran = subprocess.run(
        [sys.executable, "-c", CLEANUP, str(tmp_path / "web.sock")], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.split() == ["True", "1", "False"], ran.stderr


def unix(path: Path) -> Socket:
    """The declaration of a socket at *path*."""
    return Socket(SocketSpec(path.name), Binding(binding.parse(f"unix://{path}")), 16)


def test_nothing_changes_when_one_of_the_new_sockets_can_not_be_bound(tmp_path: Path) -> None:
    """What was held is held, and reachable; what was bound already of the new ones is not."""
    registry = Registry()
    held = {"old": unix(tmp_path / "old")}
    registry.apply(held)
    (tmp_path / "taken").write_text("no socket")
    try:
        with pytest.raises(BadConfiguration, match="taken"):
            registry.apply({**held, "new": unix(tmp_path / "new"), "taken": unix(tmp_path / "taken")})
        assert registry.names == {"old"}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "old"))
        assert not (tmp_path / "new").exists()
    finally:
        registry.close()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_all_processes_are_looked_at_once_however_many_addresses_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look may take a quarter of a second, and supervisord does nothing else meanwhile; each is told of."""
    looks, scan = [], holders.scan

    def counted(inodes: Collection[int], seconds: float) -> holders.Scan:
        looks.append(seconds)
        return scan(inodes, seconds)

    monkeypatch.setattr(holders, "scan", counted)
    command = [sys.executable, "-c", TAKES_SIX]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            ports = other.stdout.readline().split()
            wanted = {
                f"s{port}": Socket(SocketSpec(f"s{port}"), Binding(binding.parse(f"tcp://127.0.0.1:{port}")), 16)
                for port in ports
            }
            for refuse in (Registry().check, Registry().apply):
                looks.clear()
                with pytest.raises(BadConfiguration) as raised:
                    refuse(wanted)
                assert str(raised.value).count(f"by pid {other.pid} (") == len(ports) == 6
                assert len(looks) == 1
        finally:
            other.kill()


@pytest.mark.parametrize("scheme", ["unix", "unixgram", "unixseqpacket", "udp"])
def test_socket_is_made_anew_at_its_address(tmp_path: Path, scheme: str) -> None:
    """Although those who have the old one keep it; its mode is as before, and the one who asks late changes nothing."""
    address = f"udp://127.0.0.1:{free_port()}" if scheme == "udp" else f"{scheme}://{tmp_path}/s"
    registry = Registry()
    registry.apply({"s": Socket(SocketSpec("s"), Binding(binding.parse(address), mode=0o640), 16)})
    try:
        ((_, old),) = registry.sockets
        before, where = old.fileno(), old.getsockname()
        inode = os.fstat(before).st_ino
        with old.dup(), socket.socket(old.family, old.type) as client:
            with suppress(OSError):
                old.shutdown(socket.SHUT_RDWR)
            registry.renew("s", inode)
            ((_, new),) = registry.sockets
            assert os.fstat(new.fileno()).st_ino != inode
            client.connect(where)
            if new.type == socket.SOCK_DGRAM:
                client.send(b"x")
                assert new.recv(1) == b"x"
            assert not new.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            registry.renew("s", inode)
            assert registry.sockets[0][1] is new
            if scheme != "udp":
                assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o640
    finally:
        registry.close()
    assert not list(tmp_path.iterdir())


def test_old_socket_is_held_when_no_other_can_be_made(tmp_path: Path) -> None:
    """As where the directory of its path is gone; it can be asked for again."""
    directory = tmp_path / "d"
    directory.mkdir()
    registry = Registry()
    registry.apply({"s": unix(directory / "s")})
    try:
        ((_, old),) = registry.sockets
        inode = os.fstat(old.fileno()).st_ino
        shutil.rmtree(directory)
        with pytest.raises(FileNotFoundError):
            registry.renew("s", inode)
        assert registry.sockets[0][1] is old
        directory.mkdir()
        registry.renew("s", inode)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(directory / "s"))
    finally:
        registry.close()
