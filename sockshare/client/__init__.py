"""What a program, or a command, needs to talk to the broker: find it, ask it, come to its door."""

from __future__ import annotations

from sockshare.core.platforms import require_support

# What is in here imports what only Linux has.
require_support()
