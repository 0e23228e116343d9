"""A WSGI application that says which version answers. Change VERSION, then: supervisorctl sockshare reload web"""

import os
from collections.abc import Callable, Iterable
from typing import Any

VERSION = "1"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"version {VERSION}, pid {os.getpid()}\n".encode()]
