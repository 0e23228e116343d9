"""The plugin's dialogue with circusd: questions with ids and deadlines, none of which blocks.

``CircusPlugin.call`` blocks without end and takes any answer for its own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from sockshare.host.loop import Loop, Timer, guarded

log = logging.getLogger(__name__)

#: circusd's ``errno`` for a command that it does not know, and for one that met another (circus/commands/errors.py).
UNKNOWN_COMMAND = 2
COMMAND_ERROR = 5

#: The event that our part of circusd publishes, after which its configuration may be another one.
CONFIGURED = "configured"

#: Seconds that circusd may take; it answers in milliseconds unless a hook or a start blocks it.
_ANSWER_WITHIN = 5.0


class Refusal(NamedTuple):
    """What circusd said instead of doing it."""

    reason: str
    errno: int
    passing: bool  # whether trying again may help

    @property
    def silent(self) -> bool:
        """Whether circusd has said nothing at all."""
        return self.passing and not self.errno


class _Question(NamedTuple):
    done: Callable[[dict[str, Any]], None]
    refused: Callable[[Refusal], None]
    timer: Timer


class Circusd:
    """circusd, as far as our command inside it reaches (`circus_sockshare.inside`).

    Args:
        send: Sends the bytes of one message to circusd's endpoint; `hear` takes the bytes of its answers.
    """

    def __init__(self, loop: Loop, send: Callable[[bytes], object]) -> None:
        self._loop = loop
        self._send = send
        self._questions: dict[str, _Question] = {}
        self._next = 0

    def ask(
        self,
        done: Callable[[dict[str, Any]], None],
        refused: Callable[[Refusal], None],
        within: float = _ANSWER_WITHIN,
        **properties: Any,
    ) -> None:
        """Have circusd do an operation of our command, then call one of *done* and *refused*, once."""
        self._next += 1
        number = str(self._next)
        # What we have given up circusd must not do later, when it goes on.
        properties["before"] = time.monotonic() + within

        @guarded(log)
        def expire() -> None:
            del self._questions[number]
            refused(Refusal(f"circusd did not answer within {within:g} s", 0, passing=True))

        self._questions[number] = _Question(done, refused, self._loop.call_later(within, expire))
        self._send(json.dumps({"id": number, "command": "sockshare", "properties": properties}).encode())

    @guarded(log)
    def hear(self, frames: list[bytes]) -> None:
        """Take one message from circusd."""
        answer = json.loads(frames[-1])
        question = self._questions.pop(str(answer.get("id")), None)
        if question is None:
            log.debug("circusd: an answer came too late (id=%s)", answer.get("id"))
            return
        question.timer.cancel()
        if answer.get("status") == "ok":
            try:
                question.done(answer)
            except Exception as error:  # as at our limit of descriptors; whoever has asked must not wait for ever
                log.error("circusd: can't take its answer: %s", error, exc_info=not isinstance(error, OSError))
                question.refused(Refusal(f"can't take circusd's answer: {error}", 0, passing=True))
            return
        errno = int(answer.get("errno") or 0)
        # A conflict comes without a traceback, an error in the command with one.
        passing = errno == COMMAND_ERROR and not answer.get("tb")
        question.refused(Refusal(str(answer.get("reason", "no reason given")).strip(), errno, passing))
