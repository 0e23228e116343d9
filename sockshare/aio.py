"""The library for programs that use asyncio: ``async with sockshare.aio.attach() as share``."""

from __future__ import annotations

from .client.aio import Share, attach
from .client.aio_registration import Registration
from .client.serving import Server, start_server
from .client.streams import Parts, put_together, take_apart

__all__ = ["Parts", "Registration", "Server", "Share", "attach", "put_together", "start_server", "take_apart"]
