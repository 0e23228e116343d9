"""The servers that are libraries, each serving descriptor 3: ``python -m tests.support.apps.served NAME``.

They run in an environment of their own, which `tests.servers` makes.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tests.support.apps import behaviour


def _wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    status, body = behaviour.answer(environ["PATH_INFO"]) or (500, b"")
    start_response(f"{status} ", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def _answer(path: str) -> bytes:
    if path.startswith("/slow"):
        await asyncio.sleep(1)
    return (behaviour.answer("/") or (500, b""))[1]


def _aiohttp() -> None:
    web: Any = importlib.import_module("aiohttp.web")

    async def page(request: Any) -> Any:
        return web.Response(body=await _answer(request.path), content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", page)
    web.run_app(app, sock=behaviour.listener(), print=None)


def _tornado(processes: int = 1) -> None:
    web: Any = importlib.import_module("tornado.web")
    httpserver: Any = importlib.import_module("tornado.httpserver")
    process: Any = importlib.import_module("tornado.process")

    class Page(web.RequestHandler):  # type: ignore[misc]
        async def get(self) -> None:
            self.write(await _answer(self.request.path))

    async def serve() -> None:
        httpserver.HTTPServer(web.Application([("/.*", Page)])).add_socket(behaviour.listener())
        await asyncio.Event().wait()

    if processes > 1:
        process.fork_processes(processes)
    asyncio.run(serve())


def _cheroot() -> None:
    wsgi: Any = importlib.import_module("cheroot.wsgi")
    listener = behaviour.listener()
    server = wsgi.Server(listener.getsockname(), _wsgi, numthreads=20)

    def bind(*_: object) -> Any:
        server.socket = listener
        return listener

    server.bind = bind
    server.prepare()
    server.serve()


def _bjoern() -> None:
    bjoern: Any = importlib.import_module("bjoern")
    bjoern.server_run(behaviour.listener(), _wsgi)


def _sanic() -> None:
    sanic: Any = importlib.import_module("sanic")
    app = sanic.Sanic("served", configure_logging=False)

    async def page(request: Any, path: str = "") -> Any:
        return sanic.raw(await _answer(request.path), content_type="application/json")

    app.add_route(page, "/", name="root")
    app.add_route(page, "/<path:path>", name="page")
    app.run(sock=behaviour.listener(), single_process=True, motd=False, access_log=False)


def _waitress() -> None:
    waitress: Any = importlib.import_module("waitress")
    waitress.serve(_wsgi, sockets=[behaviour.listener()], threads=24)


_SERVERS: dict[str, Callable[[], None]] = {
    "aiohttp": _aiohttp,
    "tornado": _tornado,
    "tornado-forks": partial(_tornado, 2),
    "cheroot": _cheroot,
    "bjoern": _bjoern,
    "sanic": _sanic,
    "waitress": _waitress,
}

if __name__ == "__main__":
    _SERVERS[sys.argv[1]]()
