"""``python -m tests.mutants``: puts each bug in, one at a time, into a copy, and runs the tests that have to notice it.

First those tests run once without any bug: what fails then would find every one of them. Exits 1 when too many bugs
survive, or one that is about authorization, ownership, which process is stopped, or the journal.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import catalogue
from .box import TIMED_OUT
from .mutant import PACKAGES, ROOT, Kind, Mutant, missing_tests
from .room import Room

#: So many of so many bugs have to be found.
FOUND, OF = 105, 115
#: Seconds after which a run hangs. (The tests of one bug take 20 at most.)
_HANGS_AFTER = 150.0
#: Seconds that the tests of all bugs may take without one.
_CONTROL_WITHIN = 1500.0
_FAILED, _ERRORS = 1, 2  # exit statuses of pytest


class Outcome(NamedTuple):
    """What came of one bug."""

    mutant: Mutant
    found: bool
    by: str  # the test that noticed it
    seconds: float


class Broken(Exception):
    """The run says nothing: a bug can't be put in, or its tests can't be run."""


def run_tests(room: Room, tests: Sequence[str], seconds: float, *options: str) -> tuple[int, str]:
    """The exit status and the output of pytest for *tests* in *room*."""
    pytest = [room.python, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-rfE", "--tb=line", *options]
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("box.py")), str(seconds), *pytest, *tests],
        cwd=room.copy,
        env=room.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return ran.returncode, ran.stdout


def try_out(room: Room, mutant: Mutant) -> Outcome:
    """Put *mutant* in, and see whether its tests notice."""
    began = time.monotonic()
    with room.put_in(mutant):
        status, output = run_tests(room, mutant.tests, _HANGS_AFTER, "-x")
    seconds = time.monotonic() - began
    if status == TIMED_OUT:
        return Outcome(mutant, True, "a hang", seconds)
    failed = failures(output)
    if status in (_FAILED, _ERRORS) and failed:
        return Outcome(mutant, True, failed[0], seconds)
    if status:
        raise Broken(f"{mutant.id}: pytest exited {status}: {output[-2000:]}")
    return Outcome(mutant, False, "", seconds)


def failures(output: str) -> list[str]:
    """The tests that *output*, of pytest, says have failed."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+(?:\[.*?\])?)(?: - .*)?$", output, re.MULTILINE)


def table(outcomes: Sequence[Outcome]) -> str:
    """How many were found of each package and of each kind, and in how many seconds."""
    groups = {package: [one for one in outcomes if one.mutant.package == package] for package in PACKAGES}
    groups |= {kind.value: [one for one in outcomes if one.mutant.kind is kind] for kind in Kind}
    groups["all"] = list(outcomes)
    return "\n".join(
        f"{name:<26} {sum(one.found for one in own):>3} / {len(own):<3} {sum(one.seconds for one in own):>6.0f} s"
        for name, own in groups.items()
        if own
    )


def is_enough(outcomes: Sequence[Outcome]) -> bool:
    """Whether as many were found as have to be, and every one of the critical kinds."""
    found = sum(one.found for one in outcomes)
    return found * OF >= FOUND * len(outcomes) and all(one.found or one.mutant.kind is Kind.OTHER for one in outcomes)


def main() -> int:
    """Try them out."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--package", choices=list(PACKAGES), help="only the bugs of this package")
    parser.add_argument("--id", action="append", help="only this bug; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time")
    parser.add_argument("--list", action="store_true", help="show the bugs, and do nothing")
    arguments = parser.parse_args()
    chosen = [
        one
        for one in catalogue.MUTANTS
        if (arguments.package in (None, one.package)) and (not arguments.id or one.id in arguments.id)
    ]
    if not chosen:
        parser.error("there is no such bug")
    if arguments.list:
        for one in chosen:
            print(f"{one.id:<60} {one.kind.value:<26} {one.felt}")
        return 0
    try:
        for one in chosen:
            one.applied((ROOT / one.file).read_text())
            if missing := missing_tests(one, catalogue.soak()):
                raise Broken(f"{one.id}: no such test: {', '.join(missing)}")
        outcomes = try_all(chosen, arguments.jobs)
    except (Broken, ValueError) as error:
        print(f"can't try the bugs: {error}", file=sys.stderr)
        return 2
    for outcome in outcomes:
        if not outcome.found:
            mutant = outcome.mutant
            print(f"survived: {mutant.id} ({mutant.kind.value}): {mutant.felt}")
    print(f"\n{table(outcomes)}")
    return 0 if is_enough(outcomes) else 1


def try_all(mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    """Try *mutants* out, *jobs* at a time.

    Raises:
        Broken: One of them can't be.
    """
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for one in mutants:
        waiting.put(one)
    outcomes: list[Outcome] = []
    problems: list[Exception] = []
    turn = threading.Lock()

    def work(room: Room) -> None:
        while not problems:
            try:
                outcome = try_out(room, waiting.get_nowait())
            except queue.Empty:
                return
            except Exception as error:
                problems.append(error)
                return
            with turn:
                outcomes.append(outcome)
                said = f"found by {outcome.by}" if outcome.found else "SURVIVED"
                print(f"{outcome.mutant.id}: {said} ({outcome.seconds:.1f} s)", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        os.chmod(scratch, 0o755)  # some tests come as another uid
        rooms = [Room(Path(scratch) / str(number)) for number in range(jobs)]
        control(rooms, mutants)
        threads = [threading.Thread(target=work, args=(room,)) for room in rooms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0] if isinstance(problems[0], Broken) else Broken(repr(problems[0]))
    return outcomes


def control(rooms: Sequence[Room], mutants: Sequence[Mutant]) -> None:
    """Run the tests of *mutants*, which are to pass, without any bug, by files shared out among *rooms*.

    Raises:
        Broken: One fails.
    """
    tests = list(dict.fromkeys(test for one in mutants for test in one.tests))
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    failed: list[str] = []

    def work(room: Room, own: Sequence[str]) -> None:
        mine = [test for test in tests if test.partition("::")[0] in own]
        if not mine:
            return
        status, output = run_tests(room, mine, _CONTROL_WITHIN)
        if status and (again := failures(output)):
            # Some bound times, and two run at once: what fails alone too has failed.
            status, output = run_tests(room, again, _CONTROL_WITHIN)
        if status:
            failed.append(output[-3000:])

    began = time.monotonic()
    shares = [files[number :: len(rooms)] for number in range(len(rooms))]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(rooms, shares, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise Broken("tests fail without any bug:\n" + "\n".join(failed))
    print(f"{len(tests)} tests pass without a bug ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
