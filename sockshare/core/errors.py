"""What can go wrong, as types; and the exit status each one gives a command.

Every message is one sentence: *can't VERB OBJECT: reason (facts)*, ending with what to do when it is a user's mistake.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the ``sockshare`` commands (docs/errors.md has a page of them)."""

    OK = 0
    INTERNAL = 1  # or the manager refused: nothing was started
    USAGE = 2  # or bad configuration
    NOT_SERVING = 3
    UNKNOWN_NAME = 4
    ROLLED_BACK = 5  # the new one failed, the old one serves
    TIMED_OUT = 6
    NOT_PERMITTED = 7
    NOT_RUNNING = 9
    ALREADY_RUNNING = 10
    NO_BROKER = 75  # EX_TEMPFAIL of sysexits.h: try again later
    REFUSED = 125  # `exec` only
    CANNOT_EXECUTE = 126  # `exec` only, as a shell says it
    NOT_FOUND = 127  # `exec` only, as a shell says it


class SockshareError(Exception):
    """The base of every error that sockshare raises on purpose."""

    exit_status = ExitStatus.INTERNAL


class NoBroker(SockshareError, ConnectionError):
    """No broker was found, or it did not answer in time."""

    exit_status = ExitStatus.NO_BROKER


class UnknownSocket(SockshareError, LookupError):
    """No socket of that name is shared."""

    exit_status = ExitStatus.UNKNOWN_NAME


class UnknownProgram(SockshareError, LookupError):
    """The manager runs no program of that name."""

    exit_status = ExitStatus.UNKNOWN_NAME


class NotPermitted(SockshareError, PermissionError):
    """The asking process may not have or do that."""

    exit_status = ExitStatus.NOT_PERMITTED


class TicketRefused(SockshareError, PermissionError):
    """The ticket is unknown, used, expired, or another process's."""

    exit_status = ExitStatus.NOT_PERMITTED


class RegistrationLost(SockshareError):
    """The registration was revoked, or its holder is gone."""


class NoReceiver(SockshareError):
    """Nobody takes the connection: no receiver is there, or all are full. It is still its owner's."""

    exit_status = ExitStatus.NOT_SERVING


class HandOverTimedOut(SockshareError, TimeoutError):
    """A connection was not handed over, or none was received, in time. It is still its owner's."""

    exit_status = ExitStatus.TIMED_OUT


class ProtocolError(SockshareError, ValueError):
    """A message that is not of the form it must have."""


class BadConfiguration(SockshareError, ValueError):
    """The configuration was refused; the message has every mistake, one a line."""

    exit_status = ExitStatus.USAGE


class UnsupportedPlatform(SockshareError, ImportError):
    """sockshare does not run on this system."""

    exit_status = ExitStatus.USAGE


class ManagerError(SockshareError):
    """circusd or supervisord did not do what it was asked."""


class NotRunning(ManagerError):
    """No process of the program runs: there is nothing to replace."""

    exit_status = ExitStatus.NOT_RUNNING


class AlreadyRunning(ManagerError):
    """The program's processes are being replaced already."""

    exit_status = ExitStatus.ALREADY_RUNNING


class ManagerSilent(ManagerError):
    """It has not answered: it may have done what it was asked, or may be about to."""


#: The errors that travel over ZeroMQ and the door, by the name they travel under.
BY_NAME: dict[str, type[SockshareError]] = {
    kind.__name__: kind
    for kind in (
        SockshareError,
        NoBroker,
        UnknownSocket,
        UnknownProgram,
        NotPermitted,
        TicketRefused,
        RegistrationLost,
        NoReceiver,
        HandOverTimedOut,
        ProtocolError,
        BadConfiguration,
        ManagerError,
        NotRunning,
        AlreadyRunning,
        ManagerSilent,
    )
}
