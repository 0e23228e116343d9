"""Hold the threads of a process that wait for connections by select(2), poll(2) or accept(2): it has no registration.

Theory of operation. Such a thread is stopped as a debugger stops one (PTRACE_SEIZE, PTRACE_INTERRUPT; ptrace(2)), and
nothing of it is changed: it has left its call, which the kernel begins anew when it goes on. If its tracer dies, the
kernel lets it go. Who traces is a thread: one for each process tree, which looks for waiting threads until `release`.
Only one that had heard of nothing stays held: its registers show that its call was cut short. One that a pipe wakes,
too, may be needed to serve the connections that there are, so it is held only while its process has none; and one that
waits for anything else is never held.

A stop signal must reach a held thread: it is let go once a signal waits for it, which it then meets first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping

from sockshare.kernel import connections, listeners, processes, waits

_WALL = 0x40000000
_GETREGS, _DETACH, _SEIZE, _INTERRUPT = 12, 17, 0x4206, 0x4207
_EVENT_STOP = 128
_REGISTERS = struct.Struct("=80xQ32xQ88x")  # rax and orig_rax in struct user_regs_struct of x86_64
_CUT_SHORT = frozenset((-512, -513, -514, -516))  # ERESTARTSYS and its kin
#: Seconds that a thread has to stop: it may be in a call that nothing interrupts.
_PATIENCE = 0.1
#: Seconds between two looks, and the share of one processor that looking may take.
_LOOK_EVERY = 0.005
_SHARE = 0.1
#: Signals that wake nobody who has to do with stopping.
_IDLE_SIGNALS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
_WAKING = ~sum(1 << (number - 1) for number in _IDLE_SIGNALS)

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Parking:
    """Holds those threads of *pid* and its descendants that wait on *sockets* (inode: our descriptor)."""

    def __init__(self, pid: int, sockets: Mapping[int, int]) -> None:
        self.pid = pid
        #: Why nothing can be held; empty as long as nothing is known against it.
        self.refusal = ""
        self._sockets = dict(sockets)
        self._seized: dict[int, int] = {}  # thread: its process
        self._held: set[int] = set()  # those of them that are known to have stopped where they should
        self._looked = threading.Event()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sockshare-park", daemon=True)
        self._thread.start()

    @property
    def held(self) -> int:
        """How many threads are held now."""
        return len(self._held)

    def wait(self, timeout: float) -> None:
        """Until something is held, or is known not to be possible; at most *timeout* seconds."""
        self._looked.wait(timeout)

    def release(self) -> None:
        """Let them go; returns when they do. May be called again."""
        self._released.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._released.is_set():
                began = time.thread_time()
                self._reap()
                self._let_signalled_go()
                for pid in processes.tree(self.pid):
                    self._park(pid)
                if self._held:
                    self._looked.set()
                cost = time.thread_time() - began
                self._released.wait(max(_LOOK_EVERY, cost * (1 - _SHARE) / _SHARE))
        except OSError as error:
            self.refusal = error.strerror or str(error)
        finally:
            for thread in list(self._seized):
                self._let_go(thread)
            self._looked.set()

    def _park(self, pid: int) -> None:
        for wait in waits.waits(pid, self._sockets):
            if wait.others or wait.thread in self._seized or _signal_waits(pid, wait.thread):
                continue
            try:
                _do(_SEIZE, wait.thread)
            except ProcessLookupError:
                continue
            self._seized[wait.thread] = pid
            with contextlib.suppress(ProcessLookupError):
                _do(_INTERRUPT, wait.thread)
                if self._has_stopped(wait.thread) and self._may_stay(pid, wait.thread):
                    self._held.add(wait.thread)
                else:
                    self._let_go(wait.thread)

    def _may_stay(self, pid: int, thread: int) -> bool:
        # Looked at again now that it can't move: it may have been quicker, and wait for a request by the same call.
        for wait in waits.waits(pid, self._sockets):
            if wait.thread == thread and not wait.others:
                return not wait.pipes or not self._has_connections(pid)
        return False

    def _has_stopped(self, thread: int) -> bool:
        """Wait for its stop; whether it was in its call still, and had heard of nothing."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            found, status = os.waitpid(thread, _WALL | os.WNOHANG)
            if found:
                break
            if time.monotonic() > deadline:
                # It can't be let go before it has stopped, except by the end of who traces it.
                raise TimeoutError("a thread can't be stopped")
            time.sleep(0.00005)
        if not os.WIFSTOPPED(status):
            self._forget(thread)
            return False
        if status >> 16 != _EVENT_STOP:  # a signal came first: it is to have it
            self._let_go(thread, os.WSTOPSIG(status))
            return False
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        _do(_GETREGS, thread, ctypes.addressof(buffer))
        result, call = struct.unpack("=qq", struct.pack("=QQ", *_REGISTERS.unpack(buffer.raw)))
        return result in _CUT_SHORT and call in waits.CALLS

    def _has_connections(self, pid: int) -> bool:
        owned = set(processes.socket_descriptors(pid))
        for fd in self._sockets.values():
            with socket.socket(fileno=os.dup(fd)) as sock:
                if not listeners.is_tcp(sock):
                    return True  # nobody can tell
                for one in connections.established(sock.family, sock.getsockname()[1]):
                    if one.inode in owned:
                        return True
        return False

    def _let_signalled_go(self) -> None:
        for thread, pid in list(self._seized.items()):
            if _signal_waits(pid, thread):
                self._let_go(thread)

    def _reap(self) -> None:
        # A dead one is a zombie until its tracer has asked, and its parent does not hear of it before.
        for thread in list(self._seized):
            try:
                found, status = os.waitpid(thread, _WALL | os.WNOHANG)
            except ChildProcessError:
                found, status = thread, 0
            if found and not os.WIFSTOPPED(status):
                self._forget(thread)

    def _forget(self, thread: int) -> None:
        self._seized.pop(thread, None)
        self._held.discard(thread)

    def _let_go(self, thread: int, number: int = 0) -> None:
        self._held.discard(thread)
        with contextlib.suppress(ProcessLookupError):  # it is being killed: once it is dead it is for `_reap`
            _do(_DETACH, thread, number)
            self._forget(thread)


def _signal_waits(pid: int, thread: int) -> bool:
    try:
        with open(f"/proc/{pid}/task/{thread}/status") as file:
            facts = dict(line.split(":\t", 1) for line in file if line.startswith(("SigPnd", "ShdPnd", "SigBlk")))
    except (FileNotFoundError, ProcessLookupError):
        return False
    pending = int(facts["SigPnd"], 16) | int(facts["ShdPnd"], 16)
    return bool(pending & ~int(facts["SigBlk"], 16) & _WAKING)


def _do(request: int, thread: int, data: int = 0) -> None:
    if _ptrace(request, thread, 0, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
