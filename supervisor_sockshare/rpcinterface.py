"""The XML-RPC methods ``sockshare.*``, for tools. People have ``supervisorctl sockshare`` and ``sockshare``."""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from supervisor.http import NOT_DONE_YET
from supervisor.states import SupervisorStates
from supervisor.xmlrpc import Faults, RPCError

from sockshare.core.errors import ExitStatus
from sockshare.core.records import reload_key
from sockshare.kernel.channel import Message

from .plugin import Plugin

log = logging.getLogger(__name__)

#: Seconds between two looks for an answer of the broker; its arrival wakes supervisord's loop by itself.
_LOOK_EVERY = 0.02
#: Seconds until a question is given up that the host, which answers in 5 at the latest, has forgotten.
_GIVEN_UP = 8.0

_F = TypeVar("_F", bound=Callable[..., Any])


def _guarded(function: _F) -> _F:
    """A bug of ours is a fault for the caller, with a line in the log."""

    @functools.wraps(function)
    def guard(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RPCError:
            raise
        except Exception as error:
            log.exception("rpc: %s failed", function.__name__)
            raise RPCError(Faults.FAILED, f"sockshare has a bug: {error!r}") from error

    return guard  # type: ignore[return-value]


class RPCInterface:
    """One for each HTTP server; all have the same plugin."""

    def __init__(self, supervisord: Any, plugin: Plugin) -> None:
        self._supervisord = supervisord
        self._plugin = plugin

    @_guarded
    def getEndpoint(self) -> str:
        """Return the runtime directory, as ``sockshare --endpoint`` takes it

        @return string directory
        """
        directory = self._plugin.directory
        if directory is None:
            raise RPCError(Faults.FAILED, self._plugin.refusal)
        return directory

    @_guarded
    def status(self) -> Callable[[], Any]:
        """Return the document of ``sockshare status --json``

        @return string document as JSON text
        """
        return self._ask({"op": "status"}, lambda told: json.dumps(told["status"]))

    @_guarded
    def ask(self, request: str) -> Any:
        """Ask the broker, as supervisorctl's command sockshare does

        @param string request a JSON object, as a client's in docs/protocol.md: op and its fields
        @return string answer as JSON text; with ok false it has a message, and if asking again is of no use an error
        """
        try:
            fields = json.loads(request)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not isinstance(fields.get("op"), str):
            raise RPCError(Faults.INCORRECT_PARAMETERS, "the request is no JSON object with an op")
        if fields["op"] == "reload" and self._supervisord.options.mood < SupervisorStates.RUNNING:
            raise RPCError(Faults.SHUTDOWN_STATE)
        refusal = self._plugin.refusal
        if refusal:
            sentence = (
                f"can't reach the broker at {self._plugin.directory}: {refusal}" if self._plugin.host else refusal
            )
            refused = {"ok": False, "error": "NoBroker", "message": sentence, "exit": int(ExitStatus.NO_BROKER)}
            return json.dumps(refused)
        fields = {key: value for key, value in fields.items() if key not in ("type", "id")}  # those are the host's
        return self._ask(fields, json.dumps, json.dumps)

    @_guarded
    def startReload(self, program: str) -> Callable[[], Any]:
        """Begin to reload a program, and return at once

        @param string program the name of its section
        @return string key to ask reloadStatus with
        """
        if self._supervisord.options.mood < SupervisorStates.RUNNING:
            raise RPCError(Faults.SHUTDOWN_STATE)
        key = os.urandom(16).hex()
        return self._ask({"op": "reload", "program": str(program), "key": key}, lambda told: key)

    @_guarded
    def reloadStatus(self, program: str, key: str) -> dict[str, Any]:
        """Return how the reload that startReload began stands

        @param string program the name of its section
        @param string key what startReload returned
        @return struct state ("running" or "ended"), step, and at the end result, exit, reason, seconds, stderr
        """
        host = self._plugin.host
        records = {} if host is None else host.records
        last = records.get(f"last:{program}")
        answer = {} if last is None else last.get("answer")
        if last is not None and last.get("key") == key and isinstance(answer, dict):
            return {"state": "ended", "step": "", **_answered(answer)}
        running = records.get(f"reload:{program}")
        if reload_key(running) == key:
            rollout = {} if running is None else running["rollout"]
            told = None if running is None else running.get("answer")
            if isinstance(told, dict):  # what is left of the old version drains
                return {"state": "ended", "step": "", **_answered(told)}
            return {"state": "running", "step": str(rollout.get("state", ""))}
        raise RPCError(Faults.BAD_NAME, f"no reload of {program} has this key")

    def _ask(
        self, fields: Message, done: Callable[[Message], Any], refused: Callable[[Message], Any] | None = None
    ) -> Callable[[], Any]:
        told: list[Message] = []
        host = self._plugin.host
        if host is None:
            raise RPCError(Faults.FAILED, self._plugin.refusal)
        host.question(fields, told.append)
        given_up = time.monotonic() + _GIVEN_UP

        def look() -> Any:
            if not told:
                if time.monotonic() < given_up:
                    return NOT_DONE_YET
                raise RPCError(Faults.FAILED, "can't ask the broker: supervisord's log says why")
            if not told[0].get("ok") and refused is not None:
                return refused(told[0])
            if not told[0].get("ok"):
                raise RPCError(Faults.FAILED, str(told[0].get("message")))
            return done(told[0])

        look.delay = _LOOK_EVERY  # type: ignore[attr-defined]
        look.rpcinterface = self  # type: ignore[attr-defined]
        return look


def _answered(answer: dict[str, Any]) -> dict[str, Any]:
    fields = {name: answer.get(name, "") for name in ("result", "exit", "reason", "seconds", "stderr")}
    return {name: "" if value is None else value for name, value in fields.items()}
