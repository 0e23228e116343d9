"""Becomes a server that is no Python package: ``python -m tests.support.apps.native NAME``.

Each has a configuration of its own, answers on descriptor 3, and takes a second for ``/slow``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

FILES = {
    "haproxy": {
        "slow.lua": 'core.register_action("slow", {{"http-req"}}, function() core.msleep(1000) end)\n',
        "configuration": """\
global
    lua-load {home}/slow.lua
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
frontend web
    bind fd@3
    http-request lua.slow if {{ path_beg /slow }}
    http-request return status 200 content-type application/json string '{answer}'
""",
    },
    "lighttpd": {
        "page": "{answer}",
        "slow": "#!/bin/sh\nsleep 1\nprintf 'Content-Type: application/json\\r\\n\\r\\n%s' '{answer}'\n",
        "configuration": """\
server.systemd-socket-activation = "enable"
server.bind = "{host}"
server.port = {port}
server.document-root = "{home}"
server.errorlog = "{home}/errors"
server.modules = ("mod_alias", "mod_cgi")
mimetype.assign = ("" => "application/json")
alias.url = ("/slow" => "{home}/slow", "/" => "{home}/page")
$HTTP["url"] =~ "^/slow" {{ cgi.assign = ("" => "") }}
""",
    },
    "php-fpm": {
        # The front asks for this one, whoever of old and new has written it last.
        "../page.php": """\
<?php
if (str_starts_with($_SERVER["REQUEST_URI"], "/slow")) sleep(1);
header("Content-Type: application/json");
$answer = json_encode(["version" => getenv("VERSION"), "pid" => getmypid()]);
header("Content-Length: " . strlen($answer));
echo $answer;
""",
        "configuration": """\
[global]
error_log = {home}/errors
process_control_timeout = 10s
[web]
user = root
listen = {host}:{port}
pm = static
pm.max_children = 24
env[VERSION] = {version}
""",
    },
    "puma": {
        "config.ru": """\
run lambda {{ |asked|
  sleep 1 if asked["PATH_INFO"].start_with?("/slow")
  [200, {{ "Content-Type" => "application/json" }}, ['{answer}']]
}}
""",
    },
}
COMMANDS = {
    "haproxy": ["haproxy", "-W", "-db", "-f", "{home}/configuration"],
    "lighttpd": ["lighttpd", "-D", "-f", "{home}/configuration"],
    "php-fpm": ["php-fpm", "-F", "-R", "-y", "{home}/configuration"],
    "puma": ["puma", "-w", "2", "-t", "16", "--bind-to-activated-sockets", "only", "{home}/config.ru"],
}


def find(name: str) -> str | None:
    """The command of *name*, also where distributions put a version behind it."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    tool = shutil.which(name, path=path)
    if tool is None:
        tool = next((str(one) for each in path.split(":") for one in Path(each).glob(f"{name}[0-9]*")), None)
    return tool


def main(name: str) -> None:
    """Write what it needs, and become it."""
    from tests.support.apps import behaviour  # it needs the environment of a stage

    with behaviour.listener() as listener:
        host, port = listener.getsockname()
    home = Path(os.environ["APP_DIRECTORY"], f"{name}-{os.getpid()}")
    home.mkdir()
    answer = f'{{"version": "{behaviour.VERSION}", "pid": {os.getpid()}}}'
    facts = {"home": str(home), "host": host, "port": port, "answer": answer, "version": behaviour.VERSION}
    for file, text in FILES[name].items():
        (home / "aside").write_text(text.format(**facts))
        (home / "aside").chmod(0o755)
        (home / "aside").rename(home / file)
    command = [word.format(**facts) for word in COMMANDS[name]]
    if name == "php-fpm":
        os.environ["FPM_SOCKETS"] = f"{host}:{port}=3"
    program = find(command[0])
    if program is None:
        sys.exit(f"can't run {name}: it is not installed")
    os.execv(program, command)


if __name__ == "__main__":
    main(sys.argv[1])
