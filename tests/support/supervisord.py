"""A real supervisord with a real program under it, for one test or one module; nothing of it outlives the fixture."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import xmlrpc.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sockshare.cli.stage import free_port, wait_until
from sockshare.cli.supervisor_stage import SupervisorStage
from tests.support.circusd import (
    DATAGRAMS,
    USES_THE_LIBRARY,
    Circusd,
    behind_exec,
    command_of,
    in_memory,
    is_running,
    running,
)
from tests.support.forks import FORKS

__all__ = ["Supervisord", "listens", "supervisord", "wait_until"]

BROKER = "sockshare-broker"
FACTORIES = """\
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://{directory}/s
"""
#: Keys of circus that supervisord has under another name.
THEIRS = {"stop_signal": "stopsignal"}
OURS = """\
[ctlplugin:sockshare]
supervisor.ctl_factory = supervisor_sockshare:make_ctlplugin
"""


def listens(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Supervisord(SupervisorStage, Circusd):
    """A supervisord with ``[sockshare:web]``, ``[program:web]`` and, unless ``stock``, ``[rpcinterface:sockshare]``.

    Everything that the tests of circus do with a :class:`Circusd` they can do with it; *watcher* and *plugin* are keys
    of the program and the interface, in either manager's spelling.
    """

    def __init__(
        self,
        program: str = "uvicorn",
        *,
        numprocesses: int = 1,
        stock: bool = False,
        import_seconds: float = 0.0,
        plugin: Mapping[str, str] | None = None,
        watcher: Mapping[str, str] | None = None,
        sock: Mapping[str, str] | None = None,
        extra: str = "",
        servers: str = "[unix_http_server]\nfile = {directory}/s\n",
    ) -> None:
        SupervisorStage.__init__(self)
        self.runtime = in_memory(self.runtime)
        self.program = program
        self.import_seconds = import_seconds
        self.port = free_port()
        self.stderr_log = self.directory / "web.err"
        behaviour = self.directory / "behaviour.json"
        self.environment["APP_BEHAVIOUR"] = str(behaviour)
        self.environment["APP_DIRECTORY"] = str(self.directory)
        self.environment["APP_RUNTIME"] = str(self.runtime)
        self.deploy("v1")

        command = command_of(program)
        if not stock and program not in USES_THE_LIBRARY:
            command = behind_exec(program, command)
        scheme = "udp" if program in DATAGRAMS else "tcp"
        stderr = f"{self.stderr_log}.%(process_num)s" if numprocesses > 1 else str(self.stderr_log)
        self.sections: dict[str, dict[str, str]] = {
            "program:web": {
                "command": command,
                "numprocs": str(numprocesses),
                **({"process_name": "web_%(process_num)s"} if numprocesses > 1 else {}),
                "stderr_logfile": stderr,
                "stdout_logfile": "NONE",
                **({} if stock else {"sockshare_sockets": "web", "sockshare_ready_hold": "0.5"}),
                **{THEIRS.get(key, key.replace(".", "_")): value for key, value in (watcher or {}).items()},
            },
        }
        if stock:
            own = f" --bind 127.0.0.1:{self.port}" if "gunicorn" in command else ""
            self.sections["program:web"]["command"] = command.replace("--fd {fd}", f"--port {self.port}") + own
        else:
            self.sections["sockshare:web"] = {"socket": f"{scheme}://127.0.0.1:{self.port}", **(sock or {})}
            self.sections["rpcinterface:sockshare"] = {
                "supervisor.rpcinterface_factory": "supervisor_sockshare:make_rpcinterface",
                "runtime_dir": str(self.runtime),
                **(plugin or {}),
            }
        self.head = (
            f"[supervisord]\nnodaemon = true\nlogfile = {self.log}\npidfile = {self.directory}/pid\n"
            f"childlogdir = {self.directory}\n{servers}{FACTORIES}{'' if stock else OURS}"
        ).replace("{directory}", str(self.directory))
        self.extra = extra
        self.configure()

    def ctl(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """As `SupervisorStage.ctl`, in a fork."""
        words = ["-c", str(self.configuration), *arguments]
        done = FORKS.run(
            "supervisorctl", words, directory=str(self.directory), environment=self.environment, timeout=timeout
        )
        return super().ctl(*arguments, timeout=timeout) if done is None else done

    def configure(self) -> None:
        """Write ``sections`` into the configuration; an empty value takes a line out."""
        lines = [
            "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in keys.items() if value), ""])
            for name, keys in self.sections.items()
        ]
        self.configuration.write_text("\n".join([self.head, *lines, self.extra]))

    def broker(self) -> int:
        """The pid of the broker that serves, or is to serve."""

        def find() -> int:
            one = self.processes(BROKER).get(BROKER, {})
            return int(one.get("pid", 0))

        return int(wait_until(find, 10, "a broker runs"))

    def call(self, command: str, timeout: float = 10.0, **properties: Any) -> dict[str, Any]:
        """Nothing: what tests ask of circusd to have it as before has not happened here."""
        return {}

    def spare_stands_by(self) -> bool:
        """See `Circusd`: the two brokers' connections to the link, as the kernel lists the host's ends (proc(5))."""
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        # Aside, and renamed: listeners.make.
        ends = {f"socket:[{line[6]}]" for line in lines if line[-1].endswith("/~ink") and line[5] == "03"}
        return len(ends.intersection(self._descriptors())) >= 2

    def _descriptors(self) -> Iterator[str]:
        for entry in Path(f"/proc/{self.host()}/fd").iterdir():
            with suppress(OSError):
                yield os.readlink(entry)

    def host(self) -> int:
        """supervisord itself is the host."""
        return 0 if self.process is None else self.process.pid

    def numprocesses(self) -> int:
        """How many processes supervisord has of the program, in whatever state."""
        return len(self.processes())

    def inode(self) -> int:
        """The inode of the shared socket, as `status` has it."""
        return int(self.status()["sockets"][0]["inode"])

    def alive(self) -> bool:
        """Whether supervisord runs and answers."""
        assert self.process is not None
        with suppress(OSError, http.client.HTTPException, xmlrpc.client.Fault):
            return is_running(self.process.pid) and self.rpc("supervisor.getState")["statename"] == "RUNNING"
        return False

    def logs(self) -> str:
        """Everything that explains a failure."""
        errors = sorted(self.directory.glob("web.err*"))
        paths = [self.configuration, self.output, self.log, *errors, *self.directory.glob(f"{BROKER}-std*")]
        return "\n".join(f"--- {path.name}\n{self.tail(path, 60)}" for path in paths)


@contextmanager
def supervisord(program: str = "uvicorn", *, leave: bool = False, **options: Any) -> Iterator[Supervisord]:
    """A started :class:`Supervisord`; *leave* starts nothing. Ends every process, also when the body raises."""
    stage = Supervisord(program, **options)
    running.append(stage)
    try:
        if not leave:
            stage.up()
        yield stage
    finally:
        running.remove(stage)
        stage.end()
        assert not stage.family(), "a process of the stage is left"
