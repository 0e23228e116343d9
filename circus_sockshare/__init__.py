"""The circus host: ``[plugin:sockshare]`` with ``use = circus_sockshare.SockShare`` and ``use_sockets = True``.

circusd imports this module into itself, to see that ``SockShare`` exists, before it starts the plugin's process. There
it gets one command of ours (`circus_sockshare.inside`) and nothing else; only its own process imports the plugin.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sockshare.core.platforms import unsupported

if TYPE_CHECKING:
    from .plugin import SockShare

__all__ = ["SockShare"]

_INSIDE_CIRCUSD = "circus.arbiter" in sys.modules

_wrong = unsupported()
if _INSIDE_CIRCUSD and _wrong is not None:
    # A plugin that can't begin is started again each second, and says nothing.
    print(f"circus_sockshare: {_wrong}", file=sys.stderr)
    sys.exit(2)

if _INSIDE_CIRCUSD:
    try:
        from . import inside

        inside.install()
    except Exception as _error:  # whatever is wrong with us, circusd has other work: the plugin says what is missing
        import logging

        logging.getLogger("circus").error("sockshare: can't add its command to circusd: %s", _error)


def __getattr__(name: str) -> Any:
    if name != "SockShare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _INSIDE_CIRCUSD:
        return "the plugin's own process imports it"
    from .plugin import SockShare

    return SockShare
