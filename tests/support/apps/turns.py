"""Uses the library, and registers anew each time that it is sent SIGUSR2: for ``registration = latest``.

How often it was told that its registration is cancelled is the length of the file ``told-PID`` in APP_DIRECTORY; that
it is there says that the program is.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
import sockshare
from tests.support.apps.taking import Taker


class Turns:
    """One program."""

    def __init__(self, share: sockshare.Share, told: Path) -> None:
        self.share = share
        self.told = told
        self.taker = Taker(share.socket("web"), lambda: False)
        self.poll = select.epoll()
        self.mine = ExitStack()

    def register(self) -> None:
        """Anew: whatever there was before is released."""
        self.mine.close()
        registration = self.mine.enter_context(self.share.registration("web"))
        self.poll.register(registration.fileno(), select.EPOLLIN)
        self.mine.callback(self.poll.unregister, registration.fileno())
        self.taker.may = registration.waiting
        threading.Thread(target=self.hear, args=(registration,), daemon=True).start()

    def hear(self, registration: sockshare.Registration) -> None:
        """Write it down, if *registration* is cancelled."""
        registration.revoked.wait()
        try:
            registration.wait(5)
        except sockshare.RegistrationLost as error:
            if "cancelled" in str(error):
                with self.told.open("ab", buffering=0) as file:
                    file.write(b".")


def main() -> None:
    """Until SIGTERM."""
    hearing, telling = socket.socketpair()
    telling.setblocking(False)
    signal.set_wakeup_fd(telling.fileno())
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    told = Path(os.environ["APP_DIRECTORY"], f"told-{os.getpid()}")
    with sockshare.attach() as share:
        turns = Turns(share, told)
        turns.poll.register(hearing, select.EPOLLIN)
        told.touch()
        while True:
            for fd, _ in turns.poll.poll():
                if fd != hearing.fileno():
                    turns.taker.take()
                elif signal.SIGTERM in hearing.recv(16):
                    turns.mine.close()
                    return
                else:
                    turns.register()


if __name__ == "__main__":
    main()
