"""``sockshare exec``: give an unmodified program its sockets, then become it.

Every managed process pays for this start, so nothing is imported here that is not needed: no click, no rich, no
dataclasses.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from sockshare.client import door, finding
from sockshare.core import wrappers
from sockshare.core.errors import ExitStatus, NoBroker, SockshareError, TicketRefused
from sockshare.kernel.descriptors import close_all

if TYPE_CHECKING:
    from sockshare.client.claims import Claim, Claims
    from sockshare.client.dialogue import Answer

USAGE = "sockshare exec [--socket NAME]... [--registration] [--listen-fds] [--endpoint DIR] -- COMMAND [ARGUMENT]..."
HELP = f"""Usage: {USAGE}

Become COMMAND (same pid), with the sockets of this process's program at descriptors 3, 4, ...

  --socket NAME   only this socket; may be repeated, and gives the order
  --registration  wait until this process holds the registration of each of its sockets, then become COMMAND
  --listen-fds    set LISTEN_FDS also where COMMAND has a {{fd:NAME}}
  --endpoint DIR  the broker's runtime directory (found by itself below circusd and supervisord)

In COMMAND and its arguments {{fd:NAME}} becomes the descriptor of socket NAME. The environment has NOTIFY_SOCKET
(sd_notify(3)), SOCKSHARE_ENDPOINT, and SOCKSHARE_FD_NAME for each socket; and, where no {{fd:NAME}} stands, LISTEN_FDS,
LISTEN_PID, LISTEN_FDNAMES (sd_listen_fds(3)). A server that is given both may take a descriptor twice.

Exit status: COMMAND's own; 2 usage, 75 no broker, 125 refused, 126 COMMAND can't be executed, 127 COMMAND not found."""

_FIRST = 3  # SD_LISTEN_FDS_START
# A broker that is killed takes its tickets with it: they are asked for again this often.
_TICKETS = 3
_NOT_PASSED_ON = frozenset({"LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"})
_PR_SET_PTRACER = 0x59616D61  # prctl(2)


class Usage(SockshareError):
    """The command line was wrong."""

    exit_status = ExitStatus.USAGE


class _Failure(SockshareError):
    """The command can't be executed, or may not."""

    def __init__(self, message: str, exit_status: ExitStatus) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Options:
    """The command line."""

    __slots__ = ("command", "endpoint", "help", "listen_fds", "registration", "sockets")

    def __init__(
        self,
        sockets: list[str],
        endpoint: str | None,
        command: list[str],
        *,
        registration: bool = False,
        listen_fds: bool = False,
        help: bool = False,
    ) -> None:
        self.sockets = sockets
        self.registration = registration
        self.listen_fds = listen_fds
        self.endpoint = endpoint
        self.command = command
        self.help = help


class Inherited:
    """What the broker gave: names and descriptors of *sockets* are in the order of their places."""

    __slots__ = ("directory", "notify", "sockets")

    def __init__(self, directory: str, notify: str, sockets: list[tuple[str, int]]) -> None:
        self.directory = directory
        self.notify = notify
        self.sockets = sockets


def run(arguments: Sequence[str], endpoint: str | None = None) -> int:
    """Become the command; returns, with the exit status, only when that was not possible (said on stderr)."""
    try:
        options = parse(arguments, endpoint)
        if options.help:
            print(HELP)
            return ExitStatus.OK
        _become(options)
    except (Usage, _Failure, NoBroker) as error:
        return _say(error, error.exit_status)
    except (SockshareError, OSError) as error:
        return _say(error, ExitStatus.REFUSED)


def parse(arguments: Sequence[str], endpoint: str | None = None) -> Options:
    """The command line after ``exec``.

    Raises:
        Usage: It is wrong.
    """
    sockets: list[str] = []
    registration = listen_fds = False
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option, _, value = rest.pop(0).partition("=")
        if option == "--":
            break
        if option in ("-h", "--help"):
            return Options([], None, [], help=True)
        if option in ("--socket", "--endpoint"):
            if not value:
                if not rest:
                    raise Usage(f"can't read the command line: {option} needs a value; usage: {USAGE}")
                value = rest.pop(0)
            if option == "--socket":
                # As circus does with the names of its sections.
                sockets.append(value.lower())
            else:
                endpoint = value
        elif option == "--registration" and not value:
            registration = True
        elif option == "--listen-fds" and not value:
            listen_fds = True
        else:
            said = option + (f"={value}" if value else "")
            raise Usage(f"can't read the command line: no such option: {said}; usage: {USAGE}")
    if not rest:
        raise Usage(f"can't read the command line: no COMMAND; usage: {USAGE}")
    return Options(sockets, endpoint, rest, registration=registration, listen_fds=listen_fds)


def _say(error: Exception, status: int) -> int:
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, SockshareError):
        text = f"can't become the command: {error.strerror or error}"
    print(f"sockshare exec: {text}", file=sys.stderr)
    return status


def _become(options: Options) -> NoReturn:
    # A command that is not there is said at once, and costs no ticket.
    path = look_up(options.command[0])
    warning = wrappers.forks(options.command)
    if warning is not None:
        print(f"sockshare exec: warning: {warning}", file=sys.stderr)
    _name_tracer()
    inherited = _inherit(options, warning)
    names = [name for name, _ in inherited.sockets]
    numbers = {name: _FIRST + place for place, name in enumerate(names)}
    try:
        command = [replace(argument, numbers) for argument in options.command]
        if command[0] != options.command[0]:
            path = look_up(command[0])
    except BaseException:
        close_all(fd for _, fd in inherited.sockets)
        raise
    place([fd for _, fd in inherited.sockets])
    # gunicorn given `-b fd://3` and LISTEN_FDS takes descriptor 3 twice.
    listen_fds = options.listen_fds or command == options.command
    environment = environment_of(_environment(), numbers, inherited, listen_fds=listen_fds)
    # Python ignores these for itself, and exec(2) would pass that on: `yes | head` would never end.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(path, command, environment)
    except FileNotFoundError:
        # The file was there: its interpreter (#!) is not.
        raise _Failure(f"can't execute {path}: its interpreter was not found", ExitStatus.CANNOT_EXECUTE) from None
    except OSError as error:
        raise _Failure(f"can't execute {path}: {error.strerror}", ExitStatus.CANNOT_EXECUTE) from None


def look_up(command: str) -> str:
    """The file that *command* names: as a path, in ``PATH``, or beside our own interpreter.

    Raises:
        SockshareError: There is none (exit status 127), or none that may be executed (126).
    """
    if "/" in command:
        candidates = [command]
    else:
        # Without `copy_env` a child of circus has no PATH at all; the environment that we are installed in has its
        # command.
        directories = [*os.environ.get("PATH", os.defpath).split(os.pathsep), os.path.dirname(sys.executable)]
        candidates = [os.path.join(directory, command) for directory in directories]
    found = ""
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
        if not found and os.path.exists(candidate) and not (os.path.isdir(candidate) and len(candidates) > 1):
            found = candidate
    if found:
        what = "it is a directory" if os.path.isdir(found) else "it is not executable"
        raise _Failure(f"can't execute {found}: {what}", ExitStatus.CANNOT_EXECUTE)
    where = "no such file" if len(candidates) == 1 else f"not in PATH, nor beside {sys.executable}"
    raise _Failure(f"can't find {command!r}: {where}", ExitStatus.NOT_FOUND)


def _name_tracer() -> None:
    """Under Yama's scope 1, let the manager and its descendants (the broker) suspend our registrations (prctl(2))."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", "rb") as file:
            if file.read().strip() != b"1":
                return
    except OSError:
        return
    manager = finding.nearest()
    if manager is not None:
        from ctypes import CDLL, c_ulong

        # Kept over exec. Its failure costs only the suspension, and `sockshare status` says so.
        CDLL(None).prctl(_PR_SET_PTRACER, c_ulong(manager.pid), c_ulong(0), c_ulong(0), c_ulong(0))


def _inherit(options: Options, warning: str | None) -> Inherited:
    deadline = time.monotonic() + finding.PATIENCE
    found = finding.find(options.endpoint)
    finding.check(found)
    if options.registration:
        _stand_by(found.directory, options.sockets)
    # Not above: who can't begin need not wait until pyzmq is imported, which is two thirds of what our start takes.
    from sockshare.client.dialogue import Dialogue

    fields: dict[str, object] = {}
    if options.sockets:
        fields["sockets"] = options.sockets
    if warning is not None:
        fields["warning"] = warning
    dialogue = Dialogue(found.directory)
    try:
        for attempt in range(_TICKETS):
            # A broker found late leaves little of the time, and answers at once.
            deadline = max(deadline, time.monotonic() + 1.0)
            answer = dialogue.ask("inherit", deadline=deadline, **fields)
            try:
                sockets = door.redeem(found.directory, _tickets(answer), deadline)
            except TicketRefused:
                if attempt == _TICKETS - 1:
                    raise
            else:
                return Inherited(found.directory, str(answer.get("notify") or ""), sockets)
        raise AssertionError("unreachable")
    finally:
        # Before the descriptors are put in their places: libzmq's thread still uses its own, which may be there.
        dialogue.close()


def _stand_by(directory: str, names: list[str]) -> None:
    """Wait until this process holds the registrations of *names* (all of its program's). Only its end releases them."""
    from sockshare.client.claims import Claims
    from sockshare.client.dialogue import Dialogue

    if not names:
        dialogue = Dialogue(directory)
        try:
            attached = dialogue.ask("attach", deadline=time.monotonic() + finding.PATIENCE)
        finally:
            dialogue.close()
        names = [str(name) for name in attached.get("sockets") or ()]
    claims = Claims(directory)
    notice = _Notice()
    try:
        while not _hold_all(claims, sorted(set(names)), notice):
            pass
    finally:
        claims.close()


class _Notice:
    """Says once, after a while, what we wait for."""

    def __init__(self) -> None:
        self._due: float | None = time.monotonic() + finding.SAID_AFTER

    def left(self) -> float | None:
        """Seconds until it is due; None when it was said."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def tick(self, name: str) -> None:
        if self._due is not None and time.monotonic() >= self._due:
            self._due = None
            print(f"sockshare exec: waiting for the registration of {name!r} ...", file=sys.stderr, flush=True)


def _hold_all(claims: Claims, names: list[str], notice: _Notice) -> bool:
    """Hold them all; False if one was revoked before we had the last: then none is held any more.

    Who has the first waits for the second, in one order in all processes: no two wait for each other.
    """
    from sockshare.client.claims import Claim

    held: list[Claim] = []
    for name in names:
        claim = Claim(name, cooperate=True)
        claims.add(claim)
        held.append(claim)
        while claim.standing != "held" and not any(one.standing == "revoked" for one in held):
            claims.step(notice.left())
            if claim.error is not None:
                raise claim.error
            notice.tick(name)
    claims.step(0)  # what came meanwhile
    if all(one.standing == "held" for one in held):
        return True
    for claim in held:
        claims.release(claim)
    while claims.standing:
        claims.step()
    return False


def _tickets(answer: Answer) -> list[bytes]:
    return [bytes.fromhex(str(entry["ticket"])) for entry in answer.get("tickets") or ()]


def replace(argument: str, numbers: dict[str, int]) -> str:
    """*argument* with each ``{fd:NAME}`` replaced by NAME's descriptor number.

    Raises:
        SockshareError: No socket of that name was given (exit status 125).
    """
    before, mark, rest = argument.partition("{fd:")
    if not mark or "}" not in rest:
        return argument
    name, _, after = rest.partition("}")
    number = numbers.get(name, numbers.get(name.lower()))
    if number is None:
        from sockshare.core.suggest import did_you_mean

        given = ", ".join(numbers) or "none"
        raise _Failure(
            f"can't replace {{fd:{name}}}: no such socket was given (given: {given}){did_you_mean(name, numbers)}",
            ExitStatus.REFUSED,
        )
    return f"{before}{number}{replace(after, numbers)}"


def place(fds: Sequence[int]) -> None:
    """Move *fds* to 3, 4, ..., inheritable; what was there is closed.

    Raises:
        OSError: This process may open no more descriptors.
    """
    # First all of them beyond the places: one may be in another's.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(fds)) for fd in fds]
    close_all(fds)
    for at, fd in enumerate(moved, _FIRST):
        os.dup2(fd, at, inheritable=True)
        os.close(fd)


def _environment() -> dict[str, str]:
    """What this process was started with: Python sets LC_CTYPE for itself where the locale is C (PEP 538)."""
    environment = dict(os.environ)
    if environment.pop("LC_CTYPE", None) is not None:
        with open("/proc/self/environ", "rb") as file:  # as execve(2) had it (proc(5))
            given = [line[9:] for line in file.read().split(b"\0") if line.startswith(b"LC_CTYPE=")]
        if given:
            environment["LC_CTYPE"] = os.fsdecode(given[0])
    return environment


def environment_of(
    base: dict[str, str], numbers: dict[str, int], inherited: Inherited, *, listen_fds: bool = True
) -> dict[str, str]:
    """The command's environment: *base*, and where its sockets are; with *listen_fds* also as sd_listen_fds(3) has it.

    What *base* says of the sockets or the NOTIFY_SOCKET of another process (the manager's own, under systemd) is left
    out.
    """
    environment = {
        name: value
        for name, value in base.items()
        if name not in _NOT_PASSED_ON and not name.startswith("SOCKSHARE_FD_")
    }
    environment["SOCKSHARE_ENDPOINT"] = inherited.directory
    if inherited.notify:
        environment["NOTIFY_SOCKET"] = inherited.notify
    if numbers and listen_fds:
        environment["LISTEN_FDS"] = str(len(numbers))
        environment["LISTEN_PID"] = str(os.getpid())
        # A colon separates the names (sd_listen_fds_with_names(3)).
        environment["LISTEN_FDNAMES"] = ":".join(name.replace(":", "_") for name in numbers)
    for name, number in numbers.items():
        environment["SOCKSHARE_FD_" + "".join(letter if letter.isalnum() else "_" for letter in name.upper())] = str(
            number
        )
    return environment
