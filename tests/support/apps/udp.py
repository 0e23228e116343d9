"""A UDP echo that takes its socket from LISTEN_FDS (sd_listen_fds(3)), as ``sockshare exec`` puts it there."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

BEHAVIOUR: dict[str, Any] = json.loads(Path(os.environ["APP_BEHAVIOUR"]).read_text())
time.sleep(BEHAVIOUR.get("import", 0.0))
assert int(os.environ["LISTEN_PID"]) == os.getpid()
assert int(os.environ["LISTEN_FDS"]) == 1
ANSWER = json.dumps({"version": BEHAVIOUR["version"], "pid": os.getpid()}).encode()
stopped, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
signal.set_wakeup_fd(told)
signal.signal(signal.SIGTERM, lambda *_: None)
with socket.socket(fileno=3) as sock, select.epoll() as poll:
    poll.register(sock, select.EPOLLIN)
    poll.register(stopped, select.EPOLLIN)
    going = True
    while going:
        for fd, _events in poll.poll():
            if fd == stopped:
                going = False
                continue
            try:
                _data, sender = sock.recvfrom(65536)
                sock.sendto(ANSWER, sender)
            except BlockingIOError:  # another process of the program was faster
                pass
    poll.unregister(sock)
