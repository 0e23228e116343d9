"""``sockshare exec`` as managers start it: found without PATH, and deaf to the environment that it passes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from sockshare.cli.stage import free_port
from tests.e2e.test_causes import CLEAR, Causes
from tests.support.circusd import APPS, Circusd, circusd, wait_until
from tests.support.supervisord import Supervisord, supervisord

#: Imported in our stead where the environment has a say, each ends the process.
POISON = ("zmq/__init__", "json", "site", "encodings/__init__", "sockshare/__init__")
SHOW = "/bin/cat /proc/self/environ"
#: How the program is started, by its name.
COMMANDS = {
    "plain": SHOW,
    "name": f"sockshare exec -- {SHOW}",
    "path": f"{os.path.dirname(sys.executable)}/sockshare exec -- {SHOW}",
}


def poison(directory: Path) -> dict[str, str]:
    """An environment that leads every Python astray, to *directory*."""
    for name in POISON:
        path = directory / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('poison')\n")
    return {
        "PYTHONPATH": str(directory),
        "PYTHONHOME": str(directory),
        "PYTHONSTARTUP": str(directory / "json.py"),
        "PYTHONWARNINGS": "error",
        "PWD": "/somewhere/else",
    }


@contextmanager
def under_circus(directory: Path) -> Iterator[Circusd]:
    """A circusd of the programs, which have a poisoned environment."""
    environment = "".join(f"{key} = {value}\n" for key, value in poison(directory).items())
    with circusd("plain", leave=True) as stage:
        sections = [
            f"[watcher:{name}]\ncmd = {command}\ncopy_env = True\nrespawn = False\nsockshare.sockets = web\n"
            f"working_dir = {directory}\nstdout_stream.class = FileStream\n"
            f"stdout_stream.filename = {stage.directory}/{name}.out\n[env:{name}]\n{environment}"
            for name, command in {**COMMANDS, "shell": f"{COMMANDS['name']}\nshell = True"}.items()
        ]
        with (stage.directory / "circus.ini").open("a") as file:
            file.write("\n".join(sections))
        yield stage


@contextmanager
def under_supervisord(directory: Path) -> Iterator[Circusd]:
    """As `under_circus`."""
    (directory / "sitecustomize.py").write_text("raise SystemExit('poison')\n")  # circusd itself would take it
    environment = ",".join(f'{key}="{value}"' for key, value in poison(directory).items())
    with supervisord("plain", leave=True) as stage:
        for name, command in COMMANDS.items():
            stage.sections[f"program:{name}"] = {
                "command": command,
                "environment": environment,
                "directory": str(directory),
                "autorestart": "false",
                "startsecs": "0",
                "stdout_logfile": f"{stage.directory}/{name}.out",
                "sockshare_sockets": "web",
            }
        stage.configure()
        yield stage


def shown(stage: Circusd, name: str) -> dict[str, str]:
    """The environment that the program *name* has seen."""
    path = stage.directory / f"{name}.out"
    wait_until(lambda: path.exists() and path.read_bytes().endswith(b"\0"), 20, f"{name} has shown it", 0.05)
    return dict(line.split("=", 1) for line in path.read_text().split("\0")[:-1])


def is_its_own(name: str) -> bool:
    """Whether the variable *name* is of one program only: set by `exec`, or by the manager."""
    return name.startswith(("SOCKSHARE_", "LISTEN_", "NOTIFY_", "SUPERVISOR_", "__name__"))


@pytest.mark.parametrize("under", [under_circus, under_supervisord])
def test_program_has_the_environment_that_its_section_says_and_exec_takes_nothing_from_it(
    under: Callable[[Path], AbstractContextManager[Circusd]], tmp_path: Path
) -> None:
    """Byte for byte, odd names too; and the manager, started by path, has the command beside it."""
    with under(tmp_path) as stage:
        stage.environment |= {"PATH": "/usr/bin:/bin", "an.odd-name": "1", "LC_ALL": "", "LANG": "C"}
        stage.start()
        plain = {key: value for key, value in shown(stage, "plain").items() if not is_its_own(key)}
        assert plain["an.odd-name"] == "1"
        for name in ("name", "path", *(["shell"] if under is under_circus else [])):
            seen = shown(stage, name)
            assert seen["LISTEN_FDS"] == "1"
            # A shell that starts it has its own say.
            odd = {"PWD", "an.odd-name"} if name == "shell" else set()
            assert {key: seen[key] for key in seen if not is_its_own(key) and key not in odd} == {
                key: plain[key] for key in plain if key not in odd
            }


def test_virtualenv_of_a_watcher_is_its_programs_alone(tmp_path: Path) -> None:
    """circus puts its packages on PYTHONPATH: `exec` imports none of them, and the program has them."""
    venv = tmp_path / "venv"
    packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    poison(packages)
    with circusd("plain", leave=True) as stage:
        with (stage.directory / "circus.ini").open("a") as file:
            file.write(
                f"[watcher:virtual]\ncmd = {COMMANDS['name']}\ncopy_env = True\nvirtualenv = {venv}\nrespawn = False\n"
                "sockshare.sockets = web\nstdout_stream.class = FileStream\n"
                f"stdout_stream.filename = {stage.directory}/virtual.out\n"
            )
        stage.start()
        seen = shown(stage, "virtual")
        assert seen["LISTEN_FDS"] == "1"
        assert str(packages) in seen["PYTHONPATH"].split(os.pathsep)
        assert seen["PATH"].startswith(f"{venv}/bin:")


@pytest.mark.parametrize("manager", [circusd, supervisord])
def test_command_beside_its_python_is_named_by_its_path(
    manager: Callable[..., AbstractContextManager[Circusd]],
) -> None:
    """The manager was started by its path out of an environment, whose commands are not in its PATH."""
    port = free_port()
    command = f"uvicorn web:asgi --app-dir {APPS} --host 127.0.0.1 --port {port} --log-level warning"
    is_circus = manager is circusd
    watcher = {"cmd": command} if is_circus else {"command": command, "startretries": "0"}
    with manager("plain", leave=True, watcher={**watcher, "sockshare.ready": "hold"}) as stage:
        path = stage.environment["PATH"]
        stage.environment["PATH"] = os.defpath
        stage.start()
        stage.environment["PATH"] = path
        wait_until(lambda: stage.sockshare("doctor").returncode == 3, CLEAR, "there is a broker", 0.1)
        causes = Causes(stage, stage.directory)
        beside = f"{Path(sys.executable).parent}/uvicorn"
        found = causes.finds("program web", "can't be started", f"write {beside} in its command")
        if isinstance(stage, Supervisord):
            stage.sections["program:web"]["command"] = f"{beside}{command.removeprefix('uvicorn')}"
            stage.configure()
        else:
            ini = stage.directory / "circus.ini"
            ini.write_text(ini.read_text().replace("= uvicorn", f"= {beside}"))
        causes.obey(found)
        stage.wait_for_answer(port, CLEAR)
