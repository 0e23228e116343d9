"""One small program for uvicorn (``web:asgi``) and gunicorn (``web:wsgi``) whose behaviour a file decides.

The file named in ``APP_BEHAVIOUR`` holds ``{"version": "v1", "import": seconds, "fault": null or a name below}`` and is
read at import, as a deploy would replace the program's text.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

BEHAVIOUR: dict[str, Any] = json.loads(Path(os.environ["APP_BEHAVIOUR"]).read_text())
VERSION: str = BEHAVIOUR["version"]
FAULT: str | None = BEHAVIOUR.get("fault")
AFTER_READY = 0.3  # s that a process with the fault exit_after_ready serves

Message = MutableMapping[str, Any]


def complain_and_exit() -> None:
    """End as a crashing thread of an extension module would: at once, with a line on stderr."""
    os.write(2, f"{VERSION}: cannot go on\n".encode())
    os._exit(1)


def notify(text: bytes) -> None:
    """Say *text* on NOTIFY_SOCKET (sd_notify(3))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text, os.environ["NOTIFY_SOCKET"])


if BEHAVIOUR.get("import"):
    Path(os.environ["APP_DIRECTORY"], f"importing-{VERSION}-{os.getpid()}").touch()
    time.sleep(BEHAVIOUR["import"])
if FAULT == "exit_at_import":
    print(f"{VERSION}: cannot import the database driver", file=sys.stderr, flush=True)
    sys.exit(1)
if FAULT == "exit_zero":
    sys.exit(0)
if FAULT == "killed":
    os.kill(os.getpid(), signal.SIGSEGV)
if FAULT == "hang_at_import":
    time.sleep(3600)
if FAULT == "closed":  # the shared socket, whose number uvicorn has in its command line
    os.close(int(sys.argv[sys.argv.index("--fd") + 1]))
    time.sleep(3600)
if FAULT == "elsewhere":  # serves, but on a socket of its own
    with socket.create_server(("127.0.0.1", 0)) as own:
        while True:
            own.accept()
if FAULT == "ready_then_exit":  # lies, and is gone before anybody can look
    notify(b"READY=1")
    threading.Timer(AFTER_READY, complain_and_exit).start()
    time.sleep(3600)
if FAULT == "chatty":  # says what it does all the time

    def chat() -> None:
        for number in range(3000):
            notify(b"STATUS=%d" % number)

    threading.Thread(target=chat, daemon=True).start()
if FAULT == "ready_then_hang":  # lies, and stays
    notify(b"READY=1")
    time.sleep(3600)


def body() -> bytes:
    """Who answers."""
    return json.dumps({"version": VERSION, "pid": os.getpid()}).encode()


async def asgi(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """``/`` answers at once, ``/slow`` after a second (``/slow?N`` after N), ``/never`` not."""
    if scope["type"] == "lifespan":
        await receive()
        if FAULT == "never_register":
            await asyncio.sleep(3600)
        if FAULT == "exit_after_ready":
            threading.Timer(AFTER_READY, complain_and_exit).start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] in ("/slow", "/never"):
        await asyncio.sleep(float(scope["query_string"] or 1) if scope["path"] == "/slow" else 3600)
    answer = body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def wsgi(
    environ: dict[str, Any],
    start_response: Callable[[str, list[tuple[str, str]]], Callable[[bytes], object]],
) -> Iterable[bytes]:
    """The same over WSGI."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(1)
    answer = body()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]
