"""supervisord's own groups and processes, with real children, in a loop that turns when a test says so.

All of supervisord but its HTTP servers and its main loop: what a turn of that does with processes, `Groups.turn` does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from supervisor import events, loggers
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor

from supervisor_sockshare.hooks import install
from supervisor_sockshare.polling import PollLoop
from supervisor_sockshare.twins import Twins

#: Writes down its pid, and that of a worker that outlives it; ends by TERM. With the file `broken` it ends at once.
PROGRAM = """\
#!/bin/sh
[ -e broken ] && exit 1
sleep 1000 &
echo $! >> workers
trap 'exit 0' TERM
echo $$ >> started
wait
"""
_DEADLINE = 10.0


class _Poller:
    """A poller that never sleeps."""

    def poll(self, timeout: float) -> list[Any]:
        return []


class Groups:
    """The groups that *configuration* has, and the twins of their processes."""

    def __init__(self, directory: Path, configuration: str) -> None:
        self.directory = directory
        (directory / "program").write_text(PROGRAM)
        (directory / "program").chmod(0o755)
        self.supervisord = Supervisor(self.read(configuration))
        self.options: Any = self.supervisord.options
        for config in self.options.process_group_configs:
            self.supervisord.add_process_group(config)
        self.loop = PollLoop()
        self._poller = _Poller()
        self.loop.attach(self._poller)
        self.statuses: dict[int, int] = {}  # of those that have ended, as wait(2) has it
        self.applied: int | None = None  # the number of the reading that a reload applies
        self.twins = Twins(self.loop, lambda: self.supervisord, lambda program: self.applied)
        self._changed = lambda event: self.twins.changed(event.process)
        events.subscribe(events.ProcessStateEvent, self._changed)

    def read(self, configuration: str) -> Any:
        """The options of a supervisord that has just read *configuration*, in which {directory} is ours."""
        path = self.directory / "supervisord.conf"
        head = "[supervisord]\nlogfile = /dev/null\npidfile = {directory}/pid\nchildlogdir = {directory}\n"
        path.write_text((head + configuration).replace("{directory}", str(self.directory)))
        install()
        options = ServerOptions()
        options.realize(["-n", "-c", str(path)])
        options.logger = loggers.getLogger(loggers.LevelsByName.CRIT)
        # The plugin, which is asked whether the configuration is any of its business, takes the log of its modules.
        for name in ("sockshare", "supervisor_sockshare"):
            logger = logging.getLogger(name)
            logger.propagate = True
            for handler in list(logger.handlers):
                logger.removeHandler(handler)
        return options

    def reread(self, configuration: str) -> None:
        """Have read another configuration, as `supervisorctl reread` has."""
        self.options.process_group_configs = self.read(configuration).process_group_configs
        for group in self.options.process_group_configs:
            for config in [group, *group.process_configs]:
                config.options = self.options  # which has the books of who runs

    def process(self, key: str, group: str = "web") -> Any:
        """The process that has the place *key*."""
        return self.supervisord.process_groups[group].processes[key]

    def keys(self, group: str = "web") -> list[str]:
        """The names in the group."""
        return sorted(self.supervisord.process_groups[group].processes)

    def all(self) -> list[Any]:
        """Every process there is."""
        return [one for group in self.supervisord.process_groups.values() for one in group.processes.values()]

    def turn(self) -> None:
        """What a turn of supervisord's main loop does with processes."""
        self._poller.poll(0)
        for pid, process in list(self.options.pidhistory.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.statuses[pid] = status
                process.finish(pid, status)
                del self.options.pidhistory[pid]
        for group in list(self.supervisord.process_groups.values()):
            group.transition()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Turn until *condition* is true."""
        deadline = time.monotonic() + _DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"not within {_DEADLINE} s: {what}"
            self.turn()
            time.sleep(0.005)

    def noted(self, name: str) -> list[int]:
        """The pids in a file that processes write."""
        path = self.directory / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def up(self) -> None:
        """Return once every process has come to its program."""
        self.until(lambda: all(one.pid and one.pid in self.noted("started") for one in self.all()), "all run")

    def end(self) -> None:
        """Kill what runs, workers too."""
        events.unsubscribe(events.ProcessStateEvent, self._changed)
        for pid in [*self.options.pidhistory, *self.noted("workers")]:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        for pid in self.options.pidhistory:
            os.waitpid(pid, 0)
        for process in self.all():
            for dispatcher in list(process.dispatchers.values()):
                dispatcher.close()
                if getattr(dispatcher, "normallog", None) is not None:
                    dispatcher.normallog.close()
            for fd in {fd for fd in process.pipes.values() if fd is not None}:
                with suppress(OSError):
                    os.close(fd)


@contextmanager
def groups(directory: Path, configuration: str) -> Iterator[Groups]:
    """A :class:`Groups` of which nothing is left."""
    found = Groups(directory, configuration)
    try:
        yield found
    finally:
        found.end()
