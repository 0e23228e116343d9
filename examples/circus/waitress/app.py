"""A WSGI application that says which version answers, on waitress. Change VERSION, then: sockshare reload web

waitress waits for new connections and serves those that it has in one loop, so it can't be held off the listener. It
drains itself on SIGINT, though, hence the stop_signal in circus.ini. On SIGTERM, without a handler, it would die.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

import waitress

VERSION = "1"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"version {VERSION}, pid {os.getpid()}\n".encode()]


if __name__ == "__main__":
    waitress.serve(app, sockets=[socket.socket(fileno=int(sys.argv[1]))])
