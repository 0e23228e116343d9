"""The library for programs that use asyncio: ``async with sockshare.aio.attach() as share``."""

from __future__ import annotations

from .client.aio import Share, attach

__all__ = ["Share", "attach"]
