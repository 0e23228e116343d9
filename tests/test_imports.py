"""Imports point one way, and what starts often imports little."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sockshare", "circus_sockshare", "supervisor_sockshare")

#: Which of our packages each of them may import, beside itself. `sockshare` stands for its top-level modules.
OURS: dict[str, frozenset[str]] = {
    "sockshare.core": frozenset(),
    "sockshare.kernel": frozenset({"sockshare.core"}),
    "sockshare.host": frozenset({"sockshare", "sockshare.core", "sockshare.kernel"}),
    "sockshare.broker": frozenset({"sockshare.core", "sockshare.kernel"}),
    "sockshare.client": frozenset({"sockshare.core", "sockshare.kernel"}),
    "sockshare.cli": frozenset({"sockshare", "sockshare.core", "sockshare.kernel", "sockshare.client"}),
    "sockshare": frozenset({"sockshare.core", "sockshare.client", "sockshare.cli"}),
    "circus_sockshare": frozenset({"sockshare.core", "sockshare.kernel", "sockshare.host"}),
    "supervisor_sockshare": frozenset({"sockshare.core", "sockshare.kernel", "sockshare.host"}),
}
IO = frozenset({"asyncio", "multiprocessing", "select", "selectors", "socket", "subprocess", "threading", "time"})
COMMANDS = frozenset({"click", "rich"})
MANAGERS = frozenset({"circus", "supervisor"})
#: Which foreign packages each may not import.
FOREIGN: dict[str, frozenset[str]] = {
    "sockshare.core": IO | COMMANDS | MANAGERS | {"zmq", "psutil"},
    "sockshare.kernel": COMMANDS | MANAGERS | {"zmq", "msgspec", "asyncio"},
    "sockshare.host": COMMANDS | MANAGERS | {"zmq", "msgspec"},
    "sockshare.broker": COMMANDS | MANAGERS,
    "sockshare.client": COMMANDS | MANAGERS | {"msgspec"},
    "sockshare.cli": MANAGERS | {"msgspec"},
    "sockshare": COMMANDS | MANAGERS | {"msgspec"},
    "circus_sockshare": COMMANDS | {"supervisor"},
    "supervisor_sockshare": COMMANDS | {"circus", "zmq"},
}


class Import(NamedTuple):
    """One import: the module that has it, its line, and what it names."""

    module: str
    line: int
    target: str


def package_of(module: str) -> str:
    """The entry of OURS that *module* belongs to; "" for a foreign one."""
    parts = module.split(".")
    for name in (".".join(parts[:2]), parts[0]):
        if name in OURS:
            return name
    return ""


def imports_in(path: Path, root: Path) -> Iterator[Import]:
    """All imports of a file, those inside of functions and of TYPE_CHECKING too, with relative ones resolved."""
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            package = parts[: len(parts) - node.level] if node.level else ()
            base = ".".join((*package, *((node.module,) if node.module else ())))
            for alias in node.names:
                # `from sockshare import client` names a package as much as `from sockshare.client import x` does.
                deeper = f"{base}.{alias.name}"
                yield Import(module, node.lineno, deeper if deeper in OURS else base)


def breaches(root: Path) -> list[str]:
    """Every import below *root* that the tables forbid."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for one in imports_in(path, root):
                here, there = package_of(one.module), package_of(one.target)
                if there and there != here and there not in OURS[here]:
                    found.append(f"{one.module}:{one.line}: {here} imports {one.target}")
                if one.target.split(".")[0] in FOREIGN[here]:
                    found.append(f"{one.module}:{one.line}: {here} imports {one.target}")
    return found


def test_no_breach_in_our_packages() -> None:
    """Every import of ours follows the tables above."""
    assert not breaches(ROOT)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sockshare/core/spec.py", "from sockshare.kernel import peers"),
        ("sockshare/core/spec.py", "from ..kernel.peers import identity"),
        ("sockshare/core/spec.py", "def later() -> None:\n    import time"),
        ("sockshare/kernel/peers.py", "from sockshare import host"),
        ("sockshare/host/link.py", "import zmq.asyncio"),
        ("sockshare/broker/door.py", "from sockshare.client.sync import Share"),
        ("sockshare/client/sync.py", "from ..broker import door"),
        ("sockshare/client/sync.py", "import sockshare.cli.main"),
        ("sockshare/cli/main.py", "import sockshare.broker"),
        ("sockshare/broker/door.py", "import circus.client"),
        ("circus_sockshare/plugin.py", "from sockshare.broker.server import serve"),
        ("circus_sockshare/plugin.py", "import supervisor_sockshare"),
        ("supervisor_sockshare/sections.py", "import zmq"),
    ],
)
def test_breach_is_found_when_there_is_one(tmp_path: Path, path: str, line: str) -> None:
    """The check can fail: each kind of forbidden import is reported."""
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    assert len(breaches(tmp_path)) == 1


def test_no_breach_is_found_where_the_import_is_allowed(tmp_path: Path) -> None:
    """Neighbours in the right direction and the standard library pass."""
    file = tmp_path / "sockshare/broker/door.py"
    file.parent.mkdir(parents=True)
    file.write_text("import asyncio\nimport zmq\nfrom ..core import tickets\nfrom .server import serve\n")
    assert not breaches(tmp_path)


HEAVY = frozenset(
    """asyncio circus click concurrent.futures ctypes dataclasses email http inspect logging.config msgspec
    multiprocessing pathlib prometheus_client psutil rich ssl subprocess supervisor tempfile urllib.request""".split()
)


def imported(program: list[str]) -> set[str]:
    """The modules that a Python imports to run *program*, from -X importtime."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("SOCKSHARE_ENDPOINT", None)
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *program],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    names = set(re.findall(r"^import time:.*\|\s*([\w.]+)$", ran.stderr, re.MULTILINE))
    assert names, ran.stderr
    return names


@pytest.fixture(scope="module")
def with_zmq() -> set[str]:
    """What Python and zmq themselves import."""
    return imported(["-c", "import zmq"])


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(["-c", "import sockshare"], id="import sockshare"),
        pytest.param(["-c", "import sockshare.client, sockshare.core.errors"], id="client"),
        pytest.param(["-m", "sockshare", "exec", "--", "true"], id="exec"),
        pytest.param(["-c", "import sockshare.cli.exec, sockshare.client.claims"], id="exec --registration"),
    ],
)
def test_little_is_imported_by_what_starts_often(program: list[str], with_zmq: set[str]) -> None:
    """Each start of a managed process pays for these imports: nothing heavy beyond zmq itself."""
    names = imported(program) - with_zmq
    assert any(name.startswith("sockshare.") for name in names)
    assert not names & HEAVY


def test_no_zmq_is_imported_by_what_runs_in_a_manager() -> None:
    """supervisord must never hold a zmq context, which aborts the process that has no descriptor left."""
    names = imported(["-c", "import sockshare.host, supervisor_sockshare"])
    assert not {name for name in names if name == "zmq" or name.startswith("zmq.")}


def test_no_zmq_is_imported_by_supervisorctl() -> None:
    """It goes by XML-RPC: where it is run pyzmq need not be installed."""
    commands = ", ".join(f"sockshare.cli.{name}" for name in ("commands", "doctor", "registration", "reload", "status"))
    names = imported(["-c", f"import supervisor_sockshare.ctlplugin, {commands}"])
    assert not {name for name in names if name == "zmq" or name.startswith("zmq.")}


def test_every_directory_of_ours_is_in_the_wheel() -> None:
    """setuptools finds packages by their __init__.py; without one a directory works in a checkout only."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert {path.parent for path in files} == {path.parent for path in files if path.name == "__init__.py"}
