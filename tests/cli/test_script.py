"""The script ``sockshare``, as installers place it: the Python that it was installed for, deaf to the environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.client.host import ROOT, TIMEOUT, Host

#: The first lines of `sockshare-python`, as pip, pipx and uv (with a space in the path, and movable) write them.
HEADS = {
    "pip": "#!{python}\n",
    "pipx": "#!{python} -E\n",
    "quoted": "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n",
    "uv": "#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''\n",
    "movable": "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python' \"$0\" \"$@\"\n' '''\n",
}


def install(directory: Path, head: str) -> Path:
    """The script in an environment *directory*, with a Python of its own name; what an installer does."""
    places = directory / "bin"
    places.mkdir(parents=True)
    python = places / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "bin" / "sockshare", places)
    script = (ROOT / "bin" / "sockshare-python").read_text()
    (places / "sockshare-python").write_text(HEADS[head].format(python=python) + script.partition("\n")[2])
    return places / "sockshare"


@pytest.fixture
def poisoned(tmp_path: Path) -> dict[str, str]:
    """Variables by which every Python imports what ends it."""
    directory = tmp_path / "poison"
    for name in ("sitecustomize", "zmq", "json", "signal", "encodings/__init__", "sockshare/__init__"):
        path = directory / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('poison')\n")
    return {"PYTHONPATH": str(directory), "PYTHONHOME": str(directory), "PYTHONSAFEPATH": "", "PYTHONSTARTUP": "/x"}


@pytest.mark.parametrize("head", HEADS)
def test_interpreter_of_the_installation_is_found(tmp_path: Path, poisoned: dict[str, str], head: str) -> None:
    """Whoever installed it, and wherever: in a path with a space, by a link to it, from its own directory."""
    script = install(tmp_path / "an environment", head)
    link = tmp_path / "link"
    link.symlink_to(script)
    known = os.environ["PATH"]
    for word, directory, path in (
        (str(script), "/", known),
        (str(link), "/", known),
        ("sockshare", str(script.parent), f":{known}"),
        # As managers start it that give their processes no environment.
        (str(script), "/", ""),
        (str(link), "/", ""),
    ):
        done = subprocess.run(
            [word, "exec", "--help"],
            env={**os.environ, **poisoned, "PATH": path},
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.stdout.startswith("Usage: sockshare exec"), done


def test_nothing_is_imported_by_way_of_the_environment(
    host: Host, tmp_path: Path, poisoned: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`exec` redeems its tickets, and the program has the environment as it was."""
    host.start()
    monkeypatch.chdir(tmp_path / "poison")
    command = [str(install(tmp_path / "venv", "pip")), "exec", "--", "/bin/cat", "/proc/self/environ"]
    environment = {**host.environment(**poisoned), "PWD": os.getcwd(), "LANG": "C", "LC_ALL": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done
    seen = dict(line.split("=", 1) for line in done.stdout.split("\0")[:-1])
    assert seen["LISTEN_FDS"] == "3"
    for names in (seen, environment):
        for name in [name for name in names if name.startswith(("LISTEN_", "NOTIFY_", "SOCKSHARE_FD_", "_"))]:
            del names[name]
    assert seen == environment


def test_module_imports_what_is_installed_first(host: Host, tmp_path: Path) -> None:
    """`python -m sockshare`, whose start is the caller's: PYTHONPATH and the working directory come last."""
    host.start()
    for name in ("zmq", "json", "fcntl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('poison')\n")
    for environment in ({"PYTHONPATH": f"{tmp_path}:{ROOT}"}, {}):
        done = subprocess.run(
            [sys.executable, "-m", "sockshare", "exec", "--", "/bin/echo", "done"],
            env=host.environment(**environment),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done


def test_interrupt_at_any_moment_of_the_start_ends_in_a_sentence(host: Host, tmp_path: Path) -> None:
    """Before the broker was asked it ends (130, or by the signal), and after that the reload is cancelled (5)."""
    final = {"result": "rolled_back", "exit": 5, "reason": "interrupted"}
    host.start(await_cancel=True, final=final)
    script = str(install(tmp_path, "pip"))
    began = time.monotonic()
    subprocess.run([script, "reload", "--help"], env=host.environment(), stdout=subprocess.DEVNULL, check=True)
    whole = time.monotonic() - began
    ends = set()
    for moment in range(12):
        with subprocess.Popen(
            [script, "reload", "web"], env=host.environment(), stderr=subprocess.PIPE, text=True
        ) as one:
            try:
                # Not to wait for something: the moment is what is tried.
                time.sleep(whole * 1.5 * moment / 12)
                one.send_signal(signal.SIGINT)
                _, said = one.communicate(timeout=TIMEOUT)
            finally:
                one.kill()
        assert one.returncode in (130, -signal.SIGINT, 5), said
        assert "Abort" not in said
        assert (one.returncode == 5) == ("cancelling" in said), said
        assert "Traceback" not in said, said
        ends.add(one.returncode)
    assert len(ends) > 1
