"""Where the registrations are measured: a circusd with many sockets, its broker, and what the kernel says."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sockshare.cli.stage import Stage, free_port, wait_until
from sockshare.client.dialogue import Dialogue

#: What stands before the command of a program that knows nothing of us.
EXEC = "{python} -m sockshare exec -- "


class Program(NamedTuple):
    """A watcher with a socket of its own, of the same name."""

    registration: str
    worker: str  # the arguments of `benchmarks.workers`
    before: str = ""


class Ground:
    """A running circusd, and its broker to be asked."""

    def __init__(self, stage: Stage, ports: Mapping[str, int], processes: int) -> None:
        self.stage = stage
        self.ports = ports
        self.processes = processes
        wait_until(lambda: (stage.runtime / "broker").exists(), 20, "the broker listens", 0.05)
        self.dialogue = Dialogue(str(stage.runtime))

    def ask(self, op: str, **fields: object) -> dict[str, Any]:
        """The broker's answer."""
        return self.dialogue.ask(op, deadline=time.monotonic() + 60, **fields)

    def status(self) -> dict[str, Any]:
        """What ``sockshare status --json`` prints."""
        document: dict[str, Any] = self.ask("status")["status"]
        return document

    def socket(self, name: str) -> dict[str, Any]:
        """What the status says of the socket *name*."""
        return next(one for one in self.status()["sockets"] if one["name"] == name)

    def broker(self) -> int:
        """The broker's pid."""
        return int(self.status()["broker"]["pid"])

    def in_line(self, name: str) -> bool:
        """Whether all processes of *name* have claims on its socket, and one of them holds it."""
        standing: list[str | None] = [one["standing"] for one in self.socket(name)["holders"]]
        return standing.count("held") == 1 and standing.count("waiting") == self.processes - 1

    def registered(self, name: str) -> bool:
        """Whether all processes of *name* have registered its socket by themselves."""
        return len([one for one in self.socket(name)["holders"] if one["registered"]]) == self.processes


@contextmanager
def circusd(programs: Mapping[str, Program], processes: int) -> Iterator[Ground]:
    """A circusd that runs so many processes of each of *programs*."""
    with Stage() as stage:
        ports = {name: free_port() for name in programs}
        lines = [
            "[plugin:sockshare]",
            "use = circus_sockshare.SockShare",
            "use_sockets = True",
            f"runtime_dir = {stage.runtime}",
            f"logfile = {stage.directory}/sockshare.log",
            *(f"{name}.registration = {program.registration}" for name, program in programs.items()),
        ]
        python = shlex.quote(sys.executable)
        for name, program in programs.items():
            before = program.before.format(python=python)
            lines += [
                f"[socket:{name}]",
                "host = 127.0.0.1",
                f"port = {ports[name]}",
                "backlog = 4096",
                f"[watcher:{name}]",
                f"cmd = {before}{python} -m benchmarks.workers {program.worker}",
                f"numprocesses = {processes}",
                "copy_env = True",
                "max_retry = -1",
                f"sockshare.sockets = {name}",
                "stderr_stream.class = FileStream",
                f"stderr_stream.filename = {stage.directory}/{name}.err",
            ]
        stage.write("\n".join(lines) + "\n")
        stage.start()
        ground = Ground(stage, ports, processes)
        try:
            yield ground
        finally:
            ground.dialogue.close()


def inode_of(port: int) -> int:
    """The inode of the IPv4 listener on *port* (/proc/net/tcp, proc(5)).

    Raises:
        LookupError: There is none.
    """
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].partition(":")[2], 16) == port:
            return int(fields[9])
    raise LookupError(port)


def sleeps(pid: int) -> int:
    """How often the threads of *pid* have gone to sleep by themselves so far (proc(5), voluntary_ctxt_switches)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        total += int(text.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total
