"""What runs as the broker of a supervisord under test, and is none: put in its place by a sitecustomize (`install`).

It connects to the link as a broker does, and then behaves as the file MODE in IMPOSTOR's directory says.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

NAME = "impostor"  # as /proc/PID/comm has it
#: The directory of the file that says how to behave; without the file a broker is a broker.
VARIABLE = "IMPOSTOR"
SITE = """\
import os, pathlib, sys
mode = pathlib.Path(os.environ["IMPOSTOR"]) / "mode"
if "sockshare.broker" in sys.orig_argv and mode.exists():
    sys.path.insert(0, {root!r})
    from tests.support.apps import impostor
    impostor.behave(mode.read_text(), sys.orig_argv[-1])
"""

#: A line's record of 100 claims, as it is written for each move of the registration.
_CLAIM = '{"claim":["%s",4242,[4242,123456,7890],"web:1","web","gate",4242],"standing":"waiting","epoch":0}' % (
    "0" * 32
)
_CLAIMS = (
    '{"type":"journal","key":"registration:web%d","record":{"last_epoch":%d,"claims":['
    + ",".join([_CLAIM] * 100)
    + "]}}\n"
)

ENDLESS = {
    "endless claims": "".join(_CLAIMS % (number % 4, number) for number in range(20)).encode(),
    "endless line": b"x" * 65536,
    "endless questions": b'{"type": "ask", "id": 1, "verb": "whois", "pid": 1}\n' * 1000,
    "endless nonsense": b'{"type": "ask", "id": 1, "verb": "settle"}\n{"type": "journal"}\n{"x": 1}\n' * 1000,
}
MODES = ("silent", "closed", "no json", "no object", *ENDLESS)


def install(directory: Path, environment: dict[str, str]) -> Path:
    """Have Pythons with *environment* look in *directory*; the path of the file that says how to behave."""
    (directory / "sitecustomize.py").write_text(SITE.format(root=str(Path(__file__).parents[3])))
    environment[VARIABLE] = str(directory)
    environment["PYTHONPATH"] = f"{directory}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    return directory / "mode"


def behave(mode: str, link: str) -> None:
    """Be that broker, for as long as it is let."""
    Path("/proc/self/comm").write_text(NAME)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(link)
        if mode == "closed":
            sock.close()
        elif mode == "no json":
            sock.sendall(b"\xff\x00 hello\n")
        elif mode == "no object":
            sock.sendall(b"[1]\n")
        try:
            while mode in ENDLESS:
                sock.sendall(ENDLESS[mode])
        except OSError:
            pass
        time.sleep(60)
    sys.exit(1)
