"""``NOTIFY_SOCKET``: what managed processes say by sd_notify(3), each on a socket of its own that the host keeps.

Every process of the machine may be able to send there: what is said counts only from the process's own tree.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from sockshare.core.sdnotify import LONGEST, Notification, parse
from sockshare.core.senders import Sender, refusal
from sockshare.kernel import closing, peers, processes
from sockshare.kernel.descriptors import MOST, close_all, receive

from .state import State

log = logging.getLogger(__name__)

_UCRED = struct.Struct("3i")
# Room for the credentials and for nothing else: no descriptor that is sent along is ever opened in the loop.
_ROOM = socket.CMSG_SPACE(_UCRED.size)
#: Datagrams that are read before the rest of the broker has its turn again.
_AT_ONCE = 16
#: So many at once are a flood; the kernel queues 11, as a rule (net.unix.max_dgram_qlen).
_MANY = 8
#: Seconds for which a socket is left unread then: a flood costs who sends it, not the broker.
_AFTER_MANY = 0.005
#: Seconds until a socket that could not be read is read again.
_AFTER_FAILURE = 1.0
#: Seconds between two lines of the log about what one process's socket got from strangers.
_LOG_EVERY = 60.0


class NotifySocket:
    """One process's notify socket, *fd*, which becomes this object's; made in the running loop.

    The host has had it record its senders' credentials since it was made (`kernel.listeners.make`).

    Args:
        pid: The process.
        heard: Given what the process, or one of its tree, said. It is called before the datagram is taken from the
            socket, so that what a broker heard and did not live to act upon is heard by the next one.
        refused: Given the pid and uid of each other sender, and why what it said does not count.
    """

    def __init__(
        self,
        fd: int,
        pid: int,
        heard: Callable[[Notification], object],
        refused: Callable[[int, int, str], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = pid
        self._heard = heard
        self._refused = refused
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Stop listening, for good: the process has died."""
        self._loop.remove_reader(self._socket)
        closing.close(self._socket)

    def _listen(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._readable)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.call_later(seconds, self._listen)

    def _readable(self) -> None:
        refusals: dict[tuple[int, int], str] = {}  # of one look at each sender, which a flood of datagrams shares
        for taken in range(_AT_ONCE):
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(LONGEST + 1, _ROOM, socket.MSG_PEEK)
            except BlockingIOError:
                if taken >= _MANY:
                    break
                return
            except OSError as error:
                log.warning("notify: can't receive: %s", error)
                self._pause(_AFTER_FAILURE)
                return
            pid, uid, _ = _UCRED.unpack(ancillary[0][2])
            if (pid, uid) not in refusals:
                refusals[pid, uid] = refusal(_look_at(pid, uid, self._pid), self._tree)
            try:
                if refusals[pid, uid]:
                    self._refused(pid, uid, refusals[pid, uid])
                else:
                    self._heard(parse(data))
            finally:
                if flags & socket.MSG_CTRUNC:
                    self._take_apart()
                else:
                    self._socket.recv(1)
            if flags & socket.MSG_CTRUNC:
                return
        self._pause(_AFTER_MANY)

    def _tree(self) -> set[int]:
        found: set[int] = set()
        for pid in processes.tree(self._pid):
            try:
                found |= processes.uids(pid)
            except OSError:
                continue  # it has ended
        return found

    def _take_apart(self) -> None:
        """Take a datagram that has descriptors with it, in a thread: closing them takes as long as their sender likes.

        Listening goes on as soon as it is taken.
        """
        try:
            duplicate = self._socket.dup()  # the thread's: this object may be closed meanwhile
        except OSError as error:
            log.warning("notify: can't receive: %s", error)
            self._pause(_AFTER_FAILURE)
            return
        self._loop.remove_reader(self._socket)

        def take() -> None:
            fds: list[int] = []
            with suppress(OSError):  # then they were closed, if there were any
                _, fds = receive(duplicate, 1, MOST)
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._listen)
            close_all(fds)
            closing.close(duplicate)

        closing.apart(take)


class Refused:
    """Counts what strangers say for the process *pid*, and logs it: one line of many."""

    def __init__(self, state: State, pid: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._state = state
        self._pid = pid
        self._unsaid = 0
        self._silent_until = 0.0

    def __call__(self, sender: int, uid: int, reason: str) -> None:
        """Pid *sender*, of user *uid*, was refused for *reason*."""
        self._state.refusals += 1
        if self._loop.time() < self._silent_until:
            self._unsaid += 1
            return
        self._silent_until = self._loop.time() + _LOG_EVERY
        managed = self._state.roster.managed(self._pid)
        name = f"pid {self._pid}" if managed is None else managed.name
        more = f" (and {self._unsaid} others before)" if self._unsaid else ""
        log.warning("%s: refused a notification of pid %d, uid %d: %s%s", name, sender, uid, reason, more)
        self._unsaid = 0


def _look_at(pid: int, uid: int, leader: int) -> Sender:
    try:
        uids = processes.uids(pid)
        # A session can only be inherited; a group can be joined from within its session (setpgid(2)).
        descends = os.getsid(pid) == leader or leader in peers.ancestors(pid)
        return Sender(pid, uid, uids, descends, os.getpgid(pid) == leader)
    except OSError:
        return Sender(pid, uid, frozenset(), False, False)
