"""The runtime directory of a manager: made where its clients look (`sockshare.kernel.meeting`), and removed."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterator

from sockshare.core.errors import BadConfiguration
from sockshare.kernel import listeners, meeting
from sockshare.kernel.directory import Directory, Untrusted

from . import journal

log = logging.getLogger(__name__)

JOURNAL = "journal.json"
NOTIFY = "notify"
LOG = "sockshare.log"
LISTENERS = ("broker", "door")
#: What some hosts have there too, or have for some time.
EXTRAS = ("link", "sockets", meeting.STOPPED, meeting.REFUSED)

#: A directory that everybody may pass through, but not list or write.
_PASSABLE = 0o711
#: The longest name that is put below a runtime directory (a pid has at most 7 digits).
_LONGEST_NAME = len("/notify/4194304")


def create(pid: int, runtime_dir: str | None = None, *, root: str = "/") -> str:
    """Make the runtime directory of manager *pid*, and leave the traces to it; one that is there already is used again.

    Meeting points of managers that are no more are removed on the way.

    Args:
        runtime_dir: The configured one, to which the meeting point becomes a link; None: the meeting point itself.

    Returns:
        The directory: *runtime_dir*, also where no meeting point can be made (see `unmet`), or the meeting point.

    Raises:
        BadConfiguration: It can't be made or written, somebody else could change what is in it, its path is too long,
            or another living manager uses it.
        ProcessLookupError: There is no process *pid*.
    """
    uid, own = meeting.user(pid), meeting.name(pid)
    if runtime_dir is not None:
        runtime_dir = os.path.abspath(runtime_dir)
        _check_length(runtime_dir)
        _make_runtime_dir(lambda: Directory(runtime_dir, owners=(uid,), make=_PASSABLE), runtime_dir, pid)
    refusals = []
    for path in _candidates(uid, root):
        try:
            with _base(path, uid) as base:
                _clean(base)
                if runtime_dir is not None:
                    _link(base, own, runtime_dir)
                    return runtime_dir
                _remove_link(base, own)
                point = os.path.join(path, own)
                _make_runtime_dir(lambda base=base: base.directory(own, _PASSABLE), point, pid)  # type: ignore[misc]
                return point
        except OSError as error:
            refusals.append(f"{path}: {error.strerror}")
        except BadConfiguration as error:
            refusals.append(str(error))
    if runtime_dir is not None:
        return runtime_dir
    raise BadConfiguration(f"can't make a meeting point: {'; '.join(refusals)}; set runtime_dir")


def unmet(pid: int, directory: str, *, root: str = "/") -> str | None:
    """What to do where `create` could make *directory*, but no meeting point that leads there; None: it could."""
    if meeting.find(pid, root) is not None:
        return None
    return (
        f"no meeting point can be made ({', '.join([*meeting.bases(meeting.user(pid), root)])}): set"
        f" SOCKSHARE_ENDPOINT={directory} in the environment of programs, and say --endpoint {directory} in commands"
    )


def _candidates(uid: int, root: str) -> Iterator[str]:
    yield from meeting.all_bases(uid, root)
    for prefix in meeting.spare_prefixes(uid, root):
        yield prefix + secrets.token_hex(4)


def _base(path: str, uid: int) -> Directory:
    """The parent of a meeting point, made if need be.

    Raises:
        OSError: It can't be; or somebody else could change it.
    """
    base = Directory(path, owners=(uid,), make=_PASSABLE, parents=False, follow=False)
    try:
        status = os.fstat(base.fd)
        if status.st_uid not in (0, uid):
            os.fchown(base.fd, uid, -1)
    except BaseException:
        base.close()
        raise
    return base


def _check_length(runtime_dir: str) -> None:
    if len(os.fsencode(runtime_dir)) > listeners.LONGEST_PATH - _LONGEST_NAME:
        raise BadConfiguration(
            f"can't use runtime_dir {runtime_dir}: the paths of the sockets in it would be longer than "
            f"{listeners.LONGEST_PATH} bytes; choose one of at most {listeners.LONGEST_PATH - _LONGEST_NAME} bytes"
        )


def _make_runtime_dir(make: Callable[[], Directory], path: str, pid: int) -> None:
    try:
        with make() as directory:
            _refuse_other(directory, pid)
            directory.directory(NOTIFY, _PASSABLE).close()
            # Root may write where modes forbid it, and nobody may write to a read-only mount: only trying tells.
            probe = f"~{os.getpid()}"
            os.close(directory.create(probe, 0o600))
            directory.unlink(probe)
    except Untrusted as error:
        raise BadConfiguration(
            f"can't use runtime directory {path}: {error.strerror}; choose one that {_owner()} owns, below directories"
            " to which nobody else may write"
        ) from None
    except OSError as error:
        reason = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
        raise BadConfiguration(
            f"can't write runtime directory {path}: {reason}; "
            "make it writable for the manager's user, or choose another runtime_dir"
        ) from None


def _owner() -> str:
    return "root" if os.geteuid() == 0 else f"root or uid {os.geteuid()}"


def _refuse_other(directory: Directory, pid: int) -> None:
    document = journal.read(JOURNAL, directory.fd) or {}
    other = meeting.manager(str(document.get("owner", "")))
    if other is not None and other != pid:
        raise BadConfiguration(
            f"can't use runtime_dir {directory.path}: another manager uses it (pid {other}); give each its own"
        )


def _remove_link(base: Directory, name: str) -> None:
    # A link from before a changed configuration: the sockets behind it are no longer those of this host.
    status = base.status(name)
    if status is not None and stat.S_ISLNK(status.st_mode):
        base.unlink(name)


def _link(base: Directory, name: str, target: str) -> None:
    status = base.status(name)
    if status is not None and stat.S_ISDIR(status.st_mode):
        _remove_directory(base, name)
    aside = f"{name}~{os.getpid()}"
    base.unlink(aside)
    os.symlink(target, aside, dir_fd=base.fd)
    os.rename(aside, name, src_dir_fd=base.fd, dst_dir_fd=base.fd)  # a client meets the old link or the new one


def _clean(base: Directory) -> None:
    for entry in os.listdir(base.fd):
        # A manager in another pid namespace is none of our processes, but its door is open.
        if meeting.manager(entry) is None and not _is_open(os.path.join(base.path, entry, "door")):
            log.info("meeting: removing that of a manager that is gone (%s/%s)", base.path, entry)
            _remove(base, entry)


def _is_open(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(path)
        except BlockingIOError:
            return True  # its backlog is full
        except (OSError, ValueError):
            return False
    return True


def remove(point: str) -> None:
    """Remove a meeting point, and what a host made behind it; a configured directory itself stays, with its log.

    What can't be removed, or is not ours, is logged and left.
    """
    try:
        with Directory(os.path.dirname(point)) as base:
            _remove(base, os.path.basename(point))
    except OSError as error:
        log.warning("meeting: can't remove %s: %s", point, error.strerror)


def _remove(base: Directory, name: str) -> None:
    status = base.status(name)
    try:
        if status is None:
            return
        if stat.S_ISLNK(status.st_mode):
            _clear_behind(base, name)
            base.unlink(name)
        elif stat.S_ISDIR(status.st_mode):
            _remove_directory(base, name)
        else:
            base.unlink(name)
    except OSError as error:
        log.warning("meeting: can't remove %s/%s: %s", base.path, name, error.strerror)


def _clear_behind(base: Directory, name: str) -> None:
    try:
        with Directory(os.readlink(name, dir_fd=base.fd)) as directory:
            owner = (journal.read(JOURNAL, directory.fd) or {}).get("owner")
            # The directory may have a new owner by now: then only the link is ours.
            if owner in (None, name):
                _clear(directory)
    except (FileNotFoundError, NotADirectoryError):
        pass


def _remove_directory(base: Directory, name: str) -> None:
    with Directory(name, follow=False, within=base) as directory:
        _clear(directory)
        directory.unlink(LOG)
        try:
            os.rmdir(NOTIFY, dir_fd=directory.fd)
        except FileNotFoundError:
            pass
    os.rmdir(name, dir_fd=base.fd)


def clear(directory: str) -> None:
    """Remove the sockets and the journal from a runtime directory, nothing else.

    Raises:
        OSError: As unlink(2); or it is not there, or somebody else could change it.
    """
    with Directory(directory) as opened:
        _clear(opened)


def _clear(directory: Directory) -> None:
    for name in (*LISTENERS, JOURNAL, f"{JOURNAL}~", *EXTRAS, *(f"{name}~" for name in EXTRAS)):
        directory.unlink(name)
    try:
        with Directory(NOTIFY, follow=False, within=directory) as notify:
            for entry in os.listdir(notify.fd):
                notify.unlink(entry)
    except (FileNotFoundError, NotADirectoryError):
        pass
