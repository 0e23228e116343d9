"""``supervisorctl sockshare ...``: the commands of ``sockshare``, for the supervisord that supervisorctl talks to."""

from __future__ import annotations

import shlex
import xmlrpc.client
from importlib import import_module
from typing import Any

from supervisor.supervisorctl import ControllerPluginBase
from supervisor.xmlrpc import Faults

from sockshare.core.errors import ExitStatus
from sockshare.core.suggest import did_you_mean

_COMMANDS = {
    "status": "status [--json]\t\tShow the sockets, who holds them, and the last reloads",
    "reload": "reload <program> [--json] [--timeout S] [--dry-run]\tReplace its processes by new ones that serve",
    "help": "help\t\t\tShow this",
}


class ControllerPlugin(ControllerPluginBase):  # type: ignore[misc]
    """The command ``sockshare`` of supervisorctl."""

    name = "sockshare"

    def __init__(self, controller: Any) -> None:
        super().__init__(controller)

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
