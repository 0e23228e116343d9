"""Describes one plausible bug: which text of which file it changes, who would feel it, which tests have to notice."""

from __future__ import annotations

import ast
from enum import Enum
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Kind(Enum):
    """What a bug is about. Every bug of a kind but `OTHER` has to be found."""

    AUTHORIZATION = "authorization"  # who is given what, and who may command
    OWNERSHIP = "ownership"  # which process has a connection
    STOPPED = "which process is stopped"
    JOURNAL = "journal"  # what the next broker or host finds
    OTHER = "other"


PACKAGES = {
    "core": "sockshare/core/",
    "kernel": "sockshare/kernel/",
    "host": "sockshare/host/",
    "broker": "sockshare/broker/",
    "client": "sockshare/client/",
    "cli": "sockshare/cli/",
    "circus plugin": "circus_sockshare/",
    "supervisord plugin": "supervisor_sockshare/",
}


class Mutant(NamedTuple):
    """One bug.

    Attributes:
        id: Its name, which begins with that of its package.
        changes: Old and new texts; each old one is there exactly once.
        felt: What a user would feel.
        tests: Node ids of pytest, the cheapest first; they pass without the bug.
    """

    id: str
    file: str
    changes: tuple[tuple[str, str], ...]
    felt: str
    tests: tuple[str, ...]
    kind: Kind

    @property
    def package(self) -> str:
        """The entry of `PACKAGES` that its file is in."""
        return next(name for name, directory in PACKAGES.items() if self.file.startswith(directory))

    def applied(self, text: str) -> str:
        """*text*, that of its file, with the bug in it.

        Raises:
            ValueError: An old text is not there exactly once, or what comes of it is no Python.
        """
        for old, new in self.changes:
            if text.count(old) != 1:
                raise ValueError(f"can't put in {self.id}: {self.file} has {old!r} {text.count(old)} times, not once")
            text = text.replace(old, new)
        try:
            ast.parse(text, self.file)
        except SyntaxError as error:
            raise ValueError(f"can't put in {self.id}: {self.file} would not parse ({error})") from None
        return text


def mutant(
    id: str,
    file: str,
    old: str,
    new: str,
    *tests: str,
    felt: str,
    kind: Kind = Kind.OTHER,
    more: tuple[tuple[str, str], ...] = (),
) -> Mutant:
    """A bug that changes *old* to *new*, and *more*."""
    return Mutant(id, file, ((old, new), *more), felt, tests, kind)


def missing_tests(mutant: Mutant, soak: frozenset[str]) -> list[str]:
    """Those of its tests that are not there, or not in the default run; *soak* are the tests that are not."""
    return [test for test in mutant.tests if test in soak or not _is_there(test)]


def _is_there(test: str) -> bool:
    path, *names = test.partition("[")[0].split("::")
    file = ROOT / path
    if not file.is_file():
        return False
    body: list[ast.stmt] = ast.parse(file.read_text(), str(file)).body
    for name in names:
        found = [one for one in body if isinstance(one, (ast.FunctionDef, ast.ClassDef)) and one.name == name]
        if not found:
            return False
        body = found[0].body
    return True
