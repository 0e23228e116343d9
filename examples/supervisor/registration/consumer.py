"""Three processes, of which one at a time takes what arrives; the others stand by, warm. Kill it: the next one goes on.

Change VERSION, then: supervisorctl sockshare reload consumer
"""

import os
import selectors
import signal
from typing import Any

import sockshare

VERSION = "1"
stopping = False


def stop(*_: Any) -> None:
    global stopping
    stopping = True


with sockshare.attach() as share:
    jobs = share.socket("jobs")
    share.ready("standing by")
    # The block begins when this process holds the registration. Before, its stop signal just ends it.
    with share.registration("jobs") as registration, selectors.DefaultSelector() as selector:
        signal.signal(signal.SIGTERM, stop)
        selector.register(registration, selectors.EVENT_READ)
        while not stopping:
            selector.select(0.2)
            while registration.waiting():
                job, sender = jobs.recvfrom(2048)
                jobs.sendto(f"version {VERSION}, pid {os.getpid()}: ".encode() + job, sender)
