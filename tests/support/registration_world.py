"""A small world around `sockshare.core.registration`: processes, their kernel, their messages, and a broker that dies.

The broker performs effects as the real one does, and can be killed before any of them; the next one has its last
record and what the kernel shows. The laws that hold at every step, also between two effects, are asserted here.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sockshare.core.registration import ACK_TIMEOUT, Registration
from sockshare.core.registration_steps import (
    Arm,
    Claim,
    Claimed,
    Disarm,
    Disarmed,
    Effect,
    Event,
    Gone,
    Means,
    NotDisarmed,
    Paused,
    Policy,
    Record,
    Registered,
    Released,
    Resumed,
    Standing,
    Stop,
    Tell,
    Tick,
)


@dataclass
class Process:
    """A process with one claim: what the kernel knows of it, and what it knows itself."""

    claim: Claim
    alive: bool = True
    stopped: bool = False  # SIGSTOP
    armed: bool = False
    by_itself: bool = False  # armed, and the broker has not noticed yet
    stuck: bool = False  # can't be disarmed
    connection: int = 0  # to which broker, the first is 1
    inbox: list[tuple[str, int]] = field(default_factory=list)  # of this connection
    left_over: list[tuple[str, int]] = field(default_factory=list)  # of an earlier one: never to be read
    outbox: list[Event] = field(default_factory=list)
    seen: int = 0  # the largest epoch that it held
    epoch: int = 0  # that it holds, as far as it knows
    over: bool = False  # it has given its claim up, or was told that it is over

    @property
    def key(self) -> str:
        return self.claim.key

    @property
    def runs(self) -> bool:
        return self.alive and not self.stopped


class _Killed(Exception):
    """The broker, before what it was about to do."""


class World:
    """One socket's claimants, and their brokers.

    Args:
        design: What is under test.
        reads_left_over: Whether a process that has re-attached still reads what an earlier connection brought.
    """

    def __init__(
        self, policy: Policy, design: type[Registration] = Registration, reads_left_over: bool = False
    ) -> None:
        self.policy = policy
        self.design = design
        self.reads_left_over = reads_left_over
        self.now = 10
        self.processes: list[Process] = []
        self.unreaped: list[Process] = []
        self.paused: set[str] = set()  # as recorded
        self.last_epoch = 0
        self.granted: dict[int, str] = {}
        self.generation = 1
        self.broker: Registration | None = design(policy)
        self.journal = json.dumps(self.broker.record())
        self.fuse: int | None = None  # after so many more steps the broker is killed
        self.away = False  # whether it is then away until `restart`

    # Processes.

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def process(self, key: str) -> Process:
        return next(process for process in self.processes if process.key == key)

    def start(self, pid: int, means: Means) -> Process | None:
        """A process with a pid that may have been another's; None if it is somebody's."""
        if any(process.claim.pid == pid for process in self.living):
            return None
        made = len(self.processes) + 1
        process = Process(Claim(f"k{made}", pid, (pid, made, 1000 + made), f"web:{made}", "web", means))
        self.processes.append(process)
        return process

    def die(self, process: Process) -> None:
        process.alive = process.armed = process.by_itself = False
        self.unreaped.append(process)

    def attach(self, process: Process) -> None:
        """It connects to the broker that there is now, or asks again, and is told where it stands."""
        if not process.runs or self.broker is None or process.claim.means is Means.SUSPEND:
            return
        if process.connection != self.generation:
            process.left_over += process.inbox
            process.inbox = []
            process.connection = self.generation
        entry = self.broker.find(process.key)
        if process.over:
            if entry is not None:
                self.feed(Released(process.key, entry.epoch))
            return
        if entry is None:
            self.feed(Claimed(process.claim))
        elif entry.epoch:
            process.inbox.append(("held" if entry.standing is Standing.HELD else "revoked", entry.epoch))

    def register(self, process: Process) -> None:
        """An unmodified program registers the socket, or somebody opens a gate."""
        if process.runs and process.claim.means is not Means.COOPERATE and not process.armed and not process.over:
            process.armed = process.by_itself = True

    def observe(self, process: Process) -> None:
        """The broker looks at it."""
        if not process.armed or process.claim.means is Means.COOPERATE or self.broker is None:
            return
        if self.broker.find(process.key) is not None:
            self.feed(Registered(process.key))
        elif process.claim.means is Means.SUSPEND:
            self.feed(Claimed(process.claim))

    def read(self, process: Process) -> None:
        """It reads one message."""
        if not process.runs:
            return
        if process.inbox:
            what, epoch = process.inbox.pop(0)
        elif process.left_over and self.reads_left_over:
            what, epoch = process.left_over.pop(0)
        else:
            return
        cooperates = process.claim.means is Means.COOPERATE
        if what == "held" and epoch > process.seen and not process.over:
            process.seen = process.epoch = epoch
            if cooperates:
                process.armed = True
                self.check()
        elif what == "revoked":
            if epoch == process.epoch:
                process.epoch = 0
                process.armed = process.armed and not cooperates
            if cooperates:
                process.outbox.append(Disarmed(process.key, epoch))
        elif what == "cancelled":
            process.over, process.epoch = True, 0
            process.armed = process.by_itself = False  # as it has released it

    def release(self, process: Process) -> None:
        """It gives up what it holds, as far as it knows, or its wish for it."""
        if process.runs and not process.over and process.claim.means is not Means.SUSPEND:
            process.outbox.append(Released(process.key, process.epoch))
            process.over, process.epoch = True, 0
            process.armed = process.by_itself = False  # it watches nothing any more, whatever becomes of its gate

    def deliver(self, process: Process, which: int, *, again: bool) -> None:
        """One of its messages arrives: any, at any time; *again*: not for the last time."""
        if process.outbox and self.broker is not None:
            which %= len(process.outbox)
            self.feed(process.outbox[which] if again else process.outbox.pop(which))

    # The broker.

    def feed(self, event: Event) -> None:
        """The broker takes *event*, unless there is none."""
        if self.broker is None:
            return
        if isinstance(event, Resumed):
            self.paused.discard(event.key)
        try:
            self._take(self.broker, event)
        except _Killed:
            self.broker = None
            if not self.away:
                self.restart()
        self.check()

    def kill_after(self, steps: int) -> None:
        """The broker dies after so many steps of its own."""
        self.fuse = steps or None
        if not steps:
            self.broker = None
            if not self.away:
                self.restart()

    def restart(self) -> None:
        """The next broker finds the record, and who is dead."""
        if self.broker is not None:
            return
        self.generation += 1
        self.broker, effects = self.design.recover(self.policy, json.loads(self.journal), self.now)
        answers: deque[Event] = deque()
        try:
            for entry in self.broker.claims:
                if not self.process(entry.claim.key).alive:
                    effects += self.broker.feed(Gone(entry.claim.identity), self.now)
            self._perform(self.broker, effects, answers)
            while answers:
                self._take(self.broker, answers.popleft())
        except _Killed:
            self.broker = None
            if not self.away:
                self.restart()
            return
        for process in self.living:
            found = self.broker.find(process.key)
            swept = found is None or found.standing is not Standing.WAITING or not process.armed
            assert swept, f"{process.key} is armed, and waits"
        self.check()

    def reap(self) -> None:
        """The broker notices the death that is due next."""
        if self.unreaped and self.broker is not None:
            self.feed(Gone(self.unreaped.pop(0).claim.identity))

    def wait(self, nanoseconds: int) -> None:
        self.now += nanoseconds
        if self.broker is not None and self.broker.deadline is not None and self.now >= self.broker.deadline:
            self.feed(Tick())

    def _step(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise _Killed

    def _take(self, broker: Registration, event: Event) -> None:
        events: deque[Event] = deque([event])
        while events:
            self._step()
            taken, before = events.popleft(), broker.record()
            effects = broker.feed(taken, self.now)
            if not effects:
                assert broker.record() == before, f"{taken} did nothing, and changed something"
            self._perform(broker, effects, events)
            if isinstance(taken, Paused) and effects:
                self.paused.add(taken.key)

    def _perform(self, broker: Registration, effects: list[Effect], answers: deque[Event]) -> None:
        for effect in effects:
            self._step()
            if isinstance(effect, Record):
                self.journal = json.dumps(broker.record())
            elif isinstance(effect, Arm):
                self._arm(effect)
            elif isinstance(effect, Disarm):
                answers.append(self._disarm(effect))
            elif isinstance(effect, Tell):
                self._tell(effect)
            elif isinstance(effect, Stop):
                self._stop(effect)

    def _arm(self, effect: Arm) -> None:
        process = self.process(effect.key)
        if self.granted.get(effect.epoch) != effect.key:
            assert effect.epoch > self.last_epoch, f"epoch {effect.epoch} came after {self.last_epoch}"
            assert effect.key not in self.paused, f"{effect.key} is paused and was granted it"
            self.last_epoch = effect.epoch
            self.granted[effect.epoch] = effect.key
        if not process.alive or process.over:
            return
        if process.claim.means is Means.COOPERATE:
            self._send(process, "held", effect.epoch)
        else:
            process.armed, process.by_itself = True, False
            self.check()

    def _disarm(self, effect: Disarm) -> Event:
        process = self.process(effect.key)
        if process.alive and (process.stuck or process.claim.means is Means.COOPERATE):
            return NotDisarmed(effect.key, effect.epoch, "it can't be disarmed")
        process.armed = process.by_itself = False
        return Disarmed(effect.key, effect.epoch)

    def _tell(self, effect: Tell) -> None:
        process = self.process(effect.key)
        if not (effect.what == "held" and process.claim.means is Means.COOPERATE):  # `Arm` has told it
            self._send(process, effect.what, effect.epoch)

    def _send(self, process: Process, what: str, epoch: int) -> None:
        if process.alive and process.connection == self.generation:
            process.inbox.append((what, epoch))

    def _stop(self, effect: Stop) -> None:
        recorded = self.process(effect.key).claim.identity
        assert effect.identity == recorded, f"{effect.identity} is signalled in place of {recorded}"
        for process in self.living:
            if process.claim.identity == effect.identity:
                self.die(process)

    # The laws.

    def check(self) -> None:
        """At most so many are armed, but for those who armed themselves and were not noticed yet."""
        armed = [process.key for process in self.living if process.armed and not process.by_itself]
        assert len(armed) <= self.policy.limit, f"{armed} are armed"

    def settle(self) -> None:
        """Nothing more is asked for and nobody dies by himself; everything else happens, and so long as it takes.

        Then as many hold it as may, and they are armed.
        """
        self.fuse = None
        self.restart()
        assert self.broker is not None
        before, rounds = "", 0
        while before != (before := self.journal + repr(self.processes)):
            rounds += 1
            assert rounds < 20, "it does not come to rest"
            while self.unreaped:
                self.reap()
            for process in self.living:
                self.attach(process)
                self.observe(process)
                while process.inbox and process.runs:
                    self.read(process)
                while process.outbox:
                    self.deliver(process, 0, again=False)
            self.wait(ACK_TIMEOUT)
        held = [entry for entry in self.broker.claims if entry.standing is Standing.HELD]
        wish = [entry for entry in self.broker.claims if not entry.paused and self.waits(entry.claim.key)]
        assert len(held) == min(self.policy.limit, len(wish)), f"{held} hold it of {wish}"
        for entry in held:
            process = self.process(entry.claim.key)
            assert process.armed or process.stopped, f"{process.key} holds it and is not armed"

    def waits(self, key: str) -> bool:
        """Whether it wants the registration, as far as the broker can learn."""
        process = self.process(key)
        return process.alive and not (process.over and process.runs)


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record does not change by being recovered: the time that a holder has to let go begins anew."""
    revoking = Standing.REVOKING.value
    claims = [{**one, "since": 0} if one["standing"] == revoking else one for one in record["claims"]]
    return {**record, "claims": claims}
