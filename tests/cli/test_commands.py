"""``sockshare status`` and ``sockshare reload`` as processes, against a broker that does as it is told."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sockshare.cli.status import not_serving
from tests.client.host import TIMEOUT, Host

HOLDER = {
    "pid": 20,
    "program": "web",
    "process": "web:1",
    "generation": 3,
    "ready": True,
    "registered": True,
    "suspended": False,
    "kept_by": "suspend",
    "connections": 12,
}
STATUS: dict[str, Any] = {
    "version": 1,
    "manager": {"kind": "circus", "pid": 10},
    "broker": {"pid": 11},
    "sockets": [
        {
            "name": "web",
            "address": "tcp://127.0.0.1:8000",
            "registration": "shared",
            "inode": 123,
            "queue": 0,
            "backlog": 2048,
            "state": "ok",
            "holders": [HOLDER],
        }
    ],
    "programs": [
        {"name": "web", "sockets": ["web"], "reload": {"state": "idle", "last": {"result": "ok", "seconds": 1.9}}}
    ],
}


def event(step: str, reason: str = "", pid: int = 21) -> dict[str, Any]:
    return {"step": step, "program": "web", "process": "web:1", "pid": pid, "seconds": 1.25, "reason": reason}


OK = {"result": "ok", "exit": 0, "reason": "", "seconds": 1.25, "stderr": ""}
EVENTS = [event("start"), event("ready", "READY=1"), event("hold"), event("switch"), event("stop"), event("done")]


@contextmanager
def running(host: Host, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``sockshare ARGUMENTS`` while it runs."""
    command = [sys.executable, "-m", "sockshare", *arguments]
    with subprocess.Popen(
        command, env=host.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_document_is_printed_as_it_is_when_json_is_asked_for(host: Host) -> None:
    """`status --json` is the broker's document."""
    host.start(status=STATUS)
    done = host.run("status", "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout) == STATUS


def test_status_is_aligned_text_without_a_terminal(host: Host) -> None:
    """Every fact of the document is there, one holder a line."""
    host.start(status=STATUS)
    done = host.run("status")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[0] == "circusd (pid 10), broker (pid 11)"
    assert "web     tcp://127.0.0.1:8000  ok     shared        0/2048" in lines
    holder = next(one for one in lines if one.startswith("web:1"))
    assert holder.split() == ["web:1", "20", "web", "3", "yes", "yes", "suspend", "12"]
    assert "\x1b" not in done.stdout


def test_status_shows_who_else_has_a_socket_open(host: Host) -> None:
    """A line for each command, with its processes; and what could not be seen is said."""
    others = [{"pid": 30, "process": None, "command": "python stray.py"}]
    others += [{"pid": pid, "process": "web:1", "command": "worker"} for pid in range(41, 51)]
    document = {
        **STATUS,
        "sockets": [{**STATUS["sockets"][0], "others": others}],
        "scan": {"looked": 90, "refused": 2, "unfinished": 1, "left_out": 7, "seconds": 0.004},
    }
    host.start(status=document)
    lines = host.run("status").stdout.splitlines()
    assert "SOCKET  ALSO OPEN IN PID                    BELOW  COMMAND" in lines
    assert "web     30                                  -      python stray.py" in lines
    assert "web     41 42 43 44 45 46 47 48 and 2 more  web:1  worker" in lines
    said = "the broker may not look into 2 of them, and for 1 the time did not suffice"
    assert lines[-2] == f"a socket may be open in more processes: {said}"
    assert lines[-1] == "7 more processes have a socket open than are shown"


def test_status_is_a_table_on_a_terminal(host: Host) -> None:
    """Where a terminal is, rich draws."""
    host.start(status=STATUS)
    status, out = on_terminal(host, "status")
    assert status == 0
    assert "\x1b[1m" in out
    assert "tcp://127.0.0.1:8000" in out


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("unreachable", "web: clients don't reach this socket: the reason"),
        ("unserved", "web: the reason"),
    ],
)
def test_status_exits_3_when_clients_do_not_reach_a_socket(host: Host, state: str, said: str) -> None:
    """The reason is on stderr, the state in the table; also where nobody serves it though a process is ready."""
    host.start(status={**STATUS, "sockets": [{**STATUS["sockets"][0], "state": state, "why": "the reason"}]})
    done = host.run("status")
    assert done.returncode == 3
    assert said in done.stderr
    assert state in done.stdout


@pytest.mark.parametrize("change", [{"ready": False}, {"suspended": True}, None])
def test_status_exits_3_when_a_named_socket_is_not_served(host: Host, change: dict[str, Any] | None) -> None:
    """No ready holder, or only suspended ones: said on stderr."""
    holders = [] if change is None else [{**HOLDER, **change}]
    document = {**STATUS, "sockets": [{**STATUS["sockets"][0], "holders": holders}]}
    host.start(status=document)
    done = host.run("status")
    assert done.returncode == 3
    assert "web: no ready process" in done.stderr
    assert not_serving({**document, "programs": [{"name": "web", "sockets": []}]}) == []


def test_status_exits_0_where_the_manager_does_not_say_what_runs(host: Host) -> None:
    """That no process is known does not say that there is none."""
    host.start(status={**STATUS, "sockets": [{**STATUS["sockets"][0], "holders": [], "state": None, "unseen": "late"}]})
    done = host.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"tcp://127.0.0.1:8000 +\? ", done.stdout), done.stdout
    assert "?: late" in done.stdout


def test_status_exits_0_where_the_broker_cannot_see(host: Host) -> None:
    """That nothing is seen of a process does not say that it does not serve; ``?``, and why, is shown."""
    unseen = {**HOLDER, "ready": None, "registered": None, "suspended": None, "unseen": "it is uid 5's"}
    host.start(status={**STATUS, "sockets": [{**STATUS["sockets"][0], "holders": [unseen]}]})
    done = host.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r" \? +\? ", done.stdout), done.stdout
    assert "?: it is uid 5's" in done.stdout


def test_every_mistake_is_printed_when_configuration_was_refused(host: Host) -> None:
    """State refused: status exits 2 with each mistake, reload too, also as JSON."""
    mistakes = ["can't read [watcher:web]: one", "can't read [watcher:api]: two"]
    host.start(state="refused", mistakes=mistakes)
    for arguments in (["status"], ["reload", "web"]):
        done = host.run(*arguments)
        assert done.returncode == 2
        assert all(mistake in done.stdout + done.stderr for mistake in mistakes)
    done = host.run("status", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["mistakes"] == mistakes


def test_each_step_is_a_line_when_a_reload_runs(host: Host) -> None:
    """Plain lines without a terminal, exit status as the broker says."""
    host.start(events=EVENTS, final=OK)
    done = host.run("reload", "web", "--timeout", "30", "--dry-run")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[1] == "  1.25 s  web:1 (pid 21): ready: READY=1"
    assert len(lines) == len(EVENTS)
    assert json.loads(host.wait_for("reload")) == {"program": "web", "timeout": 30.0, "dry_run": True}


def test_each_step_is_an_object_when_json_is_asked_for(host: Host) -> None:
    """The documented fields, one object a line."""
    host.start(events=[{**one, "stderr": "x"} for one in EVENTS], final=OK)
    done = host.run("reload", "web", "--json")
    assert done.returncode == 0
    assert [json.loads(text) for text in done.stdout.splitlines()] == EVENTS


def test_steps_are_shown_on_a_terminal(host: Host) -> None:
    """The same lines, in colour."""
    host.start(events=EVENTS, final=OK)
    status, out = on_terminal(host, "reload", "web")
    assert status == 0
    assert "web:1 (pid 21): ready: READY=1" in out
    assert "\x1b[32m" in out


def test_reason_and_last_lines_are_on_stderr_when_it_failed(host: Host) -> None:
    """Exit status 5, the reason, and what the child wrote last."""
    final = {"result": "rolled_back", "exit": 5, "reason": "web:1 (pid 21) exited 1", "stderr": "Boom:\nno module"}
    host.start(events=[event("failed", "web:1 (pid 21) exited 1"), event("rolled_back", pid=20)], final=final)
    done = host.run("reload", "web", "--json")
    assert done.returncode == 5
    assert "can't reload web: web:1 (pid 21) exited 1" in done.stderr
    assert "  | Boom:\n  | no module\n" in done.stderr
    assert [json.loads(text)["step"] for text in done.stdout.splitlines()] == ["failed", "rolled_back"]


def test_reload_is_followed_on_when_the_broker_is_restarted(host: Host) -> None:
    """The same key is asked again; steps that are told twice are printed once; the end comes from the next broker."""
    host.start(events=EVENTS[:3], await_cancel=True, final=OK)
    with running(host, "reload", "web") as process:
        for step in ("start", "ready", "hold"):
            assert step in line(process)
        host.kill()
        host.start(events=EVENTS[2:4], final=OK)
        out, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, said) == (0, "")
    assert [text.split(": ")[1] for text in out.splitlines()] == ["switch", "done"]


def test_reload_is_cancelled_when_interrupted_and_left_at_the_second_time(host: Host) -> None:
    """The first Ctrl-C asks the broker to undo it and waits for its word; a second leaves at once."""
    final = {"result": "rolled_back", "exit": 5, "reason": "interrupted"}
    host.start(events=EVENTS[:1], await_cancel=True, final=final)
    with running(host, "reload", "web") as process:
        assert "start" in line(process)
        process.send_signal(signal.SIGINT)
        assert json.loads(host.wait_for("cancel")) == {"program": "web"}
        out, said = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 5
        assert "rolled_back: interrupted" in out
        assert "cancelling" in said
    host.kill()
    host.start(events=EVENTS[:1], await_cancel=True, deaf=["cancel"], final=final)
    with running(host, "reload", "web") as process:
        assert "start" in line(process)
        process.send_signal(signal.SIGINT)
        host.wait_for("cancel")
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130
        assert said.splitlines()[-1] == (
            "sockshare reload: left: the reload of web is being cancelled without this command: `sockshare status`"
        )
        assert "Traceback" not in said


def test_several_are_reloaded_in_turn_and_the_first_failure_is_the_status(host: Host) -> None:
    """The broker says what the names mean; a line for each that was left out. A failure of one ends no other."""
    failed = {"result": "rolled_back", "exit": 5, "reason": "it crashed"}
    host.start(programs=["web", "api"], stopped=["idle"], events=EVENTS[-1:], final=failed)
    done = host.run("reload", "site:*", "web")
    assert json.loads(host.wait_for("programs")) == {"programs": ["site:*", "web"]}
    assert [json.loads(host.wait_for("reload"))["program"] for _ in range(2)] == ["web", "api"]
    assert done.returncode == 5
    said = done.stderr.splitlines()
    assert said[0] == "sockshare reload: idle is not running: left as it is"
    assert said[1:] == [f"sockshare reload: can't reload {name}: it crashed" for name in ("web", "api")]
    error = {"error": "NotRunning", "message": "can't reload web: it is not running", "exit": 9}
    host.kill()
    host.start(programs=["web", "api"], stopped=[], errors={"reload": error})
    done = host.run("reload", "--all", "--json")
    assert json.loads(host.wait_for("programs")) == {"programs": ["all"]}
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr == "sockshare: can't reload web: it is not running\n" * 2


def test_what_was_not_begun_is_said_when_the_broker_is_gone(host: Host) -> None:
    """Nothing is lost of what happened before: the status is that of the first failure, and each has its sentence."""
    error = {"error": "NotRunning", "message": "can't reload web: it is not running", "exit": 9}
    gone = {"error": "NoBroker", "message": "can't ask it: it is gone", "exit": 75}
    for errors, status, sentences in (
        ([gone], 75, ["sockshare: can't follow the reload of web: can't ask it: it is gone"]),
        (
            [error, gone],
            9,
            [f"sockshare: {error['message']}", "sockshare: can't follow the reload of api: can't ask it: it is gone"],
        ),
    ):
        host.start(programs=["web", "api", "mail", "x"], stopped=[], reloads=errors)
        done = host.run("reload", "--all")
        begun = len(errors)
        assert done.returncode == status
        rest = f"sockshare reload: not begun: {' '.join(['web', 'api', 'mail', 'x'][begun:])}"
        assert done.stderr.splitlines() == [*sentences, rest]
        host.kill()


def test_what_was_not_begun_is_said_when_the_first_is_cancelled(host: Host) -> None:
    """Ctrl-C ends the one that runs, and begins no other."""
    final = {"result": "rolled_back", "exit": 5, "reason": "interrupted"}
    host.start(programs=["web", "api", "mail"], stopped=[], events=EVENTS[:1], await_cancel=True, final=final)
    with running(host, "reload", "--all") as process:
        assert "start" in line(process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 5
    assert said.splitlines()[-1] == "sockshare reload: not begun: api mail"


def test_interrupt_before_anything_was_asked_says_so(host: Host) -> None:
    """While the broker is looked for: exit 130, and no reload was begun."""
    host.open()  # nobody answers
    with running(host, "reload", "web") as process:
        assert process.stderr is not None
        assert "waiting for the broker" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, said) == (130, "sockshare reload: interrupted: no reload was begun\n")


@pytest.mark.parametrize(
    ("arguments", "behaviour", "status", "words"),
    [
        (["reload", "wbe"], {"error": "UnknownProgram", "message": "can't: did you mean 'web'?", "exit": 4}, 4, "web"),
        (["reload", "web"], {"error": "NotPermitted", "message": "can't reload as uid 7", "exit": 7}, 7, "uid 7"),
        (["reload", "web"], {"error": "ManagerError", "message": "can't: busy", "exit": 1}, 1, "busy"),
        (["reload", "web"], {"error": "NotRunning", "message": "can't: stopped", "exit": 9}, 9, "stopped"),
        (["reload", "web"], {"error": "AlreadyRunning", "message": "can't: running", "exit": 10}, 10, "running"),
        (["reload"], {}, 2, "PROGRAM"),
        (["reload", "web", "--all"], {}, 2, "--all"),
        (["relaod"], {}, 2, "relaod"),
        (["reload", "web", "--timeout", "soon"], {}, 2, "soon"),
        (["reload", "web", "--timeout", "0"], {}, 2, "0"),
        (["status", "--jsn"], {}, 2, "--jsn"),
        (["--endpoint", "/nonexistent", "status"], {}, 75, "no such directory"),
        (["status", "--endpoint", "/nonexistent"], {}, 75, "no such directory"),
        (["status"], {}, 1, "SOCKSHARE_DEBUG"),
    ],
)
def test_exit_status_tells_what_was_wrong(
    host: Host, arguments: list[str], behaviour: dict[str, Any], status: int, words: str
) -> None:
    """Every way to fail has its exit status and a sentence, none a traceback."""
    host.start(errors={"reload": behaviour}, status={"sockets": [{}]})
    done = host.run(*arguments)
    assert done.returncode == status, done
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_traceback_is_shown_when_it_is_asked_for(host: Host) -> None:
    """SOCKSHARE_DEBUG=1 is for us."""
    host.start(status={"sockets": [{}]})
    assert "KeyError" in host.run("status", SOCKSHARE_DEBUG="1").stderr.splitlines()[-1]


def test_extra_is_named_when_it_is_missing(host: Host) -> None:
    """Without click: one sentence; `exec` works all the same."""
    host.start()
    code = "import sys; sys.modules['click'] = None; from sockshare.cli.main import main; sys.exit(main())"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=host.environment(), capture_output=True, text=True, timeout=TIMEOUT)

    done = run("status")
    assert done.returncode == 1
    assert done.stderr == "sockshare: can't run this command: click is missing; install sockshare[cli]\n"
    assert run("exec", "--", "true").returncode == 0


def test_command_is_silent_when_its_reader_leaves(host: Host) -> None:
    """`sockshare status | head -0` is no error."""
    host.start(status={**STATUS, "padding": "x" * 80_000})
    with running(host, "status", "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(TIMEOUT) == 0


def test_all_commands_are_listed_by_help(host: Host) -> None:
    """--help and --version need no broker."""
    done = host.run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("exec", "status", "reload", "demo"))
    assert host.run("--version").stdout.startswith("sockshare, version ")


def on_terminal(host: Host, *arguments: str) -> tuple[int, str]:
    """The exit status, and what ``sockshare ARGUMENTS`` wrote to a terminal of 200 columns."""
    ours, theirs = pty.openpty()
    environment = host.environment(TERM="xterm-256color", COLUMNS="200")
    command = [sys.executable, "-m", "sockshare", *arguments]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        out = b""
        try:
            while True:
                out += os.read(ours, 65536)
        except OSError:
            pass  # EIO: the last one who had the terminal has left
        finally:
            os.close(ours)
            process.kill() if process.poll() is None and not out else None
        process.wait(TIMEOUT)
    return process.returncode, out.decode()
