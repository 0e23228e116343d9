"""The reloads that are running, one a program, and the last one of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .hostlink import HostLink
from .introductions import Introductions
from .reloads import Reload, Services
from .roster import Known, Managed
from .state import State

log = logging.getLogger(__name__)


class Reloading:
    """Made in the running loop.

    Attributes:
        running: Those of programs, by program.
        last: What came of the last one of a program: its key, and what its command was told.

    Args:
        journal: What the broker before had the host keep.
    """

    def __init__(self, state: State, introductions: Introductions, link: HostLink, journal: Mapping[str, Any]) -> None:
        self._state = state
        self._introductions = introductions
        self._link = link
        self.running: dict[str, Reload] = {}
        self._ended: dict[str, Reload] = {}  # the last one that this broker has seen, by program
        self.last: dict[str, dict[str, Any]] = {
            key[5:]: record for key, record in journal.items() if key.startswith("last:")
        }

    def services(self) -> Services:
        """What a reload works with."""
        state = self._state
        return Services(
            self._link,
            state.roster,
            state.observer,
            state.registrations,
            self._introductions,
            state.addresses,
            state.reply,
        )

    def take_up(self, journal: Mapping[str, Any]) -> None:
        """Go on with those of a broker that was killed."""
        for key, record in journal.items():
            program = key.partition(":")[2]
            if not key.startswith("reload:") or not record or program in self.running:
                continue
            if self.last.get(program, {}).get("key") == record["rollout"]["plan"]["key"]:
                self._link.journal(key, None)
                continue
            try:
                Reload.recover(self.services(), record, self.ended, self.running)
            except (KeyError, TypeError, ValueError):
                log.exception("%s: the record of its reload is not readable; it is given up", program)
                self._link.journal(key, None)

    def events(self, program: str, key: str) -> list[dict[str, Any]]:
        """What the reload *key* of *program* has told, as far as this broker has seen it."""
        for found in (self.running.get(program), self._ended.get(program)):
            if found is not None and found.key == key:
                return list(found.events)
        return []

    def said(self, managed: Managed) -> None:
        """*managed* said that it is ready."""
        running = self.running.get(managed.program)
        if running is not None:
            running.said(managed)

    def died(self, known: Known) -> None:
        """A managed process has died."""
        running = None if known.managed is None else self.running.get(known.managed.program)
        if running is not None:
            running.died(known)

    def ended(self, reload: Reload, answer: dict[str, Any]) -> None:
        """*reload* is over; *answer* is what its command is told."""
        self._ended[reload.program] = self.running.pop(reload.program)
        # In this order: killed between the two, the next broker would take the reload up again, and find nothing to do.
        self.keep_last(reload, answer)
        self._link.journal(f"reload:{reload.program}", None)

    def keep_last(self, reload: Reload, answer: dict[str, Any]) -> None:
        """*reload* is the last of its program."""
        self.last[reload.program] = record = {"key": reload.key, "answer": answer}
        self._link.journal(f"last:{reload.program}", record)
