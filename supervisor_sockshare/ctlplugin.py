"""``supervisorctl sockshare ...``: the commands of ``sockshare``, for the supervisord that supervisorctl talks to.

And the exit status of ``supervisorctl reread`` and ``update`` when what they read has mistakes of ours in it.
"""

from __future__ import annotations

import re
import shlex
import xmlrpc.client
from collections.abc import Callable
from importlib import import_module
from typing import Any

from supervisor.supervisorctl import ControllerPluginBase
from supervisor.xmlrpc import Faults

from sockshare.core.errors import ExitStatus
from sockshare.core.suggest import did_you_mean

_COMMANDS = {
    "status": "status [--json]\t\tShow the sockets, who holds them, and the last reloads",
    "reload": "reload <program> [--json] [--timeout S] [--dry-run]\tReplace its processes by new ones that serve",
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


class ControllerPlugin(ControllerPluginBase):  # type: ignore[misc]
    """The command ``sockshare`` of supervisorctl."""

    name = "sockshare"

    def __init__(self, controller: Any) -> None:
        super().__init__(controller)
        for plugin in controller.options.plugins:
            for name in ("do_reread", "do_update"):
                if hasattr(plugin, name):
                    setattr(plugin, name, self._refusing(getattr(plugin, name)))

    def _refusing(self, command: Callable[[str], Any]) -> Callable[[str], None]:
        """*command*, which reads the configuration, with our exit status if that was refused by us."""

        def do(arg: str) -> None:
            supervisor = _Listening(self.ctl.get_supervisor())
            self.ctl.get_supervisor = lambda: supervisor
            try:
                command(arg)
            except xmlrpc.client.Fault as fault:
                if not _is_refusal(fault):
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
        for program in [word for word in words[1:] if not word.startswith("-")] if name == "reload" else []:
            # As a user sees it in `status`: the process stands for its program.
            if ":" in program:
                words[words.index(program)] = self._program_of(program)
        endpoint = self._endpoint()
        if endpoint is not None:
            # Imported now: it needs zmq, which most commands of supervisorctl do not. By name: the rest of this package
            # runs inside supervisord, where there must be none.
            main = import_module("sockshare.cli.main").main
            self.ctl.exitstatus = int(main(["--endpoint", endpoint, *words]))

    def _program_of(self, name: str) -> str:
        group, _, process = name.partition(":")
        return group if process in ("", "*") else process

    def _endpoint(self) -> str | None:
        if not self.ctl.upcheck():
            self.ctl.exitstatus = ExitStatus.NO_BROKER
            return None
        try:
            return str(self.ctl.get_server_proxy("sockshare").getEndpoint())
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == Faults.UNKNOWN_METHOD:
                reason = "its configuration has no [rpcinterface:sockshare], or it was started before it had"
            else:
                reason = fault.faultString
            self._fail(f"can't ask supervisord for its broker: {reason}", ExitStatus.NO_BROKER)
            return None

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
