"""Whether we can suspend registrations at all (`probe`), and of a given process (`permitted`)."""

from __future__ import annotations

import errno
import os
import select
import socket

from sockshare.kernel import epoll, processes, syscalls

# Any number that is not open will do: with the rights of a tracer the kernel says EBADF, without them EPERM.
_NO_DESCRIPTOR = 0x7FFFFFF0
_NO_CALL = "this kernel, or a seccomp filter, has no {} (Linux 5.9 has it)"


def probe() -> str | None:
    """Try it on an epoll of our own, once at start; takes some milliseconds.

    Returns:
        None if this kernel does all that `sockshare.kernel.epoll` needs, else the reason why it does not.
    """
    ours, peer = socket.socketpair()
    try:
        with ours, peer, select.epoll() as plain, select.epoll() as exclusive:
            plain.register(ours, select.EPOLLIN | select.EPOLLRDHUP)
            exclusive.register(ours, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            peer.send(b"x")
            return _try(ours.fileno(), plain) or _try(ours.fileno(), exclusive)
    except OSError as error:
        return str(error) if error.errno is None else error.strerror or os.strerror(error.errno)


def permitted(pid: int) -> str | None:
    """Whether the registrations of *pid* may be touched: None, or the reason why not. Changes nothing."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return "no such process"
    except OSError as error:
        return _NO_CALL.format("pidfd_open") if error.errno == errno.ENOSYS else error.strerror
    try:
        result = syscalls.pidfd_getfd(pidfd, _NO_DESCRIPTOR)
    finally:
        os.close(pidfd)
    if result >= 0:
        os.close(result)
        return None
    if result == -errno.EBADF:
        return None
    if result == -errno.ESRCH:
        return "no such process"
    if result == -errno.ENOSYS:
        return _NO_CALL.format("pidfd_getfd")
    if result != -errno.EPERM:
        return os.strerror(-result)
    try:
        return _refusal(pid)
    except ProcessLookupError:
        return "no such process"


def _try(sock_fd: int, own: select.epoll) -> str | None:
    inode = os.fstat(sock_fd).st_ino

    def entry() -> epoll.Registration | None:
        found = epoll.registrations(os.getpid(), [inode], tree=False)
        return next((one for one in found if one.epfd == own.fileno()), None)

    before = entry()
    if before is None:
        return f"/proc/PID/fdinfo shows no epoll entries (of epoll {own.fileno()})"
    if not epoll.suspend(before, sock_fd):
        return "an entry could not be modified through a thread's own descriptor table"
    during = entry()
    if during is None or not during.suspended or during.wanted != before.wanted:
        shown = "no entry" if during is None else f"{during.events:#x}"
        return f"the kernel does not keep the unused event bits ({before.events:#x} became {shown})"
    if own.poll(0):
        return "a suspended entry still reports events"
    if not epoll.resume(during, sock_fd) or entry() != before or not own.poll(0):
        return "a suspended entry could not be restored"
    return None


def _refusal(pid: int) -> str:
    """Why the kernel said EPERM: the rules of ptrace(2), "Ptrace access mode checking", in their order."""
    owner, mine = processes.uid(pid), os.geteuid()
    traces = processes.has_cap_sys_ptrace()
    tracer = "and this process has no CAP_SYS_PTRACE"
    if owner != mine and not traces:
        return f"it runs as uid {owner}, not {mine}, {tracer}"
    # A process that changed its ids or whose program file is not readable is not dumpable: its /proc files are root's.
    if not traces and os.stat(f"/proc/{pid}/status").st_uid != owner:
        return f"it is not dumpable (it changed its user or capabilities), {tracer}"
    scope = yama()
    if scope in (1, 2):
        return f"Yama's ptrace_scope is {scope}, {tracer}" + (" and is no tracer it named" if scope == 1 else "")
    if scope == 3:
        return "Yama's ptrace_scope is 3: nobody may"
    return f"the kernel refuses it: it may have capabilities that this process lacks (uid {owner}), or a seccomp filter"


def yama() -> int:
    """Yama's ptrace_scope (Documentation/admin-guide/LSM/Yama.rst); 0 where there is no Yama."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
