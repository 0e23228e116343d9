"""A program with very many sockets, behind ``sockshare exec``: says in the file MANY_REPORT what it has, and waits.

It has each of them twice: by its environment (sd_listen_fds(3)), and by the library.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import sockshare

names = os.environ["LISTEN_FDNAMES"].split(":")
inherited = {name: os.fstat(fd).st_ino for fd, name in enumerate(names, 3)}
numbers = {name: int(os.environ["SOCKSHARE_FD_" + name.upper()]) for name in names}
with sockshare.attach() as share:
    attached = {name: os.fstat(share.socket(name).fileno()).st_ino for name in share.sockets()}
    report = Path(os.environ["MANY_REPORT"])
    aside = report.with_suffix(".new")
    facts = {"pid": os.getpid(), "count": int(os.environ["LISTEN_FDS"]), "numbers": numbers}
    aside.write_text(json.dumps({**facts, "inherited": inherited, "attached": attached}))
    aside.rename(report)
    share.ready("has them all")
    signal.pause()
