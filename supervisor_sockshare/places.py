"""Which process of supervisord is what: its program, its place in the group, its part in a reload."""

from __future__ import annotations

from typing import Any, NamedTuple

from supervisor.options import make_namespec

TWIN, RETIRED = "twin", "retired"


class Place(NamedTuple):
    """Where a process is: its group, and its name there."""

    group: Any
    key: str

    @property
    def process(self) -> Any:
        """Who has the place now."""
        return self.group.processes[self.key]

    def __str__(self) -> str:
        return str(make_namespec(self.group.config.name, self.key))


def program_of(process: Any) -> str | None:
    """The section, ``[program:NAME]``, that *process* is of; None for what is no program."""
    return getattr(process.config, "sockshare_program", None)


def role_of(process: Any) -> str | None:
    """TWIN, RETIRED, or None for a process in its place."""
    return getattr(process.config, "sockshare_role", None)


def key_of(process: Any) -> str:
    """The name of its place in the group."""
    return str(getattr(process.config, "sockshare_key", process.config.name))


def name_of(process: Any) -> str:
    """Its name as ``supervisorctl status`` has it for the one in its place."""
    return str(make_namespec(process.group.config.name, key_of(process)))


def is_of(place: Place, twin: Any) -> bool:
    """Whether *twin* was started beside the process of *place*."""
    return place.group is twin.group and place.key == key_of(twin)


def own_place(twin: Any) -> Place | None:
    """The place that *twin* was started for, if it is there still."""
    return Place(twin.group, key_of(twin)) if key_of(twin) in twin.group.processes else None
