"""Where a broker and its clients meet."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockshare.core.errors import BadConfiguration
from sockshare.host import meeting as making
from sockshare.host.journal import Journal
from sockshare.kernel import listeners, meeting

OWN = os.getpid()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with the parents that a machine has."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "run" / "user" / str(os.geteuid())).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A root directory for other users too: pytest keeps them out of its own."""
    with tempfile.TemporaryDirectory(prefix="ss-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def other() -> Iterator[int]:
    """The pid of another living process."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "argv",
    [
        "/venv/bin/python /venv/bin/circusd circus.ini",
        "/usr/bin/python3.11 -u -X dev -W error /usr/bin/supervisord -n",
        "python -m circus.circusd circus.ini",
        "python3 -msupervisor.supervisord",
        "circusd",
        "circusd --daemon circus.ini",
        "/usr/sbin/supervisord: running",
        "python circusd.py",
        "pypy3 -E /opt/circusd x",
    ],
)
def test_manager_is_recognized_however_it_was_started(argv: str) -> None:
    """By an interpreter with options, as a module, renamed: circusd and supervisord are known."""
    assert meeting.is_manager(argv.split())


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("circusd /etc/supervisord/circus.ini", "circusd"),
        ("python -m supervisor.supervisord -c circusd.conf", "supervisord"),
        ("python -c from_supervisor.supervisord_import_main", "supervisord"),
        ("/usr/sbin/supervisord: running", "supervisord"),
        ("python app.py", "circusd"),
        ("/opt/my-supervisord", "supervisord"),
    ],
)
def test_manager_has_the_name_by_which_it_is_recognized(argv: str, name: str) -> None:
    """Not the one that stands anywhere among its arguments, but where it is not recognized at all."""
    assert meeting.manager_name(argv.split()) == name


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "/venv/bin/python -m gunicorn circusd",
        "circusctl status",
        "python -c pass circusd",
        "python -W circusd app.py",
        "python -m circus.plugins",
        "vi /etc/circusd",
        "sh -c circusd",
    ],
)
def test_other_process_is_no_manager(argv: str) -> None:
    """Its name somewhere among the arguments does not make a process a manager."""
    assert not meeting.is_manager(argv.split())


def test_clients_find_what_a_host_made(root: Path) -> None:
    """The directory is passable for everybody, listable for nobody else, and found by pid alone."""
    assert meeting.find(OWN, str(root)) is None
    before = os.umask(0o077)
    try:
        directory = making.create(OWN, root=str(root))
    finally:
        os.umask(before)
    assert meeting.find(OWN, str(root)) == directory == meeting.points(OWN, str(root))[0]
    for path in (directory, os.path.dirname(directory), os.path.join(directory, making.NOTIFY)):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o711
    assert making.create(OWN, root=str(root)) == directory
    assert list(meeting.running(os.geteuid(), str(root))) == [directory]
    making.remove(directory)
    assert meeting.find(OWN, str(root)) is None


def test_meeting_point_leads_to_configured_directory(root: Path) -> None:
    """A link from the meeting point; when it goes, the directory stays, without our files and with everybody else's."""
    configured = root / "app" / "share"
    assert making.create(OWN, str(configured), root=str(root)) == str(configured)
    point = meeting.find(OWN, str(root))
    assert point is not None
    assert os.path.samefile(point, configured)
    assert making.create(OWN, str(configured), root=str(root)) == str(configured)
    journal = Journal(str(configured / making.JOURNAL), meeting.name(OWN))
    journal.save()
    (configured / "theirs").touch()
    listeners.make(str(configured / "door"), socket.SOCK_SEQPACKET).close()
    listeners.make(str(configured / "notify" / "1"), socket.SOCK_DGRAM).close()
    making.remove(point)
    assert not os.path.lexists(point)
    assert {entry.name for entry in configured.iterdir()} == {"notify", "theirs"}
    assert not list((configured / "notify").iterdir())
    # From the link to a directory of its own, and back.
    making.create(OWN, str(configured), root=str(root))
    assert making.create(OWN, root=str(root)) == point
    assert not os.path.islink(point)
    making.create(OWN, str(configured), root=str(root))
    assert os.path.islink(point)


def test_next_place_is_taken_when_the_first_is_not_to_be_had(root: Path) -> None:
    """A place that somebody else made, or could write to, or that is a link, is neither used nor looked at."""
    [first, *rest] = meeting.bases(os.geteuid(), str(root))
    os.mkdir(first)
    os.chmod(first, 0o777)
    directory = making.create(OWN, root=str(root))
    assert os.path.dirname(directory) == rest[0]
    assert meeting.find(OWN, str(root)) == directory
    os.mkdir(os.path.join(first, meeting.name(OWN)))
    assert meeting.find(OWN, str(root)) == directory
    making.remove(directory)
    os.rmdir(rest[0])
    os.symlink(root / "tmp", rest[0])
    if len(rest) > 1:
        assert os.path.dirname(making.create(OWN, root=str(root))) == rest[1]
    else:
        with pytest.raises(BadConfiguration, match="can't make a meeting point"):
            making.create(OWN, root=str(root))


def test_traces_of_dead_managers_are_removed(root: Path, other: int) -> None:
    """Those of the living stay, and one whose door is open: its manager is in another pid namespace."""
    base = os.path.dirname(making.create(OWN, root=str(root)))
    dead = [os.path.join(base, f"{OWN}-1"), os.path.join(base, "nonsense")]
    for path in dead:
        os.makedirs(os.path.join(path, making.NOTIFY))
        listeners.make(os.path.join(path, "door"), socket.SOCK_SEQPACKET).close()
    living = os.path.join(base, meeting.name(other))
    foreign = os.path.join(base, "4194305-1")
    for path in (living, foreign):
        os.mkdir(path)
    with listeners.make(os.path.join(foreign, "door"), socket.SOCK_SEQPACKET):
        making.create(OWN, root=str(root))
    assert {os.path.join(base, entry) for entry in os.listdir(base)} == {
        living,
        foreign,
        os.path.join(base, meeting.name(OWN)),
    }


def test_configured_directory_is_refused_when_it_cannot_serve(root: Path, other: int) -> None:
    """One sentence each: a file in the way, a path too long for its sockets, another living manager's."""
    (root / "file").touch()
    with pytest.raises(BadConfiguration, match=r"can't write runtime directory .*Not a directory"):
        making.create(OWN, str(root / "file" / "share"), root=str(root))
    with pytest.raises(BadConfiguration, match=r"can't use runtime_dir .*at most 92 bytes"):
        making.create(OWN, str(root / ("x" * 93)), root=str(root))
    taken = root / "taken"
    making.create(other, str(taken), root=str(root))
    Journal(str(taken / making.JOURNAL), meeting.name(other)).save()
    with pytest.raises(BadConfiguration, match=f"another manager uses it \\(pid {other}\\)"):
        making.create(OWN, str(taken), root=str(root))
    Journal(str(taken / making.JOURNAL), f"{other}-1").save()  # the same pid, an earlier process
    assert making.create(OWN, str(taken), root=str(root)) == str(taken)


OTHER = 65533
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs root")


def given(path: Path, uid: int = OTHER, mode: int = 0o755) -> Path:
    """A directory that user *uid* has made."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    os.chown(path, uid, uid)
    return path


@ROOT_ONLY
def test_configured_directory_of_another_user_is_refused_with_a_way_out(root: Path) -> None:
    """Made beforehand, in a sticky directory, with links in it: one sentence, and nothing there or behind changes."""
    (root / "tmp").chmod(0o1777)
    theirs = given(root / "tmp" / "rt", mode=0o777)
    secret = root / "secret"
    secret.write_text("root's")
    for name in ("stopped", "journal.json", "journal.json~", "sockshare.log"):
        (theirs / name).symlink_to(secret)
    with pytest.raises(BadConfiguration) as raised:
        making.create(OWN, str(theirs), root=str(root))
    said = str(raised.value)
    assert said == (
        f"can't use runtime directory {theirs}: {theirs} belongs to uid {OTHER}; choose one that root owns, below"
        " directories to which nobody else may write"
    )
    assert secret.read_text() == "root's"
    assert sorted(os.listdir(theirs)) == ["journal.json", "journal.json~", "sockshare.log", "stopped"]
    os.chown(theirs, 0, 0)
    with pytest.raises(BadConfiguration, match=r"others may write to .* \(mode 0777\)"):
        making.create(OWN, str(theirs), root=str(root))
    theirs.chmod(0o755)
    os.chown(theirs / "journal.json", OTHER, OTHER, follow_symlinks=False)
    assert making.create(OWN, str(theirs), root=str(root)) == str(theirs)
    assert secret.read_text() == "root's"


@ROOT_ONLY
@pytest.mark.parametrize("configured", [False, True])
def test_squatted_default_directories_do_not_matter(root: Path, configured: bool) -> None:
    """Whoever takes all names beforehand, those too that clients would look at: clients find ours, by its owner."""
    (root / "tmp").chmod(0o1777)
    (root / "dev" / "shm").mkdir(parents=True)
    (root / "dev" / "shm").chmod(0o1777)
    for base in meeting.bases(0, str(root)):
        given(given(Path(base)) / meeting.name(OWN))
    for prefix in meeting.spare_prefixes(0, str(root)):
        given(given(Path(prefix + "0")) / meeting.name(OWN))
        given(given(Path(prefix + "zz")) / meeting.name(OWN))
    assert meeting.find(OWN, str(root)) is None
    runtime_dir = str(root / "app") if configured else None
    directory = making.create(OWN, runtime_dir, root=str(root))
    point = meeting.find(OWN, str(root))
    assert point is not None
    assert os.path.samefile(point, directory)
    assert os.lstat(os.path.dirname(point)).st_uid == 0
    assert list(meeting.running(0, str(root))) == [point]
    assert making.unmet(OWN, directory, root=str(root)) is None
    assert making.create(OWN, runtime_dir, root=str(root)) == directory  # the same, not one more
    assert meeting.find(OWN, str(root)) == point
    making.remove(point)
    assert meeting.find(OWN, str(root)) is None


@ROOT_ONLY
def test_nothing_behind_a_squatted_meeting_point_is_removed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another user's link, or directory, at the place of ours: what it leads to is root's still when a manager ends."""
    victim = root / "victim"
    (victim / "notify").mkdir(parents=True)
    for name in ("door", "notify/1", "stopped"):
        (victim / name).touch()
    base = given(Path(meeting.bases(0, str(root))[0]))
    (base / meeting.name(OWN)).symlink_to(victim)
    making.remove(str(base / meeting.name(OWN)))
    assert sorted(os.listdir(victim)) == ["door", "notify", "stopped"]
    assert os.listdir(victim / "notify") == ["1"]
    assert os.path.islink(base / meeting.name(OWN))
    assert f"belongs to uid {OTHER}" in caplog.text


@ROOT_ONLY
def test_configured_directory_serves_also_where_no_meeting_point_can_be_made(root: Path) -> None:
    """As in a container with one writable volume; what clients must be told then is said."""
    for base in meeting.bases(0, str(root)):
        given(Path(base))
    (root / "tmp").chmod(0o777)  # not sticky: nothing in it is ours for long
    configured = str(root / "app")
    assert making.create(OWN, configured, root=str(root)) == configured
    told = making.unmet(OWN, configured, root=str(root))
    assert told is not None
    assert f"set SOCKSHARE_ENDPOINT={configured} in" in told
    with pytest.raises(BadConfiguration, match=r"can't make a meeting point: .*; set runtime_dir"):
        making.create(OWN, root=str(root))


@ROOT_ONLY
def test_client_can_tell_that_its_manager_has_no_place(reachable: Path) -> None:
    """Each place by its name; as long as one is left, or for another user, it can't."""
    uid, root = 65532, reachable
    for place in ("tmp", "run/user", "dev/shm"):
        (root / place).mkdir(parents=True)

    def tells() -> str | None:
        before = os.geteuid()
        os.seteuid(uid)
        try:
            return meeting.obstacle(uid, str(root))
        finally:
            os.seteuid(before)

    assert meeting.obstacle(uid, str(root)) is None
    told = tells()
    assert told is not None
    assert f"can't write to {root}/tmp" in told
    assert f"can't write to {root}/dev/shm" in told
    given(root / "tmp" / f"sockshare-{uid}")
    told = tells()
    assert told is not None
    assert f"{root}/tmp/sockshare-{uid} is another user's" in told
    (root / "dev" / "shm").chmod(0o1777)
    assert tells() is None


@ROOT_ONLY
def test_journal_of_another_user_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was planted before the directory was root's; the next save replaces it, and the name beside it."""
    path = tmp_path / "journal.json"
    Journal(str(path), "1-1").save()
    path.write_text('{"version": 1, "owner": "1-1", "records": {"a": {"x": 1}}}')
    assert Journal(str(path), "1-1").records == {"a": {"x": 1}}
    os.chown(path, OTHER, OTHER)
    aside = tmp_path / "journal.json~"
    aside.touch()
    os.chown(aside, OTHER, OTHER)
    journal = Journal(str(path), "1-1")
    assert journal.records == {}
    assert "belongs to another user" in caplog.text
    journal.save()
    status = path.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
