"""Our command inside a real circusd: counts hold and no old process is signalled, whatever crashes and whenever."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sockshare.cli.stage import Stage, wait_until
from tests.support.circusd import is_running

#: Notes each TERM it gets, and drains from then on until the file `drained` is there. With the file `broken` it ends at
#: once, with `forking` it has a worker.
PROGRAM = """\
#!{python}
import os, signal, sys, time
def note(name):
    with open(name, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
told = []
def hear(number, frame):
    note("signalled")
    told.append(number)
signal.signal(signal.SIGTERM, hear)
if os.path.exists("broken"):
    sys.exit(1)
if os.path.exists("forking") and os.fork() == 0:
    note("workers")
    signal.pause()
note("started")
while not (told and os.path.exists("drained")):
    time.sleep(0.02)
"""


class Circus(Stage):
    """A circusd with one watcher, whose processes write down what happens to them."""

    def __init__(self, keys: str = "", numprocesses: int = 2) -> None:
        super().__init__()
        self.program = self.directory / "program"
        self.program.write_text(PROGRAM.format(python=sys.executable))
        self.program.chmod(0o755)
        self.write(
            "[plugin:sockshare]\nuse = circus_sockshare.SockShare\nuse_sockets = True\n"
            f"runtime_dir = {self.runtime}\nlogfile = {self.directory}/log\n"
            f"[watcher:web]\ncmd = {self.program}\nworking_dir = {self.directory}\n"
            f"numprocesses = {numprocesses}\ncopy_env = True\n{keys}"
        )

    def up(self) -> Circus:
        """Start, and return once all processes handle their signal."""
        self.start()
        wait_until(self._is_up, 20, "the watcher's processes run", 0.05)
        return self

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.tail(self.log)
        try:
            facts = self.facts()
        except TimeoutError:
            return False
        live = {one["pid"] for one in facts["processes"]}
        return facts["status"] == "active" and len(live) == facts["numprocesses"] and live <= self.noted("started")

    def op(self, op: str, **fields: Any) -> dict[str, Any]:
        """The answer to one operation of ours."""
        return self.call("sockshare", op=op, **fields)

    def facts(self) -> dict[str, Any]:
        """What `processes` says of the watcher."""
        found: dict[str, Any] = self.op("processes")["watchers"]["web"]
        return found

    def live(self) -> list[int]:
        """The processes that are not on their way out, oldest first."""
        return [one["pid"] for one in self.facts()["processes"] if not one["stopping"]]

    def noted(self, name: str) -> set[int]:
        """Every process that ever `started`, or was `signalled`."""
        path = self.directory / name
        return {int(line) for line in path.read_text().splitlines()} if path.exists() else set()

    def begin(self) -> int:
        """`start`, and the pid once it handles its signal."""
        answer = self.op("start", name="web")
        assert answer["status"] == "ok", answer
        wait_until(lambda: answer["pid"] in self.noted("started"), 10, "the new process runs", 0.02)
        return int(answer["pid"])

    def settle(
        self, retire: list[int], known: list[int], count: int, kill: bool = False, patience: float = 0.0
    ) -> dict[str, Any]:
        """The answer to `settle`."""
        return self.op("settle", name="web", retire=retire, known=known, count=count, kill=kill, patience=patience)


@pytest.fixture
def circus() -> Iterator[Callable[..., Circus]]:
    """Start a :class:`Circus`; its processes end with the test."""
    made: list[Circus] = []

    def start(keys: str = "", numprocesses: int = 2) -> Circus:
        made.append(Circus(keys, numprocesses))
        return made[-1].up()

    yield start
    for one in made:
        (one.directory / "drained").touch()
        try:
            # circusd refuses to end, by a command or SIGTERM alike, in the moment in which it respawns something.
            wait_until(lambda one=one: one.call("quit", 1.0)["status"] == "ok", 5, "circusd ends")  # type: ignore[misc]
        except TimeoutError:
            pass  # it has ended
        one.end()


Start = Callable[..., Circus]


@pytest.mark.parametrize("keys", ["", "singleton = True\n", "stop_children = True\n"])
def test_process_is_replaced_by_one_started_beside_it(circus: Start, keys: str) -> None:
    """A singleton's too: one more, and then the old one drains while circus neither counts nor picks it."""
    one = circus(keys, numprocesses=1)
    [old] = one.live()
    new = one.begin()
    assert one.live() == [old, new]
    assert one.facts()["numprocesses"] == 2
    assert one.settle([old], [old, new], 1)["retired"] == [old]
    facts = one.facts()
    assert facts["numprocesses"] == 1
    assert {(process["pid"], process["stopping"]) for process in facts["processes"]} == {(old, True), (new, False)}
    wait_until(lambda: one.noted("signalled") == {old}, 10, "the old one has its signal")
    assert one.pids() == [new]
    assert is_running(old)
    (one.directory / "drained").touch()
    wait_until(lambda: not os.path.exists(f"/proc/{old}"), 10, "the old one is gone, and reaped")
    assert one.live() == [new]
    assert one.noted("signalled") == {old}


def test_others_are_respawned_while_one_drains(circus: Start) -> None:
    """A crash of the new process is mended at the next check: the one on its way out does not stand in for it."""
    one = circus(numprocesses=1)
    [old] = one.live()
    new = one.begin()
    one.settle([old], [old, new], 1)
    assert one.kill(new)
    [newer] = wait_until(lambda: [pid for pid in one.live() if pid != new], 5, "it is respawned")
    assert newer != old
    assert is_running(old)
    assert one.noted("signalled") == {old}
    assert one.facts()["numprocesses"] == 1


@pytest.mark.parametrize("keys", ["", "max_age = 3600\n"])
def test_no_old_process_is_touched_when_newcomers_crash(circus: Start, keys: str) -> None:
    """Before circus has respawned the newcomer and after: settle leaves the old ones, and as many as there were."""
    one = circus(keys, numprocesses=2)
    old = one.live()
    for respawned in (False, True, False, True):
        new = one.begin()
        assert one.kill(new)
        if respawned:
            wait_until(lambda gone=[*old, new]: set(one.live()) - set(gone), 5, "it is respawned")  # type: ignore[misc]
        one.settle([new], old, 2, kill=True)
        assert one.live() == old
        assert one.facts()["numprocesses"] == 2
    # Ends at once, and is respawned at each check, until settled.
    (one.directory / "broken").touch()
    first = one.op("start", name="web")["pid"]
    wait_until(lambda: set(one.live()) - {*old, first}, 5, "the broken one is respawned", 0.002)
    one.settle([first], old, 2, kill=True)
    (one.directory / "broken").unlink()
    # One of the old ones is respawned now, and nothing else is: the checks go on as ever.
    assert one.kill(old[0])
    wait_until(lambda: len(one.live()) == 2 and old[0] not in one.live(), 5, "the crashed one is respawned")
    assert old[1] in one.live()
    assert one.noted("signalled") == set()


def test_settle_starts_what_is_missing(circus: Start) -> None:
    """A new process that died when the old one was gone has a successor at once, not at circus's next look."""
    one = circus("respawn = True\n", numprocesses=1)
    [old] = one.live()
    assert one.kill(old)
    wait_until(lambda: not is_running(old), 5, "it is dead", 0.001)
    one.settle([], [old], 1)
    [new] = one.live()
    assert new != old
    assert one.facts()["numprocesses"] == 1


def test_settle_says_that_the_watcher_is_stopped_and_starts_nothing(circus: Start) -> None:
    """Who stopped it meanwhile wants nothing to run."""
    one = circus(numprocesses=1)
    [old] = one.live()
    assert one.settle([], [old], 1)["stopped"] is False
    (one.directory / "drained").touch()
    one.call("stop", name="web", waiting=True)
    answer = one.settle([], [old], 1)
    assert answer["stopped"] is True
    assert one.live() == []


def test_workers_go_with_a_killed_newcomer(circus: Start) -> None:
    """A master that is killed leaves nobody behind who would serve the version that was rolled back."""
    one = circus(numprocesses=1)
    old = one.live()
    (one.directory / "forking").touch()
    new = one.begin()
    [worker] = wait_until(lambda: one.noted("workers"), 5, "the worker runs")
    one.settle([new], old, 1, kill=True)
    wait_until(lambda: not is_running(worker) and not is_running(new), 5, "both are gone")
    assert one.live() == old


def test_newcomer_that_is_given_up_has_its_signal_first(circus: Start) -> None:
    """It is not counted any more, drains, and ends by itself within the patience that there is."""
    one = circus(numprocesses=1)
    old = one.live()
    new = one.begin()
    one.settle([new], old, 1, kill=True, patience=20.0)
    assert one.live() == old
    assert one.facts()["numprocesses"] == 1
    wait_until(lambda: one.noted("signalled") == {new}, 5, "it has its signal")
    assert is_running(new)
    (one.directory / "drained").touch()
    wait_until(lambda: not os.path.exists(f"/proc/{new}"), 5, "it is gone, and reaped")
    assert one.live() == old


def test_newcomer_of_a_command_of_circus_has_its_signal_first_too(circus: Start) -> None:
    """The old one is kept instead of it, and the new one has as much patience as in a reload of ours."""
    one = circus(numprocesses=1)
    [old] = one.live()
    new = one.begin()
    answer = one.op("release", name="web", pid=old, keep=True, kill=[new], patience=20.0)
    assert answer["status"] == "ok", answer
    wait_until(lambda: one.noted("signalled") == {new}, 5, "it has its signal")
    assert is_running(new)
    assert new not in one.live()
    (one.directory / "drained").touch()
    wait_until(lambda: not os.path.exists(f"/proc/{new}"), 5, "it is gone, and reaped")
    assert old in one.live()


def test_newcomer_that_is_given_up_is_killed_when_patience_ends(circus: Start) -> None:
    """With its workers; circus's own, longer timeout is not waited for."""
    one = circus("graceful_timeout = 60\n", numprocesses=1)
    old = one.live()
    (one.directory / "forking").touch()
    new = one.begin()
    [worker] = wait_until(lambda: one.noted("workers"), 5, "the worker runs")
    one.settle([new], old, 1, kill=True, patience=0.5)
    wait_until(lambda: not is_running(worker) and not is_running(new), 5, "both are gone")
    assert one.noted("signalled") == {new}
    assert one.live() == old


def test_retired_process_is_killed_when_it_does_not_end(circus: Start) -> None:
    """After graceful_timeout comes SIGKILL, with the workers, as for any process that circus stops."""
    one = circus("graceful_timeout = 0.5\n", numprocesses=1)
    (one.directory / "forking").touch()
    [old] = one.live()
    new = one.begin()
    [worker] = wait_until(lambda: one.noted("workers"), 5, "the worker runs")
    newer = one.begin()
    one.settle([old, new], [old, new, newer], 1)
    wait_until(lambda: not any(map(is_running, (old, new, worker))), 10, "they are killed")
    wait_until(lambda: not os.path.exists(f"/proc/{old}"), 10, "and reaped")
    assert one.live() == [newer]


@pytest.mark.parametrize("how", ["stop", "quit", "SIGTERM"])
def test_stop_waits_for_what_drains(circus: Start, how: str) -> None:
    """The end of the watcher, and of circusd, leaves nobody behind; and circusd answers meanwhile."""
    one = circus(numprocesses=1)
    [old] = one.live()
    new = one.begin()
    one.settle([old], [old, new], 1)
    wait_until(lambda: old in one.noted("signalled"), 10, "the old one has its signal")
    assert one.process is not None
    if how == "SIGTERM":
        one.process.send_signal(signal.SIGTERM)
    else:
        properties: dict[str, Any] = {"name": "web"} if how == "stop" else {}
        one.call(how, **properties)
    wait_until(lambda: new in one.noted("signalled"), 10, "the new one has its signal")
    assert one.kill(new)
    wait_until(lambda: not os.path.exists(f"/proc/{new}"), 10, "circus has seen its end")
    assert one.facts()["status"] == "stopping"
    assert is_running(old)
    (one.directory / "drained").touch()
    if how == "stop":
        wait_until(lambda: one.facts()["status"] == "stopped", 10, "the watcher is stopped")
        assert "the watcher is stopped" in one.op("start", name="web")["reason"]
    else:
        one.process.wait(10)
    assert not is_running(old)


def test_refusal_changes_nothing(circus: Start) -> None:
    """What can't be done is said in a sentence, and the count is as it was; circus's own commands work on."""
    one = circus(numprocesses=1)
    live = one.live()
    assert "not found" in one.op("start", name="wbe")["reason"]
    assert "unknown operation" in one.op("conjure", name="web")["reason"]
    assert "missing" in one.call("sockshare")["reason"]
    one.program.chmod(0)
    assert "circusd could not start it" in one.op("start", name="web")["reason"]
    assert one.facts()["numprocesses"] == 1
    assert one.live() == live
    one.program.chmod(0o755)
    assert one.call("incr", name="web", waiting=True)["numprocesses"] == 2
    wait_until(lambda: len(one.noted("started")) == 2, 10, "the second one runs")
    # A stop of one watcher keeps circusd busy: then nothing is started under its feet.
    one.call("stop", name="web")
    wait_until(lambda: len(one.noted("signalled")) == 2, 10, "both have their signal")
    refused = one.op("start", name="web")
    assert refused["errno"] == 5
    assert refused["tb"] is None
    assert "busy" in refused["reason"]
    (one.directory / "drained").touch()
    wait_until(lambda: one.facts()["status"] == "stopped", 10, "the watcher is stopped")


def test_processes_tells_what_the_plugin_needs(circus: Start) -> None:
    """The free-form keys, the file of stderr, the hooks' names, the sockets with their inodes; no plugin among them."""
    one = circus(
        "sockshare.ready = hold\nsockshare_ready = hold\nother.key = 1\nstderr_stream.class = FileStream\n"
        "stderr_stream.filename = web.err\nstop_signal = QUIT\n"
        "[socket:a]\nhost = 127.0.0.1\nport = 0\n[socket:b]\npath = b.sock\nblocking = True\n"
    )
    told = one.op("processes")
    assert set(told["watchers"]) == {"web"}
    web = told["watchers"]["web"]
    assert web["options"] == {"sockshare.ready": "hold", "sockshare_ready": "hold"}
    assert web["stderr"] == str(one.directory / "web.err")
    assert web["stop_signal"] == signal.SIGQUIT
    assert web["uid"] is None
    assert not web["singleton"]
    assert one.process is not None
    for sock in told["sockets"]:
        link = os.readlink(f"/proc/{one.process.pid}/fd/{sock['fd']}")
        assert link == f"socket:[{sock['inode']}]"
    assert [(sock["name"], sock["blocking"]) for sock in told["sockets"]] == [("a", False), ("b", True)]
