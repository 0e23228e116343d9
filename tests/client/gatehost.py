"""A host whose brokers grant registrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sockshare.kernel.gate import Gate

from .host import Host

#: More than any test claims.
GATES = 12


class GateHost(Host):
    """Keeps the gates of its brokers (tests/client/granter.py)."""

    module = "tests.client.granter"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gates = [Gate() for _ in range(GATES)]

    def start(self, **behaviour: Any) -> None:
        """Start a broker that behaves so."""
        gates = [gate.fileno() for gate in self.gates]
        super().start(gates=gates, journal=str(self.directory / "journal"), **behaviour)

    def order(self, line: str) -> None:
        """Give the broker an order, and return when it was obeyed."""
        self.give(line)
        self.wait_for("obeyed")

    def give(self, line: str) -> None:
        """Give the broker an order."""
        stdin = self.processes[-1].stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def close(self) -> None:
        super().close()
        for gate in self.gates:
            gate.close()
