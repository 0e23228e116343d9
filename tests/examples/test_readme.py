"""The configurations in README.md and docs as they stand: they start, from a manager that was started by path."""

from __future__ import annotations

import re
import shutil
from configparser import RawConfigParser
from pathlib import Path

import pytest

from sockshare.cli.stage import Stage, free_port, wait_until
from sockshare.cli.supervisor_stage import SupervisorStage
from sockshare.core.spec import ProgramSpec
from sockshare.kernel import meeting

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> list[str]:
    """The configurations in a document."""
    return re.findall(r"```ini\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("manager", ["circus", "supervisor"])
def test_configuration_of_the_readme_works_as_it_stands(manager: str) -> None:
    """But for its port: it serves with nothing of ours in PATH, `doctor` finds no problem, and it is reloaded."""
    port = free_port()
    with Stage() if manager == "circus" else SupervisorStage() as stage:
        shutil.copy(ROOT / "examples" / "circus" / "uvicorn" / "app.py", stage.directory)
        stage.environment["PATH"] = "/usr/bin:/bin"
        text = blocks(ROOT / "README.md")[manager == "supervisor"].replace("8000", str(port))
        if isinstance(stage, SupervisorStage):
            stage.write(text)
        else:
            (stage.directory / "circus.ini").write_text(text)
        stage.start()
        assert stage.process is not None
        stage.wait_for_answer(port)
        stage.runtime = Path(str(meeting.find(stage.process.pid)))
        wait_until(lambda: stage.sockshare("doctor").returncode == 0, 20, "all is well", 0.1)
        done = stage.sockshare("reload", "web")
        assert done.returncode == 0, done


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_keys_in_documents_are_real(path: Path) -> None:
    """Each key of ours in a configuration is one that programs have; each block can be read."""
    for block in blocks(path):
        if "# circus.ini" in block:
            continue  # two, side by side
        parser = RawConfigParser(strict=True, inline_comment_prefixes=(";",))
        parser.read_string(block if block.startswith("[") else f"[watcher:web]\n{block}")
        keys = [key for section in parser.sections() for key in parser.options(section)]
        ours = {key[len("sockshare.") :] for key in keys if re.match("sockshare[._]", key)}
        assert ours <= set(ProgramSpec.__struct_fields__), block
