"""Find the runtime directory of the broker, with no configuration (interface.md of the project calls it the endpoint).

A process below a circusd or supervisord waits for the broker of that very one, and takes no other: the first children
of a circusd start before its plugin does, and a second circusd on the machine may well have one already.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator

from sockshare.core.errors import NoBroker
from sockshare.kernel import meeting, peers

from . import door

#: How long `exec` and `attach` wait for a broker that is still starting, seconds.
PATIENCE = 10.0
#: The wait is said on stderr when it has lasted this long, seconds.
SAID_AFTER = 0.5


class Manager:
    """A circusd or supervisord among one's ancestors."""

    __slots__ = ("name", "pid")

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class Found:
    """A broker that answers: its runtime directory, and what it said."""

    __slots__ = ("directory", "greeting")

    def __init__(self, directory: str, greeting: door.Greeting) -> None:
        self.directory = directory
        self.greeting = greeting


class _Notice:
    """Says once that we wait, and when to say it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._due = time.monotonic() + SAID_AFTER
        self._said = False
        self.whom = ""

    def left(self) -> float | None:
        """Seconds until it is due; None when it has been said."""
        return None if self._said else self._due - time.monotonic()

    def tick(self) -> None:
        if not self._said and time.monotonic() >= self._due:
            self._said = True
            self._say(f"waiting for {self.whom} ...")


def _say(text: str) -> None:
    # A program may have closed its stderr; that is no reason to fail.
    if sys.stderr is not None:
        try:
            print(f"sockshare: {text}", file=sys.stderr, flush=True)
        except OSError:
            pass


def find(
    endpoint: str | None = None,
    *,
    timeout: float = PATIENCE,
    command: bool = False,
    say: Callable[[str], None] = _say,
) -> Found:
    """The broker of this process: *endpoint*, else ``SOCKSHARE_ENDPOINT``, else the one of its manager, waited for.

    Args:
        endpoint: A runtime directory.
        timeout: How long to wait for a broker that is still starting, seconds.
        command: For commands a user types: take, without a manager among the ancestors, the only broker that runs for
            this user; and do not wait for one that cannot be starting.
        say: Told, once, that the wait has lasted `SAID_AFTER`.

    Raises:
        NoBroker: None was found, or none answered in time, or a command found several.
        ProtocolError: What answers is no broker.
    """
    deadline = time.monotonic() + timeout
    notice = _Notice(say)
    named = endpoint or os.environ.get("SOCKSHARE_ENDPOINT")
    if named:
        directory = os.path.abspath(named)
        notice.whom = f"the broker at {directory}"
        if command and not os.path.isdir(directory):
            raise NoBroker(f"can't find a broker at {directory}: no such directory; {_elsewhere()}")
        return _greet(directory, deadline, notice, command=command)
    manager = nearest()
    if manager is not None:
        return _meet(manager, deadline, notice, command=command)
    if command:
        return _only(deadline, notice)
    raise NoBroker(
        f"can't find a broker: SOCKSHARE_ENDPOINT is not set and no ancestor of pid {os.getpid()} runs one;"
        " is this process started by circus or supervisord?"
    )


def nearest(pid: int | None = None) -> Manager | None:
    """The circusd or supervisord nearest among the ancestors of *pid* (this process), itself not counted."""
    for ancestor in peers.ancestors(peers.parent(pid or os.getpid())):
        argv = meeting.arguments(ancestor)
        try:
            # A program may embed circus: then only the meeting point tells what it is.
            if meeting.is_manager(argv) or meeting.find(ancestor) is not None:
                return Manager(meeting.manager_name(argv), ancestor)
        except ProcessLookupError:
            continue  # gone, or hidden from us (hidepid, proc(5))
    return None


def _meet(manager: Manager, deadline: float, notice: _Notice, *, command: bool) -> Found:
    notice.whom = f"the broker of {manager}"
    try:
        for pause in _pauses(deadline):
            point = meeting.find(manager.pid)
            if point is not None and os.path.exists(os.path.join(point, "door")):
                return _greet(point, deadline, notice, command=command)
            if command and not _is_young(manager.pid):
                # As in a shell in a container whose init is a supervisord: nothing is on its way there.
                return _only(deadline, notice)
            obstacle = meeting.obstacle(meeting.user(manager.pid))
            if obstacle is not None:
                raise NoBroker(
                    f"can't find a broker: {manager} can't make its runtime directory: {obstacle}; set runtime_dir in"
                    " its configuration, and SOCKSHARE_ENDPOINT in the environment of its programs"
                )
            notice.tick()
            time.sleep(pause)
        looked = " and ".join(meeting.points(manager.pid))
    except ProcessLookupError:
        raise NoBroker(f"can't find a broker: {manager} is gone") from None
    raise NoBroker(f"can't find a broker: {manager} runs none (looked for {looked}): {_why(manager.pid)}")


def _is_young(pid: int) -> bool:
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    return uptime - peers.start_time(pid) / os.sysconf("SC_CLK_TCK") < PATIENCE


def _pauses(deadline: float) -> Iterator[float]:
    pause = 0.01
    while (left := deadline - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(pause * 1.25, 0.05)


def _only(deadline: float, notice: _Notice) -> Found:
    # Root's may run programs of this user, who is told of those; or why not.
    found = running() or (running(0) if os.geteuid() else [])
    if len(found) > 1:
        listed = "".join(f"\n  {_manager_of(point)}: --endpoint {point}" for point in found)
        raise NoBroker(f"can't choose a broker: {len(found)} run here; use --endpoint DIR:{listed}")
    if not found:
        raise NoBroker(f"can't find a broker for uid {os.geteuid()}: {_reasons()}")
    notice.whom = f"the broker at {found[0]}"
    return _greet(found[0], deadline, notice, command=True)


def _manager_of(point: str) -> str:
    from . import managers  # only what fails needs it

    pid = meeting.manager(point)
    try:
        return "a manager" if pid is None else str(managers.manager(pid))
    except ProcessLookupError:
        return "a manager that has ended"


def _why(pid: int) -> str:
    """Why the manager *pid* has no broker."""
    from . import managers  # only what fails needs it

    try:
        return managers.why_no_broker(managers.manager(pid)) or "it has one by now; ask again"
    except ProcessLookupError:
        return "it has ended"


def _elsewhere() -> str:
    """Where brokers are to be found, for whom has looked at the wrong place."""
    found = running()
    if found:
        return "there is one of " + ", and of ".join(f"{_manager_of(point)} at {point}" for point in found)
    return _reasons()


def _reasons() -> str:
    """Why there is no broker, for each manager that runs here."""
    from . import managers  # only what fails needs it

    said = [f"{subject}: {sentence}" for subject, sentence in managers.reasons()]
    return said[0] if len(said) == 1 else "".join(f"\n  {one}" for one in said)


def running(uid: int | None = None) -> list[str]:
    """The directories of the brokers that run for the user *uid* (this one), in no particular order."""
    found: dict[str, str] = {}
    for point in meeting.running(os.geteuid() if uid is None else uid):
        if door.accepts(point):
            found.setdefault(os.path.realpath(point), point)
    return list(found.values())


def _greet(directory: str, deadline: float, notice: _Notice, *, command: bool = False) -> Found:
    while True:
        left = notice.left()
        try:
            # The first attempt ends when the notice is due; the host keeps what is queued, so a second costs nothing.
            # A command looks again and again for why there is none; programs, which may be many, queue once.
            if left is None and command:
                left = SAID_AFTER
            attempt = deadline if left is None else min(deadline, time.monotonic() + max(left, 0.01))
            return Found(directory, door.hello(directory, attempt))
        except door.Unreachable:
            raise
        except NoBroker:
            mistakes = door.read(directory, meeting.REFUSED).splitlines()
            if mistakes:
                return Found(directory, door.Greeting(0, "refused", tuple(mistakes), True))
            reason = stopped(directory)
            if reason and command:
                raise NoBroker(f"can't reach the broker at {directory}: {reason}") from None
            if time.monotonic() >= deadline:
                if reason:
                    raise NoBroker(f"can't reach the broker at {directory}: {reason}") from None
                if command and not door.accepts(directory):
                    raise NoBroker(f"can't reach the broker at {directory}: nobody is there; {_elsewhere()}") from None
                raise
        notice.tick()


def stopped(directory: str) -> str:
    """Why there is no broker, where its host knows that there will be none for some time; else an empty text."""
    return door.read(directory, meeting.STOPPED)


def check(found: Found) -> None:
    """Refuse a broker that can only refuse.

    Raises:
        BadConfiguration: The configuration was refused; every mistake, one a line.
        NotPermitted: No program of this broker runs under this uid.
    """
    error = door.refusal(found.directory, found.greeting)
    if error is not None:
        raise error
