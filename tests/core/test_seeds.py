"""``python -m tests.seeds`` runs the machines that pytest runs, and tells a red one."""

from __future__ import annotations

import re

import pytest
from hypothesis import settings

from tests import seeds

from .test_registration_machine import AnyOrder
from .test_registration_wrong_designs import NotRecorded


def test_every_machine_of_the_suite_is_found() -> None:
    """Each file that has one is there; what is meant to fail is not."""
    one = re.compile(r"^Test\w+ = \w+\.TestCase$", re.MULTILINE)
    with_one = {path.stem for path in seeds.TESTS.rglob("test_*.py") if one.search(path.read_text())}
    found = seeds.machines()
    assert {name.split(".")[-2] for name in found} == with_one
    assert len(found) >= 4


def test_wrong_design_is_red_and_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the seed, for who looks at it."""

    class Wrong(AnyOrder):
        design = NotRecorded

    Wrong.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
    monkeypatch.setattr(seeds, "machines", lambda: {"wrong": Wrong})
    assert seeds.main(["--seeds", "2", "--examples", "0"]) == 1
    said = capsys.readouterr().out
    assert "wrong: seed 0 is red: " in said
    assert "wrong: 2 seeds, 2 red, " in said
