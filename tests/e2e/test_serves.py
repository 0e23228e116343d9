"""*done* means: the new process was seen to serve, and nothing of the old version does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sockshare.cli.stage import free_port
from sockshare.kernel import epoll, processes, strike
from tests.support.circusd import APPS, Circusd, Reload, circusd, is_running, wait_until
from tests.support.load import Load, assert_none_failed
from tests.support.supervisord import supervisord

NOT_SERVING, ROLLED_BACK, TIMED_OUT = 3, 5, 6
EXEC = f"{sys.executable} -m sockshare exec --"
UVICORN = f"{sys.executable} -m uvicorn web:asgi --app-dir {APPS} --no-access-log --log-level warning"

Managers = Callable[..., Any]


@pytest.fixture(params=["circus", "supervisor"])
def manager(request: pytest.FixtureRequest) -> Iterator[Managers]:
    """Start a manager of that kind, with one program, whose command is *command*."""

    def begin(
        command: str = "", *, program: str = "uvicorn", watcher: dict[str, str] | None = None, **options: Any
    ) -> Any:
        start, key = (circusd, "cmd") if request.param == "circus" else (supervisord, "command")
        own = {key: command} if command else {}
        return stack.enter_context(start(program, watcher={**(watcher or {}), **own}, **options))

    with ExitStack() as stack:
        yield begin


def answers(stage: Circusd, count: int = 40) -> set[str]:
    """The versions that answer *count* new connections."""
    return {stage.ask(stage.port) for _ in range(count)}


def begun(stage: Circusd) -> None:
    """Return once the manager runs the program and the broker knows of it, whether or not it serves."""
    wait_until(lambda: stage.sockshare("status").returncode in (0, 3) and stage.pids(), 20, "it runs", 0.05)


def left_over(stage: Circusd) -> list[dict[str, Any]]:
    """What `status` says is left over of the program."""
    (program,) = (one for one in stage.status()["programs"] if one["name"] == "web")
    found: list[dict[str, Any]] = program["leftovers"]
    return found


def restart(stage: Circusd) -> None:
    """As the manager's own command does it."""
    before = stage.pids()
    if hasattr(stage, "ctl"):
        stage.ctl("restart", "web")
    else:
        stage.call("restart", name="web", waiting=True)
    wait_until(lambda: stage.pids() and not set(stage.pids()) & set(before), 10, "it runs anew")


def ready(stage: Circusd) -> None:
    """Return once the one process serves."""
    wait_until(lambda: all(one["ready"] for one in stage.status()["sockets"][0]["holders"]), 15, "it serves", 0.05)


def registered(stage: Circusd, workers: int) -> None:
    """Return once so many workers of the one process serve: what is deployed from now on, none of them loads."""

    def are() -> bool:
        (pid,), (sock,) = stage.pids(), stage.status()["sockets"]
        return len(epoll.registrations(pid, [sock["inode"]])) == workers

    wait_until(are, 20, "all workers serve", 0.05)


def test_version_that_never_serves_is_not_done(manager: Managers) -> None:
    """Nor is it where the old one never did: it dies of its import, which takes longer than it is held."""
    stage = manager(leave=True, import_seconds=1.2, watcher={"sockshare.ready_timeout": "3"})
    stage.deploy("crash", "exit_at_import")
    stage.start()
    begun(stage)
    reload = stage.reload()
    assert reload.status != 0, reload  # which one depends on what the crash loop is at
    assert "ready" not in reload.names, reload
    assert stage.sockshare("status").returncode == NOT_SERVING
    assert stage.sockshare("doctor").returncode == NOT_SERVING


def test_version_is_waited_for_where_the_old_one_imports_still(manager: Managers) -> None:
    """A healthy program that is reloaded in its first seconds is done when it serves."""
    stage = manager(leave=True, import_seconds=1.5)
    stage.start()
    begun(stage)
    stage.deploy("v2")
    reload = stage.reload()
    assert reload.status == 0, reload
    assert "registration" in [step["reason"] for step in reload.steps if step["step"] == "ready"], reload
    assert answers(stage) == {"v2"}


def test_gunicorn_serves_on_the_descriptor_of_its_command_line(manager: Managers) -> None:
    """It must not be told of LISTEN_FDS besides: it would take descriptor 3 twice, and end of EBADF again and again."""
    stage = manager(program="gunicorn-fd")
    stage.deploy("v2")
    reload = stage.reload()
    assert reload.status == 0, reload
    pids = stage.pids()
    assert answers(stage) == {"v2"}
    assert stage.pids() == pids


WRAPPED = f"{UVICORN} --workers 2 --fd"


@pytest.mark.parametrize(
    ("command", "script"),
    [
        pytest.param("./start.sh", f"{EXEC} {WRAPPED} {{fd:web}}", id="script"),
        pytest.param(f"{EXEC} ./start.sh", f"{WRAPPED} 3", id="exec-script", marks=pytest.mark.soak),
    ],
)
def test_nothing_of_the_old_version_answers_below_a_wrapper(manager: Managers, command: str, script: str) -> None:
    """A ``start.sh`` without ``exec`` dies of its stop signal, and its server lives on; at a restart, too."""
    stage = manager(command, leave=True)
    path = stage.directory / "start.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    check_below_a_wrapper(stage)


@pytest.mark.soak
def test_nothing_of_the_old_version_answers_below_a_shell() -> None:
    """Where circus runs the command by a shell, and that waits for it, as dash does."""
    watcher = {"cmd": f"{EXEC} {WRAPPED} {{fd:web}}", "shell": "True"}
    with circusd(watcher=watcher, leave=True) as stage:
        check_below_a_wrapper(stage)


def check_below_a_wrapper(stage: Circusd) -> None:
    """See the tests."""
    stage.up()
    restart(stage)
    ready(stage)
    left = left_over(stage)
    assert left, stage.sockshare("status").stdout
    doctor = stage.sockshare("doctor")
    said = f"pid {left[0]['pid']} ({left[0]['command']}) is left over, and serves web beside it: `sockshare reload web`"
    assert said in doctor.stdout, doctor.stdout
    assert doctor.returncode == NOT_SERVING
    stage.deploy("v2")
    with stage.command("reload", "web", "--json") as command:
        assert command.stdout is not None
        assert any('"stop"' in line for line in command.stdout)
        stage.kill(stage.broker())  # while it ends what is left: the next one goes on with it
        output, errors = command.communicate(timeout=60)
    assert command.returncode == 0, (output, errors)
    assert answers(stage) == {"v2"}
    assert not left_over(stage)
    assert not [one["pid"] for one in left if is_running(one["pid"])]


def test_nothing_of_a_killed_master_answers(manager: Managers) -> None:
    """Its workers serve on without it, until a reload; those of a new version that is given up don't."""
    stage = manager(f"{EXEC} {UVICORN} --workers 2 --fd {{fd:web}}", watcher={"sockshare.ready_hold": "1"})
    registered(stage, 2)
    (master,) = stage.pids()
    workers = processes.tree(master)[1:]
    assert stage.kill(master)
    wait_until(lambda: stage.pids() not in ([], [master]), 10, "it runs anew")
    registered(stage, 2)
    left = {one["pid"] for one in left_over(stage)}
    assert left
    assert left <= set(workers)

    stage.deploy("killed")
    with stage.command("reload", "web", "--json") as command:
        assert command.stdout is not None
        started = next(json.loads(line) for line in command.stdout if '"ready"' in line)
        given_up = processes.tree(started["pid"])
        assert stage.kill(started["pid"])
        output, errors = command.communicate(timeout=60)
    assert command.returncode == ROLLED_BACK, (output, errors)
    assert answers(stage) == {"v1"}
    assert not [pid for pid in given_up if pid in {one["pid"] for one in left_over(stage)}]
    assert left <= {one["pid"] for one in left_over(stage)}, "that is of the version that serves"

    stage.deploy("v2")
    reload = stage.reload()
    assert reload.status == 0, reload
    assert answers(stage) == {"v2"}
    assert not left_over(stage)

    with stranger(stage) as process:
        reload = stage.reload()
        assert reload.status == NOT_SERVING, reload
        assert f"pid {process.pid} (" in reload.reason
        assert f"`kill {process.pid}`" in reload.reason
        assert [one["pid"] for one in left_over(stage)] == [process.pid]
        assert process.poll() is None, "a stranger was killed"
    assert stage.reload().status == 0


def test_fcgi_program_is_done_when_it_serves() -> None:
    """Its socket is supervisord's, and it names none of ours: it is observed all the same, and held back."""
    with supervisord("plain", leave=True) as stage:
        port = free_port()
        stage.sections["fcgi-program:app"] = {"command": f"{UVICORN} --fd 0", "socket": f"tcp://127.0.0.1:{port}"}
        stage.sections["program:sleeper"] = {"command": "sleep 1000", "sockshare_ready_timeout": "1"}
        stage.configure()
        stage.up()
        stage.wait_for_answer(port)
        with Load(port, "fresh:50") as load:
            stage.deploy("crash", "exit_at_import", import_seconds=1.5)
            reload = stage.reload(program="app")
            assert reload.status == ROLLED_BACK, reload
            assert "ready" not in reload.names, reload
            stage.deploy("v2", import_seconds=2.0)
            reload = stage.reload(program="app")
            assert reload.status == 0, reload
            result = load.stop()
        assert [step["reason"] for step in reload.steps if step["step"] == "ready"] == ["registration"]
        assert next(step["reason"] for step in reload.steps if step["step"] == "switch").endswith("suspended")
        assert {stage.ask(port) for _ in range(20)} == {"v2"}
        assert_none_failed(result, since=reload.began)
        print(f"the longest of {len(result)} requests took {result.worst * 1000:.0f} ms")
        assert result.worst < 1.5, "requests waited for an import"

        (pid,) = stage.pids("sleeper")
        reload = stage.reload(program="sleeper")
        assert reload.status == TIMED_OUT, reload
        assert reload.reason.endswith("if it serves all the same, write sockshare_ready = hold in its section"), reload
        stage.sections["program:sleeper"]["sockshare_ready"] = "hold"
        stage.configure()
        stage.ctl("reread")
        reload = stage.reload(program="sleeper")
        assert reload.status == 0, reload
        assert_nobody_looked(stage, pid, reload)


def test_program_without_a_socket_is_replaced_though_nobody_can_look_at_it() -> None:
    """circus knows of it by its watcher alone. One process runs afterwards, and that is another."""
    extra = "[watcher:sleeper]\ncmd = sleep 1000\nsockshare.ready = hold\nsockshare.ready_hold = 0.2\n"
    with circusd(extra=extra) as stage:
        (pid,) = stage.pids("sleeper")
        reload = stage.reload(program="sleeper")
        assert reload.status == 0, reload
        assert_nobody_looked(stage, pid, reload)


def assert_nobody_looked(stage: Circusd, pid: int, reload: Reload) -> None:
    """The reload of the sleeper *pid*, which has no socket, says so; it has ended, and one has taken its place."""
    assert "nobody looked" in next(step["reason"] for step in reload.steps if step["step"] == "switch")
    (now,) = stage.pids("sleeper")
    assert now != pid
    assert not is_running(pid)
    sleepers = [one for one in stage.family() if Path(f"/proc/{one}/comm").read_text() == "sleep\n"]
    assert sleepers == [now], "two run side by side"


STRANGER = """
import select, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
poll = select.epoll()
poll.register(sock, select.EPOLLIN | select.EPOLLEXCLUSIVE)
print("registered", flush=True)
sys.stdin.read()
"""


@contextmanager
def stranger(stage: Circusd) -> Iterator[subprocess.Popen[str]]:
    """A process of nobody's that has the socket registered."""
    (pid,), (sock,) = stage.pids(), stage.status()["sockets"]
    fd = strike.duplicate(pid, processes.socket_descriptors(pid)[sock["inode"]])
    words = [sys.executable, "-c", STRANGER, str(fd)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, pass_fds=[fd], start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "registered\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
