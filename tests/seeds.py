"""Runs every hypothesis state machine of the suite with many seeds: ``python -m tests.seeds --seeds 500``.

A machine that is wrong now and then on right code costs everybody's trust, and the one seed of a run does not show it.
A seed has 25 examples here, so that 500 seeds of all machines take less than 20 minutes of one core; ``--examples 0``
runs as many as pytest does. Exit status 1 if a seed is red; ``--only MACHINE --first SEED --seeds 1`` runs it again,
and shrinks it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

TESTS = Path(__file__).resolve().parent

Machine = type[RuleBasedStateMachine]


def machines() -> dict[str, Machine]:
    """The machines that pytest runs, by module and name: ``core.test_handover.Lane``."""
    found: dict[str, Machine] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "RuleBasedStateMachine" not in path.read_text():
            continue
        name = ".".join(path.relative_to(TESTS).with_suffix("").parts)
        module = importlib.import_module(f"tests.{name}")
        values = list(vars(module).values())
        for value in values:
            if not isinstance(value, type) or not issubclass(value, RuleBasedStateMachine):
                continue
            if value.__module__ == module.__name__ and any(one is value.TestCase for one in values):
                found[f"{name}.{value.__name__}"] = value
    return found


def reds(machine: Machine, seeds: Sequence[int], examples: int = 0) -> Iterator[tuple[int, BaseException]]:
    """The *seeds* with which *machine* fails, each with its error; *examples* of each, 0: as many as it has itself."""
    own: settings = machine.TestCase.settings
    # Red is red: what is smallest is only of use to who looks at one.
    phases = tuple(Phase) if len(seeds) == 1 else (Phase.explicit, Phase.generate)
    runs = settings(own, database=None, phases=phases, max_examples=examples or own.max_examples)
    for number in seeds:
        try:
            run_state_machine_as_test(seed(number)(machine), settings=runs)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            yield number, error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.seeds", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--examples", type=int, default=25, help="of each seed; 0: as many as pytest runs")
    parser.add_argument("--only", default="", help="machines whose name has this in it")
    chosen = parser.parse_args(arguments)
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    failed = False
    for name, machine in machines().items():
        if chosen.only not in name:
            continue
        began = time.monotonic()
        red = {}
        for number, error in reds(machine, seeds, chosen.examples):
            red[number] = error
            print(f"{name}: seed {number} is red: {str(error).splitlines()[0] if str(error) else error!r}", flush=True)
        failed |= bool(red)
        seconds = time.monotonic() - began
        print(f"{name}: {len(seeds)} seeds, {len(red)} red, {seconds:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
