"""Runs sockshare, supervisord and supervisorctl in forks of a process that has imported them: 30 ms instead of 250.

Most of what a test of a real manager computes is the start of one more interpreter that asks for the status. What the
start itself has to do is tested where it matters, by processes of their own.

As a program it reads lines of JSON, ``[name, directory, environment, arguments, timeout]``, and answers each with
``[exit status, stdout, stderr]``; the status is null for a command that had to be killed.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn


class Forks:
    """The process, started when it is first needed, and ended with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        directory: str,
        environment: Mapping[str, str],
        timeout: float,
    ) -> subprocess.CompletedProcess[str] | None:
        """Run the command *name*, to its end; None when the process is busy with another.

        Raises:
            subprocess.TimeoutExpired: It did not end in *timeout* seconds, and was killed.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            print(
                json.dumps([name, directory, dict(environment), list(arguments), timeout]),
                file=process.stdin,
                flush=True,
            )
            status, output, errors = json.loads(process.stdout.readline())
        finally:
            self._lock.release()
        if status is None:
            raise subprocess.TimeoutExpired([name, *arguments], timeout, output, errors)
        return subprocess.CompletedProcess([name, *arguments], status, output, errors)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            atexit.register(self._end, self._process)
        return self._process

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        process.wait(10)


FORKS = Forks()

_Main = Callable[[list[str]], Any]


def mains() -> dict[str, _Main]:
    """What each command is; imports all that they import when they run."""
    for name in ("zmq", "click", "rich", "cli.commands", "cli.status", "cli.reload", "cli.doctor", "client.dialogue"):
        import_module(name if "." not in name else f"sockshare.{name}")
    import_module("supervisor.medusa.xmlrpc_handler")
    import_module("supervisor_sockshare.plugin")
    return {
        "sockshare": import_module("sockshare.cli.main").main,
        "supervisord": import_module("supervisor.supervisord").main,
        "supervisorctl": import_module("supervisor.supervisorctl").main,
    }


def become(
    main: _Main, directory: str, environment: dict[str, str], arguments: list[str], outputs: list[int]
) -> NoReturn:
    """Be the command, in a child; ends the process."""
    status = 1
    try:
        os.setsid()
        for number, fd in enumerate([os.open(os.devnull, os.O_RDONLY), *outputs]):
            os.dup2(fd, number)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
        status = int(main(arguments) or 0)
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, timeout: float) -> int | None:
    """The exit status of our child, None after it had to be killed."""
    pidfd = os.pidfd_open(pid)
    try:
        ended = bool(select.select([pidfd], [], [], timeout)[0])
    finally:
        os.close(pidfd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def serve() -> None:
    """Answer until there is nothing more to read."""
    known = mains()
    gc.freeze()
    for line in sys.stdin:
        name, directory, environment, arguments, timeout = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                become(known[name], directory, environment, arguments, [output.fileno(), errors.fileno()])
            status = wait(pid, timeout)
            said = []
            for file in (output, errors):
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
            print(json.dumps([status, *said]), flush=True)


if __name__ == "__main__":
    serve()
