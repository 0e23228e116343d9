"""The runtime directory of a manager: made where its clients look (`sockshare.kernel.meeting`), and removed."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat

from sockshare.core.errors import BadConfiguration
from sockshare.kernel import listeners, meeting

from . import journal

log = logging.getLogger(__name__)

JOURNAL = "journal.json"
NOTIFY = "notify"
LOG = "sockshare.log"
LISTENERS = ("broker", "door")
#: What some hosts have there too, or have for some time.
EXTRAS = ("link", meeting.STOPPED, meeting.REFUSED)

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
        The directory: *runtime_dir*, or the meeting point.

    Raises:
        BadConfiguration: It can't be made or written, its path is too long, or another living manager uses it.
        ProcessLookupError: There is no process *pid*.
    """
    if runtime_dir is not None:
        _check(runtime_dir, pid)
        _make_runtime_dir(runtime_dir)
    refusals = []
    for point in meeting.points(pid, root):
        try:
            _make_base(os.path.dirname(point), meeting.user(pid))
            _clean(os.path.dirname(point))
            if runtime_dir is None:
                _replace_with_directory(point)
                _make_runtime_dir(point)
                return point
            _link(os.path.abspath(runtime_dir), point)
            return os.path.abspath(runtime_dir)
        except OSError as error:
            refusals.append(f"{point}: {error.strerror}")
        except BadConfiguration as error:
            refusals.append(str(error))
    raise BadConfiguration(f"can't make a meeting point: {'; '.join(refusals)}")


def _check(runtime_dir: str, pid: int) -> None:
    absolute = os.path.abspath(runtime_dir)
    if len(os.fsencode(absolute)) > listeners.LONGEST_PATH - _LONGEST_NAME:
        raise BadConfiguration(
            f"can't use runtime_dir {runtime_dir}: the paths of the sockets in it would be longer than "
            f"{listeners.LONGEST_PATH} bytes; choose one of at most {listeners.LONGEST_PATH - _LONGEST_NAME} bytes"
        )
    document = journal.read(os.path.join(absolute, JOURNAL)) or {}
    other = meeting.manager(str(document.get("owner", "")))
    if other is not None and other != pid:
        raise BadConfiguration(
            f"can't use runtime_dir {runtime_dir}: another manager uses it (pid {other}); give each its own"
        )


def _make_runtime_dir(path: str) -> None:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), 0o755, exist_ok=True)
        _make_directory(path)
        _make_directory(os.path.join(path, NOTIFY))
        # Root may write where modes forbid it, and nobody may write to a read-only mount: only trying tells.
        probe = os.path.join(path, f"~{os.getpid()}")
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.unlink(probe)
    except OSError as error:
        reason = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
        raise BadConfiguration(
            f"can't write runtime directory {path}: {reason}; "
            "make it writable for the manager's user, or choose another runtime_dir"
        ) from None


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, _PASSABLE)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    else:
        os.chmod(path, _PASSABLE)  # whatever the umask is


def _make_base(base: str, uid: int) -> None:
    """Make the parent of a meeting point; refuse one that somebody else made, or could change.

    Raises:
        OSError: It can't be.
    """
    parent = os.path.dirname(base)
    if os.path.basename(parent) == str(uid) and os.lstat(parent).st_uid != uid:
        raise PermissionError(errno.EPERM, f"{parent} belongs to another user")
    try:
        os.mkdir(base, _PASSABLE)
    except FileExistsError:
        if not meeting.trusted(base, uid):
            raise PermissionError(errno.EPERM, f"{base} belongs to another user, or others may write it") from None
    else:
        os.chmod(base, _PASSABLE)
        if os.geteuid() != uid:
            os.chown(base, uid, -1)


def _replace_with_directory(point: str) -> None:
    # A link from before a changed configuration: the sockets behind it are no longer those of this host.
    if os.path.islink(point):
        os.unlink(point)


def _link(target: str, point: str) -> None:
    if os.path.isdir(point) and not os.path.islink(point):
        _remove_directory(point)
    aside = f"{point}~{os.getpid()}"
    try:
        os.unlink(aside)
    except FileNotFoundError:
        pass
    os.symlink(target, aside)
    os.rename(aside, point)  # a client meets the old link or the new one


def _clean(base: str) -> None:
    for entry in os.listdir(base):
        point = os.path.join(base, entry)
        # A manager in another pid namespace is none of our processes, but its door is open.
        if meeting.manager(entry) is None and not _is_open(os.path.join(point, "door")):
            log.info("meeting: removing that of a manager that is gone (%s)", point)
            remove(point)


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

    What can't be removed is logged and left.
    """
    try:
        if os.path.islink(point):
            owner = (journal.read(os.path.join(point, JOURNAL)) or {}).get("owner")
            # The directory may have a new owner by now: then only the link is ours.
            if owner in (None, os.path.basename(point)):
                clear(point)
            os.unlink(point)
        elif os.path.isdir(point):
            _remove_directory(point)
        elif os.path.lexists(point):
            os.unlink(point)
    except OSError as error:
        log.warning("meeting: can't remove %s: %s", point, error.strerror)


def _remove_directory(point: str) -> None:
    clear(point)
    _unlink(os.path.join(point, LOG))
    try:
        os.rmdir(os.path.join(point, NOTIFY))
    except FileNotFoundError:
        pass
    os.rmdir(point)


def clear(directory: str) -> None:
    """Remove the sockets and the journal from a runtime directory, nothing else.

    Raises:
        OSError: As unlink(2).
    """
    notify = os.path.join(directory, NOTIFY)
    paths = [os.path.join(directory, name) for name in (*LISTENERS, JOURNAL, f"{JOURNAL}~", *EXTRAS)]
    paths += [os.path.join(notify, entry) for entry in (os.listdir(notify) if os.path.isdir(notify) else ())]
    for path in paths:
        _unlink(path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
