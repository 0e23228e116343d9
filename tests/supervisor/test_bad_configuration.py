"""Each mistake is one sentence with section and key; supervisord does not start with one, `reread` refuses it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockshare.cli.stage import free_port
from supervisor_sockshare import daemonlog
from tests.support.forks import FORKS
from tests.support.mishaps import WITHOUT_PIDFD
from tests.support.supervisord import Supervisord, listens, supervisord, wait_until

#: What is wrong: the sections as they are changed, and what the sentence has to say.
MISTAKES: dict[str, tuple[dict[str, dict[str, str]], tuple[str, ...]]] = {
    "no address": ({"sockshare:web": {"socket": ""}}, ("[sockshare:web] socket:", "missing")),
    "unknown scheme": ({"sockshare:web": {"socket": "tpc://127.0.0.1:1"}}, ("socket:", "did you mean 'tcp'?")),
    "no port": ({"sockshare:web": {"socket": "tcp://127.0.0.1"}}, ("socket:", "tcp://HOST:PORT")),
    "port out of range": ({"sockshare:web": {"socket": "tcp://127.0.0.1:70000"}}, ("socket:", "65535")),
    "a name for an address": ({"sockshare:web": {"socket": "tcp://www.example:80"}}, ("socket:", "'www.example'")),
    "relative path": ({"sockshare:web": {"socket": "unix://run/x"}}, ("socket:", "not an absolute path")),
    "path too long": ({"sockshare:web": {"socket": f"unix:///{'x' * 120}"}}, ("socket:", "unix(7)")),
    "misspelt socket key": (
        {"sockshare:web": {"socket_backlok": "5"}},
        ("[sockshare:web] socket_backlok:", "did you mean 'socket_backlog'?"),
    ),
    "backlog": ({"sockshare:web": {"socket_backlog": "many"}}, ("socket_backlog:", "'many'")),
    "mode of a port": ({"sockshare:web": {"socket_mode": "0600"}}, ("socket_mode:", "only a path")),
    "mode": ({"sockshare:web": {"socket": "unix:///tmp/x", "socket_mode": "rw"}}, ("socket_mode:", "octal")),
    "owner": (
        {"sockshare:web": {"socket": "unix:///tmp/x", "socket_owner": "nobodyatall"}},
        ("socket_owner:", "nobodyatall"),
    ),
    "registration": ({"sockshare:web": {"registration": "shard"}}, ("registration:", "did you mean 'shared'?")),
    "one address twice": (
        {"sockshare:a": {"socket": "tcp://127.0.0.1:1001"}, "sockshare:b": {"socket": "tcp://127.0.0.1:1001"}},
        ("[sockshare:b] socket:", "[sockshare:a] has"),
    ),
    "one path twice": (
        {"sockshare:a": {"socket": "unix:///tmp/x"}, "sockshare:b": {"socket": "unixgram:///tmp/./x"}},
        ("[sockshare:b] socket:", "[sockshare:a] has /tmp/x already"),
    ),
    "name of a socket": ({"sockshare:a b": {"socket": "tcp://127.0.0.1:1001"}}, ("[sockshare:a b]", "no name")),
    "unknown socket": (
        {"program:web": {"sockshare_sockets": "wbe"}},
        ("[program:web] sockshare_sockets:", "no such socket 'wbe'", "did you mean 'web'?"),
    ),
    "misspelt program key": (
        {"program:web": {"sockshare_redy": "hold"}},
        ("[program:web] sockshare_redy:", "did you mean 'sockshare_ready'?"),
    ),
    "dotted program key": ({"program:web": {"sockshare.ready": "hold"}}, ("sockshare.ready:", "sockshare_ready")),
    "seconds": ({"program:web": {"sockshare_ready_timeout": "soon"}}, ("sockshare_ready_timeout:", "'soon'")),
    "choice": ({"program:web": {"sockshare_ready": "notfy"}}, ("sockshare_ready:", "did you mean 'notify'?")),
    "page": ({"program:web": {"sockshare_verify": "http://host/x"}}, ("sockshare_verify:", "http:/PATH")),
    "listener": (
        {"eventlistener:x": {"command": "cat", "events": "TICK_5", "sockshare_sockets": "web"}},
        ("[eventlistener:x] sockshare_sockets:",),
    ),
    "our program's name": ({"program:sockshare-broker": {"command": "cat"}}, ("[program:sockshare-broker]", "own")),
    "misspelt section": ({"sockshare.web": {"socket": "tcp://127.0.0.1:1"}}, ("[sockshare.web]", "[sockshare:NAME]")),
    "socket of circus": (
        {"socket:web": {"host": "127.0.0.1", "port": "1001"}},
        ("[socket:web] []:", "circus's", "[sockshare:web] with socket = tcp://127.0.0.1:1001"),
    ),
    "plugin of circus": ({"plugin:sockshare": {"use": "x"}}, ("[plugin:sockshare] []:", "[rpcinterface:sockshare]")),
    "key without its prefix": (
        {"program:web": {"sockets": "web"}},
        ("[program:web] sockets:", "did you mean 'sockshare_sockets'?"),
    ),
    "misspelt prefix": ({"program:web": {"sockshre_ready": "hold"}}, ("sockshre_ready:", "'sockshare_ready'?")),
    "descriptor of no socket": (
        {"program:web": {"command": "sockshare exec -- x --fd {fd:wbe}"}},
        ("[program:web] command:", "{fd:wbe}", "did you mean 'web'?"),
    ),
    "descriptor beside an expanded name": (
        {"program:web": {"command": "sockshare exec -- x --fd {fd:wbe}", "sockshare_sockets": "%(program_name)s"}},
        ("[program:web] command:", "{fd:wbe}", "did you mean 'web'?"),
    ),
    "descriptor without the key": (
        {"program:web": {"command": "sockshare exec -- x --fd {fd:web}", "sockshare_sockets": ""}},
        ("[program:web] command:", "{fd:web}", "write sockshare_sockets = web"),
    ),
    "number of a descriptor": (
        {"program:web": {"command": "sockshare exec -- x --fd {fd:0}"}},
        ("[program:web] command:", "{fd:0}", "write {fd:web}"),
    ),
    "blank in a descriptor": (
        {"program:web": {"command": "sockshare exec -- x --fd '{ fd:web }'"}},
        ("[program:web] command:", "{ fd:web } is not replaced; write {fd:web}"),
    ),
    "odd percent": (
        {"sockshare:web": {"socket": "unix:///tmp/50%.sock"}},
        ("[sockshare:web] socket:", "write %% for the sign"),
    ),
    "runtime_dir": (
        {"rpcinterface:sockshare": {"runtime_dir": "run"}},
        ("[rpcinterface:sockshare] runtime_dir:", "not an absolute path"),
    ),
    "misspelt interface key": (
        {"rpcinterface:sockshare": {"runtime_dri": "/x"}},
        ("[rpcinterface:sockshare] runtime_dri:", "did you mean 'runtime_dir'?"),
    ),
}


def changed(stage: Supervisord, sections: dict[str, dict[str, str]]) -> None:
    """Write the configuration of *stage* with these keys in it, and leave the stage as it was."""
    before = {name: dict(keys) for name, keys in stage.sections.items()}
    for name, keys in sections.items():
        stage.sections.setdefault(name, {}).update(keys)
    stage.configure()
    stage.sections = before


Done = subprocess.CompletedProcess[str]


def run(name: str, stage: Supervisord, *arguments: str) -> Done:
    """supervisord or supervisorctl with these arguments, to its end."""
    if name == "supervisorctl":
        return stage.ctl(*arguments)
    words = ["-c", str(stage.configuration), *arguments]
    done = FORKS.run(name, words, directory=str(stage.directory), environment=stage.environment, timeout=30)
    assert done is not None
    return done


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """One that runs."""
    with supervisord("plain", leave=True) as running:
        running.sections["program:web"]["command"] = "/bin/sleep 1000"
        running.configure()
        running.start()
        wait_until(running.alive, 20, "supervisord answers", 0.05)
        yield running


def assert_refused(done: Done, said: tuple[str, ...]) -> None:
    """Exit status 2, and one line of what was printed is the sentence."""
    assert done.returncode == 2, done
    text = done.stdout + done.stderr
    assert any(all(one in line for one in said) for line in text.splitlines()), done
    assert "Traceback" not in text, done
    assert "file:" not in text, done  # as supervisorctl says what it did not expect


def test_fifteen_kinds_are_tested() -> None:
    """The list is not to shrink."""
    assert len(MISTAKES) >= 15


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistake_is_refused_by_supervisord_and_by_reread(stage: Supervisord, kind: str) -> None:
    """One sentence with section and key, exit status 2; the supervisord that runs changes nothing."""
    sections, said = MISTAKES[kind]
    processes = stage.processes()
    changed(stage, sections)
    assert_refused(run("supervisord", stage), said)
    assert_refused(run("supervisorctl", stage, "reread"), said)
    assert stage.alive()
    assert stage.processes().keys() == processes.keys()


@pytest.mark.parametrize("kind", ["no address", "unknown socket"])
def test_mistake_is_refused_by_update(stage: Supervisord, kind: str) -> None:
    """`update` begins with what `reread` does."""
    sections, said = MISTAKES[kind]
    changed(stage, sections)
    assert_refused(run("supervisorctl", stage, "update"), said)


def test_every_mistake_is_said_at_once(stage: Supervisord) -> None:
    """Three mistakes, three sentences."""
    mistakes = {"sockshare:web": {"socket_backlog": "x"}, "program:web": {"sockshare_ready": "x", "sockshare_zzz": "1"}}
    changed(stage, mistakes)
    for done in (run("supervisord", stage), run("supervisorctl", stage, "reread")):
        for key in ("socket_backlog:", "sockshare_ready:", "sockshare_zzz:"):
            assert_refused(done, (key,))


@pytest.mark.parametrize("command", ["reread", "update"])
def test_exit_status_of_what_is_not_ours_is_supervisors(stage: Supervisord, command: str) -> None:
    """A good configuration exits 0, and a mistake that is not ours 1, as ever."""
    changed(stage, {})
    assert run("supervisorctl", stage, command).returncode == 0
    changed(stage, {"program:web": {"numprocs": "many"}})
    assert run("supervisorctl", stage, command).returncode == 1


def test_reload_refuses_what_is_not_ours_in_one_sentence(stage: Supervisord) -> None:
    """It would be the end of supervisord; supervisorctl itself knows no such answer, and would take it for a bug."""
    changed(stage, {"program:web": {"numprocs": "many"}})
    pids = stage.pids()
    done = run("supervisorctl", stage, "reload")
    assert done.returncode == 1, done
    assert done.stdout.startswith("ERROR: CANT_REREAD: "), done
    assert "Fault" not in done.stdout, done
    assert stage.alive()
    assert stage.pids() == pids


def test_reload_takes_an_address_that_a_program_of_its_own_has() -> None:
    """It ends that program first; `reread` and `update` do not, and refuse it."""
    with supervisord("plain", leave=True) as stage:
        port = free_port()
        takes = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(1000)"
        stage.sections["program:web"]["command"] = "/bin/sleep 1000"
        stage.sections["program:other"] = {"command": f'{sys.executable} -c "{takes}"'}
        stage.configure()
        stage.start()
        wait_until(stage.alive, 20, "supervisord answers", 0.05)
        wait_until(lambda: listens(port), 20, "the program has its port", 0.05)
        del stage.sections["program:other"]
        stage.sections["sockshare:other"] = {"socket": f"tcp://127.0.0.1:{port}"}
        stage.configure()
        assert_refused(run("supervisorctl", stage, "reread"), ("[sockshare:other] socket: can't bind",))
        assert run("supervisorctl", stage, "reload").returncode == 0
        wait_until(lambda: stage.alive() and "other" in stage.sockshare("status").stdout, 20, "it has the socket", 0.1)


def test_log_that_can_not_be_written_hides_no_mistake(tmp_path: Path) -> None:
    """The disk may be full: the mistake itself is still what supervisord ends with."""
    full = tmp_path / "log"
    full.write_text("")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        daemonlog.append(str(full), "a mistake")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not full.read_text()
    daemonlog.append(str(full), "a mistake")
    assert full.read_text().endswith("CRIT sockshare: can't start: a mistake\n")


def test_supervisord_does_not_start_where_it_cannot_bind() -> None:
    """A taken port, a file that is no socket: exit status 2 and the section, also in its log; and who has the port."""
    with supervisord("plain", leave=True) as stage, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        changed(stage, {"sockshare:web": {"socket": f"tcp://127.0.0.1:{taken.getsockname()[1]}"}})
        stage.log.write_text("of an earlier life\n")
        who = f"Address already in use by pid {os.getpid()} ("
        assert_refused(run("supervisord", stage), ("[sockshare:web] socket: can't bind tcp://", who))
        assert (
            "CRIT sockshare: can't start: [sockshare:web] socket: can't bind tcp://127.0.0.1" in stage.log.read_text()
        )
        assert who in stage.log.read_text()
        changed(stage, {"sockshare:web": {"socket": f"unix://{stage.configuration}"}})
        assert_refused(run("supervisord", stage), ("[sockshare:web] socket:", "not a socket"))
        assert stage.configuration.exists()


def test_running_supervisord_does_not_get_the_section_halfway() -> None:
    """Added to a supervisord that runs without it, it is refused until `reload`, which takes it; and lets it go.

    Not while somebody has the address, but for what supervisord runs itself: that `reload` would be its end.
    """
    with supervisord("plain", leave=True) as stage:
        takes = f"import socket, time; s = socket.create_server(('127.0.0.1', {stage.port})); time.sleep(1000)"
        stage.sections["program:web"]["command"] = f'{sys.executable} -c "{takes}"'
        ours = {name: stage.sections.pop(name) for name in ("rpcinterface:sockshare", "sockshare:web")}
        stage.configure()
        stage.start()
        wait_until(stage.alive, 20, "supervisord answers", 0.05)
        wait_until(lambda: listens(stage.port), 20, "the program has its port", 0.05)
        stage.sections |= ours
        with socket.create_server(("127.0.0.1", 0)) as taken:
            changed(stage, {"sockshare:web": {"socket": f"tcp://127.0.0.1:{taken.getsockname()[1]}"}})
            for command in ("reread", "reload"):
                said = ("[sockshare:web] socket: can't bind", f"in use by pid {os.getpid()} (")
                assert_refused(run("supervisorctl", stage, command), said)
            assert stage.alive()
        stage.sections["program:web"]["command"] = "/bin/sleep 1000"
        stage.configure()
        for command in ("reread", "update"):
            said = ("[rpcinterface:sockshare] supervisor.rpcinterface_factory:", "`supervisorctl reload` brings it in")
            assert_refused(run("supervisorctl", stage, command), said)
        stage.head, _, _ = stage.head.partition("[ctlplugin:sockshare]")
        stage.configure()
        assert run("supervisorctl", stage, "reload").returncode == 0
        wait_until(lambda: stage.sockshare("status").returncode in (0, 3), 20, "the broker answers", 0.1)
        assert listens(stage.port)
        assert "there is no [ctlplugin:sockshare]" in stage.sockshare("doctor").stdout
        for name in ours:
            del stage.sections[name]
        stage.configure()
        assert run("supervisorctl", stage, "reload").returncode == 0
        wait_until(lambda: not listens(stage.port), 20, "the socket is closed", 0.1)
        assert not list(stage.runtime.glob("door"))
        wait_until(lambda: stage.alive() and stage.pids(), 20, "the program runs", 0.1)


def test_reason_is_logged_when_the_first_reload_of_all_can_not_bind() -> None:
    """Without a `reread` nothing of ours is there to refuse it, and it is the end of supervisord: its log says why."""
    with supervisord("plain", leave=True) as stage, socket.create_server(("127.0.0.1", 0)) as taken:
        stage.sections["program:web"]["command"] = "/bin/sleep 1000"
        ours = {name: stage.sections.pop(name) for name in ("rpcinterface:sockshare", "sockshare:web")}
        stage.configure()
        stage.start()
        wait_until(stage.alive, 20, "supervisord answers", 0.05)
        stage.sections |= ours
        changed(stage, {"sockshare:web": {"socket": f"tcp://127.0.0.1:{taken.getsockname()[1]}"}})
        run("supervisorctl", stage, "reload")
        assert stage.process is not None
        assert stage.process.wait(20) == 2
        (line,) = [one for one in stage.log.read_text().splitlines() if "[sockshare:web] socket: can't bind" in one]
        assert f"in use by pid {os.getpid()} (" in line, line


def test_here_and_includes_are_expanded(tmp_path: Path) -> None:
    """Our sections may be in an included file, and say %(here)s."""
    with supervisord("plain", leave=True) as stage:
        included = stage.directory / "conf.d"
        included.mkdir()
        (included / "web.conf").write_text("[sockshare:web]\nsocket = unix://%(here)s/web.sock\n")
        del stage.sections["sockshare:web"]
        stage.sections["program:web"]["command"] = "/bin/sleep 1000"
        stage.extra = "[include]\nfiles = conf.d/*.conf\n"
        stage.configure()
        stage.start()
        wait_until(stage.alive, 20, "supervisord answers", 0.05)
        assert (included / "web.sock").is_socket()
        stage.stop()
        assert not os.listdir(included) or os.listdir(included) == ["web.conf"]


def test_supervisord_refuses_to_start_on_a_kernel_without_pidfd(tmp_path: Path) -> None:
    """One sentence and exit status 2, as for a mistake in the configuration."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PIDFD)
    with supervisord("uvicorn", leave=True) as stage:
        stage.environment["PYTHONPATH"] = f"{tmp_path}:{stage.environment['PYTHONPATH']}"
        stage.start()
        assert stage.process is not None
        assert stage.process.wait(20) == 2
        assert "can't run sockshare: it needs pidfd_open(2)" in stage.tail(stage.output)


def test_mistake_leaves_in_force_what_was() -> None:
    """`reread` and `update` of a broken section, whosever it is: the programs' processes are respawned and reloaded."""
    with supervisord("uvicorn") as stage:
        for kind in ("unknown scheme", "seconds", "misspelt interface key"):
            changed(stage, MISTAKES[kind][0])
            for command in ("reread", "update"):
                assert_refused(run("supervisorctl", stage, command), MISTAKES[kind][1])
            [old] = stage.pids()
            assert stage.kill(old)
            stage.wait_for_answer(stage.port)
            assert stage.pids() != [old]
        stage.deploy("v2")
        assert stage.reload().status == 0
        assert stage.ask(stage.port) == "v2"
        assert stage.kill(stage.broker())
        wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "the next broker serves", 0.05)
