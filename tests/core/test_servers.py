"""Which server a command line is, and how it is best ended."""

from __future__ import annotations

import signal

import pytest

from sockshare.core.servers import SERVERS, recognise


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/v/bin/python /v/bin/daphne --fd 3 app:app", "daphne"),
        ("python3.12 -m daphne --fd 3 app:app", "daphne"),
        ("/v/bin/python3 -Im uvicorn.main app:app", "uvicorn"),
        ("python -X dev -W error /v/bin/twistd -n web", "twistd"),
        ("pypy3.10 /v/bin/gunicorn app", "gunicorn"),
        ("/usr/sbin/haproxy -W -db -f /etc/h", "haproxy"),
        ("/usr/sbin/php-fpm8.2 -F", "php-fpm"),
        ("uwsgi_python3 --ini app.ini", "uwsgi"),
        ("php-fpm-8.3 -F", "php-fpm"),
        ("uwsgi-core --ini app.ini", "uwsgi"),
        ("lighttpd -D -f conf", "lighttpd"),
    ],
)
def test_server_is_recognised_by_its_command(command: str, name: str) -> None:
    """Whether it is started by its script, its module or its binary."""
    found = recognise(command.split())
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("nginx: master process nginx -g daemon off;", "nginx"),
        ("gunicorn: master [app:app]", "gunicorn"),
        ("php-fpm: master process (/etc/php/fpm.conf)", "php-fpm"),
        ("uWSGI master", "uwsgi"),
        ("puma 6.4.2 (tcp://0.0.0.0:3000) [app]", "puma"),
    ],
)
def test_server_is_recognised_by_the_title_that_it_gives_itself(title: str, name: str) -> None:
    """Such a process has no command line any more."""
    for command in ([title], [title, "", ""]):  # zeros are behind it where the command line was longer
        found = recognise(command)
        assert found is not None
        assert found.name == name


@pytest.mark.parametrize(
    "command",
    [
        "",
        "python",
        "python -",
        "python -m",
        "python app.py",
        "python -c daphne",
        "python app.py daphne",
        "/bin/sh /srv/start.sh",
        "vim nginx.conf",
        "waitress-serve app:app",
        "nginxd",
        "nginx-ui",
        "php-fpm_exporter server",
        "uwsgitop /run/stats",
    ],
)
def test_other_commands_are_no_server(command: str) -> None:
    """A word among the arguments names nothing; and a library's server has a command of its author's making."""
    assert recognise(command.split()) is None


@pytest.mark.parametrize(
    ("options", "drains"),
    [
        ("", True),
        ("-w 1", True),
        ("-w 2", False),
        ("-w2", False),
        ("--workers 4", False),
        ("--workers=4", False),
        ("--workers", True),
        ("--workers=many", True),
        ("--worker-class 2", True),
    ],
)
def test_hypercorn_drains_with_one_worker_only(options: str, drains: bool) -> None:
    """Its master stops several before they have answered."""
    found = recognise(f"python /v/bin/hypercorn app:app {options}".split())
    assert found is not None
    assert found.drains is drains


def test_uwsgi_drains_on_term_only_where_it_is_told_to() -> None:
    """Otherwise TERM is a reload, within the process: INT ends it, and at once."""
    found = recognise(["uwsgi", "--http"])
    told = recognise(["uwsgi", "--hook-master-start", "unix_signal:15 gracefully_kill_them_all"])
    assert found is not None
    assert told is not None
    assert (found.drains, found.signal) == (False, signal.SIGINT)
    assert (told.drains, told.signal) == (True, None)


def test_whoever_does_not_drain_says_what_it_does() -> None:
    """The sentence of a reload has it."""
    assert all(bool(server.manner) is not server.drains for server in SERVERS.values())
    assert {server.name: server for server in SERVERS.values()} == dict(SERVERS)
