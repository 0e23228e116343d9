"""``supervisorctl sockshare ...``: the commands of ``sockshare``, for the supervisord that supervisorctl talks to.

They go the way of all commands of supervisorctl, by XML-RPC: so who may ``restart`` a program may ``reload`` it too.

And the exit status of ``supervisorctl reread`` and ``update`` when what they read has mistakes of ours in it.
"""

from __future__ import annotations

import http.client
import json
import re
import shlex
import time
import xmlrpc.client
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from supervisor.supervisorctl import ControllerPluginBase
from supervisor.xmlrpc import Faults

from sockshare.core.errors import BY_NAME, ExitStatus, NoBroker, SockshareError
from sockshare.core.suggest import did_you_mean

_COMMANDS = {
    "status": "status [--json]\t\tShow the sockets, who holds them, and the last reloads",
    "reload": "reload <program>... [--json] [--timeout S] [--dry-run]\tReplace their processes by new ones that serve\n"
    "sockshare reload --all\t\t\tReplace those of every program that shares a socket",
    "doctor": "doctor [--json]\t\t\tSay what is wrong, and what to do",
    "registration": "registration move <socket> <process>\tHave another process hold the event registration",
    "quiesce": "quiesce <process>\t\tHave it get nothing new until `sockshare wake`",
    "wake": "wake <process>\t\t\tHave a quiesced process take part again",
    "help": "help\t\t\tShow this",
}

#: A mistake as `sockshare.core.spec.Mistake` has it; no sentence of supervisord's own begins so.
_MISTAKE = re.compile(r"\[[^\]]+\] \S+: ")


class _Listening:
    """The XML-RPC methods *methods*, with the last fault that one of them was answered with."""

    def __init__(self, methods: Any) -> None:
        self._methods = methods
        self.fault: xmlrpc.client.Fault | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._methods, name)

        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except xmlrpc.client.Fault as fault:
                self.fault = fault
                raise

        return call


#: Seconds to wait for a broker that is being started anew, and between two questions.
_PATIENCE = 10.0
_ASK_AGAIN = 0.1


class _Question:
    """One that is asked again and again, and is told each time all that there was to tell."""

    def __init__(self, fields: dict[str, object]) -> None:
        self.fields = fields
        self.untold: list[dict[str, Any]] = []
        self.told = 0


class BrokerOfSupervisord:
    """The broker, as far as supervisord lets us ask it; see `sockshare.cli.connection.Connection`.

    Raises:
        NoBroker: There is none, or supervisord does not load sockshare.
    """

    def __init__(self, ctl: Any) -> None:
        self._ctl = ctl
        said = self.ask("hello")
        self.pid = int(said["pid"])
        self.state = str(said["state"])
        self.mistakes: Sequence[str] = said["mistakes"]

    def check(self) -> None:
        if self.state == "refused":
            raise BY_NAME["BadConfiguration"](
                "can't use the broker: its configuration was refused: " + "\n".join(self.mistakes)
            )

    def ask(self, op: str, **fields: object) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = self._once({"op": op, **fields})
            if answer.get("ok") is True:
                return answer
            if "error" in answer or time.monotonic() >= deadline:
                raise _error_of(answer)
            time.sleep(_ASK_AGAIN)

    def begin(self, op: str, **fields: object) -> _Question:
        question = _Question({"op": op, **fields})
        self.repeat(question)
        return question

    def repeat(self, question: _Question) -> None:
        # A reload is asked for by `answer` anyway.
        if question.fields["op"] != "reload":
            self._once(question.fields)

    def answer(self, question: _Question, timeout: float) -> dict[str, Any] | None:
        if not question.untold:
            answer = self._once(question.fields)
            events = answer.pop("events", [])
            # A new broker knows only what it has seen itself.
            question.untold += [
                {"event": event} for event in events[question.told if question.told <= len(events) else 0 :]
            ]
            question.told = len(events)
            if "result" in answer or "error" in answer:
                question.untold.append(answer)
        if question.untold:
            return question.untold.pop(0)
        time.sleep(timeout)
        return None

    def probe(self) -> None:
        self.ask("hello")

    def close(self) -> None:
        pass

    def _once(self, request: dict[str, object]) -> dict[str, Any]:
        try:
            # A proxy of its own: an interrupt may leave its connection in the middle of an answer.
            answer: dict[str, Any] = json.loads(self._ctl.get_server_proxy("sockshare").ask(json.dumps(request)))
            return answer
        except xmlrpc.client.Fault as fault:
            reason = fault.faultString
            if fault.faultCode == Faults.UNKNOWN_METHOD:
                reason = "its configuration has no [rpcinterface:sockshare], or it was started before it had"
            return {"ok": False, "error": "NoBroker", "message": f"can't ask supervisord for its broker: {reason}"}
        except (OSError, http.client.HTTPException) as error:
            return {"ok": False, "message": f"can't ask supervisord for its broker: {error}"}


def _error_of(answer: dict[str, Any]) -> SockshareError:
    error = BY_NAME.get(str(answer.get("error")), NoBroker)(str(answer.get("message")))
    try:
        error.exit_status = ExitStatus(answer["exit"])
    except (KeyError, ValueError):
        pass
    return error


class ControllerPlugin(ControllerPluginBase):  # type: ignore[misc]
    """The command ``sockshare`` of supervisorctl."""

    name = "sockshare"

    def __init__(self, controller: Any) -> None:
        super().__init__(controller)
        for plugin in controller.options.plugins:
            for name in ("do_reread", "do_update", "do_reload"):
                if hasattr(plugin, name):
                    setattr(plugin, name, self._refusing(getattr(plugin, name)))

    def _refusing(self, command: Callable[[str], Any]) -> Callable[[str], None]:
        """*command*, which reads the configuration: if that is refused, in one sentence, and if by us, with our exit
        status."""

        def do(arg: str) -> None:
            supervisor = _Listening(self.ctl.get_supervisor())
            self.ctl.get_supervisor = lambda: supervisor
            try:
                command(arg)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != Faults.CANT_REREAD:
                    raise
                # Else supervisorctl would say it as a bug of its own, with file and line.
                self.ctl.output(f"ERROR: {fault.faultString}")
            finally:
                del self.ctl.get_supervisor
            if supervisor.fault is not None and _is_refusal(supervisor.fault):
                self.ctl.exitstatus = int(ExitStatus.USAGE)

        return do

    def do_sockshare(self, arg: str) -> None:
        """Run the command; its exit status becomes supervisorctl's."""
        try:
            words = shlex.split(arg)
        except ValueError as error:
            self._fail(f"can't read the command: {error}", ExitStatus.USAGE)
            return
        name = words[0] if words else "help"
        if name == "help":
            self.help_sockshare()
            return
        if name not in _COMMANDS:
            self._fail(f"can't do {name!r}: no such command{did_you_mean(name, _COMMANDS)}", ExitStatus.USAGE)
            return
        if not self.ctl.upcheck():
            self.ctl.exitstatus = int(ExitStatus.NO_BROKER)
            return
        # By name: the rest of this package runs inside supervisord, which needs none of it.
        main = import_module("sockshare.cli.main").main
        self.ctl.exitstatus = int(main(words, self._connect))

    def _connect(self) -> Any:
        methods = self.ctl.get_server_proxy("system").listMethods()
        if "sockshare.ask" in methods or "sockshare.getEndpoint" not in methods:
            return BrokerOfSupervisord(self.ctl)
        # supervisord runs an older sockshare than ours: it was upgraded since.
        endpoint = str(self.ctl.get_server_proxy("sockshare").getEndpoint())
        return import_module("sockshare.cli.connection").connect(endpoint)

    def _fail(self, sentence: str, status: ExitStatus) -> None:
        self.ctl.output(f"sockshare: {sentence}")
        self.ctl.exitstatus = int(status)

    def help_sockshare(self) -> None:
        """Show what there is."""
        for line in _COMMANDS.values():
            self.ctl.output(f"sockshare {line}")


def _is_refusal(fault: xmlrpc.client.Fault) -> bool:
    """Whether *fault* says mistakes of ours, and nothing else."""
    if fault.faultCode != Faults.CANT_REREAD:
        return False
    lines = fault.faultString.removeprefix("CANT_REREAD: ").splitlines()
    return bool(lines) and all(map(_MISTAKE.match, lines))
