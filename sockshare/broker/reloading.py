"""The reloads that are running, one a program, and the last one of each."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from sockshare.core.errors import ExitStatus
from sockshare.core.readiness import Expectation
from sockshare.core.records import Answer, Learned, Records, reload_key
from sockshare.core.steps import Plan

from .endpoint import Caller
from .hostlink import HostLink
from .introductions import Introductions
from .leftovers import Leftovers
from .reloads import Reload, Services
from .roster import Known, Managed
from .state import State

log = logging.getLogger(__name__)

#: So many brokers may end by a bug in one reload; then it is given up.
TRIES = 2


class Reloading:
    """Made in the running loop.

    Attributes:
        running: Those of programs, by program.
        last: What came of the last one of a program: its key, and what its command was told.

    Args:
        records: What the broker before had the host keep.
    """

    def __init__(
        self, state: State, introductions: Introductions, link: HostLink, records: Records, leftovers: Leftovers
    ) -> None:
        self._state = state
        self._leftovers = leftovers
        self._introductions = introductions
        self._link = link
        self.running: dict[str, Reload] = {}
        self._ended: dict[str, Reload] = {}  # the last one that this broker has seen, by program
        self.last: dict[str, dict[str, Any]] = {
            program: {"key": last.key, "answer": msgspec.structs.asdict(last.answer)}
            for program, last in records.last.items()
        }
        self._records = records

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
            self._leftovers,
            state.guard.tell,
            state.manager_name,
        )

    def take_up(self) -> None:
        """Go on with those of a broker that was killed."""
        for name, unread in self._records.unreadable.items():
            if name.startswith("reload:"):
                self._give_up(name[7:], reload_key(unread.record), f"its record can't be read ({unread.why})")
        for program, record in self._records.reloads.items():
            key = reload_key({"rollout": record.rollout})
            if self.last.get(program, {}).get("key") == key:
                self._link.journal(f"reload:{program}", None)
            elif record.failures >= TRIES:
                self._give_up(program, key, f"{record.failures} brokers have ended by a bug in it; see their log")
            else:
                try:
                    Reload.recover(self.services(), record, self.ended, self.running)
                except Exception as error:  # whatever it is, the next broker would meet it too
                    log.exception("%s: its reload can't be taken up", program)
                    self._give_up(program, key, f"it can't be taken up ({error!r})")

    def begin(self, plan: Plan, expectation: Expectation, stderr: str | None, follower: Caller | None) -> None:
        """Begin a reload; one that was told, and only drains, ends, and what it drains is the new one's."""
        before = self.running.get(plan.program)
        turns = [] if before is None else before.supersede()
        reload = Reload(self.services(), plan, expectation, self.ended, stderr, turns)
        self.running[plan.program] = reload
        if follower is not None:
            reload.follow(follower)
        # In this order: who drains is in the journal all the time.
        reload.begin()
        if before is not None:
            before.end(reload)

    def _give_up(self, program: str, key: str | None, why: str) -> None:
        """Let the reload of *program* be over as it stands, and its command know."""
        log.error("%s: its reload is given up: %s", program, why)
        self.running.pop(program, None)
        if key is not None:  # a command that asks again must not begin another
            reason = f"the reload is given up as it stands: {why}; `sockshare status` shows which processes run"
            self.last[program] = last = {
                "key": key,
                "answer": msgspec.structs.asdict(Answer("failed", int(ExitStatus.INTERNAL), reason)),
            }
            self._link.journal(f"last:{program}", last)
        self._link.journal(f"reload:{program}", None)

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
        self._ended[reload.program] = reload
        self.learn(reload)
        # In this order: killed between the two, the next broker would take the reload up again, and find nothing to do.
        self.keep_last(reload, answer)
        if self.running.get(reload.program) is reload:  # else another has superseded it
            del self.running[reload.program]
            self._link.journal(f"reload:{reload.program}", None)

    def learn(self, reload: Reload) -> None:
        """Have the next one drain the program from outside, if its stop signal has cut requests in *reload*."""
        cost, plan = reload.cost, reload.plan
        if cost is None or not cost.cut or plan.drain:
            return
        learned = self._state.learned[reload.program] = Learned(cost.cut, plan.stop_signal)
        self._link.journal(f"learned:{reload.program}", learned)

    def keep_last(self, reload: Reload, answer: dict[str, Any]) -> None:
        """*reload* is the last of its program."""
        self.last[reload.program] = record = {"key": reload.key, "answer": answer}
        self._link.journal(f"last:{reload.program}", record)
