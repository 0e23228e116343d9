"""Copies the checkout to where bugs are put in: with a Python of its own, which imports the copy and no other.

The checkout is installed in place, so PYTHONPATH alone would not do: a child of circusd without ``copy_env`` has none.
A virtual environment does: each process that a test starts is started by its Python, or by a script of its ``bin``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import TracebackType

from .mutant import ROOT, Mutant

_PACKAGES = ("sockshare", "circus_sockshare", "supervisor_sockshare")
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis", ".*_cache", "*.egg-info")


class Room:
    """A copy in *directory*, which is made."""

    def __init__(self, directory: Path) -> None:
        self.copy = directory / "copy"
        shutil.copytree(ROOT, self.copy, ignore=_LEFT_OUT, symlinks=True)
        self._bin = directory / "venv" / "bin"
        self._make_environment(directory / "venv")
        self._writes = 0
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOCKSHARE_"))},
            "PATH": f"{self._bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "VIRTUAL_ENV": str(directory / "venv"),
        }
        self._check()

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self._bin / "python")

    def _make_environment(self, directory: Path) -> None:
        venv.create(directory, symlinks=True)
        variables = {"base": str(directory), "platbase": str(directory)}
        packages = Path(sysconfig.get_path("purelib", vars=variables))
        # A directory that a .pth file names is searched, and its own .pth files, with the one of the checkout among
        # them, are not read (site, "Python's site module").
        theirs = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (packages / "room.pth").write_text("\n".join([str(self.copy), *theirs, ""]))
        scripts = Path(sys.executable).parent
        for script in scripts.iterdir():
            if script.is_file() and not (self._bin / script.name).exists():
                with script.open("rb") as file:
                    first, rest = file.readline(), file.read()
                if first.startswith(b"#!" + os.fsencode(scripts) + b"/python"):
                    first = b"#!" + os.fsencode(self.python) + b"\n"
                elif script.name != "sockshare":  # a shell's: it looks beside itself for the interpreter
                    continue
                (self._bin / script.name).write_bytes(first + rest)
                (self._bin / script.name).chmod(0o755)

    def _check(self) -> None:
        code = f"import {', '.join(_PACKAGES)}; print(*(module.__file__ for module in ({', '.join(_PACKAGES)})))"
        found = subprocess.run(
            [self.python, "-c", code], cwd="/", env=self.environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        paths = os.fsdecode(found.stdout).split()
        if len(paths) != len(_PACKAGES) or not all(path.startswith(f"{self.copy}/") for path in paths):
            raise RuntimeError(f"can't try bugs: {self.python} imports {paths}, not the copy; {found.stderr!r}")

    def put_in(self, mutant: Mutant) -> _Bug:
        """Have the bug in the copy for a ``with`` block."""
        self._writes += 1
        return _Bug(self.copy / mutant.file, mutant, self._writes)


class _Bug:
    def __init__(self, path: Path, mutant: Mutant, number: int) -> None:
        self._path = path
        self._mutant = mutant
        self._number = number
        self._before = path.read_bytes()
        self._times = path.stat().st_mtime_ns

    def __enter__(self) -> None:
        self._path.write_text(self._mutant.applied(self._before.decode()))
        # Bytecode is told by its source's size and second: no two bugs may have the same.
        os.utime(self._path, (self._number, self._number))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._path.write_bytes(self._before)
        os.utime(self._path, ns=(self._times, self._times))
