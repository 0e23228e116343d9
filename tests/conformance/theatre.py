"""A manager with sockets of every kind, and actors that have them."""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from sockshare.cli.stage import free_port
from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.door import Dialogue
from tests.support.puppets import Puppet
from tests.support.supervisord import Supervisord, supervisord

TIMEOUT = 10.0  # s for anything that a client waits for
START_TIMEOUT = 60.0  # s for the programs to run, on a machine with other work
COMMAND = f"{sys.executable} -m tests.conformance.actor"
#: The programs, and how many processes each has; all but the stranger may have every socket.
CAST = {"first": 2, "other": 1, "stranger": 1}
STRANGERS_OWN = "unix-own"
#: The policy of the sockets of rule 6, of which each test leaves one changed.
LATEST_KEYS = {"registration": "latest", "stall_timeout": "0"}  # actors leave untaken what waits, for ever
LATEST = ("-gate", "-epoll", "-split")
WARM_UP = "unix-warm-up"
#: Beside the socket that every test leaves as it found it, there is of each kind one with changed options, one that is
#: shut down, and of the datagram kinds one that has a peer; for the rules that only the kernel has a part in.
SPARE = ("-options", "-shut", "-connected")
KERNELS = {"guard": "off"}  # else a listener that was shut down listens again at once


class Kind(NamedTuple):
    """One kind of socket, as the sections of the managers spell it."""

    family: int
    type: int
    scheme: str
    host: str = ""

    @property
    def listens(self) -> bool:
        """Whether connections come to it."""
        return self.type != socket.SOCK_DGRAM


KINDS = {
    "tcp4": Kind(socket.AF_INET, socket.SOCK_STREAM, "tcp", "127.0.0.1"),
    "tcp6": Kind(socket.AF_INET6, socket.SOCK_STREAM, "tcp", "::1"),
    "udp": Kind(socket.AF_INET, socket.SOCK_DGRAM, "udp", "127.0.0.1"),
    "unix": Kind(socket.AF_UNIX, socket.SOCK_STREAM, "unix"),
    "unixgram": Kind(socket.AF_UNIX, socket.SOCK_DGRAM, "unixgram"),
    "unixseqpacket": Kind(socket.AF_UNIX, socket.SOCK_SEQPACKET, "unixseqpacket"),
}
#: The key under which processes have what connects them to one client.
MET = "met"
LISTENING = tuple(name for name, kind in KINDS.items() if kind.listens)
DATAGRAM = tuple(name for name, kind in KINDS.items() if not kind.listens)


class Place(NamedTuple):
    """One shared socket: its kind and where it is bound."""

    kind: Kind
    address: Any

    def client(self) -> socket.socket:
        """A client that is connected to it; of a datagram socket with an address of its own, for the answer."""
        sock = unconnected(self)
        try:
            sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    def is_free(self) -> bool:
        """Whether somebody else could bind it now."""
        with socket.socket(self.kind.family, self.kind.type) as sock:
            if self.kind.listens:
                # For what lingers of closed connections (TIME_WAIT); a listener is in the way all the same (socket(7)).
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(self.address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
            if self.kind.family == socket.AF_UNIX:
                os.unlink(self.address)
        return True


def unconnected(place: Place) -> socket.socket:
    """A client of *place* that has yet to connect."""
    sock = socket.socket(place.kind.family, place.kind.type)
    sock.settimeout(TIMEOUT)
    if not place.kind.listens:
        # A unix one binds itself to an abstract name, which nobody has to remove (unix(7)).
        sock.bind("" if place.kind.family == socket.AF_UNIX else (place.kind.host, 0))
    return sock


def own_address(sock: socket.socket) -> Any:
    """Where *sock* is bound, as an actor takes it."""
    address = sock.getsockname()
    return address.decode("latin-1") if isinstance(address, bytes) else address


class Theatre:
    """A circusd or a supervisord that runs a cast: programs and how many processes of each.

    Attributes:
        places: Every shared socket by name: each kind's own, and others of it for tests that leave them changed.
    """

    def __init__(self, manager: str, stage: Circusd, cast: Mapping[str, int], *, spare: bool, latest: bool) -> None:
        self.manager = manager
        self.latest = latest
        self.cast = cast
        self.stage = stage
        self.places: dict[str, Place] = {}
        self._ports: set[int] = set()
        if latest:
            self.places[WARM_UP] = self._place(WARM_UP, KINDS["unix"])
        for name, kind in KINDS.items():
            for suffix in LATEST if latest else ("",):
                self.places[name + suffix] = self._place(name + suffix, kind)
            for suffix in SPARE if spare else ():
                if suffix != "-connected" or not kind.listens:
                    self.places[name + suffix] = self._place(name + suffix, kind)
        if "stranger" in cast:
            self.places[STRANGERS_OWN] = self._place(STRANGERS_OWN, KINDS["unix"])
        self._puppets: list[Puppet] = []
        self._children: list[Puppet] = []
        self._clients = ExitStack()
        self._dialogue: Dialogue | None = None

    def _place(self, name: str, kind: Kind) -> Place:
        if kind.family == socket.AF_UNIX:
            return Place(kind, f"{self.stage.directory}/{name}")
        while True:
            place = Place(kind, (kind.host, free_port()))
            if place.is_free() and place.address[1] not in self._ports:
                self._ports.add(place.address[1])
                return place

    def _wanted(self, program: str) -> str:
        shared = (name for name in self.places if name != STRANGERS_OWN)
        return STRANGERS_OWN if program == "stranger" else ",".join(shared)

    def raise_curtain(self) -> None:
        """Start the manager, and attach the strings."""
        if isinstance(self.stage, Supervisord):
            self._configure_supervisord(self.stage)
        else:
            self._configure_circusd()
        self.stage.start()
        pids = {program: self._await_pids(program, count) for program, count in self.cast.items()}
        self._puppets += [Puppet(self.stage, pid) for program in self.cast for pid in pids[program]]
        if self.latest:  # the first registration begins a thread that goes on
            for puppet in self._puppets:
                puppet.do("register", name=WARM_UP)
                puppet.do("unregister", name=WARM_UP)
        self._dialogue = Dialogue(str(self.stage.runtime))

    def _configure_circusd(self) -> None:
        lines = []
        for name, place in self.places.items():
            lines += [f"[socket:{name}]", f"type = {socket.SocketKind(place.kind.type).name}"]
            if place.kind.family == socket.AF_UNIX:
                lines += [f"path = {place.address}"]
            else:
                host, port = place.address
                family = socket.AddressFamily(place.kind.family).name
                lines += [f"host = {host}", f"port = {port}", f"family = {family}"]
        for program, count in self.cast.items():
            lines += [f"[watcher:{program}]", f"cmd = {COMMAND}", f"numprocesses = {count}", "copy_env = True"]
            lines += ["stderr_stream.class = FileStream", f"stderr_stream.filename = {self.stage.stderr_log}"]
            lines += [f"sockshare.sockets = {self._wanted(program)}"]
        lines += ["[plugin:sockshare]", "use = circus_sockshare.SockShare", "use_sockets = True"]
        lines += [f"runtime_dir = {self.stage.runtime}", f"logfile = {self.stage.sockshare_log}"]
        for name in self.places:
            keys = {**(LATEST_KEYS if self.latest else {}), **(KERNELS if name.endswith(SPARE) else {})}
            lines += [f"{name}.{key} = {value}" for key, value in keys.items()]
        self.stage.write("\n".join([*lines, ""]))

    def _configure_supervisord(self, stage: Supervisord) -> None:
        stage.sections = {
            "rpcinterface:sockshare": {
                "supervisor.rpcinterface_factory": "supervisor_sockshare:make_rpcinterface",
                "runtime_dir": str(stage.runtime),
            }
        }
        for name, place in self.places.items():
            where = place.address
            if place.kind.family != socket.AF_UNIX:
                host, port = where
                where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            stage.sections[f"sockshare:{name}"] = {
                "socket": f"{place.kind.scheme}://{where}",
                **(LATEST_KEYS if self.latest else {}),
                **(KERNELS if name.endswith(SPARE) else {}),
            }
        for program, count in self.cast.items():
            stage.sections[f"program:{program}"] = {
                "command": COMMAND,
                "numprocs": str(count),
                **({"process_name": "%(program_name)s_%(process_num)s"} if count > 1 else {}),
                "stderr_logfile": f"{stage.stderr_log}.{program}",
                "stdout_logfile": "NONE",
                "sockshare_sockets": self._wanted(program),
            }
        stage.configure()

    def _await_pids(self, program: str, count: int) -> Sequence[int]:
        def pids() -> Sequence[int]:
            assert self.stage.process is not None
            if self.stage.process.poll() is not None:
                raise RuntimeError(f"can't start {self.manager}: it ended: {self.stage.logs()}")
            try:
                found = self.stage.pids(program)
            except (OSError, TimeoutError):  # it is not up yet
                return ()
            return found if len(found) == count else ()

        found: Sequence[int] = wait_until(pids, START_TIMEOUT, f"{program} has {count} processes", 0.05)
        return found

    def lower_curtain(self) -> None:
        """Let go of the strings."""
        for puppet in self._puppets:
            puppet.close()
        if self._dialogue is not None:
            self._dialogue.close()

    @property
    def first(self) -> Puppet:
        """A process of the program "first"."""
        return self._puppets[0]

    @property
    def sibling(self) -> Puppet:
        """The other process of that program."""
        return self._puppets[1]

    @property
    def other(self) -> Puppet:
        """A process of another program."""
        return self._puppets[2]

    @property
    def stranger(self) -> Puppet:
        """A process of a program that may have none of the sockets but its own."""
        return self._puppets[3]

    @property
    def holders(self) -> tuple[Puppet, Puppet, Puppet]:
        """The processes that may have every socket: two of one program, one of another."""
        return self.first, self.sibling, self.other

    def meet(self, kind: str) -> tuple[socket.socket, tuple[Puppet, Puppet, Puppet]]:
        """A client and three processes that are connected to it by duplicates of one socket, under the key `MET`.

        A connection is accepted by `first`, inherited by a child that it forks, and passed on to `other` by
        ``SCM_RIGHTS``. A datagram socket is the shared one, which is given the client for its peer.
        """
        if KINDS[kind].listens:
            self.first.do("take", name=kind)
            client = self._clients.enter_context(self.places[kind].client())
            self.first.do("accept", key=kind, connection=MET)
            self.first.do("close", key=kind)
            self.first.do("post", key=MET, path=self.other.do("open_mailbox"))
            assert self.other.do("collect") == MET
            return client, (self.first, self.child(self.first), self.other)
        return self.meet_by_datagram(f"{kind}-connected")

    def meet_by_datagram(self, name: str) -> tuple[socket.socket, tuple[Puppet, Puppet, Puppet]]:
        """`meet`, of the datagram socket *name*."""
        for puppet in self.holders:
            puppet.do("take", name=name, key=MET)
        client = self._clients.enter_context(unconnected(self.places[name]))
        self.first.do("connect", key=MET, to=own_address(client))
        client.connect(self.places[name].address)
        return client, self.holders

    def client(self, name: str) -> socket.socket:
        """A client of the socket *name*, to the end of the scene."""
        return self._clients.enter_context(self.places[name].client())

    def child(self, parent: Puppet) -> Puppet:
        """A child that *parent* forks, with everything *parent* holds; it ends with the scene."""
        child = Puppet(self.stage, parent.do("fork"))
        self._children.append(child)
        return child

    def status(self) -> dict[str, Any]:
        """The document of ``sockshare status --json``."""
        assert self._dialogue is not None
        document: dict[str, Any] = self._dialogue.ask("status")["status"]
        return document

    def shown(self, name: str) -> dict[str, Any]:
        """What the status has of one socket."""
        return next(entry for entry in self.status()["sockets"] if entry["name"] == name)

    @contextmanager
    def scene(self) -> Iterator[Theatre]:
        """What happens in the body leaves no descriptor in any actor."""
        self._children = []
        self._clients = ExitStack()
        before = [puppet.do("reset") for puppet in self._puppets]
        try:
            yield self
        finally:
            self._clients.close()
            for child in self._children:
                child.close()
            after = [puppet.do("reset") for puppet in self._puppets]
        assert after == before, "an actor has other descriptors than before"


@contextmanager
def theatre(
    manager: str, cast: Mapping[str, int] = CAST, *, spare: bool = False, latest: bool = False
) -> Iterator[Theatre]:
    """A theatre with the curtain raised; nothing of it is left afterwards.

    Args:
        cast: What is run: the programs of `CAST`, of which the last ones may be left out.
        spare: Whether it has the sockets of `SPARE`.
        latest: Whether it has those of `LATEST`, with ``registration = latest``, and no others.
    """
    started = {"circus": circusd, "supervisor": supervisord}[manager]
    with started("puppet", leave=True) as stage:
        house = Theatre(manager, stage, cast, spare=spare, latest=latest)
        try:
            house.raise_curtain()
            yield house
        finally:
            house.lower_curtain()


class Mailbox:
    """Where this process, which no manager knows, is sent descriptors."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="ss-")
        self.path = f"{self._directory}/mail"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(TIMEOUT)
        self._socket.bind(self.path)

    def collect(self) -> socket.socket:
        """The socket that was sent next."""
        _, (fd,), _, _ = socket.recv_fds(self._socket, 100, 1)
        return socket.socket(fileno=fd)

    def close(self) -> None:
        """Remove it."""
        self._socket.close()
        os.unlink(self.path)
        os.rmdir(self._directory)


def inodes(document: Mapping[str, Any]) -> dict[str, int]:
    """The inode of every socket by name."""
    return {entry["name"]: entry["inode"] for entry in document["sockets"]}
