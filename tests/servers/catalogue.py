"""The servers, how each is started, and what it needs besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: The applications of `web.py` and `served.py` are found by it.
_FOUND = "env PYTHONPATH={apps} "
_GUNICORN = "{bin}/gunicorn --chdir {apps} --no-control-socket --log-level warning --workers 2 "


class Server(NamedTuple):
    """One server, as it is started.

    Attributes:
        command: Behind ``sockshare exec --``; ``{fd}`` is the socket's number, ``{bin}`` has the packages' commands.
        package: Whose version is shown; empty: `tool` is no Python package.
        needs: The packages that are installed besides.
        tool: The command that has to be there.
        watcher: Keys of its section.
        sock: Keys of its socket.
        front: What an nginx before it, which is not reloaded, passes the load on with; empty: the load meets it itself.
        takes_slow: Whether it can serve several requests of a second each at the same time.
    """

    command: str
    package: str = ""
    needs: tuple[str, ...] = ()
    tool: str = ""
    watcher: Mapping[str, str] = {}
    sock: Mapping[str, str] = {}
    front: str = ""
    takes_slow: bool = True


def _script(name: str, package: str, needs: tuple[str, ...] = ()) -> Server:
    return Server(f"{{bin}}/python -m tests.support.apps.served {name}", package, needs)


def _native(name: str) -> Server:
    return Server(f"{{python}} -m tests.support.apps.native {name}", tool=name)


SERVERS: Mapping[str, Server] = {
    "uvicorn": Server("{bin}/uvicorn web:asgi --app-dir {apps} --no-access-log --fd {fd}", "uvicorn"),
    "uvicorn --workers 2": Server(
        _FOUND + "{bin}/uvicorn web:asgi --no-access-log --workers 2 --fd {fd}",
        "uvicorn",
    ),
    "uvicorn, unix": Server(
        "{bin}/uvicorn web:asgi --app-dir {apps} --no-access-log --fd {fd}",
        "uvicorn",
        sock={"path": "{path}"},
        front="proxy_pass http://unix:{path}:;",
    ),
    "gunicorn -k sync": Server(_GUNICORN + "--workers 8 -k sync web:wsgi", "gunicorn"),
    "gunicorn -k gthread": Server(_GUNICORN + "-k gthread --threads 24 web:wsgi", "gunicorn"),
    "gunicorn -k gevent": Server(_GUNICORN + "-k gevent web:wsgi", "gunicorn", ("gevent",)),
    "gunicorn -k asgi": Server(_GUNICORN + "-k asgi web:asgi", "gunicorn"),
    "gunicorn -k uvicorn_worker": Server(
        _GUNICORN + "-k uvicorn_worker.UvicornWorker --preload web:asgi", "gunicorn", ("uvicorn", "uvicorn-worker")
    ),
    "gunicorn -k uvicorn.workers": Server(
        _GUNICORN + "-k uvicorn.workers.UvicornWorker web:asgi", "gunicorn", ("uvicorn",)
    ),
    "hypercorn": Server(_FOUND + "{bin}/hypercorn web:asgi -b fd://{fd}", "hypercorn"),
    "hypercorn -w 2": Server(_FOUND + "{bin}/hypercorn web:asgi -w 2 -b fd://{fd}", "hypercorn"),
    "daphne": Server(_FOUND + "{bin}/daphne --fd {fd} web:asgi", "daphne"),
    "twistd web": Server(
        _FOUND + "{bin}/twistd -n --pidfile= web --listen systemd:domain=INET:index=0 --wsgi web.wsgi", "twisted"
    ),
    "aiohttp": _script("aiohttp", "aiohttp"),
    "tornado": _script("tornado", "tornado"),
    "tornado, fork_processes": _script("tornado-forks", "tornado"),
    "cheroot": _script("cheroot", "cheroot"),
    "bjoern": _script("bjoern", "bjoern")._replace(takes_slow=False),
    "sanic, single_process": _script("sanic", "sanic"),
    "waitress": _script("waitress", "waitress"),
    "waitress, sockshare.server = waitress": _script("waitress", "waitress")._replace(
        watcher={"sockshare.server": "waitress"}
    ),
    "uwsgi": Server(
        "{bin}/uwsgi --protocol http --socket fd://{fd} --chdir {apps} --module web:wsgi --master --processes 2"
        " --threads 12 --need-app --disable-logging",
        "uwsgi",
    ),
    "nginx": Server("{python} {apps}/nginx.py", tool="nginx"),
    "haproxy -W": _native("haproxy"),
    "lighttpd": _native("lighttpd"),
    "php-fpm": _native("php-fpm")._replace(
        sock={"blocking": "true"},
        front="fastcgi_param SCRIPT_FILENAME {directory}/page.php; fastcgi_param REQUEST_METHOD $request_method;"
        " fastcgi_param REQUEST_URI $request_uri; fastcgi_pass 127.0.0.1:{port};",
    ),
    "puma -w 2": _native("puma"),
    "node": Server("node {apps}/node_default.js", tool="node"),
    "node cluster": Server("node {apps}/node_cluster.js", tool="node"),
    "Go, net/http Shutdown": Server("{go}", tool="go"),
}
