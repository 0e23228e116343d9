"""What a host says of itself to its broker, read: by a broker of the same version, or of a neighbour's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from . import versions
from .errors import ProtocolError
from .spec import ProgramSpec, SocketSpec

#: By whose restart a host becomes one of the version that is installed.
_RESTART = {"circus": "restart the plugin (circusctl restart plugin:sockshare)", "supervisor": "restart supervisord"}


class Unreadable(ProtocolError):
    """What the host says can't be read; the message says what to restart."""


class Manager(msgspec.Struct, frozen=True):
    """Whose host it is."""

    kind: str  # circus, supervisor
    pid: int
    uid: int
    endpoint: str | None = None  # where it takes commands by ZeroMQ; none: only through the host
    file: str | None = None  # its configuration, where that has to be said to its own command


class Configuration(msgspec.Struct, frozen=True):
    """What the manager's configuration says of us; with mistakes, nothing is handed out."""

    programs: list[ProgramSpec]
    mistakes: list[str] = []
    refused: list[str] = []  # mistakes that cost their own section only
    warnings: list[str] = []
    uids: list[int] = []  # the users that programs run as; none: not known, so anybody may ask


class Hello(Configuration, frozen=True, kw_only=True):
    """The first message. Its descriptors: the listeners', the sockets', the notify sockets', the kept, and then any
    that a later version has besides."""

    manager: Manager
    directory: str
    listeners: list[str]
    sockets: list[SocketSpec]
    notify: list[int] = []
    kept: list[str] = []
    journal: dict[str, Any] = {}


def read_hello(message: Mapping[str, Any], descriptors: int) -> Hello:
    """The hello *message*, which came with so many *descriptors*.

    Raises:
        Unreadable: It is of a version that is no neighbour of ours, or it can't be read.
    """
    if not versions.are_neighbours(versions.LINK, message.get("version")):
        found = message.get("version")
        known = versions.understood(versions.LINK)
        raise _unreadable(message, f"its hello is of version {found!r}, and this broker reads {known}")
    try:
        hello = msgspec.convert(message, Hello)
    except ValueError as error:
        raise _unreadable(message, f"its hello can't be read ({error})") from None
    counted = len(hello.listeners) + len(hello.sockets) + len(hello.notify) + len(hello.kept)
    if counted > descriptors:
        raise _unreadable(message, f"its hello counts {counted} descriptors, and {descriptors} came with it")
    missing = [name for name in ("broker", "door") if name not in hello.listeners]
    if missing:
        raise _unreadable(message, f"its hello has no listener {missing[0]!r}")
    return hello


def read_programs(message: Mapping[str, Any], hello: Hello) -> Configuration:
    """The host's later *message* of a changed configuration.

    Raises:
        Unreadable: It can't be read.
    """
    try:
        return msgspec.convert(message, Configuration)
    except ValueError as error:
        raise _unreadable(
            {"manager": msgspec.to_builtins(hello.manager)}, f"can't read its programs ({error})"
        ) from None


def _unreadable(message: Mapping[str, Any], why: str) -> Unreadable:
    manager = message.get("manager")
    manager = manager if isinstance(manager, dict) else {}
    kind = str(manager.get("kind"))
    theirs = (
        f"sockshare {message['package']}" if isinstance(message.get("package"), str) else "the sockshare that it runs"
    )
    restart = _RESTART.get(kind, "restart the manager")
    return Unreadable(f"can't serve {kind} (pid {manager.get('pid')}): {why}; {restart}, or install {theirs} again")
