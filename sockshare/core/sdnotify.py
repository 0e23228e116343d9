"""What a program says on its ``NOTIFY_SOCKET``: the vocabulary of sd_notify(3), up to systemd 258.

The sender may be anybody, so nothing here raises, and everything is bounded: what is malformed is left out and listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

#: Bytes of a datagram that are read, as many as systemd reads (NOTIFY_BUFFER_MAX, PIPE_BUF). A receiver that asks for
#: one more sees whether there was more.
LONGEST = 4096

_SHOWN = 80  # characters of an assignment that `Notification.ignored` repeats


class Notification(NamedTuple):
    """One datagram. A field is None, or false, where the datagram says nothing about it.

    Times are microseconds; *monotonic_usec* is of CLOCK_MONOTONIC.
    """

    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    status: str | None = None
    errno: int | None = None
    bus_error: str | None = None
    varlink_error: str | None = None
    exit_status: int | None = None
    main_pid: int | None = None
    main_pidfd: bool = False
    main_pidfd_inode: int | None = None
    watchdog: Literal["trigger", True] | None = None
    watchdog_usec: int | None = None
    extend_timeout_usec: int | None = None
    monotonic_usec: int | None = None
    notify_access: str | None = None
    restart_reset: bool = False
    fdstore: bool = False
    fdstoreremove: bool = False
    fdname: str | None = None
    fdpoll: bool = True
    barrier: bool = False
    unknown: dict[str, str] = {}  # noqa: RUF012 - parse() gives each its own
    ignored: tuple[str, ...] = ()  # what was malformed, or said twice, as far as it is worth showing


class _Malformed(Exception):
    """A value that the key can't have."""


_Reader = Callable[[str], object]


def _one(value: str) -> bool:
    if value != "1":
        raise _Malformed
    return True


def _zero(value: str) -> bool:
    if value != "0":
        raise _Malformed
    return False


def _whole(largest: int, least: int = 0) -> _Reader:
    def read(value: str) -> int:
        # Not int() alone, which takes "1_0", " 1 " and digits of other scripts. 20 digits are 2**64.
        if not re.fullmatch("[0-9]{1,20}", value) or not least <= int(value) <= largest:
            raise _Malformed
        return int(value)

    return read


def _matching(pattern: str) -> _Reader:
    def read(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise _Malformed
        return value

    return read


def _text(value: str) -> str:
    return value


def _watchdog(value: str) -> Literal["trigger", True]:
    if value == "trigger":
        return "trigger"
    _one(value)
    return True


_MICROSECONDS = _whole(2**64 - 1)

_READERS: dict[str, tuple[str, _Reader]] = {
    "READY": ("ready", _one),
    "RELOADING": ("reloading", _one),
    "STOPPING": ("stopping", _one),
    "STATUS": ("status", _text),
    "ERRNO": ("errno", _whole(4095)),  # MAX_ERRNO of the kernel
    "BUSERROR": ("bus_error", _text),
    "VARLINKERROR": ("varlink_error", _text),
    "EXIT_STATUS": ("exit_status", _whole(255)),
    "MAINPID": ("main_pid", _whole(2**31 - 1, least=1)),
    "MAINPIDFD": ("main_pidfd", _one),
    "MAINPIDFDID": ("main_pidfd_inode", _whole(2**64 - 1, least=1)),
    "WATCHDOG": ("watchdog", _watchdog),
    "WATCHDOG_USEC": ("watchdog_usec", _MICROSECONDS),
    "EXTEND_TIMEOUT_USEC": ("extend_timeout_usec", _MICROSECONDS),
    "MONOTONIC_USEC": ("monotonic_usec", _MICROSECONDS),
    "NOTIFYACCESS": ("notify_access", _matching("none|main|exec|all")),
    "RESTART_RESET": ("restart_reset", _one),
    "FDSTORE": ("fdstore", _one),
    "FDSTOREREMOVE": ("fdstoreremove", _one),
    "FDNAME": ("fdname", _matching("[ -9;-~]{1,255}")),  # printable ASCII without the colon
    "FDPOLL": ("fdpoll", _zero),
    "BARRIER": ("barrier", _one),
}


def parse(datagram: bytes) -> Notification:
    """Read one datagram; never raises.

    As systemd does it: of a key that is there twice the first counts, and a ``BARRIER=1`` is to be alone, otherwise all
    the rest is ignored. Unlike systemd, which drops a datagram that is longer than `LONGEST` or has a NUL in it, this
    reads the assignments that are whole.
    """
    fields: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    ignored: list[str] = []
    if len(datagram) > LONGEST:
        ignored.append(f"what follows byte {LONGEST}")
        # The last line may have been cut in two: READY=1 out of READY=10.
        datagram = datagram[:LONGEST].rpartition(b"\n")[0]
    lines = [line for line in datagram.rstrip(b"\0").split(b"\n") if line]
    if b"BARRIER=1" in lines and len(lines) > 1:
        ignored += [_shown(line) for line in lines if line != b"BARRIER=1"]
        lines = [b"BARRIER=1"]
    for line in lines:
        try:
            key, equals, value = line.decode().partition("=")
        except UnicodeDecodeError:
            ignored.append(_shown(line))
            continue
        if not equals or not key or "\0" in line.decode():
            ignored.append(_shown(line))
        elif key not in _READERS:
            unknown.setdefault(key, value)
        else:
            name, read = _READERS[key]
            try:
                new = read(value)
            except _Malformed:
                ignored.append(_shown(line))
            else:
                if name in fields:
                    ignored.append(_shown(line))
                else:
                    fields[name] = new
    return Notification(**fields, unknown=unknown, ignored=tuple(ignored))


def _shown(line: bytes) -> str:
    """The line as a log can show it: on one line, not long, and with no control characters."""
    return ascii(line[:_SHOWN].decode(errors="backslashreplace"))[1:-1]
