"""Which directories are trusted: those that nobody else can change, or put another one in the place of."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sockshare.kernel import listeners, logfile
from sockshare.kernel.directory import Directory, Untrusted

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
OTHER = 65533


def owned(path: Path, uid: int, mode: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    os.chown(path, uid, uid)
    return path


def other_s(base: Path) -> Path:
    return owned(base / "d", OTHER, 0o755)


def for_all(base: Path) -> Path:
    return owned(base / "d", 0, 0o777)


def sticky_for_all(base: Path) -> Path:
    return owned(base / "d", 0, 0o1777)


def for_a_group(base: Path) -> Path:
    path = owned(base / "d", 0, 0o775)
    os.chown(path, 0, OTHER)
    return path


def below_other_s(base: Path) -> Path:
    path = owned(base / "theirs" / "d", 0, 0o755)
    owned(base / "theirs", OTHER, 0o755)
    return path


def below_one_for_all(base: Path) -> Path:
    path = owned(base / "all" / "d", 0, 0o755)
    owned(base / "all", 0, 0o777)
    return path


def behind_other_s_link(base: Path) -> Path:
    owned(base / "d", 0, 0o755)
    os.symlink(base / "d", base / "link")
    os.chown(base / "link", OTHER, OTHER, follow_symlinks=False)
    return base / "link"


@ROOT_ONLY
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_s, "d belongs to uid 65533"),
        (for_all, "others may write to .*d .mode 0777."),
        (sticky_for_all, "others may write to .*d .mode 1777."),
        (for_a_group, "others may write to .*d .mode 0775."),
        (below_other_s, "theirs belongs to uid 65533"),
        (below_one_for_all, "others may write to .*all .mode 0777."),
        (behind_other_s_link, "link is a symbolic link of uid 65533"),
    ],
)
def test_directory_is_refused_when_somebody_else_could_change_it(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    """By its owner or its mode, or by those of any directory or link on the way."""
    path = make(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Untrusted, match=words):
        Directory(str(path))
    assert len(os.listdir("/proc/self/fd")) == before


@ROOT_ONLY
def test_directory_is_trusted_below_a_sticky_one_and_behind_links_of_root(tmp_path: Path) -> None:
    """As /tmp/ours is, and /var/run/ours; a private group may write, as umask 002 lets it; `..` of a link is walked."""
    path = owned(tmp_path / "tmp" / "d", 0, 0o775)
    owned(tmp_path / "tmp", 0, 0o1777)
    os.symlink("tmp/../tmp", tmp_path / "link")
    for each in (path, tmp_path / "link" / "d"):
        with Directory(str(each)) as found:
            assert os.path.sameopenfile(found.fd, os.open(path, os.O_PATH))


def test_directory_is_made_with_its_mode_whatever_the_umask_is(tmp_path: Path) -> None:
    """And its parents as makedirs makes them; what is there already keeps its mode."""
    before = os.umask(0o077)
    try:
        with Directory(str(tmp_path / "a" / "b"), make=0o711) as found:
            found.directory("notify", 0o711).close()
            found.write("stopped", "why", 0o644)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) for name in (".", "b", "b/notify", "b/stopped")]
    assert modes == [0o700, 0o711, 0o711, 0o644]
    (tmp_path / "a" / "b").chmod(0o750)
    Directory(str(tmp_path / "a" / "b"), make=0o711).close()
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o750
    with pytest.raises(FileNotFoundError):
        Directory(str(tmp_path / "x" / "y"), make=0o711, parents=False)


def test_nothing_is_written_behind_a_link_that_was_planted(tmp_path: Path) -> None:
    """A file, the name beside it, a socket, a directory, a log: the link is replaced or refused, never followed."""
    target = tmp_path / "target"
    target.write_text("secret")
    target.chmod(0o600)
    (tmp_path / "elsewhere").mkdir()
    with Directory(str(tmp_path / "d"), make=0o711) as found:
        for name in ("stopped", "stopped~", "door", "~oor", "log", "log2"):
            os.symlink(target, name, dir_fd=found.fd)
        os.symlink(tmp_path / "elsewhere", "notify", dir_fd=found.fd)
        found.write("stopped", "why", 0o644)
        listeners.make(f"{found.path}/door", 1, dir_fd=found.fd).close()
        with pytest.raises(NotADirectoryError):
            found.directory("notify", 0o711)
        if os.geteuid() == 0:
            os.chown("log", OTHER, OTHER, dir_fd=found.fd, follow_symlinks=False)
            with pytest.raises(PermissionError, match="symbolic link of another user"):
                logfile.append(f"{found.path}/log")
        assert os.readlink(f"{found.path}/log2") == str(target)
        os.close(logfile.append(f"{found.path}/log2"))  # ours: an administrator may have it elsewhere
        assert Path(found.path, "stopped").read_text() == "why"
        assert stat.S_ISSOCK(os.lstat(f"{found.path}/door").st_mode)
    assert target.read_text() == "secret"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_made_goes_where_the_descriptor_is_not_where_the_path_leads_now(tmp_path: Path) -> None:
    """A directory that was renamed is written to by its descriptor; `renew` takes what is at the path by now."""
    with Directory(str(tmp_path / "d"), make=0o711) as found:
        (tmp_path / "d").rename(tmp_path / "moved")
        (tmp_path / "d").mkdir()
        number = found.fd
        found.write("one", "1", 0o644)
        listeners.make(f"{found.path}/door", 1, dir_fd=found.fd).close()
        found.renew()
        assert found.fd == number
        found.write("two", "2", 0o644)
    assert sorted(os.listdir(tmp_path / "moved")) == ["door", "one"]
    assert os.listdir(tmp_path / "d") == ["two"]


def test_log_is_made_for_its_group_and_an_own_one_is_narrowed(tmp_path: Path) -> None:
    """0640, also after rotation; an administrator's keeps its mode; another user's in our directory is refused."""
    path = tmp_path / "log"
    before = os.umask(0)
    try:
        for _ in range(2):
            handler = logfile.LogFile(str(path))
            handler.close()
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            path.unlink()
        os.close(logfile.append(str(path)))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    path.chmod(0o666)
    logfile.LogFile(str(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    logfile.LogFile(str(path), own=True).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    if os.geteuid() == 0:
        os.chown(path, OTHER, OTHER)
        with pytest.raises(PermissionError, match="belongs to another user"):
            logfile.LogFile(str(path), own=True)
