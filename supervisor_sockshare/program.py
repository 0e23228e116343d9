"""The broker as a program of supervisord: the section that no configuration has, and the spare beside it."""

from __future__ import annotations

import copy
import os
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from .sections import BROKER

SPARE = "spare"
#: The name, in the runtime directory, of the socket that brokers connect to.
LINK = "link"

_SECTION = {
    "priority": "-100",  # the first to start, the last to stop
    "autorestart": "true",
    "startsecs": "0",
    "startretries": "1000000",
    "stopwaitsecs": "5",
    "redirect_stderr": "true",
}


def inject(parser: Any, directory: str | None, digest: str) -> None:
    """Add the section to *parser*; the group is another one, so that `update` comes to it, when *digest* is."""
    section = f"program:{BROKER}"
    parser.add_section(section)
    for key, value in _SECTION.items():
        parser.set(section, key, value)
    # The meeting point has the pid for a name, which is not known before supervisord has become a daemon: see `fit`.
    parser.set(section, "command", _command(directory or ".").replace("%", "%%"))
    parser.set(section, "environment", f'SOCKSHARE_DIGEST="{digest}"')


def _command(directory: str) -> str:
    return f"{shlex.quote(sys.executable)} -m sockshare.broker --link {shlex.quote(os.path.join(directory, LINK))}"


def add_spare(groups: Iterable[Any]) -> None:
    """Give the broker's group among *groups*, as it was read, the spare."""
    for group in groups:
        if group.name == BROKER:
            group.process_configs.append(_spare_of(group.process_configs[0]))


def _spare_of(config: Any) -> Any:
    spare = copy.copy(config)
    spare.name = SPARE
    spare.autostart = spare.autorestart = False  # timers of ours start it, never supervisord
    spare.startretries = 0
    return spare


def fit(supervisord: Any, directory: str) -> None:
    """Let brokers that are started from now on find the link in *directory*."""
    group = supervisord.process_groups.get(BROKER)
    if group is not None:
        for config in [*group.config.process_configs, *(one.config for one in group.processes.values())]:
            config.command = _command(directory)


def give_up(supervisord: Any) -> None:
    """There is nothing that a broker could connect to: start none."""
    group = supervisord.process_groups.get(BROKER)
    for process in group.processes.values() if group is not None else ():
        process.config.autostart = process.config.autorestart = False
