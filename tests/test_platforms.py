"""Elsewhere than on Linux: one sentence, whoever asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.host import ROOT, TIMEOUT

CLI = "runpy.run_module('sockshare', run_name='__main__')"
CIRCUS = "from circus.circusd import main; main()"
SUPERVISOR = "from supervisor.supervisord import main; main()"
CTL = "from supervisor.supervisorctl import main; main()"


def run(platform: str, code: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """*code* on a system that says that it is *platform*; what only Linux has is not there."""
    fake = (
        f"import os, runpy, select, sys; sys.argv = ['x', *{list(arguments)}]\n"
        "import argparse, circus.arbiter, circus.circusd, logging, socket, subprocess, site, supervisor.supervisord\n"
        f"sys.platform = {platform!r}\n"
        "del select.epoll, os.pidfd_open, socket.SO_PEERCRED\n"
    )
    return subprocess.run(
        [sys.executable, "-c", fake + code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
@pytest.mark.parametrize("arguments", [("status",), ("exec", "--", "true"), ("demo",), ("reload", "web"), ("--help",)])
def test_command_says_so_and_exits_2(tmp_path: Path, platform: str, arguments: tuple[str, ...]) -> None:
    """Every command, before it imports anything."""
    done = run(platform, CLI, *arguments, directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr == f"sockshare: can't run sockshare: it needs Linux (this is {platform})\n"


@pytest.mark.parametrize(
    "code",
    [
        "import sockshare.aio",
        "from sockshare import aio",
        "import sockshare; sockshare.attach()",
        "from sockshare import attach, Share",
    ],
)
def test_library_raises_its_own_error(tmp_path: Path, code: str) -> None:
    """`import sockshare` works, so that a program can catch it; it is an ImportError as well."""
    caught = f"import sockshare\ntry:\n    {code}\nexcept sockshare.UnsupportedPlatform as error:\n    print(error)\n"
    caught += "    assert isinstance(error, ImportError) and error.exit_status == 2\n"
    done = run("darwin", caught, directory=tmp_path)
    assert done.stdout == "can't run sockshare: it needs Linux (this is darwin)\n", done


def test_managers_say_so_and_exit_2(tmp_path: Path) -> None:
    """Neither starts: the programs that need a socket could not."""
    (tmp_path / "circus.ini").write_text(
        f"[circus]\nendpoint = ipc://{tmp_path}/c\npubsub_endpoint = ipc://{tmp_path}/p\n"
        "[plugin:sockshare]\nuse = circus_sockshare.SockShare\nuse_sockets = True\n"
    )
    (tmp_path / "supervisord.conf").write_text(
        "[supervisord]\nnodaemon = true\n[supervisorctl]\n"
        "[rpcinterface:sockshare]\nsupervisor.rpcinterface_factory = supervisor_sockshare:make_rpcinterface\n"
        "[ctlplugin:sockshare]\nsupervisor.ctl_factory = supervisor_sockshare:make_ctlplugin\n"
    )
    for code, arguments in ((CIRCUS, ("circus.ini",)), (SUPERVISOR, ("-c", "supervisord.conf"))):
        done = run("darwin", code, *arguments, directory=tmp_path)
        assert done.returncode == 2, done
        assert "can't run sockshare: it needs Linux (this is darwin)" in done.stderr
        assert "Traceback" not in done.stderr
