"""Why a command finds no broker: each cause has its own sentence, which says what to do."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from sockshare.cli.stage import wait_until
from sockshare.client import dialogue, finding, managers
from sockshare.client import door as doors
from sockshare.core.errors import NoBroker
from sockshare.kernel import meeting
from tests.client.host import ROOT
from tests.client.test_finding import point

NOBODY = 65534
#: Becomes another user, if it is told to (who could not start it), and waits.
WAITS = "import os, sys\nos.setuid(int(os.environ.get('BECOME', os.geteuid())))\nprint(flush=True)\nsys.stdin.read()\n"


@contextmanager
def running(directory: Path, name: str, *arguments: str, uid: int | None = None) -> Iterator[managers.Manager]:
    """A process that is called *name*, in *directory*."""
    script = directory / name
    script.write_text(WAITS)
    with subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **({} if uid is None else {"BECOME": str(uid)})},
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield managers.manager(process.pid)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("name", "arguments", "section", "does"),
    [
        ("supervisord", ["-n", "-c", "x.conf"], "rpcinterface:sockshare", "`supervisorctl -c {file} reload`"),
        ("supervisord", ["-cx.conf"], "rpcinterface:sockshare", "`supervisorctl -c {file} reload`"),
        ("supervisord", ["--configuration=x.conf"], "rpcinterface:sockshare", "`supervisorctl -c {file} reload`"),
        ("circusd", ["--log-level", "info", "x.conf"], "plugin:sockshare", "end circusd, and start it again"),
    ],
)
def test_manager_without_a_broker_is_told_by_its_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, arguments: list[str], section: str, does: str
) -> None:
    """It has no section of ours; it has one since; it had one, and does not serve, or not yet; it can't be read."""
    file = tmp_path / "x.conf"
    include = "[include]\nfiles = *.more\n" if name == "supervisord" else "[circus]\ninclude = *.more\n"
    key, value = (
        ("supervisor.rpcinterface_factory", "supervisor_sockshare:make_rpcinterface")
        if name == "supervisord"
        else ("use", "circus_sockshare.SockShare")
    )
    file.write_text(include)
    with running(tmp_path, name, *arguments) as one:
        assert str(one) == f"{name} (pid {one.pid}, uid {os.geteuid()}, {file})"
        does = does.format(file=file)
        assert managers.why_no_broker(one).endswith(f"its configuration has no [{section}]; add it, then {does}")
        (tmp_path / "our.more").write_text(f"[{section}]\n{key} = {value}\n")
        os.utime(file, (2_000_000_000, 2_000_000_000))
        assert managers.why_no_broker(one).endswith(f"was changed since it was started; {does}")
        for written in (1.0, managers._started(one.pid) + managers._COARSE / 2):
            os.utime(file, (written, written))
            assert managers.why_no_broker(one) == "it has no broker yet: it was started just now; ask again"
        monkeypatch.setattr(managers, "_STARTS", 0.0)
        assert "its log has the reason" in managers.why_no_broker(one)
        file.unlink()
        assert "can't read its configuration" in managers.why_no_broker(one)
        assert (str(one), managers.why_no_broker(one)) in managers.reasons()
    assert managers.why_no_broker(one) == "it has ended just now"


def test_broker_that_is_away_is_told_with_the_reason(tmp_path: Path) -> None:
    """It is started anew; or its host knows why there is none."""
    target = tmp_path / "run"
    target.mkdir()
    with running(tmp_path, "circusd", "x.ini") as one, point(one.pid, target) as where:
        assert (
            managers.why_no_broker(one) == f"its broker does not answer at {where}: it is being started anew; ask again"
        )
        (target / meeting.STOPPED).write_text("broker stopped: do this")
        assert managers.why_no_broker(one).endswith(": broker stopped: do this")


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a manager of another user")
def test_manager_of_another_user_is_told_with_its_endpoint(tmp_path: Path) -> None:
    """Root can ask it, and is told how."""
    target = tmp_path / "run"
    target.mkdir()
    with running(tmp_path, "circusd", "x.ini", uid=NOBODY) as one:
        base = Path(meeting.points(one.pid)[-1]).parent
        base.mkdir(mode=0o711, exist_ok=True)
        os.chown(base, NOBODY, NOBODY)
        with point(one.pid, target) as where:
            assert managers.why_no_broker(one) == f"it is another user's; say --endpoint {where}"
    assert str(one.uid) in str(one)


#: What is said to a user who may see nothing of the manager.
ASK = """import os, sys
from sockshare.client import managers
os.setuid(4321)
print(managers.why_no_broker(managers.manager(int(sys.argv[1]))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_a_user_may_not_see_is_not_said_to_be_missing(tmp_path: Path) -> None:
    """Another user's manager may have a broker; so may root's, whose directory is hidden."""

    def said(one: managers.Manager) -> str:
        return subprocess.check_output([sys.executable, "-c", ASK, str(one.pid)], text=True).rstrip()

    target = tmp_path / "run"
    target.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    with running(tmp_path, "circusd", "x.ini", uid=NOBODY) as one:
        assert said(one) == "it is another user's; run the command as that user, or as root"
    with running(tmp_path, "circusd", "x.ini") as one, point(one.pid, target):
        assert said(one) == "uid 4321 may not look into its runtime directory; run the command as root"


@contextmanager
def door(directory: Path) -> Iterator[None]:
    """A broker listens in *directory*."""
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / "door"))
        listener.listen()
        yield


def test_manager_with_a_broker_is_not_passed_over(tmp_path: Path) -> None:
    """Who has looked in the wrong place is not told that no manager runs, but where the broker is."""
    nowhere = tmp_path / "none"
    nowhere.mkdir()
    with door(tmp_path / "run"), running(tmp_path, "circusd", "x.ini") as one, point(one.pid, tmp_path / "run") as at:
        assert (str(one), f"its broker answers; say --endpoint {at}") in managers.reasons()
        with pytest.raises(NoBroker) as raised:
            finding.find(str(nowhere), command=True, timeout=0.1)
    assert f"{one} at {at}" in str(raised.value)


def test_not_more_is_looked_at_than_people_read(tmp_path: Path) -> None:
    """Of managers, and of the processes of one that has ended; how many there are besides is said."""
    environment = {**os.environ, "SOCKSHARE_FD_WEB": "3", "SOCKSHARE_ENDPOINT": str(tmp_path / "none")}
    begin = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 >/dev/null & echo $!; done"
    started = subprocess.run(["sh", "-c", begin], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    orphans = [int(pid) for pid in started.stdout.split()]
    several = [subprocess.Popen(["supervisord", "100"], executable="/bin/sleep") for _ in range(3)]
    try:
        # The kernel closes what Popen waits for before a process has its arguments.
        wait_until(lambda: all(meeting.arguments(process.pid) for process in several), 5, "they are started", 0.001)
        said = dict(managers.reasons(2))
        told = [one for one in said if one.startswith("supervisord (pid")]
        assert len(told) <= 2
        [more] = [one for one in said if one.endswith(" more managers")]
        assert int(more.split()[0]) >= 1
        sentence = said["a manager that has ended"]
        assert sentence.count("pid ") == 8
        assert " more;" in sentence
        assert all(f" {pid}" in sentence.partition("`kill")[2].partition("`")[0] for pid in orphans)
    finally:
        for process in several:
            process.kill()
            process.wait()
        for pid in orphans:
            os.kill(pid, 9)


def _sentences(module: ModuleType) -> Iterator[str]:
    """What the code of *module* can say of a broker that is missing; what is filled in is a blank there."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "NoBroker":
            found = list(node.args)
        elif isinstance(node, ast.FunctionDef) and node.name in ("why_no_broker", "_why_no_point", "_where", "_why"):
            found = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
        elif isinstance(node, ast.FunctionDef) and node.name == "reasons":
            found = [one.elts[1] for one in ast.walk(node) if isinstance(one, ast.Tuple) and len(one.elts) == 2]
        for text in [part for one in found for part in (one.values if isinstance(one, ast.BoolOp) else [one])]:
            if isinstance(text, ast.JoinedStr):
                yield "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in text.values)
            elif isinstance(text, ast.Constant) and text.value:
                yield str(text.value)


def test_each_sentence_for_a_missing_broker_is_in_the_documentation() -> None:
    """Its beginning, or the part of it that tells causes apart, stands in italics in the table."""
    page = (ROOT / "docs" / "errors.md").read_text().partition("## No broker")[2].partition("\n## ")[0]
    phrases = {phrase.partition(" [")[0] for phrase in re.findall(r"\*([^*]+)\*", page)}
    said = {sentence for module in (managers, finding, doors, dialogue) for sentence in _sentences(module)}
    # What only joins a beginning to a reason that is said elsewhere.
    joined = ("a broker for uid {}: {}", "the broker at {}: {}", "{} runs none (looked for {}): {}")
    said = {one for one in said if not one.endswith(joined) and one != "{} more managers"}
    assert len(said) > 15
    vague = {"can't find a broker"}
    assert [one for one in said if not any(phrase in one for phrase in phrases - vague)] == []


def test_process_that_its_manager_left_behind_is_told(tmp_path: Path) -> None:
    """It holds the sockets; what stands in backticks ends it. It is none if the broker that it had is there."""
    environment = {**os.environ, "SOCKSHARE_FD_WEB": "3", "SOCKSHARE_ENDPOINT": str(tmp_path / "run")}
    # Its parent ends at once, so that it is nobody's (of ours init's, or a reaper's, which is no manager).
    begin = f"{sys.executable} -c 'import time; time.sleep(100)' >/dev/null & echo $!"
    started = subprocess.run(["sh", "-c", begin], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    pid = int(started.stdout)
    try:
        assert pid in [one for one, _ in managers.orphans()]
        with door(tmp_path / "run"):
            assert pid not in [one for one, _ in managers.orphans()]
        (said,) = [sentence for subject, sentence in managers.reasons() if subject == "a manager that has ended"]
        assert f"pid {pid} (" in said
        assert "`kill " in said
    finally:
        os.kill(pid, 9)
