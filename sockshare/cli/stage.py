"""A circusd of one's own: started in a session of its own, asked over its endpoint, and ended to the last process.

Used by ``sockshare demo``, by the tests and by the benchmarks. What a circusd starts leaves its session at once (every
circus child calls setsid) and its tree when a parent dies first, so the processes that belong to a stage are found by
a word in their environment, which every child inherits, and by descent from those that have it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

MARK = "SOCKSHARE_STAGE"  # in the environment of every process of a stage
START_TIMEOUT = 20.0  # s for the first answer: circusd, the host, the broker and the program start in turn


def free_port() -> int:
    """A port of 127.0.0.1 and ::1 that nothing is bound to, outside the range that connections take theirs from."""
    while not _is_free(port := random.randrange(20000, 32000)):
        pass
    return port


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                with socket.socket(family, kind) as sock:
                    sock.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:  # another: there is no IPv6 here
                    return False
    return True


def wait_until(condition: Callable[[], Any], timeout: float, what: str, interval: float = 0.01) -> Any:
    """Return the first true value of *condition*, asked every *interval* seconds.

    Raises:
        TimeoutError: It was not true for *timeout* seconds; the message has *what*.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"can't see that {what}: not so in {timeout:g} s")
        time.sleep(interval)
    return value


def _status(pid: int) -> tuple[str, int]:
    """State letter and parent of a process, from /proc/PID/stat (proc(5))."""
    # After the last parenthesis: the name inside them may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1])


def family(mark: str) -> list[int]:
    """The processes that have *mark* in their environment, and all that descend from them; no zombies."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    wanted = f"{MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it ended, or is another user's
            state, parent = _status(int(name))
            if state in "ZX":
                continue
            parents[int(name)] = parent
            if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.add(int(name))
    found.discard(os.getpid())
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return sorted(found)


def kill(pid: int, mark: str, number: int = signal.SIGKILL) -> bool:
    """Send a signal to *pid* if it still is one of the family of *mark*; whether it was."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if pid not in family(mark):  # asked after the open: from here on the pidfd can't mean another process
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


class Stage:
    """One circusd in a directory of its own.

    ``directory`` is short, as an ``AF_UNIX`` path has 107 bytes at most (unix(7)). ``write(ini)`` and ``start()`` bring
    it up, ``end()`` leaves no process and no file behind; a context manager calls it in any case.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ss-"))
        self.directory.chmod(0o755)  # programs may run under another uid
        self.mark = self.directory.name
        self.endpoint = f"ipc://{self.directory}/c"
        self.runtime = self.directory / "run"  # of the broker
        self.log = self.directory / "circusd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix: list[str] = []  # of the manager's command line
        package = str(Path(__file__).resolve().parents[2])
        path = os.environ.get("PYTHONPATH")
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": f"{package}{os.pathsep}{path}" if path else package,
            **(environment or {}),
            MARK: self.mark,
        }
        for name in ("SOCKSHARE_ENDPOINT", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"):
            self.environment.pop(name, None)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def write(self, ini: str) -> None:
        """Keep *ini* as the circus.ini, with the endpoints and a short check_delay in front."""
        head = f"[circus]\nendpoint = {self.endpoint}\npubsub_endpoint = ipc://{self.directory}/p\ncheck_delay = 1\n\n"
        (self.directory / "circus.ini").write_text(head + ini)

    def start(self) -> None:
        """Start circusd; its output goes to ``log``."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "circus.circusd", str(self.directory / "circus.ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,
            )

    def call(self, command: str, timeout: float = 10.0, **properties: Any) -> dict[str, Any]:
        """circusd's answer to *command*.

        Raises:
            TimeoutError: There was none in *timeout* seconds.
        """
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        try:
            dealer.linger = 0
            dealer.connect(self.endpoint)
            identity = os.urandom(8).hex()
            dealer.send(json.dumps({"id": identity, "command": command, "properties": properties}).encode())
            deadline = time.monotonic() + timeout
            while dealer.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                answer: dict[str, Any] = json.loads(dealer.recv())
                if answer.get("id") == identity:
                    return answer
            raise TimeoutError(f"can't ask circusd: no answer to {command} in {timeout:g} s")
        finally:
            dealer.close()

    def pids(self, watcher: str = "web") -> list[int]:
        """The processes that circusd counts as the watcher's."""
        return sorted(self.call("list", name=watcher).get("pids", []))

    def wait_for_answer(self, port: int, timeout: float = START_TIMEOUT) -> None:
        """Return once something answers HTTP on *port*.

        Raises:
            TimeoutError: Nothing did.
            RuntimeError: circusd ended.
        """
        wait_until(lambda: self._answers(port), timeout, f"port {port} answers", 0.02)

    def _answers(self, port: int) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(
                f"can't start circusd: it ended (status {self.process.returncode}): {self.tail(self.log)}"
            )
        try:
            # The listener is there from the start, so the connection stands; the answer comes when the program does.
            with socket.create_connection(("127.0.0.1", port), 1.0) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: stage\r\nConnection: close\r\n\r\n")
                return sock.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``sockshare`` *arguments* against this stage's broker; a context manager waits for its end."""
        return subprocess.Popen(
            [sys.executable, "-m", "sockshare", *arguments],
            env={**self.environment, "SOCKSHARE_ENDPOINT": str(self.runtime)},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def sockshare(self, *arguments: str, timeout: float = 90.0) -> subprocess.CompletedProcess[str]:
        """Run ``sockshare`` *arguments* against this stage's broker, to its end."""
        with self.command(*arguments) as command:
            try:
                output, errors = command.communicate(timeout=timeout)
            except BaseException:
                command.kill()
                raise
        return subprocess.CompletedProcess(command.args, command.returncode, output, errors)

    def ask(self, port: int) -> str:
        """The version that answers on *port*; empty if none does."""
        try:
            with socket.create_connection(("127.0.0.1", port), 5.0) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: sock.recv(65536), b""))
            return str(json.loads(answer.partition(b"\r\n\r\n")[2])["version"])
        except (OSError, ValueError, KeyError):
            return ""

    def kill(self, pid: int, number: int = signal.SIGKILL) -> bool:
        """Send a signal to a process of this stage; False if it is none, or gone."""
        return kill(pid, self.mark, number)

    def family(self) -> list[int]:
        """Every live process that belongs to this stage."""
        return family(self.mark)

    @staticmethod
    def tail(path: Path, lines: int = 20) -> str:
        """The last lines of a file, or why there are none."""
        try:
            return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"({error})"

    def stop(self, timeout: float = 8.0) -> list[int]:
        """End circusd as an administrator would (SIGTERM); return what still runs *timeout* seconds later."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.family(), 2.0, "all processes ended", 0.05)
        return self.family()

    def end(self) -> list[int]:
        """End every process, by force where asking is not enough, and remove the directory; return the forced ones.

        Raises:
            TimeoutError: One outlived SIGKILL.
        """
        try:
            left = self.stop()
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            # In rounds: a host that dies may have just started a broker.
            wait_until(self._sweep, 10.0, f"the processes of {self.mark} are gone", 0.05)
        finally:
            self._context.destroy(linger=0)
            shutil.rmtree(self.directory, ignore_errors=True)
        return left

    def _sweep(self) -> bool:
        pids = self.family()
        for pid in pids:
            self.kill(pid)
        return not pids

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
