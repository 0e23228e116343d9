"""A program may have very many sockets: all come, in order, by `exec` and by the library, also in a reload."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.circusd import APPS, Circusd, circusd, wait_until
from tests.support.supervisord import supervisord

COMMAND = f"{sys.executable} -m sockshare exec -- {sys.executable} {APPS / 'many.py'}"

SECTIONS = {
    "circus": """
[watcher:many]
cmd = {command}
copy_env = True
sockshare.sockets = {names}
sockshare.ready = client
sockshare.ready_hold = 0.1
[env:many]
MANY_REPORT = {directory}/report.json
""",
    "supervisord": """
[program:many]
command = {command}
sockshare_sockets = {names}
sockshare_ready = client
sockshare_ready_hold = 0.1
stopasgroup = true
environment = MANY_REPORT="{directory}/report.json"
""",
}
SOCKET = {
    "circus": "[socket:s{number}]\npath = {directory}/s{number}.sock\n",
    "supervisord": "[sockshare:s{number}]\nsocket = unix://{directory}/s{number}.sock\n",
}


def with_many(stage: Circusd, manager: str, count: int) -> None:
    """Add a program with so many sockets to the configuration of *stage*."""
    facts: dict[str, Any] = {"directory": stage.directory, "command": COMMAND}
    facts["names"] = ",".join(f"s{number}" for number in range(count))
    sockets = "".join(SOCKET[manager].format(number=number, **facts) for number in range(count))
    configuration = stage.directory / f"{manager}.{'ini' if manager == 'circus' else 'conf'}"
    configuration.write_text(configuration.read_text() + SECTIONS[manager].format(**facts) + sockets)


@pytest.mark.parametrize("manager", ["circus", "supervisord"])
@pytest.mark.parametrize("count", [65, 300])
def test_program_with_very_many_sockets_has_them_all(manager: str, count: int) -> None:
    """Each once, at its own descriptor, the same by both ways; and so has the next process."""
    begin: Callable[..., Any] = {"circus": circusd, "supervisord": supervisord}[manager]
    with begin("plain", leave=True) as stage:
        with_many(stage, manager, count)
        stage.up()
        report = Path(stage.directory / "report.json")
        first = _check(json.loads(wait_until(lambda: report.exists() and report.read_text(), 20, "it has them")), count)
        report.unlink()
        reload = stage.reload(program="many")
        assert reload.status == 0, reload
        second = _check(json.loads(report.read_text()), count)
        assert second["inherited"] == first["inherited"]
        assert second["pid"] != first["pid"]


def _check(report: dict[str, Any], count: int) -> dict[str, Any]:
    names = [f"s{number}" for number in range(count)]
    assert report["count"] == count
    assert list(report["inherited"]) == names
    assert list(report["numbers"].values()) == list(range(3, 3 + count))
    assert report["attached"] == report["inherited"]
    assert len(set(report["inherited"].values())) == count
    return report
