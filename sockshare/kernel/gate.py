"""The gate: an epoll that a process watches instead of the shared socket; only the broker puts the socket into it.

An epoll can be watched like any descriptor (epoll(7), Q5), and is readable while an entry of it is ready. The broker
and the process hold duplicates of one gate. With the socket in it (armed) the process is told of what waits; without,
it hears of nothing, and its ``poll(0)`` says no. So a registration moves without the process's help, also while it is
stopped, and without any right over it; and it stays as it is when the broker dies.

An entry belongs to the file *and the descriptor number it was added under*. That number was another broker's if this
one took the gate over, and a process that holds a gate may have put in whatever it likes: so `sweep` before the first
use. It all keeps accidents away, not malice: who has the socket can always call accept(2).
"""

from __future__ import annotations

import errno
import os
import select
from types import TracebackType

from sockshare.core.errors import NotPermitted
from sockshare.kernel import epoll, syscalls
from sockshare.kernel.epoll import Registration
from sockshare.kernel.epoll_control import Change, ControlError, control

_EVENTPOLL = "anon_inode:[eventpoll]"
#: How often `sweep` looks again for what came meanwhile.
_ROUNDS = 8


def is_gate(fd: int) -> bool:
    """Whether *fd* can be a gate: it is an epoll.

    Raises:
        OSError: It is not open.
    """
    # The kernel's own word: a file would have its whole path there, a socket socket:[N].
    return os.readlink(f"/proc/self/fd/{fd}") == _EVENTPOLL


class Gate:
    """One gate; in the broker, which arms it, or in its process, which watches it. Not for several threads at once."""

    def __init__(self, fd: int | None = None) -> None:
        """Make a gate, or take over *fd*.

        Args:
            fd: An epoll, this object's from now on; None: a new one, close-on-exec.

        Raises:
            OSError: *fd* is no epoll (``EINVAL``; it stays the caller's), or this process may open no more descriptors.
        """
        if fd is not None and not is_gate(fd):
            raise OSError(errno.EINVAL, f"can't use descriptor {fd} as a gate: it is no epoll")
        self._epoll = select.epoll() if fd is None else select.epoll.fromfd(fd)
        self._armed_with: int | None = None

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Its descriptor; -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def arm(self, sock_fd: int) -> None:
        """Let through what waits on the shared socket, of which *sock_fd* is our duplicate: it is to stay open, and
        no other, until `disarm`. A gate that is armed stays so; one that was armed with another socket is not any more.

        Raises:
            OSError: As epoll_ctl(2): ``ENOSPC`` above /proc/sys/fs/epoll/max_user_watches; ``EPERM``: no socket.
        """
        if self._armed_with not in (None, sock_fd):
            self.disarm()
        try:
            self._epoll.register(sock_fd, select.EPOLLIN)
        except FileExistsError:
            # Ours, or one that the process made under the same number, with whatever events.
            self._epoll.modify(sock_fd, select.EPOLLIN)
        self._armed_with = sock_fd

    def disarm(self) -> bool:
        """Let nothing through any more; whether the entry that `arm` made was there.

        Raises:
            OSError: The socket it was armed with is not open any more (``EBADF``): nobody but `sweep` can disarm it.
        """
        if self._armed_with is None:
            return False
        try:
            self._epoll.unregister(self._armed_with)
        except FileNotFoundError:  # the process took it out
            found = False
        else:
            found = True
        self._armed_with = None
        return found

    def sweep(self, sock_fd: int) -> int:
        """Take out every entry of the shared socket, of which *sock_fd* is our duplicate, whoever made it.

        Returns:
            How many there were.

        Raises:
            OSError: One of them can't be taken out; the gate is not to be used.
        """
        inode = os.fstat(sock_fd).st_ino
        count = 0
        for _ in range(_ROUNDS):
            found = [entry for entry in self._entries() if entry.inode == inode]
            taken = sum(self._take_out(entry, sock_fd) for entry in found)
            count += taken
            if not taken:  # what is left is another file with that inode number, of another kind
                break
        self._armed_with = None
        return count

    def _take_out(self, entry: Registration, sock_fd: int) -> bool:
        try:
            if entry.tfd == sock_fd:
                self._epoll.unregister(sock_fd)
            else:
                control(os.getpid(), self._epoll.fileno(), entry.tfd, sock_fd, [Change(syscalls.EPOLL_CTL_DEL)])
        except FileNotFoundError:
            return False
        except ControlError as error:
            if error.step == "change" and error.errno == errno.ENOENT:
                return False
            sentence = f"can't sweep a gate: {error.strerror} ({error.step}; descriptor {entry.tfd})"
            raise OSError(error.errno, sentence) from error
        return True

    def armed(self) -> bool:
        """Whether anything at all is in it that could make it readable, whoever put it there."""
        return any(entry.armed for entry in self._entries())

    def _entries(self) -> list[Registration]:
        return epoll.entries(os.getpid(), self._epoll.fileno())

    def same(self, pid: int, epfd: int) -> bool:
        """Whether descriptor *epfd* of process *pid* is this gate (kcmp(2)); False too if one of the two is gone.

        Raises:
            NotPermitted: That process may not be looked into.
            OSError: This kernel can't compare.
        """
        try:
            own = self._epoll.fileno()
        except ValueError:  # another thread has closed it
            return False
        result = syscalls.kcmp_file(os.getpid(), own, pid, epfd)
        if result >= 0:
            return result == 0
        if result in (-errno.ESRCH, -errno.EBADF):
            return False
        sentence = f"can't compare a gate with descriptor {epfd} of pid {pid}: {os.strerror(-result)} (kcmp)"
        if result == -errno.EPERM:
            raise NotPermitted(sentence)
        raise OSError(-result, sentence)

    def poll(self) -> bool:
        """Whether something waits and is let through, now."""
        return bool(self._epoll.poll(0, 1))

    def close(self) -> None:
        """Close our duplicate. It changes nothing for who holds another: `disarm` first, if nobody is to hold it armed.

        May be called again.
        """
        self._epoll.close()
