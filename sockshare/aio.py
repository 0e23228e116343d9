"""The library for programs that use asyncio: ``async with sockshare.aio.attach() as share``."""

from __future__ import annotations

from .client.aio import Share, attach
from .client.aio_registration import Registration
from .client.serving import Server, start_server

__all__ = ["Registration", "Server", "Share", "attach", "start_server"]
