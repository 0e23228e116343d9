"""A copy of our packages that can be upgraded, broken and mended under what runs from it."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sockshare", "circus_sockshare", "supervisor_sockshare")


class Copy:
    """The packages in *directory*, to be put on PYTHONPATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._times = itertools.count(1)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))

    def change(self, path: str, old: str, new: str) -> None:
        """Put *new* in the place of *old*, which is there once, in the file *path*."""
        file = self.directory / path
        text = file.read_text()
        assert text.count(old) == 1, f"{path} has {text.count(old)} times: {old}"
        self._write(file, text.replace(old, new))

    def restore(self, path: str = "") -> None:
        """Have the file *path*, or each, as it was."""
        for package in [path] if path else PACKAGES:
            source = ROOT / package
            for file in [source] if source.is_file() else source.rglob("*.py"):
                copy = self.directory / file.relative_to(ROOT)
                if copy.read_text() != file.read_text():
                    self._write(copy, file.read_text())

    def _write(self, file: Path, text: str) -> None:
        aside = file.with_suffix(".aside")
        aside.write_text(text)
        # What was compiled before is told from this by its time in seconds, and its size (PEP 552).
        later = file.stat().st_mtime + 10 * next(self._times)
        os.utime(aside, (later, later))
        aside.rename(file)
