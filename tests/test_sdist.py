"""What is in the repository is in the source distribution, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: What only a repository has, and only a distribution.
OF_GIT = frozenset({".gitignore"})
OF_SETUPTOOLS = ("PKG-INFO", "sockshare.egg-info")


def tracked() -> list[str]:
    """The files that git knows, those that are about to be added too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout of git")
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_sdist_has_what_the_repository_has(tmp_path: Path) -> None:
    """Tests, docs and examples, so that both commands of the README work in it."""
    names = tracked()
    source, dist = tmp_path / "source", tmp_path / "dist"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    code = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(dist)], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    (archive,) = dist.iterdir()
    with tarfile.open(archive) as tar:
        files = [member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()]
    ours = {name for name in files if not name.startswith(OF_SETUPTOOLS)}
    assert ours == set(names) - OF_GIT
