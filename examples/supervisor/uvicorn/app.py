"""An ASGI application that says which version answers. Change VERSION, then: supervisorctl sockshare reload web"""

import os
from typing import Any

VERSION = "1"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        body = f"version {VERSION}, pid {os.getpid()}\n".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})
