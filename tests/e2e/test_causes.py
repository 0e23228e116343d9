"""What fails says why, and what `doctor` says to do about it helps, done to the letter; under either manager."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sockshare.cli.stage import Stage
from sockshare.kernel import occupants, processes
from tests.support.circusd import Circusd, Reload, circusd, wait_until
from tests.support.supervisord import Supervisord, supervisord

#: Serves, and writes to its log all the time, as a server with an access log does.
GOOD = """
import select, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
ready = select.epoll()
ready.register(sock, select.EPOLLIN)
while True:
    if ready.poll(0.005):
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            continue
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: 2\\r\\n\\r\\nok")
        connection.close()
    print("GET / 200 a line of its access log", flush=True)
"""
CRASHES = "raise RuntimeError('no such table: users')"
BINDS = "import socket\nsocket.create_server(('127.0.0.1', {port}))"
ACCEPTS = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while True:
    connection, _ = sock.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    connection.close()
"""
#: As php-fpm does: the workers wait in accept, and there are always two of them.
FORKS = """
import os, socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
def work():
    try:
        sock.accept()
    finally:
        os._exit(1)
while True:
    for _ in range(2):
        os.fork() or work()
    for _ in range(2):
        os.wait()
"""
HANGS = "import time\ntime.sleep(1000)"
TAKES = (
    "import socket, time\nsock = socket.create_server(('127.0.0.1', 0))\nprint(sock.getsockname()[1], flush=True)\n"
    + ("time.sleep(1000)")
)
CLEAR = 10.0


class Causes:
    """One manager with a program `web` whose text tests replace, and two that can't run as they stand."""

    def __init__(self, stage: Circusd, directory: Path) -> None:
        self.stage = stage
        self.directory = directory
        self.deployed = GOOD
        self.supervised = isinstance(stage, Supervisord)

    def deploy(self, text: str) -> None:
        """Let the next process that starts be *text*."""
        self.deployed = text
        (self.directory / "new.py").write_text(text)
        (self.directory / "new.py").rename(self.directory / "app.py")

    def manage(self, verb: str, program: str = "web") -> None:
        """``supervisorctl`` or ``circusctl`` *verb*; a start is not waited for."""
        if isinstance(self.stage, Supervisord):
            with suppress(xmlrpc.client.Fault):  # it is stopped, or has given up
                if verb != "start":
                    self.stage.rpc("supervisor.stopProcess", program)
            if verb != "stop":
                self.stage.rpc("supervisor.startProcess", program, False)
        else:

            def is_answered() -> bool:  # it is refused while a reloadconfig goes on
                answer = self.stage.call(verb, name=program, waiting=True, timeout=30)
                return "already running" not in answer.get("reason", "")

            wait_until(is_answered, CLEAR, f"circusd has done {verb}", 0.05)

    def doctor(self) -> dict[str, dict[str, Any]]:
        """The findings, by subject; the last one of each."""
        done = self.stage.sockshare("doctor", "--json", timeout=20)
        assert done.returncode in (0, 3), done
        return {one["subject"]: one for one in json.loads(done.stdout)["findings"]}

    def finds(self, subject: str, *words: str) -> dict[str, Any]:
        """What `doctor` says of *subject*, once that has all of *words*."""

        def look() -> dict[str, Any] | None:
            found = self.doctor().get(subject)
            return found if found is not None and all(word in found["sentence"] for word in words) else None

        found: dict[str, Any] = wait_until(look, CLEAR, f"{subject}: {words}", 0.1)
        return found

    def clear(self, subject: str) -> None:
        """Return once `doctor` has no problem with *subject* any more."""

        def is_clear() -> bool:
            return bool(self.doctor().get(subject, {"level": "note"})["level"] == "note")

        wait_until(is_clear, CLEAR, f"nothing is wrong with {subject}", 0.1)

    def obey(self, finding: dict[str, Any]) -> None:
        """Do what stands in backticks in *finding*, and its ``kill``, as it stands there, in that order."""
        found = re.findall(r"`([^`]+)`|(kill [\d ]*\d)", finding["sentence"])
        commands = [quoted or kill for quoted, kill in found]
        assert commands, finding
        environment = {**self.stage.environment, "SOCKSHARE_ENDPOINT": str(self.stage.runtime)}
        for command in commands:
            subprocess.run(command, shell=True, env=environment, check=True, timeout=30, stdout=subprocess.DEVNULL)

    def serves(self) -> None:
        """Return once `web` answers, as it did."""
        self.stage.wait_for_answer(self.stage.port, CLEAR)


@pytest.fixture(scope="module", params=["circus", "supervisor"])
def causes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Causes]:
    """One that serves."""
    directory = tmp_path_factory.mktemp("causes")
    (directory / "app.py").write_text(GOOD)
    exec_ = f"{sys.executable} -m sockshare exec --"
    app = f"{sys.executable} {directory}/app.py"
    (directory / "start.sh").write_text(f"#!/bin/sh\n{exec_} {app} {{fd:web}}\n")
    if request.param == "circus":
        streams = {f"{name}_stream.{key}": "" for name in ("stdout", "stderr") for key in ("class", "filename")}
        for name in ("stdout", "stderr"):
            streams |= {f"{name}_stream.class": "FileStream", f"{name}_stream.filename": f"{directory}/log"}
        others = f"""
[watcher:typo]
cmd = no-such-command
sockshare.sockets = web
[watcher:bare]
cmd = sh -c 'exec sleep 1000' {{fd:web}}
copy_env = True
sockshare.sockets = web
[watcher:shell]
cmd = /bin/sh {directory}/start.sh
copy_env = True
autostart = False
sockshare.sockets = web
"""
        watcher = {"cmd": f"{exec_} {app} {{fd:web}}", "sockshare.ready_timeout": "5", **streams}
        with circusd("plain", leave=True, watcher=watcher, extra=others) as stage:
            stage.up()
            yield Causes(stage, directory)
        return
    others = f"""
[program:typo]
command = no-such-command
startretries = 0
sockshare_sockets = web
[program:bare]
command = sh -c 'exec sleep 1000' {{fd:web}}
sockshare_sockets = web
[program:shell]
command = /bin/sh {directory}/start.sh
autostart = false
sockshare_sockets = web
"""
    watcher = {
        "command": f"{exec_} {app} {{fd:web}}",
        "startretries": "0",
        "redirect_stderr": "true",
        "stderr_logfile": "",
        "stdout_logfile": f"{directory}/log",
        "sockshare_ready_timeout": "5",
    }
    with supervisord("plain", watcher=watcher, extra=others) as stage:
        yield Causes(stage, directory)


@pytest.fixture(autouse=True)
def good_afterwards(causes: Causes) -> Iterator[None]:
    """Each test finds a program that serves."""
    yield
    if causes.deployed is not GOOD:
        causes.deploy(GOOD)
        causes.manage("restart")
        causes.serves()


def test_failed_reload_says_how_the_new_one_ended_and_what_it_wrote(causes: Causes) -> None:
    """Its exit status, and its own last lines: the old one's, which fill the same file, are none of them."""
    causes.deploy(CRASHES)
    for _ in range(2):
        reload = causes.stage.reload()
        assert reload.status == 5, reload
        assert "exited with status 1" in reload.reason, reload
        assert "RuntimeError: no such table: users" in reload.stderr, reload
        assert "access log" not in reload.stderr, reload
        assert "can't reload web: can't" not in reload.stderr, reload


def test_stop_by_its_manager_is_no_crash(causes: Causes) -> None:
    """An administrator stops the program in the middle of a reload: that is what the steps say, not SIGKILL."""
    causes.deploy(HANGS)
    with causes.stage.command("reload", "web", "--json") as command:
        assert command.stdout is not None
        first = command.stdout.readline()
        causes.manage("stop")
        output, errors = command.communicate(timeout=30)
    reload = Reload.read(command.returncode, first + output, errors, 0.0)
    assert reload.status != 0, reload
    assert "was stopped" in reload.stdout + reload.stderr, reload
    assert "killed by signal" not in reload.stdout + reload.stderr, reload
    assert causes.finds("program web", "somebody has stopped it")["level"] == "problem"
    causes.deploy(GOOD)
    causes.obey(causes.finds("program web", "somebody has stopped it"))
    causes.clear("program web")
    causes.serves()


def test_crash_loop_is_told_with_state_status_and_last_lines(causes: Causes) -> None:
    """Then the program is mended, and what the sentence says is done."""
    causes.deploy(CRASHES)
    causes.manage("restart")
    found = causes.finds("program web", "exited with status 1", *([] if causes.supervised else ["times"]))
    assert ("FATAL" if causes.supervised else "active") in found["sentence"]
    assert found["lines"][-1] == "RuntimeError: no such table: users"
    state = {one["name"]: one["state"] for one in causes.stage.status()["programs"]}
    assert state["web"] == ("FATAL" if causes.supervised else "active")
    if causes.supervised:
        assert "and program web" in causes.doctor()["socket web"]["sentence"]
    causes.deploy(GOOD)
    if causes.supervised:
        causes.obey(found)
    causes.serves()
    causes.clear("program web")


def test_address_in_use_names_who_has_it(causes: Causes) -> None:
    """By pid and command; once that has ended as it says the program runs."""
    with subprocess.Popen([sys.executable, "-c", TAKES], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            port = int(holder.stdout.readline())
            causes.deploy(BINDS.format(port=port) + "\n" + GOOD)
            causes.manage("restart")
            found = causes.finds("program web", f"address in use (port {port}) by pid {holder.pid} (")
            causes.obey(found)
            assert holder.wait(10) == -15
        finally:
            holder.kill()
    causes.serves()


def test_server_that_binds_the_shared_address_itself_is_told(causes: Causes) -> None:
    """It is not somebody else's address: the socket is there to be taken."""
    causes.deploy(BINDS.format(port=causes.stage.port))
    causes.manage("restart")
    causes.finds("program web", f"it binds port {causes.stage.port} itself", "shared socket web", "{fd:web}")


def test_server_that_waits_in_accept_is_told_of_blocking(causes: Causes) -> None:
    """EAGAIN, and the key that helps, where it belongs: of the server itself, and of its workers; done, it serves."""
    stage = causes.stage
    key = "blocking = true in [sockshare:web]" if causes.supervised else "web.blocking = True in [plugin:sockshare]"
    causes.deploy(FORKS)
    causes.manage("restart")
    found = causes.finds("program web", "its worker processes end", "not blocking", key)
    assert found["level"] == "problem"
    causes.deploy(ACCEPTS)
    causes.manage("restart")
    found = causes.finds("program web", "exited with status 1", "not blocking", key)
    assert found["level"] == "problem"
    configuration = stage.configuration if isinstance(stage, Supervisord) else stage.directory / "circus.ini"
    text = configuration.read_text()
    line, section = key.split(" in ")
    configuration.write_text(text.replace(f"{section}\n", f"{section}\n{line}\n"))
    causes.obey(found)
    causes.serves()
    causes.clear("program web")
    causes.deploy(FORKS)
    causes.manage("restart")
    wait_until(lambda: [len(processes.tree(pid)) for pid in stage.pids()] == [3], 10, "its workers are there")
    assert "worker processes" not in causes.doctor().get("program web", {"sentence": ""})["sentence"]
    configuration.write_text(text)
    causes.obey(found)


def test_what_can_not_start_or_has_no_exec_is_told(causes: Causes) -> None:
    """A command that is not there; a `{fd:NAME}` that nobody replaces."""
    causes.finds("program typo", "can't be started", "no-such-command")
    causes.finds("program bare", "nothing replaces {fd:web}", "`sockshare exec --`")


def test_shell_that_waits_for_its_server_is_told(causes: Causes) -> None:
    """With the script and what to write there; done to the letter, it is gone."""
    script = causes.directory / "start.sh"
    causes.manage("start", "shell")
    (subject,) = wait_until(
        lambda: [one for one, found in causes.doctor().items() if "waits for its server" in found["sentence"]],
        CLEAR,
        "the shell is found",
        0.1,
    )
    found = causes.doctor()[subject]["sentence"]
    assert f"write `exec` before the server in {script}" in found
    assert "app.py" in found
    assert subject.startswith("shell")
    script.write_text(script.read_text().replace(sys.executable, f"exec {sys.executable}", 1))
    causes.manage("stop", "shell")
    server = re.search(r"waits for its server \(pid (\d+):", found)
    assert server is not None
    causes.stage.kill(int(server[1]))  # the stop has left it behind, as was said
    causes.manage("start", "shell")

    def is_gone() -> bool:
        return not any("waits for its server" in found["sentence"] for found in causes.doctor().values())

    wait_until(is_gone, CLEAR, "it is mended", 0.1)
    causes.manage("stop", "shell")


def test_quiesced_process_is_told_how_it_is_woken(causes: Causes) -> None:
    """By its own name, in a command that does it."""
    (process,) = [one["process"] for one in causes.stage.status()["sockets"][0]["holders"] if one["program"] == "web"]
    assert causes.stage.sockshare("quiesce", process).returncode == 0
    subject = next(one for one in causes.doctor() if one.startswith(f"{process} (pid "))
    found = causes.finds(subject, f"`sockshare wake {process}`")
    assert "kill" not in found["sentence"]
    causes.obey({"sentence": found["sentence"].replace("sockshare", f"{shlex.quote(sys.executable)} -m sockshare", 1)})
    causes.clear(subject)
    causes.serves()


def test_manager_that_was_killed_starts_again_as_it_says(causes: Causes) -> None:
    """Its programs run on, and hold the address: who they are is said, and how they end; done, it starts."""
    stage = causes.stage
    causes.deploy(GOOD.replace("    print(", "    0 and print("))  # nobody will read what it writes
    causes.manage("restart")
    causes.serves()
    assert stage.process is not None
    (pid,) = stage.pids()
    stage.process.kill()
    stage.process.wait()

    def is_held_by_it_alone() -> bool:
        return [one.pid for one in occupants.of_port("tcp", "127.0.0.1", stage.port)] == [pid]

    wait_until(is_held_by_it_alone, 10, "what was the manager's own has ended")
    stage.start()
    assert stage.process.wait(20) == (2 if causes.supervised else 0)
    logs = [Stage.tail(stage.log, 200)] + ([Stage.tail(stage.output)] if isinstance(stage, Supervisord) else [])
    for log in logs:
        (line,) = [line for line in log.splitlines() if "in use by pid" in line]
        assert f"in use by pid {pid} (" in line
        assert line.endswith(f"; end it: kill {pid}")
    causes.obey({"sentence": line})
    wait_until(lambda: not is_held_by_it_alone(), 10, "it has ended")
    stage.start()
    causes.serves()
