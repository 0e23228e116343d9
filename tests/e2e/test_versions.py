"""The package is upgraded, broken and mended under a running manager; the broker dies meanwhile, and the next one is of
what is installed then."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rehearsal import all_ready, assert_replaced, loaded
from tests.support.circusd import Circusd, circusd, wait_until
from tests.support.copies import Copy
from tests.support.load import assert_none_failed
from tests.support.supervisord import BROKER, Supervisord, supervisord

Start = Callable[..., Circusd]
MANAGERS: dict[str, Callable[..., Any]] = {"circus": circusd, "supervisor": supervisord}
NO_BROKER = 75

#: One version later: in each of its messages and records something new, and messages, verbs, kinds of records and of
#: kept descriptors that this version does not know.
LATER = (
    ("sockshare/core/versions.py", "LINK = 2\n", "LINK = 3\n"),
    (
        "sockshare/core/spec.py",
        "    verify: str | None = None",
        "    canary: float = 7.0\n    verify: str | None = None",
    ),
    ("sockshare/core/spec.py", "    blocking: bool = False", '    guard: str = "repair"\n    blocking: bool = False'),
    ("sockshare/core/records.py", '    status: str = ""\n', '    status: str = ""\n    seen: float = 1.5\n'),
    ("sockshare/core/records.py", "    failures: int = 0", "    canaries: int = 1\n    failures: int = 0"),
    ("sockshare/core/steps.py", "    alone: bool = False", "    share: int = 50\n    alone: bool = False"),
    (
        "sockshare/broker/status.py",
        '        "version": VERSION,\n',
        '        "version": VERSION,\n        "later": True,\n',
    ),
    (
        "sockshare/broker/server.py",
        "        self._loop.call_later(1.0, self._expire)\n        log.info(\n",
        "        self._loop.call_later(1.0, self._expire)\n"
        "        for number in range(200):\n"
        '            link._send({"type": "statistics", "number": number})\n'
        '        link.journal("canary:web", {"stage": 1})\n'
        '        link.keep("probe:1", os.open("/dev/null", os.O_RDONLY))\n'
        '        self._later = self._loop.create_task(link.ask("conjure"))\n'
        "        self._later.add_done_callback(lambda task: log.info('later: %s', task.exception()))\n"
        "        log.info(\n",
    ),
    (
        "sockshare/host/host.py",
        '            "directory": self.directory.path,\n',
        '            "directory": self.directory.path,\n            "shape": {"keeper": True},\n',
    ),
    (
        "sockshare/host/host.py",
        "        self._send(link, hello, [*sockets, *kept.values()])\n",
        "        self._send(link, hello, [*sockets, *kept.values(), 0])\n"
        '        self._send(link, {"type": "weather"})\n',
    ),
)


class Installed:
    """A manager that runs from a copy of the package."""

    def __init__(self, manager: str, directory: Path, stack: ExitStack, *, later: bool = False) -> None:
        self.copy = Copy(directory)
        if later:
            self.upgrade()
        self.stage = stack.enter_context(MANAGERS[manager]("uvicorn", leave=True))
        self.stage.environment["PYTHONPATH"] = f"{directory}:{self.stage.environment['PYTHONPATH']}"
        self.stage.up()
        all_ready(self.stage)

    def upgrade(self) -> None:
        """Have one version later installed from now on."""
        for path, old, new in LATER:
            self.copy.change(path, old, new)

    def kill_brokers(self) -> None:
        """SIGKILL the broker, and the spare, which was started from what was installed before."""
        brokers = []
        for pid in self.stage.family():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sockshare.broker" in words:
                brokers.append(pid)
        assert brokers
        for pid in brokers:
            self.stage.kill(pid)

    def serves(self, *, later: bool) -> None:
        """Return once a broker of this version, or of the later one, serves, and a reload has worked."""

        def has_begun() -> bool:
            done = self.stage.sockshare("status", "--json")
            return done.returncode == 0 and ("later" in json.loads(done.stdout)) is later

        wait_until(has_begun, 20, "a broker of what is installed serves", 0.1)
        assert_replaced(self.stage, self.stage.pids(), self.stage.reload())

    def log(self) -> str:
        """What host and broker have logged."""
        if not isinstance(self.stage, Supervisord):
            return str(self.stage.sockshare_log.read_text())
        childlogs = self.stage.directory.glob(f"{BROKER}-stdout*")
        return "\n".join(path.read_text() for path in (self.stage.log, *childlogs))


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Callable[..., Installed]]:
    with ExitStack() as stack:
        yield lambda manager, **options: Installed(manager, tmp_path / "copy", stack, **options)


@pytest.mark.parametrize("manager", MANAGERS)
def test_broker_one_version_later_serves_and_so_does_the_one_before_after_it(
    installed: Callable[..., Installed], manager: str
) -> None:
    """Under the same host; with a reload each, and nobody notices. What the later one has left is passed over."""
    one = installed(manager)
    with loaded(one.stage, "fresh:20") as load:
        one.upgrade()
        one.kill_brokers()
        one.serves(later=True)
        one.copy.restore()
        one.kill_brokers()
        one.serves(later=False)
        assert_none_failed(load.stop())
    log = one.log()
    assert log.count("messages of type 'statistics' are passed over") == 1
    assert "later: can't conjure: this host has no such verb" in log
    assert "probe:1, which the host keeps, was passed over" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("manager", MANAGERS)
def test_broker_of_this_version_serves_a_host_one_version_later(
    installed: Callable[..., Installed], manager: str
) -> None:
    """As after a downgrade that left the manager running."""
    one = installed(manager, later=True)
    one.copy.restore()
    one.kill_brokers()
    one.serves(later=False)
    assert "a message of type 'weather' was passed over" in one.log()
    assert "Traceback" not in one.log()


@pytest.mark.parametrize("manager", MANAGERS)
def test_mended_package_is_taken_up_by_itself(installed: Callable[..., Installed], manager: str) -> None:
    """The broker can't read the hello, or can't be imported: commands say so, it is tried at a growing pause, the
    program serves on; once the package is mended, all is well with nothing restarted. A record that can't be read does
    not count."""
    one = installed(manager)
    stage = one.stage
    faults = (
        ("    directory: str\n", "    directory: str\n    no_such: str\n", ("can't serve", "no_such", "restart")),
        ("class Manager(", "import no_such\n\n\nclass Manager(", ("exit status 1", "see")),
    )
    with loaded(stage, "fresh:20") as load:
        for old, new, words in faults:
            one.copy.change("sockshare/core/hello.py", old, new)
            one.kill_brokers()
            said: list[str] = []

            def is_said(words: tuple[str, ...] = words, said: list[str] = said) -> bool:
                done = stage.sockshare("status")
                said.append(f"exit {done.returncode}: {done.stdout}{done.stderr}")
                return done.returncode == NO_BROKER and all(word in done.stderr for word in words)

            try:
                wait_until(is_said, 20, "status says why there is no broker", 0.1)
            except TimeoutError:
                raise AssertionError(f"{words} not in {said[-1]}") from None
            assert "Traceback" not in said[-1]
            assert all(word in stage.sockshare("doctor").stdout for word in words)
            wait_until(lambda: _pauses(one.log())[-1] >= 0.4, 20, "the pause grows", 0.1)
            if isinstance(stage, Supervisord):
                shown = stage.ctl("status").stdout
                assert re.search(rf"{BROKER}\S*\s+(BACKOFF|STARTING|RUNNING)", shown), shown
                wait_until(partial(is_shown, stage, words[0]), 10, "supervisord shows it", 0.1)
            one.copy.restore()
            wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "it serves again by itself", 0.1)
            assert not (stage.runtime / "stopped").exists()
        logged = one.log()
        assert logged.count("can't serve") >= 1
        one.copy.change("sockshare/core/records.py", "    generation: int\n", "    generations: int\n")
        one.copy.change("sockshare/broker/roster.py", "= facts.generation\n", "= facts.generations\n")
        one.kill_brokers()
        all_ready(stage)
        assert_replaced(stage, stage.pids(), stage.reload())
        assert re.search(r"process:\d+ is dropped, for it can't be read: .*`generations`", one.log())
        assert_none_failed(load.stop())


def is_shown(stage: Supervisord, word: str) -> bool:
    """Whether `supervisorctl status` says *word*."""
    return word in stage.ctl("status").stdout


def _pauses(log: str) -> list[float]:
    """For how long the host has waited with the next attempt, each time."""
    return [float(seconds) for seconds in re.findall(r"the next attempt is in ([0-9.]+) s", log)] or [0.0]
