"""The list of bugs is up to date, and a bug that is put in is what every process of a test runs."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import catalogue
from tests.mutants.__main__ import FOUND, OF, Outcome, failures, is_enough
from tests.mutants.mutant import PACKAGES, ROOT, Kind, missing_tests, mutant
from tests.mutants.room import Room


def test_every_bug_can_be_put_in_and_has_its_tests() -> None:
    """Each of its texts is in its file once; what comes of it is Python; its tests are in the default run."""
    for one in catalogue.MUTANTS:
        one.applied((ROOT / one.file).read_text())
        assert one.tests, one.id
        assert not missing_tests(one, catalogue.soak()), one.id


def test_every_package_has_its_bugs() -> None:
    """As many at least as were once tried by hand."""
    counts = Counter(one.package for one in catalogue.MUTANTS)
    assert len({one.id for one in catalogue.MUTANTS}) == len(catalogue.MUTANTS) >= OF
    least = (19, 20, 10, 30, 12, 6, 12, 11)
    assert all(counts[package] >= count for package, count in zip(PACKAGES, least, strict=True)), counts


def outcomes(found: int, all: int, survivor: Kind = Kind.OTHER) -> list[Outcome]:
    one = mutant("core: x", "sockshare/core/spec.py", "a", "b", felt="nothing", kind=survivor)
    return [Outcome(one, number < found, "", 0.0) for number in range(all)]


@pytest.mark.parametrize(
    ("found", "all", "survivor", "enough"),
    [
        (FOUND, OF, Kind.OTHER, True),
        (FOUND - 1, OF, Kind.OTHER, False),
        (OF - 1, OF, Kind.JOURNAL, False),
        (OF, OF, Kind.JOURNAL, True),
        (1, 1, Kind.OWNERSHIP, True),
        (0, 1, Kind.OWNERSHIP, False),
    ],
)
def test_so_many_have_to_be_found_and_all_of_the_critical_kinds(
    found: int, all: int, survivor: Kind, enough: bool
) -> None:
    """105 of 115, and every one about authorization, ownership, which process is stopped, or the journal."""
    assert is_enough(outcomes(found, all, survivor)) is enough


def test_failed_tests_are_read_from_the_summary() -> None:
    """Also one whose parameters have spaces."""
    output = "1 failed\nFAILED tests/a.py::test_b[a request-x] - AssertionError: no\nERROR tests/c.py\n"
    assert failures(output) == ["tests/a.py::test_b[a request-x]", "tests/c.py"]


def test_bug_that_does_not_fit_is_an_error() -> None:
    """A text that is not there, or twice, or leaves no Python."""
    for text in ("", "a = 1; a = 1", "a = 1"):
        one = mutant("core: x", "sockshare/core/spec.py", "a = 1", "a = (" if text == "a = 1" else "a = 2", felt="")
        with pytest.raises(ValueError, match="can't put in core: x"):
            one.applied(text)


#: A bug for each kind of process that a test starts, which says itself that it is there.
FIRST = "from __future__ import annotations\n"
SPEAKING = "import sys\nprint('MUTANT')\nsys.exit(7)\n"
STARTS: dict[str, tuple[str, list[str]]] = {
    "sockshare exec": ("sockshare/cli/exec.py", ["sockshare", "exec", "--", "true"]),
    "broker": ("sockshare/broker/server.py", ["python", "-m", "sockshare.broker", "--help"]),
    "circus plugin": ("circus_sockshare/plugin.py", ["python", "-c", "from circus_sockshare import SockShare"]),
    "supervisord": (
        "supervisor_sockshare/hooks.py",
        ["supervisord", "-n", "-c", "{conf}"],
    ),
}
CONF = """\
[supervisord]
[rpcinterface:sockshare]
supervisor.rpcinterface_factory = supervisor_sockshare:make_rpcinterface
"""


def test_every_process_imports_the_copy(tmp_path: Path) -> None:
    """None of the checkout, which is installed in place, whatever starts the process, and with no environment."""
    room = Room(tmp_path / "room")
    conf = tmp_path / "supervisord.conf"
    conf.write_text(CONF)
    for what, (file, command) in STARTS.items():
        speaking = mutant("core: speaking", file, FIRST, FIRST + SPEAKING, felt="everything")
        program = Path(room.python).with_name(command[0])
        arguments = [str(program), *(word.replace("{conf}", str(conf)) for word in command[1:])]
        with room.put_in(speaking):
            ran = subprocess.run(arguments, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stdout.strip()) == (7, "MUTANT"), (what, ran)
    assert (room.copy / "sockshare/cli/exec.py").read_bytes() == (ROOT / "sockshare/cli/exec.py").read_bytes()
