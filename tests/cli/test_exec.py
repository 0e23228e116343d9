"""``sockshare exec`` as a process, against a broker that does as it is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sockshare.cli.exec import Inherited, Usage, environment_of, look_up, parse, replace
from sockshare.core.errors import SockshareError
from tests.client.host import TIMEOUT, Host

#: Prints what the command sees of itself.
REPORT = """
import json, os, sys
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass  # that of the listing itself
ignored = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("SigIgn"))
seen = {"pid": os.getpid(), "fds": fds, "argv": sys.argv[1:], "environ": dict(os.environ), "ignored": ignored}
print(json.dumps(seen))
"""


def report(host: Host, *arguments: str, words: tuple[str, ...] = (), **environment: str) -> dict[str, Any]:
    """What a command started by ``exec ARGUMENTS --`` sees."""
    command = [sys.executable, "-m", "sockshare", "exec", *arguments, "--", sys.executable, "-c", REPORT, *words]
    process = subprocess.Popen(command, env=host.environment(**environment), stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(out)
    assert seen["pid"] == process.pid
    seen["fds"] = {int(fd): link for fd, link in seen["fds"].items()}
    return seen


def links(host: Host, *names: str) -> dict[int, str]:
    """What /proc/PID/fd has from 3 on when the sockets *names* are there."""
    return {fd: f"socket:[{host.inode(name)}]" for fd, name in enumerate(names, 3)}


def test_sockets_are_at_3_and_on_when_command_runs(host: Host) -> None:
    """Same pid; nothing else of ours is open; the environment and the arguments say where the sockets are."""
    host.start()
    seen = report(
        host,
        words=("--fd={fd:web},{fd:UDP}", "{fd:api}", "{fd", "plain"),
        LISTEN_FDS="7",
        NOTIFY_SOCKET="/run/systemd/notify",
        SOCKSHARE_FD_OLD="9",
    )
    assert {fd: link for fd, link in seen["fds"].items() if fd >= 3} == links(host, "web", "api", "udp")
    assert seen["argv"] == ["--fd=3,5", "4", "{fd", "plain"]
    environ = seen["environ"]
    assert not {key for key in environ if key.startswith("LISTEN_")}
    assert {key: value for key, value in environ.items() if key.startswith("SOCKSHARE_FD_")} == {
        "SOCKSHARE_FD_WEB": "3",
        "SOCKSHARE_FD_API": "4",
        "SOCKSHARE_FD_UDP": "5",
    }
    assert environ["NOTIFY_SOCKET"] == "/run/notify"
    assert environ["SOCKSHARE_ENDPOINT"] == str(host.directory)
    assert host.wait_for("redeemed") == "web api udp"
    assert host.wait_for("acknowledged") == "3"


@pytest.mark.parametrize(
    ("arguments", "words"), [((), ()), ((), ("{fd", "{web}")), (("--listen-fds",), ("--fd={fd:web}",))]
)
def test_listen_fds_is_set_where_no_number_is_asked_for(
    host: Host, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """A server is told of its descriptors once: by number, or as sd_listen_fds(3) has it; `--listen-fds` says both."""
    host.start()
    seen = report(host, *arguments, words=words)
    environ = seen["environ"]
    assert environ["LISTEN_FDS"] == "3"
    assert environ["LISTEN_PID"] == str(seen["pid"])
    assert environ["LISTEN_FDNAMES"] == "web:api:udp"


@pytest.mark.parametrize("bound", [(), ("-b", "fd://{fd:web}")], ids=["LISTEN_FDS", "number"])
def test_gunicorn_serves_when_it_is_told_of_its_socket_either_way(
    host: Host, tmp_path: Path, bound: tuple[str, ...]
) -> None:
    """Told twice, it takes descriptor 3 twice, and ends (EBADF)."""
    host.start()
    (tmp_path / "app.py").write_text("def wsgi(environ, start):\n    start('200 OK', [])\n    return [b'']\n")
    gunicorn = [sys.executable, "-m", "gunicorn", "--chdir", str(tmp_path), "--no-control-socket", "app:wsgi", *bound]
    command = [sys.executable, "-m", "sockshare", "exec", "--socket", "web", "--", *gunicorn]
    with subprocess.Popen(command, env=host.environment(), stderr=subprocess.DEVNULL) as process:
        try:
            with socket.create_connection(host.sockets["web"].getsockname(), TIMEOUT) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                client.settimeout(TIMEOUT)
                assert client.recv(64).startswith(b"HTTP/1.0 200")
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(TIMEOUT)


def test_sockets_are_in_the_order_that_was_asked_for(host: Host) -> None:
    """--socket chooses and orders; its names are taken in lower case."""
    host.start()
    seen = report(host, "--socket", "UDP", "--socket=web")
    assert {fd: link for fd, link in seen["fds"].items() if fd >= 3} == links(host, "udp", "web")
    assert seen["environ"]["LISTEN_FDNAMES"] == "udp:web"


def test_sockets_take_their_places_when_these_are_taken(host: Host) -> None:
    """What was open at 3, 4, ... gives way; what was inherited beyond stays."""
    host.start()
    reading, writing = os.pipe()
    try:
        keep = f"import os, sys; [os.dup2({writing}, fd) for fd in range(3, 9)]; os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", keep, sys.executable, "-m", "sockshare", "exec", "--"]
        command += [sys.executable, "-c", REPORT]
        done = subprocess.run(
            command, env=host.environment(), stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, pass_fds=[writing]
        )
    finally:
        os.close(reading)
        os.close(writing)
    seen = {int(fd): link for fd, link in json.loads(done.stdout)["fds"].items()}
    assert {fd: seen[fd] for fd in (3, 4, 5)} == links(host, "web", "api", "udp")
    assert all(seen[fd].startswith("pipe:") for fd in (6, 7, 8))


def test_descriptors_are_placed_when_they_are_in_each_others_places() -> None:
    """Whatever numbers the kernel gave them: each ends at its own place, inheritable, and none is left elsewhere."""
    code = """
import os
from sockshare.cli.exec import place
pipes = [os.pipe()[0] for _ in range(3)]
inodes = [os.fstat(fd).st_ino for fd in pipes]
for at, fd in zip((20, 21, 22), pipes):
    os.dup2(fd, at)
for at, fd in zip((5, 3, 4), (20, 21, 22)):
    os.dup2(fd, at)
os.closerange(6, 100)
place([5, 3, 4])
assert [os.fstat(fd).st_ino for fd in (3, 4, 5)] == inodes
assert all(os.get_inheritable(fd) for fd in (3, 4, 5))
os.closerange(3, 6)
assert [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 3] == []
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)


def test_signals_are_as_before_when_command_starts(host: Host) -> None:
    """Python's own ignoring of SIGPIPE is not passed on."""
    host.start()
    ignored = int(report(host)["ignored"], 16)
    # The command is a Python again, which ignores SIGPIPE for itself: so ask a program that is none.
    done = host.run("exec", "--", "grep", "SigIgn", "/proc/self/status")
    assert not int(done.stdout.split()[1], 16) >> (signal.SIGPIPE - 1) & 1
    assert ignored >> (signal.SIGPIPE - 1) & 1


@pytest.mark.parametrize("moment", ["asked", "ticket", "redeem"])
def test_command_starts_when_broker_dies_in_between(host: Host, moment: str) -> None:
    """A broker killed at any moment of the hand-out costs time only."""
    host.start(exit_at=moment)
    host.wait_for("up")
    command = [sys.executable, "-m", "sockshare", "exec", "--", "sh", "-c", "exec readlink /proc/$$/fd/{fd:web}"]
    with subprocess.Popen(command, env=host.environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            host.wait_dead()
            host.start()
            out, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert out == f"socket:[{host.inode('web')}]\n"
    assert process.returncode == 0


def test_launcher_that_forks_is_named(host: Host) -> None:
    """On stderr, and to the broker, which shows it."""
    host.start()
    done = host.run("exec", "--", "timeout", "9", "true")
    assert done.returncode == 0
    assert "'timeout'" in done.stderr
    assert "'timeout'" in json.loads(host.wait_for("inherit"))["warning"]
    assert host.run("exec", "--", "true").stderr == ""
    assert json.loads(host.wait_for("inherit")) == {}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["true"], 0, ()),
        (["--", "false"], 1, ()),
        (["--", "sh", "-c", "exit 42"], 42, ()),
        (["--", "no-such-command"], 127, ("can't find 'no-such-command'", "PATH")),
        (["--", "/no/such/file"], 127, ("can't find '/no/such/file'",)),
        (["--", "/etc/passwd"], 126, ("can't execute /etc/passwd", "not executable")),
        (["--", "/"], 126, ("can't execute /", "directory")),
        (["--", "true", "{fd:wbe}"], 125, ("can't replace {fd:wbe}", "did you mean 'web'")),
        ([], 2, ("no COMMAND", "usage:")),
        (["--"], 2, ("no COMMAND",)),
        (["--sokcet", "web", "--", "true"], 2, ("--sokcet",)),
        (["--socket"], 2, ("needs a value",)),
        (["--registration=web", "--", "true"], 2, ("--registration=web",)),
        (["--help"], 0, ()),
    ],
)
def test_exit_status_tells_what_was_wrong(
    host: Host, arguments: list[str], status: int, words: tuple[str, ...]
) -> None:
    """The command's own status, else a shell's 126 and 127, 125 for a refusal, 2 for usage; and one sentence."""
    host.start()
    done = host.run("exec", *arguments)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    if words:
        assert len(done.stderr.splitlines()) <= 2, done.stderr


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"state": "refused", "mistakes": ["can't read [watcher:web]: wbe"]}, ("can't", "[watcher:web]: wbe")),
        ({"uid_known": False}, ("can't", "uid")),
        ({"no_descriptor": True}, ("can't redeem",)),
        ({"most": 1}, ("can't redeem 3 ticket(s)", "1 descriptors came")),
        ({"garbage_door": "?"}, ("can't understand",)),
        ({"garbage_dialogue": "?"}, ("can't understand",)),
        ({"refuse_tickets": 9}, ("can't redeem",)),
        ({"errors": {"inherit": {"error": "NotPermitted", "message": "can't: not managed", "exit": 7}}}, ("managed",)),
        ({"errors": {"inherit": {"error": "UnknownSocket", "message": "can't: wbe", "exit": 4}}}, ("wbe",)),
    ],
)
def test_refusal_exits_125_with_the_reason(host: Host, behaviour: dict[str, Any], words: tuple[str, ...]) -> None:
    """Whatever the broker refuses or gets wrong: one sentence, no traceback."""
    host.start(**behaviour)
    done = host.run("exec", "--", "true")
    assert done.returncode == 125, done
    assert done.stderr.startswith("sockshare exec: can't")
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_no_broker_exits_75(host: Host) -> None:
    """A directory that can't be a broker's is not waited for."""
    done = host.run("exec", "--", "true", SOCKSHARE_ENDPOINT="/tmp/" + "x" * 120)
    assert done.returncode == 75
    assert done.stderr.startswith("sockshare exec: can't reach the broker at /tmp/xxx")
    assert "Traceback" not in done.stderr


def test_command_is_found_beside_our_interpreter(host: Host) -> None:
    """A child of circus may have no PATH; the command of the same environment is found all the same."""
    host.start()
    done = host.run("exec", "--", Path(sys.executable).name, "-c", "print('found')", PATH="/nonexistent")
    assert (done.returncode, done.stdout) == (0, "found\n")


def test_leading_endpoint_counts_when_it_is_before_exec(host: Host) -> None:
    """--endpoint is accepted before and after the command's name."""
    host.start()
    endpoint = f"--endpoint={host.directory}"
    for arguments in ((endpoint, "exec"), ("exec", endpoint), ("--endpoint", str(host.directory), "exec")):
        assert host.run(*arguments, "--", "true", SOCKSHARE_ENDPOINT="/nonexistent").returncode == 0


def test_click_and_rich_are_not_imported_by_exec(host: Host) -> None:
    """Every managed process pays for the start of exec."""
    heavy = ("click", "rich", "asyncio", "msgspec", "dataclasses", "ctypes")
    code = f"import sys, sockshare.cli.main, sockshare.cli.exec; print([one for one in {heavy} if one in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_words_are_replaced_wherever_they_stand() -> None:
    """{fd:NAME} in any place, any number of times; braces that are none of ours stay."""
    numbers = {"web": 3, "api": 4}
    assert replace("fd://{fd:web}:{fd:API}{}", numbers) == "fd://3:4{}"
    assert replace("{fd:web", numbers) == "{fd:web"
    with pytest.raises(SockshareError, match="given: none"):
        replace("{fd:web}", {})


def test_command_line_is_read_up_to_the_command() -> None:
    """Options of the command are its own."""
    options = parse(["--socket", "web", "uvicorn", "--socket", "x", "--", "y"], "/run/a")
    assert (options.sockets, options.endpoint) == (["web"], "/run/a")
    assert options.command == ["uvicorn", "--socket", "x", "--", "y"]
    assert parse(["--endpoint", "/run/b", "--", "--odd"], "/run/a").command == ["--odd"]
    with pytest.raises(Usage):
        parse(["-x"])


def test_executable_file_wins_when_an_earlier_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell looks in PATH: what can't be executed is passed over, and named only if nothing else is there."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        (directory / "tool").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{first}:{second}")
    with pytest.raises(SockshareError, match="not executable") as raised:
        look_up("tool")
    assert raised.value.exit_status == 126
    (second / "tool").chmod(0o755)
    assert look_up("tool") == str(second / "tool")


def test_what_another_process_was_told_of_its_sockets_is_not_passed_on() -> None:
    """systemd's NOTIFY_SOCKET is the manager's, and so is what it said to it of descriptors."""
    others = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "LISTEN_FDS": "9",
        "LISTEN_PID": "1",
        "LISTEN_PIDFDID": "1",
        "LISTEN_FDNAMES": "theirs",
        "SOCKSHARE_FD_THEIRS": "9",
    }
    kept = {"PATH": "/bin", "LISTEN": "1"}
    environment = environment_of({**others, **kept}, {}, Inherited("/run/app", "", []))
    assert environment == {**kept, "SOCKSHARE_ENDPOINT": "/run/app"}
    environment = environment_of(
        {**others, **kept}, {"web": 3}, Inherited("/run/app", "/run/app/notify/1", [("web", 3)])
    )
    assert environment["NOTIFY_SOCKET"] == "/run/app/notify/1"
    assert environment["LISTEN_FDNAMES"] == "web"
