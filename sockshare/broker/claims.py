"""What processes claim over the dialogue: those that use the library, and those behind ``exec --registration``.

A claim is not eligible before its process has what it takes: its gate, if it is kept by one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from sockshare.core import registration_steps as rules
from sockshare.core.errors import NotPermitted, ProtocolError, RegistrationLost, UnknownSocket
from sockshare.core.registration_steps import Means, Standing
from sockshare.kernel.gate import Gate
from sockshare.kernel.peers import Identity

from .endpoint import Caller
from .gates import Claimant, Gates, event
from .line import Line
from .roster import Managed

_KEY = re.compile("[0-9a-f]{32}")
#: Claims that one process may have on one socket.
_CLAIMS_OF_ONE = 16


class Claims:
    """What processes claim over the dialogue.

    Args:
        watch: Has the death of a process watched; false if it is dead.
        is_paused: Whether a managed process is not to have what only some may have.
        uses_library: Called when a managed process is known to claim a socket, so that it need not be looked at for it.
    """

    def __init__(
        self,
        lines: Mapping[str, Line],
        gates: Gates,
        tell: Callable[[Caller, dict[str, Any]], object],
        watch: Callable[[Identity], bool],
        is_paused: Callable[[int], bool],
        uses_library: Callable[[int, str], None],
    ) -> None:
        self._lines = lines
        self._gates = gates
        self._tell = tell
        self._watch = watch
        self._is_paused = is_paused
        self._uses_library = uses_library

    def claim(
        self,
        caller: Caller,
        who: Identity,
        managed: Managed,
        name: str,
        key: str,
        *,
        gate: bool,
        cooperate: bool,
        epoch: int = 0,
    ) -> Claimant:
        """*who*, of *managed*, claims the registration of the socket *name*, to which it was entitled.

        Args:
            gate: It has its gate already, from a claim of this key before.
            epoch: Under which it has held it before; 0: it has not.

        Returns:
            The claim, new or standing; `introduce` is to follow.

        Raises:
            ProtocolError, NotPermitted, UnknownSocket: It can't.
            RegistrationLost: It was cancelled by another one's registration, and the broker that did it has died before
                it could say so: to take the claim for a new one would cancel that one.
        """
        line = self._lines.get(name)
        if line is None:
            raise UnknownSocket(f"can't claim the registration of {name!r}: no such socket")
        if not _KEY.fullmatch(key):
            raise ProtocolError("can't claim a registration: its key must have 32 hexadecimal digits")
        means = Means.COOPERATE if cooperate else Means.GATE
        if not rules.supports(line.policy, means):
            why = "its program could let go only by ending" if cooperate else "it can't be kept by a gate"
            asked = f"registration = {line.spec.registration}"
            raise NotPermitted(f"can't claim the registration of {name!r} for {managed.name}: {asked}, and {why}")
        one = line.claimants.get(key)
        if one is None and epoch and line.policy.kind == "latest":
            raise RegistrationLost(f"can't hold {name!r}: it was cancelled by another process's registration")
        if one is None:
            one = self._new(line, key, who, managed, means, has_gate=gate)
        elif one.identity != who or one.means is not means:
            raise NotPermitted(f"can't claim the registration of {name!r}: that key is another claim's")
        one.caller = caller
        if means is Means.COOPERATE or (gate and one.gate is not None):
            self.eligible(name, key)
        return one

    def _new(self, line: Line, key: str, who: Identity, managed: Managed, means: Means, *, has_gate: bool) -> Claimant:
        whom = f"can't claim the registration of {line.name!r} for pid {who.pid}"
        if sum(other.identity == who for other in line.claimants.values()) >= _CLAIMS_OF_ONE:
            raise NotPermitted(f"{whom}: it has {_CLAIMS_OF_ONE} claims on it already")
        if not self._watch(who):
            raise NotPermitted(f"{whom}: it has died")
        one = Claimant(key, line.name, who, managed.pid, managed.name, managed.program, means)
        if means is Means.GATE and not has_gate:
            one.gate = self._gates.make(key)
        line.claimants[key] = one
        self._uses_library(managed.pid, line.name)
        return one

    def introduce(self, one: Claimant) -> None:
        """Tell a claimant that has asked where it stands."""
        if one.caller is None:
            return
        if one.means is Means.GATE and one.gate is None:
            self._tell(one.caller, {"event": {"present": True}})
        if self._lines[one.socket].takes_turns and one.tally is None:
            self._tell(one.caller, {"event": {"tally": True}})
        entry = self._lines[one.socket].rules.find(one.key)
        if entry is not None:
            held = self._lines[one.socket].is_told(one.key)
            self._tell(one.caller, event("held" if held else "waiting", entry.epoch if held else 0))

    def eligible(self, name: str, key: str) -> None:
        """The claim may be granted from now on: its process has what it takes."""
        line = self._lines.get(name)
        one = None if line is None else line.claimants.get(key)
        if line is None or one is None or one.eligible:
            return
        line.enter(one, paused=self._is_paused(one.managed) and not line.is_shared)
        line.afterwards(lambda: self.introduce(one) if line.standing(key) is Standing.WAITING else None)

    async def release(self, who: Identity, name: str, key: str, epoch: int) -> bool:
        """*who* gives its claim up; false when there is none, or it is held under another epoch.

        Raises:
            NotPermitted: The claim is another process's.
        """
        line = self._lines.get(name)
        if line is not None:
            await line.settled()  # else a claim that has yet to come into the line would outlive its release
        one = None if line is None else line.claimants.get(key)
        if line is None or one is None:
            return False
        if one.identity != who:
            raise NotPermitted(f"can't release the registration of {name!r}: the claim is another process's")
        entry = line.rules.find(key)
        if entry is not None:
            holds = entry.standing is not Standing.WAITING
            # Where turns are taken its process does not know the epoch of this one.
            if holds and entry.epoch != epoch and not line.takes_turns:
                return False
            line.feed(rules.Released(key, entry.epoch if holds else 0))
        line.leave(one)
        return True

    def gate_of(self, key: str) -> int:
        """The descriptor of the gate of the claim *key*.

        Raises:
            LookupError: There is none (any more).
        """
        found = self._find(key)
        if found is None or found[1].gate is None:
            raise LookupError(key)
        return found[1].gate.fileno()

    def tally_of(self, key: str, who: Identity) -> int:
        """The tally of the claim *key*, for *who*.

        Raises:
            NotPermitted: There is no such claim of it, or it needs none.
        """
        found = self._find(key)
        if found is None or found[1].identity != who or not found[0].takes_turns:
            raise NotPermitted("can't hand out a tally: there is no such claim of this process")
        return found[0].tally(found[1])

    def may_present(self, key: str, who: Identity) -> None:
        """Refuse *who*, if it may not bring back the gate of the claim *key*.

        Raises:
            NotPermitted: There is no such claim of it.
        """
        found = self._find(key)
        if found is None or found[1].identity != who or found[1].means is not Means.GATE:
            raise NotPermitted("can't take a gate: there is no such claim of this process")

    def presented(self, key: str, fd: int) -> None:
        """The gate of the claim *key* is *fd*, an epoll, which becomes ours.

        Raises:
            NotPermitted: There is no such claim any more.
            OSError: It can't be swept, so it is of no use.
        """
        found = self._find(key)
        if found is None:
            os.close(fd)
            raise NotPermitted("can't take a gate: its claim is over")
        line, one = found
        gate = Gate(fd)
        try:
            gate.sweep(line.fd)
        except OSError:
            gate.close()
            raise
        if one.gate is not None:
            one.gate.close()
        one.gate = gate
        self._gates.present(key, gate)
        entry = line.rules.find(key)
        if entry is not None and entry.standing is Standing.HELD:
            gate.arm(line.fd)
        elif entry is not None and entry.standing is Standing.REVOKING:
            line.feed(rules.Disarmed(key, entry.epoch))
        self.eligible(line.name, key)

    def _find(self, key: str) -> tuple[Line, Claimant] | None:
        for line in self._lines.values():
            one = line.claimants.get(key)
            if one is not None:
                return line, one
        return None
