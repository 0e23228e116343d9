"""What a watcher's section may name: ``hooks.before_signal = circus_sockshare.hooks.before_signal``."""

from __future__ import annotations

from typing import Any

from . import holding

holding.install()


def before_signal(**_: Any) -> bool:
    """Have circus hand a process over before it stops it for another; the signal itself always goes out.

    The hook is asked too late for more: circus has decided, counts towards SIGKILL whatever the answer is, and sends
    the same signal to the children without asking. So what it does is to mark its watcher; what holds the process back
    is the step before (`circus_sockshare.holding`), where it still can be spared when the new one fails.
    """
    return True


# By an attribute: `circusctl set web hooks.before_signal ...` loads this module again, and makes another function.
before_signal.hands_over = True  # type: ignore[attr-defined]
