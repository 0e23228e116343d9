"""What a host does for the broker of a test: holds the sockets and the listening descriptors, starts and kills it."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

TIMEOUT = 15.0  # s
ROOT = Path(__file__).resolve().parents[2]


class Host:
    """Holds `sockets`, the door and the ZeroMQ listener in *directory*; `start` gives a broker, `kill` ends it."""

    module = "tests.client.pretender"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.sockets: dict[str, socket.socket] = {}
        for name, kind in (("web", socket.SOCK_STREAM), ("api", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
            sock = socket.socket(socket.AF_INET, kind)
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            self.sockets[name] = sock
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.broker = socket.socket(socket.AF_UNIX)
        self.processes: list[subprocess.Popen[Any]] = []
        self._said: queue.Queue[str] = queue.Queue()
        self._readers: list[threading.Thread] = []

    def open(self) -> None:
        """Listen."""
        for sock, name in ((self.door, "door"), (self.broker, "broker")):
            sock.bind(str(self.directory / name))
            sock.listen(64)

    def start(self, **behaviour: Any) -> None:
        """Start a broker that behaves so (tests/client/pretender.py)."""
        if not (self.directory / "door").exists():
            self.open()
        fds = [self.door.fileno(), self.broker.fileno(), *(sock.fileno() for sock in self.sockets.values())]
        behaviour |= {
            "door": self.door.fileno(),
            "broker": self.broker.fileno(),
            "path": str(self.directory / "broker"),
            "sockets": {name: sock.fileno() for name, sock in self.sockets.items()},
        }
        command = [sys.executable, "-m", self.module, json.dumps(behaviour)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[*fds, *behaviour.get("gates", ())],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.processes.append(process)
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(process.stdout,))
        reader.start()
        self._readers.append(reader)

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._said.put(line.rstrip("\n"))

    def wait_for(self, word: str) -> str:
        """The rest of the broker's next line that begins with *word*; lines before it are passed over."""
        while True:
            first, _, rest = self._said.get(timeout=TIMEOUT).partition(" ")
            if first == word:
                return rest

    def said(self) -> list[str]:
        """The lines that were not waited for."""
        lines = []
        while not self._said.empty():
            lines.append(self._said.get())
        return lines

    def kill(self) -> None:
        """SIGKILL the broker, and return when it is gone."""
        for process in self.processes:
            process.kill()
            process.wait(TIMEOUT)
            assert process.stdin is not None
            process.stdin.close()
        self.processes.clear()
        for reader in self._readers:
            reader.join(TIMEOUT)
        self._readers.clear()

    def wait_dead(self) -> None:
        """Return when the broker has killed itself."""
        self.processes[-1].wait(TIMEOUT)

    def close(self) -> None:
        """End everything."""
        self.kill()
        for sock in (self.door, self.broker, *self.sockets.values()):
            sock.close()

    def inode(self, name: str) -> int:
        """Of the shared socket *name*."""
        return os.fstat(self.sockets[name].fileno()).st_ino

    def environment(self, **more: str) -> dict[str, str]:
        """For a child that is to find this broker."""
        return {**os.environ, "PYTHONPATH": str(ROOT), "SOCKSHARE_ENDPOINT": str(self.directory), **more}

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """``sockshare ARGUMENTS``, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "sockshare", *arguments],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=40,
        )


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
