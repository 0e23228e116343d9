"""Shared sockets for programs that run under circus or supervisord: what a program imports.

``import sockshare`` is light; the dialogue (pyzmq) is imported by the first `attach`.
"""

from __future__ import annotations

from .core.errors import (
    BadConfiguration,
    ExitStatus,
    HandOverTimedOut,
    ManagerError,
    NoBroker,
    NoReceiver,
    NotPermitted,
    ProtocolError,
    RegistrationLost,
    SockshareError,
    TicketRefused,
    UnknownProgram,
    UnknownSocket,
    UnsupportedPlatform,
)

TYPE_CHECKING = False  # as of typing, which takes longer to import than all the rest
if TYPE_CHECKING:
    from . import aio
    from .client.registration import Registration
    from .client.sync import Share, attach

#: The one place of the version; setup.cfg reads this literal without importing anything.
__version__ = "0.1.0"

__all__ = [
    "BadConfiguration",
    "ExitStatus",
    "HandOverTimedOut",
    "ManagerError",
    "NoBroker",
    "NoReceiver",
    "NotPermitted",
    "ProtocolError",
    "Registration",
    "RegistrationLost",
    "Share",
    "SockshareError",
    "TicketRefused",
    "UnknownProgram",
    "UnknownSocket",
    "UnsupportedPlatform",
    "__version__",
    "aio",
    "attach",
]


def __getattr__(name: str) -> object:
    # PEP 562: the host under supervisord imports this package and must never import zmq.
    from importlib import import_module

    if name in ("attach", "Share"):
        return getattr(import_module("sockshare.client.sync"), name)
    if name == "Registration":
        return import_module("sockshare.client.registration").Registration
    if name == "aio":
        return import_module("sockshare.aio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
