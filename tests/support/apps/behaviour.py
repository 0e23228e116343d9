"""What the file named in ``APP_BEHAVIOUR`` makes of a program (see ``web.py``), for those that are not web.py.

``import`` and ``fault`` are as there. The faults of a page are ``answer_500``, ``hang_requests`` and ``break``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

_BEHAVIOUR: dict[str, Any] = json.loads(Path(os.environ["APP_BEHAVIOUR"]).read_text())
VERSION: str = _BEHAVIOUR["version"]
FAULT: str | None = _BEHAVIOUR.get("fault")
#: Where ``sockshare exec`` puts the socket (sd_listen_fds(3)), or where circus itself did.
FD = int(os.environ.get("APP_FD", "3"))

time.sleep(_BEHAVIOUR.get("import", 0.0))
if FAULT == "exit_at_import":
    print(f"{VERSION}: cannot import the database driver", file=sys.stderr, flush=True)
    sys.exit(1)


def answer(path: str) -> tuple[int, bytes] | None:
    """Status and body of the page *path*: ``/slow`` after a second; None: close without an answer."""
    if FAULT == "hang_requests":
        time.sleep(3600)
    if path.startswith("/slow"):
        time.sleep(1)
    if FAULT == "break":
        return None
    return 500 if FAULT == "answer_500" else 200, json.dumps({"version": VERSION, "pid": os.getpid()}).encode()


def listener() -> socket.socket:
    """A duplicate of the shared socket."""
    return socket.socket(fileno=os.dup(FD))
