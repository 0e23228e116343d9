"""Which launchers fork, by argv alone, and checked against the launchers that this machine has."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from sockshare.core.wrappers import forks, is_shell

FORKING = [
    "timeout 5 gunicorn app",
    "/usr/bin/timeout -k 1 5 gunicorn app",
    "uv run gunicorn app",
    "uv --directory run run gunicorn",
    "uv tool run gunicorn",
    "uvx gunicorn",
    "npm exec server",
    "npm --prefix web run start",
    "npm start",
    "npx server",
    "bun run server.js",
    "yarn start",
    "pnpm dev",
    "hatch run serve",
    "pdm run serve",
    "make serve",
    "dumb-init gunicorn app",
    "tini -- gunicorn app",
    "su www -c gunicorn",
    "sudo -u www gunicorn app",
    "runuser -u www -- gunicorn app",
    "script -qc gunicorn",
    "strace -f gunicorn app",
    "setsid gunicorn app",
    "flock /run/x gunicorn",
    "flock /run/x gunicorn -F",
    "unshare -fp gunicorn",
    "unshare --fork gunicorn",
    "busybox timeout 5 gunicorn",
    "env timeout 5 gunicorn",
    "env -i -u A --chdir / B=1 timeout 5 gunicorn",
    "env -S 'A=1 timeout 5' gunicorn",
    "env -vS 'timeout 5 gunicorn'",
    "env --split-string='timeout 5 gunicorn'",
    "nice -n 5 timeout 5 gunicorn",
    "nice -n5 timeout 5 gunicorn",
    "nice -10 timeout 5 gunicorn",
    "nice --adjustment 5 timeout 5 gunicorn",
    "nohup timeout 5 gunicorn",
    "stdbuf -oL -e 0 timeout 5 gunicorn",
    "chrt -f 5 timeout 5 gunicorn",
    "taskset -c 0,1 timeout 5 gunicorn",
    "chroot --userspec=www / timeout 5 gunicorn",
    "poetry -C web run timeout 5 gunicorn",
    "unshare -m timeout 5 gunicorn",
    "flock -F /run/x timeout 5 gunicorn",
    "nice -- timeout 5 gunicorn",
    "sh -c 'gunicorn app'",  # dash keeps running beside it
    "sh -c 'cd /; gunicorn app'",
    "sh -c 'migrate && gunicorn app'",
    "sh -c 'gunicorn app || report'",
    "sh -c 'gunicorn app | tee log'",
    "sh -c 'migrate | exec gunicorn app'",
    "sh -c 'migrate |\n exec gunicorn app'",
    "sh -c 'exec gunicorn app | tee log'",
    "sh -c 'exec gunicorn app &'",
    "sh -c '{ exec gunicorn app; } | tee log'",
    "sh -c 'if a; then exec gunicorn app; fi &'",
    "sh -c '(exec gunicorn app)'",
    "sh -c '(exec gunicorn app; true)'",
    "sh -c 'exec 2>&1; gunicorn app'",
    "sh -c 'exec timeout 5 gunicorn app'",
    "sh -c 'exec \"timeout\" 5 gunicorn app'",
    "sh -c 'exec -a web timeout 5 gunicorn app'",
    "sh -c 'exec \"$@\"' web timeout 5 gunicorn app",
    "sh -ec 'gunicorn app # exec gunicorn'",
    "sh -c 'echo \"; exec gunicorn\"; gunicorn app'",
    "sh -o errexit -c 'gunicorn app'",
    "bash -c 'cd /\ngunicorn app'",
    "bash -c 'gunicorn app 2>&1'",
    "bash -c 'gunicorn app &'",
    "bash -c '! gunicorn app'",
    "bash -c '{ gunicorn app; }'",
    "bash -c 'timeout 5 gunicorn app'",
    "bash +e -c -- 'timeout 5 gunicorn app'",
    "bash -c '\"$@\"' web timeout 5 gunicorn",
    "sh -c ''",
]

EXECING = [
    "",
    "gunicorn app",
    "python -m timeout",
    "uvicorn run",
    "gunicorn -c timeout",
    "env",
    "env -S",
    "env -i A=1 gunicorn timeout",
    "nice gunicorn timeout",
    "nice",
    "taskset",
    "uv pip list",
    "uv",
    "npm install start",
    "bun server.js run",
    "poetry run gunicorn app",
    "pipenv run gunicorn app",
    "dotenv -f .env run gunicorn app",
    "strace -D gunicorn app",
    "strace --daemonize -o out gunicorn app",
    "flock -F /run/x gunicorn",
    "unshare -m gunicorn -f",
    "busybox nice gunicorn",
    "sh start.sh",
    "sh",
    "sh -c",
    "bash --norc start.sh",
    "sh -c 'exec gunicorn app'",
    "sh -c 'exec gunicorn app > log 2>&1'",
    "sh -c 'exec env A=1 gunicorn app'",
    "sh -c 'A=1 exec gunicorn app'",
    "sh -c 'cd /srv && exec gunicorn app'",
    "sh -c 'a | b; exec gunicorn app'",
    "sh -c 'sleep 1 & exec gunicorn app'",
    "sh -c 'if test -e a; then exec gunicorn app; fi'",
    "sh -c 'case $1 in a) exec gunicorn app;; esac'",
    "sh -c 'cat <in >out; exec gunicorn app'",
    "sh -c 'exec \"$@\"' web gunicorn app",
    "bash -c 'gunicorn app'",
    "bash -lc 'gunicorn app;'",
    "bash -c 'A=1 gunicorn \"a;b\" $(c) `d` ${e} f\\;g'",
    "bash -o pipefail -c 'gunicorn app'",
]


@pytest.mark.parametrize("command", FORKING)
def test_forking_launcher_is_named_wherever_it_stands(command: str) -> None:
    """What forks is found behind options, other launchers and in a shell's script."""
    assert forks(shlex.split(command)) is not None


@pytest.mark.parametrize("command", EXECING)
def test_nothing_is_named_when_everything_execs(command: str) -> None:
    """A command that has the pid of `exec` in the end is left alone, whatever its arguments look like."""
    assert forks(shlex.split(command)) is None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "nice timeout 5 x",
            "'timeout' starts its command as another process, which LISTEN_PID does not name;"
            " put it before `sockshare exec`, or give the program {fd:NAME}",
        ),
        (
            "npm run x",
            "'npm run' starts its command as another process, which LISTEN_PID does not name;"
            " put it before `sockshare exec`",
        ),
        (
            "unshare -f x",
            "'unshare --fork' starts its command as another process, which LISTEN_PID does not name;"
            " put it before `sockshare exec`, or give the program {fd:NAME}",
        ),
        (
            "sh -c 'x; y'",
            "'sh -c' without exec starts its command as another process, which LISTEN_PID does not name;"
            " write `exec` before the last command of the script, or give the program {fd:NAME}",
        ),
    ],
)
def test_message_says_what_forks_and_what_to_write(command: str, expected: str) -> None:
    """The message names the launcher, not what is in front of it, and only remedies that work."""
    assert forks(shlex.split(command)) == expected


def test_named_descriptor_is_remedy_only_where_the_child_keeps_descriptors() -> None:
    """With {fd:NAME} a launcher is fine, unless it closes descriptors."""
    assert forks(["timeout", "5", "uvicorn", "--fd", "{fd:web}"]) is None
    assert forks(["sh", "-c", "true; uvicorn --fd {fd:web}"]) is None
    assert forks(["hatch", "run", "uvicorn", "--fd", "{fd:web}"]) is not None


_SHOW_PID = [sys.executable, "-c", "import os; print(os.getpid())"]
_REAL = [
    ["timeout", "5"],
    ["setsid", "-w"],
    ["nohup"],
    ["nice", "-n", "1"],
    ["env", "-u", "A", "B=1"],
    ["env", "-S", "B=1 nice -n 1"],
    ["stdbuf", "-oL"],
    ["taskset", "-c", "0-999"],
    ["chrt", "-o", "0"],
    ["ionice", "-c", "3"],
    ["prlimit", "--nofile=64"],
    ["setpriv", "--no-new-privs"],
    ["sh", "-c", 'exec "$@"', "sh"],
    ["sh", "-c", 'true; "$@"; true', "sh"],
    ["bash", "-c", '"$@"', "bash"],
    ["bash", "-c", '"$@" 2>&1', "bash"],
    ["bash", "-c", 'true && exec "$@"', "bash"],
    ["bash", "-c", '(exec "$@")', "bash"],
    ["bash", "-c", 'true | exec "$@"', "bash"],
    ["flock", "-F", "/"],
    ["flock", "/"],
]


def test_shell_is_told_by_its_name() -> None:
    """However it was found, also where it is a login's."""
    assert [is_shell(word) for word in ("/bin/sh", "-bash", "gunicorn", "/opt/sh/gunicorn")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("launcher", _REAL, ids=shlex.join)
def test_verdict_is_what_the_launcher_does(launcher: list[str]) -> None:
    """Started as circusd and supervisord start it, a launcher's command has another pid exactly if it is named."""
    if shutil.which(launcher[0]) is None:
        # A minimal container may lack some; the table above has them all.
        launcher = ["env"]
    with subprocess.Popen(
        [*launcher, *_SHOW_PID], stdout=subprocess.PIPE, text=True, start_new_session=True, env=dict(os.environ)
    ) as process:
        output, _ = process.communicate(timeout=20)
    assert (int(output) != process.pid) == (forks([*launcher, *_SHOW_PID]) is not None)
