"""Commands run by other users, who need not be able to read our files: they become them after their imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Becomes another user, and then a command, who can read our interpreter wherever it is, and write no more than others.
BECOME = """
import ctypes, os, struct, sys
uid, search = int(sys.argv[1]), 2  # CAP_DAC_READ_SEARCH, as an ambient capability (capabilities(7))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
header, data = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[1 << search] * 3, 0, 0, 0)
if libc.capset(header, data) or libc.prctl(47, 2, search, 0, 0):  # PR_CAP_AMBIENT_RAISE
    raise OSError(ctypes.get_errno(), "can't keep a capability")
os.execv(sys.argv[2], sys.argv[2:])
"""
_COMMAND = """
import json, os, sys
from tests.support.forks import mains
name, uid, gid, groups, words = json.loads(sys.argv[1])
main = mains()[name]
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
os.chdir("/")
sys.argv[1:] = words
sys.exit(main(words))
"""


def start_as(
    uid: int, name: str, *words: str, environment: Mapping[str, str], gid: int | None = None, groups: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """The command *name* (sockshare, supervisorctl), as user *uid*."""
    who = json.dumps([name, uid, uid if gid is None else gid, list(groups), list(words)])
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, who],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_as(
    uid: int, name: str, *words: str, environment: Mapping[str, str], gid: int | None = None, groups: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """As `start_as`, to its end."""
    with start_as(uid, name, *words, environment=environment, gid=gid, groups=groups) as command:
        try:
            output, errors = command.communicate(timeout=60)
        except BaseException:
            command.kill()
            raise
    return subprocess.CompletedProcess(command.args, command.returncode, output, errors)


@contextmanager
def squatted(uid: int, other: int) -> Iterator[None]:
    """The default directory of the user *uid*, and one that looks like the further ones, belong to the user *other*."""
    for name in (f"/tmp/sockshare-{uid}", f"/tmp/sockshare-{uid}.0"):
        os.mkdir(name, 0o777)
        os.chown(name, other, other)
    try:
        yield
    finally:
        for path in Path("/tmp").glob(f"sockshare-{uid}*"):
            shutil.rmtree(path)


@contextmanager
def everybodys_python() -> Iterator[str]:
    """The path of an interpreter that all users may execute, with what is installed for ours."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        venv.create(directory, symlinks=False)
        [packages] = Path(directory).glob("lib/python*/site-packages")
        (packages / "ours.pth").write_text(
            "".join(f"import site; site.addsitedir({path!r})\n" for path in sys.path if path)
        )
        yield f"{directory}/bin/python"
