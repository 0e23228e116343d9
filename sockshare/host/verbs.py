"""What a host is told by the plugin that embeds it, and what it asks of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sockshare.kernel.channel import Message


class Manager(NamedTuple):
    """Whose host this is."""

    kind: str  # circus, supervisor
    pid: int
    uid: int
    name: str  # that of its meeting point
    endpoint: str | None = None  # where it takes commands, if whoever may write there may command us
    file: str | None = None  # its configuration, where its own command would not find that


class Configuration(NamedTuple):
    """What the manager's configuration says of us, as it goes over the link; with mistakes, nothing is handed out."""

    programs: list[dict[str, Any]]
    mistakes: list[str]
    sockets: list[tuple[dict[str, Any], socket.socket]]
    uids: list[int]  # the users that programs run as; none: not known, so anybody may ask
    warnings: Sequence[str] = ()  # what works, but not as its author may think; for `status` and `doctor`
    refused: Sequence[str] = ()  # mistakes that cost their own section only: what was in force of it goes on

    def message(self) -> Message:
        """What goes over the link of it, without the sockets."""
        facts = self._asdict()
        del facts["sockets"]
        return {**facts, "refused": list(self.refused), "warnings": list(self.warnings)}


class Answer:
    """The answer that one question waits for; the first word is the last."""

    __slots__ = ("_send",)

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send: Callable[[Message], None] | None = send

    def give(self, **fields: Any) -> None:
        """Answer with *fields*."""
        self._say({"ok": True, **fields})

    def refuse(self, message: str, *, silent: bool = False) -> None:
        """Answer that it was not done, and why: *message*, one sentence; *silent*: the manager has not answered."""
        self._say({"ok": False, "message": message, **({"silent": True} if silent else {})})

    def _say(self, fields: Message) -> None:
        send, self._send = self._send, None
        if send is not None:
            send(fields)


class Verbs(Protocol):
    """What only the manager can do or tell. None may block; each answers now or later, once."""

    def whois(self, pid: int, answer: Answer) -> None:
        """`process`: the managed process that *pid* is or descends from."""

    def processes(self, answer: Answer) -> None:
        """`programs`: what runs."""

    def start(self, program: str, answer: Answer) -> None:
        """`pid` and `process` of one more process of *program*, beside the others."""

    def settle(
        self,
        program: str,
        retire: Sequence[int],
        known: Sequence[int],
        count: int,
        kill: bool,
        patience: float,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        """`retired`: *program* has *count* processes from now on, none of them in *retire*; `stopped`: it has none.

        With *kill* they get SIGKILL, *patience* seconds after their stop signal; with no patience, instead of it.

        Args:
            stop_signal: The stop signal, where it is not what the program's section or the manager says.
        """


@runtime_checkable
class Witness(Protocol):
    """What a manager can tell besides, which sees how its processes end and what they write."""

    def report(self, pid: int, answer: Answer) -> None:
        """`status` of waitpid(2), or null; `stopped`: by its manager; `output`: the last lines that *pid* wrote."""


@runtime_checkable
class Counting(Protocol):
    """What a manager can do besides, that may be told another number of processes while a reload runs."""

    def settle_counted(
        self,
        program: str,
        retire: Sequence[int],
        known: Sequence[int],
        count: int,
        kill: bool,
        patience: float,
        size: int,
        proven: bool,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        """As `Verbs.settle`, where *program* had *size* processes outside of a reload when this one began.

        Where the manager was told otherwise since, *count* changes by as much; to fewer only if what is new has
        *proven* itself, or goes.
        """


@runtime_checkable
class Renewing(Protocol):
    """What a manager's host can do whose sockets are its own."""

    def renew(self, name: str, inode: int, answer: Answer) -> None:
        """Have another socket at the address of *name*, in place of *inode*, which nothing revives."""


@runtime_checkable
class Holding(Protocol):
    """What a manager can do besides, whose own commands have a process held before they stop it."""

    def claim(self, program: str, pid: int, answer: Answer) -> None:
        """Promise a `release` of the held process *pid*."""

    def release(
        self,
        program: str,
        pid: int,
        keep: bool,
        kill: Sequence[int],
        patience: float,
        answer: Answer,
        stop_signal: int | None = None,
    ) -> None:
        """Have the manager go on: stop *pid*, or keep it; the processes *kill* are killed before, as by `settle`."""


@runtime_checkable
class Placing(Protocol):
    """What a manager can do besides that has a place for each process of a program, and readings of its configuration.

    Its `processes` says of a program how many places are `missing` that the configuration has, the number of that
    reading (`configuration`), which pids somebody else had it stop (`stopped`), and which processes are `surplus`.
    """

    def start_beside(self, program: str, beside: int | None, configuration: int, answer: Answer) -> None:
        """As `start`, for the place of the process *beside*; None: for one that is missing."""

    def replace(
        self, program: str, retire: Sequence[int], known: Sequence[int], configuration: int, answer: Answer
    ) -> None:
        """Have those of *known* that were started for them in the places of *retire*, which are not stopped yet.

        One of *retire* that is surplus has no place any more; with none to retire, *known* have what was missing.
        """
