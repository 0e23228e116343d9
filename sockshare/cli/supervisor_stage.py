"""A supervisord of one's own, as `stage` has circusds: for ``sockshare demo supervisor``, tests and benchmarks."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import xmlrpc.client
from collections.abc import Mapping
from typing import Any

from .stage import Stage

HEAD = """\
[supervisord]
nodaemon = true
logfile = {directory}/supervisord.log
pidfile = {directory}/pid
childlogdir = {directory}

[unix_http_server]
file = {directory}/s

[supervisorctl]
serverurl = unix://{directory}/s

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

"""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _Connection(self._path)
        self._connection = host, connection  # which `close` closes
        return connection


class SupervisorStage(Stage):
    """One supervisord in a directory of its own; its output goes to ``output``."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        Stage.__init__(self, environment)  # whatever else a test has it inherit
        self.log = self.directory / "supervisord.log"
        self.output = self.directory / "output"
        self.configuration = self.directory / "supervisord.conf"

    def write(self, ini: str) -> None:
        """Keep *ini* as the configuration, with the sections that every supervisord has in front."""
        self.configuration.write_text(HEAD.format(directory=self.directory) + ini)

    def start(self) -> None:
        """Start supervisord."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,
            )

    def ctl(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """``supervisorctl`` *arguments*."""
        return subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.configuration), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self.environment,
            timeout=timeout,
        )

    def rpc(self, method: str, *arguments: Any) -> Any:
        """One XML-RPC call, such as ``supervisor.getState``.

        Raises:
            OSError, http.client.HTTPException, xmlrpc.client.Fault: supervisord did not answer, or refused.
        """
        with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(f"{self.directory}/s")) as proxy:
            return getattr(proxy, method)(*arguments)

    def processes(self, group: str = "web") -> dict[str, dict[str, Any]]:
        """What supervisord has in *group*, by name."""
        found = self.rpc("supervisor.getAllProcessInfo")
        return {one["name"]: one for one in found if one["group"] == group}

    def pids(self, watcher: str = "web") -> list[int]:
        """The processes that supervisord runs in the group, those that it is stopping not among them."""
        states = ("RUNNING", "STARTING")
        return sorted(one["pid"] for one in self.processes(watcher).values() if one["statename"] in states)
