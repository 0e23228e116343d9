"""A directory that nobody but root and ourselves can change: its path is not trusted, its descriptor is used.

A path may lead elsewhere the next moment, if somebody else may rename one of its components or put a link there. So a
path is walked once, from the root directory, a component at a time and never through a link (openat(2), O_NOFOLLOW).
Each directory on the way must belong to root or to us, and nobody else may write to it, unless it is sticky, as /tmp
is: others can't rename there what is not theirs (unlink(2), EPERM). A symbolic link on the way must be root's or ours.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterable
from types import TracebackType

#: Only search permission is needed of what is on the way.
_ON_THE_WAY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel's own limit (path_resolution(7))


class Untrusted(PermissionError):
    """Somebody else could change what is in the directory; `strerror` says who, and where."""


class Directory:
    """A directory that is trusted; the descriptor is this object's.

    Attributes:
        path: Where it was found, for who is told of it.
        fd: For the ``dir_fd`` of the functions of `os`.
    """

    __slots__ = ("_follow", "_owners", "fd", "path")

    def __init__(
        self,
        path: str,
        *,
        owners: Iterable[int] = (),
        make: int | None = None,
        parents: bool = True,
        follow: bool = True,
        within: Directory | None = None,
    ) -> None:
        """Open *path*.

        Args:
            owners: Users who are trusted beside root and ourselves.
            make: The mode to make it with, whatever the umask is, if it is not there; None: it is not made.
            parents: Make what is missing on the way too.
            follow: *path* itself, in the end, may be a link.
            within: The directory from which *path*, one name, is reached.

        Raises:
            Untrusted: Somebody else could change it.
            OSError: As openat(2), mkdirat(2).
        """
        self._owners = {0, os.geteuid(), *owners, *_of_nobody_here()}
        self._follow = follow
        if within is None:
            self.path = os.path.abspath(path)
            self.fd = self._walk("/", os.open("/", _ON_THE_WAY), make, parents)
        else:
            self.path = os.path.join(within.path, path)
            self.fd = self._walk(within.path, os.dup(within.fd), make, parents)

    def renew(self) -> None:
        """Open what is at the path by now, under the same number; the directory may have been removed and made anew.

        Raises:
            Untrusted, OSError: As at first; then the descriptor is still the old one.
        """
        fd = self._walk("/", os.open("/", _ON_THE_WAY), None, parents=False)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)

    def _walk(self, walked: str, fd: int, make: int | None, parents: bool) -> int:
        """A descriptor of the directory, from that at *walked*, which is *fd* and closed in any case."""
        pending = _components(os.path.relpath(self.path, walked))
        made, links = False, 0
        try:
            self._check(fd, walked, last=not pending)
            while pending:
                name = pending.pop()
                step = os.path.join(walked, name)
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    if make is None or (pending and not parents):
                        raise
                    os.mkdir(name, 0o755 if pending else make, dir_fd=fd)
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    made = not pending
                if stat.S_ISLNK(status.st_mode):
                    if not (pending or self._follow):
                        raise NotADirectoryError(errno.ENOTDIR, "it is a symbolic link", step)
                    if status.st_uid not in self._owners:
                        raise Untrusted(errno.EPERM, f"{step} is a symbolic link of {_user(status.st_uid)}")
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), step)
                    target = os.readlink(name, dir_fd=fd)
                    pending += _components(target)
                    if target.startswith("/"):
                        os.close(fd)
                        fd, walked = os.open("/", _ON_THE_WAY), "/"
                    continue
                below = os.open(name, _ON_THE_WAY, dir_fd=fd)
                os.close(fd)
                fd, walked = below, step
                self._check(fd, walked, last=not pending)
            # What is on the way may be opened by who may only pass; the directory itself is listed, too.
            found = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        if made:
            os.fchmod(found, make or 0)
        return found

    def _check(self, fd: int, path: str, *, last: bool) -> None:
        status = os.fstat(fd)
        if status.st_uid not in self._owners:
            raise Untrusted(errno.EPERM, f"{path} belongs to {_user(status.st_uid)}")
        sticky = status.st_mode & stat.S_ISVTX and not last
        if sticky or not status.st_mode & 0o022 or (not status.st_mode & 0o002 and _is_private_group(status)):
            return
        raise Untrusted(errno.EPERM, f"others may write to {path} (mode {stat.S_IMODE(status.st_mode):04o})")

    def directory(self, name: str, mode: int) -> Directory:
        """The directory *name* in it, made with *mode* if it is not there.

        Raises:
            Untrusted, OSError: As for the directory itself.
        """
        return Directory(name, owners=self._owners, make=mode, follow=False, within=self)

    def create(self, name: str, mode: int) -> int:
        """A descriptor of the new file *name*, to be written; whatever was there is removed, and never followed.

        Raises:
            OSError: As unlinkat(2), openat(2).
        """
        self.unlink(name)
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.fd)

    def write(self, name: str, text: str, mode: int) -> None:
        """Have the file *name* say *text*, in one step, with *mode*, whatever the umask is.

        Raises:
            OSError: As `create`, write(2), rename(2).
        """
        aside = f"{name}~"
        with open(self.create(aside, mode), "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        os.rename(aside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove the file *name*, if it is there.

        Raises:
            OSError: As unlinkat(2).
        """
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def status(self, name: str) -> os.stat_result | None:
        """lstat(2) of *name* in it; None if it is not there, or can't be looked at."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None

    def close(self) -> None:
        """Close the descriptor, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _components(path: str) -> list[str]:
    """The components of *path*, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _is_private_group(status: os.stat_result) -> bool:
    """Whether the group of a file has its owner for its only member, as most distributions make a group for a user."""
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    members = {*group.gr_mem, *(one.pw_name for one in pwd.getpwall() if one.pw_gid == status.st_gid)}
    return members <= {owner.pw_name}


def _of_nobody_here() -> list[int]:
    """The uid as which the files of users outside of our user namespace are shown, root's among them.

    None where it is also the uid of somebody in here (user_namespaces(7), "Unmapped user and group IDs").
    """
    try:
        with open("/proc/sys/kernel/overflowuid") as file:
            nobody = int(file.read())
        with open("/proc/self/uid_map") as file:
            spans = [(int(first), int(count)) for first, _, count in map(str.split, file)]
    except (OSError, ValueError):
        return []
    return [] if any(first <= nobody < first + count for first, count in spans) else [nobody]
