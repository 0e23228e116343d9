"""The descriptor store: what a broker gives its host to keep for the next one, as systemd's FDSTORE does.

A descriptor is never looked at or used here; the next broker gets it with its hello.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Sequence

from sockshare.kernel.descriptors import close_all

log = logging.getLogger(__name__)

#: The most descriptors that are kept.
MOST = 4096
# supervisord needs several for each child that it starts: never more than this part of what the process may open.
_PART = 4


class DescriptorStore:
    """Descriptors by key; they are this object's."""

    def __init__(self) -> None:
        self._kept: dict[str, int] = {}

    @property
    def trouble(self) -> str:
        """Why no more are kept; "" while there is room."""
        return f"can't keep more than {_limit()} descriptors for a broker" if len(self._kept) >= _limit() else ""

    @property
    def kept(self) -> dict[str, int]:
        """All of them, by key, in the order in which they came; a copy."""
        return dict(self._kept)

    def keep(self, key: str, fds: Sequence[int]) -> None:
        """Keep the one descriptor in *fds* under *key*, in place of an earlier one.

        Too many are closed, as is anything but exactly one; the log says so.
        """
        if len(fds) != 1:
            log.warning("store: %s came with %d descriptors, not with one; they were closed", key, len(fds))
            close_all(fds)
            return
        if key not in self._kept and len(self._kept) >= _limit():
            log.warning("store: it is full (%d descriptors); %s is not kept", len(self._kept), key)
            close_all(fds)
            return
        self.forget(key)
        self._kept[key] = fds[0]

    def forget(self, key: str) -> None:
        """Close what is kept under *key*, if anything is."""
        fd = self._kept.pop(key, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all."""
        close_all(self._kept.values())
        self._kept.clear()


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(MOST, soft // _PART)
