"""All bugs, a file for each package."""

from __future__ import annotations

from tests.support.alike import ALIKE

from ..mutant import Mutant
from . import broker, circus, client, core, host, kernel, supervisor
from .cli import CLI

MUTANTS: tuple[Mutant, ...] = (
    *core.CORE,
    *kernel.KERNEL,
    *host.HOST,
    *broker.BROKER,
    *client.CLIENT,
    *CLI,
    *circus.CIRCUS,
    *supervisor.SUPERVISOR,
)


def soak() -> frozenset[str]:
    """The tests that a sibling stands for in the default run."""
    return ALIKE
