"""Each mistake is one sentence with section and key; supervisord does not start with one, `reread` refuses it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.supervisord import Supervisord, supervisord, wait_until

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


def start(stage: Supervisord) -> subprocess.CompletedProcess[str]:
    """supervisord, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(stage.configuration)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=stage.directory,
        env=stage.environment,
        timeout=30,
    )


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """One that runs."""
    with supervisord("plain", leave=True) as running:
        running.sections["program:web"]["command"] = "/bin/sleep 1000"
        running.configure()
        running.start()
        wait_until(running.alive, 20, "supervisord answers", 0.05)
        yield running


def test_fifteen_kinds_are_tested() -> None:
    """The list is not to shrink."""
    assert len(MISTAKES) >= 15


@pytest.mark.parametrize("kind", MISTAKES)
def test_reread_refuses_mistake(stage: Supervisord, kind: str) -> None:
    """The sentence is the answer, nothing changes, and `reread` is not done."""
    sections, said = MISTAKES[kind]
    changed(stage, sections)
    with pytest.raises(Exception, match="CANT_REREAD") as caught:
        stage.rpc("supervisor.reloadConfig")
    assert all(one in str(caught.value) for one in said), caught.value
    assert stage.alive()


@pytest.mark.parametrize("kind", ["no address", "unknown socket", "one address twice", "runtime_dir"])
def test_supervisord_does_not_start_with_mistake(kind: str) -> None:
    """Exit status 2, one sentence, no traceback; every path to a mistake is the one that `reread` takes too."""
    sections, said = MISTAKES[kind]
    with supervisord("plain", leave=True) as stage:
        changed(stage, sections)
        done = start(stage)
    assert done.returncode == 2, done
    text = done.stdout + done.stderr
    assert all(one in text for one in said), text
    assert "Traceback" not in text


def test_every_mistake_is_said_at_once() -> None:
    """Three mistakes, three sentences; and `supervisorctl reread` exits with a status that is not 0."""
    with supervisord("plain", leave=True) as stage:
        changed(
            stage,
            {"sockshare:web": {"socket_backlog": "x"}, "program:web": {"sockshare_ready": "x", "sockshare_zzz": "1"}},
        )
        text = start(stage).stderr
    assert all(one in text for one in ("socket_backlog:", "sockshare_ready:", "sockshare_zzz:")), text


def test_supervisord_does_not_start_where_it_cannot_bind() -> None:
    """A taken port, a file that is no socket: exit status 2 and the section."""
    with supervisord("plain", leave=True) as stage, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        changed(stage, {"sockshare:web": {"socket": f"tcp://127.0.0.1:{taken.getsockname()[1]}"}})
        done = start(stage)
        assert done.returncode == 2
        assert "[sockshare:web] socket: can't bind tcp://" in done.stderr
        changed(stage, {"sockshare:web": {"socket": f"unix://{stage.configuration}"}})
        done = start(stage)
        assert done.returncode == 2
        assert "not a socket" in done.stderr
        assert stage.configuration.exists()


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
