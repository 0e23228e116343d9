"""A manager whose processes share one socket that only some may have, and what is to be seen of it."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from sockshare.client.dialogue import Dialogue
from tests.support.circusd import Circusd, circusd, is_running, wait_until
from tests.support.oracle import armed, roots, tree
from tests.support.supervisord import supervisord

PROCESSES = 4
STALL_TIMEOUT = 0.3
#: Seconds from its registration for which one that registers by itself may be beside the holder, unnoticed. (It takes
#: some 10 ms, and longer where the machine is busy, or where the broker has just died.)
START_WINDOW = 1.0


@contextmanager
def staged(
    manager: str,
    program: str,
    registration: str = "exclusive",
    *,
    processes: int = PROCESSES,
    waiting: bool = True,
    options: Mapping[str, Any] | None = None,
    **keys: str,
) -> Iterator[Circusd]:
    """A manager with so many *processes* of *program*, which respawns at once.

    Args:
        waiting: Return once every process is in line.
        options: The stage's own.
        keys: The socket's.
    """
    options = {"leave": True, "numprocesses": processes, **(options or {})}
    keys = {"registration": registration, "stall_timeout": str(STALL_TIMEOUT), **keys}
    with ExitStack() as stack:
        stage: Circusd
        if manager == "circus":
            plugin = {f"web.{key}": value for key, value in keys.items()}
            stage = stack.enter_context(circusd(program, plugin=plugin, **options))
            ini = stage.directory / "circus.ini"
            ini.write_text(ini.read_text().replace("check_delay = 1\n", "check_delay = 0.1\n"))
        else:
            watcher = {"startsecs": "0", "autorestart": "true", **options.pop("watcher", {})}
            stage = stack.enter_context(supervisord(program, sock=keys, watcher=watcher, **options))
        try:
            stage.start()
            if waiting:
                wait_until(lambda: len(in_line(stage)) == processes, 30, "every process is in line", 0.02)
            yield stage
        except BaseException:
            print(stage.logs())  # which the report of a failure shows
            raise


def record(stage: Circusd, name: str = "web") -> dict[str, Any]:
    """What the broker has had the host keep of the registration of a socket."""
    try:
        records = json.loads((stage.runtime / "journal.json").read_text())["records"]
    except (OSError, ValueError):
        return {"claims": [], "last_epoch": 0}
    found: dict[str, Any] = records.get(f"registration:{name}", {"claims": [], "last_epoch": 0})
    return found


def in_line(stage: Circusd, name: str = "web") -> list[int]:
    """The live processes that have a claim which is not paused."""
    pids = [int(one["claim"][6]) for one in record(stage, name)["claims"] if not one["paused"]]
    return [pid for pid in pids if is_running(pid)]


def inode_of(stage: Circusd) -> int:
    """The inode of the shared socket."""
    return int(stage.status()["sockets"][0]["inode"])


def holders(stage: Circusd, name: str = "web") -> list[int]:
    """The processes that hold the registration, or have not let go of it, by the broker's own record."""
    return [int(one["claim"][6]) for one in record(stage, name)["claims"] if one["standing"] != "waiting"]


class Scene:
    """What a test asks of a stage; *inode* is the shared socket's."""

    def __init__(self, stage: Circusd) -> None:
        self.stage = stage
        self.inode = inode_of(stage)

    def armed(self) -> list[int]:
        """By the kernel."""
        assert self.stage.process is not None
        return armed(self.stage.process.pid, self.inode)

    def holder(self, *but: int) -> int:
        """The one process that is armed, once there is one that is none of *but*."""
        found: list[int] = []

        def is_one() -> bool:
            found[:] = self.armed()
            return len(found) == 1 and found[0] not in but

        wait_until(is_one, 15, f"one process holds it, and none of {but}", 0.005)
        return found[0]

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process of the stage."""
        assert self.stage.kill(pid, number)
        if number == signal.SIGSTOP:
            wait_until(lambda: state(pid) == "T", 5, f"pid {pid} is stopped")

    def ask(self, timeout: float = 10.0) -> int:
        """The process that answers one request."""
        with socket.create_connection(("127.0.0.1", self.stage.port), timeout) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        try:
            return int(json.loads(answer.partition(b"\r\n\r\n")[2])["pid"])
        except ValueError:
            raise ConnectionResetError(f"no answer, but {answer!r}") from None

    def tally(self, count: int = 10) -> Counter[int]:
        """Who answers *count* requests, one after the other."""
        return Counter(self.ask() for _ in range(count))

    def tell(self, op: str, **fields: Any) -> str:
        """What the broker answers to a command, as its command-line tool would ask it."""
        dialogue = Dialogue(str(self.stage.runtime))
        try:
            return str(dialogue.ask(op, deadline=time.monotonic() + 10, **fields)["reason"])
        finally:
            dialogue.close()

    def move(self, pid: int) -> str:
        """Hand the registration to the process *pid*."""
        return self.tell("move", socket="web", process=self.names()[pid])

    def names(self) -> dict[int, str]:
        """The names of the processes in line."""
        return {int(one["claim"][6]): str(one["claim"][3]) for one in record(self.stage)["claims"]}

    def root(self, pid: int) -> int:
        """The managed process that *pid* is or descends from; 0 if there is none."""
        assert self.stage.process is not None
        return next((one for one in roots(self.stage.process.pid) if pid in tree(one)), 0)

    def facts(self) -> dict[str, Any]:
        """What `status` says of the socket."""
        found: dict[str, Any] = self.stage.status()["sockets"][0]
        return found

    def log(self) -> str:
        """What the broker has said."""
        logs = [self.stage.sockshare_log] if hasattr(self.stage, "sockshare_log") else []
        logs += sorted(self.stage.directory.glob("sockshare-broker-std*"))
        return "\n".join(path.read_text() for path in logs if path.exists())


def state(pid: int) -> str:
    """The state letter of a process (proc(5)); empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
