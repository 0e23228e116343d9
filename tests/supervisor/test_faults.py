"""Whatever is wrong with the plugin or the broker, supervisord lives, its programs run, and commands say a sentence."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from xmlrpc.client import Fault

import pytest

from tests.e2e.rehearsal import all_ready, assert_replaced, loaded, measure
from tests.support.circusd import is_running
from tests.support.load import assert_none_failed
from tests.support.supervisord import BROKER, Supervisord, supervisord, wait_until

INTERFACES = """\
[rpcinterface:loop]
supervisor.rpcinterface_factory = tests.support.interfaces:make_loop
[rpcinterface:faults]
supervisor.rpcinterface_factory = tests.support.interfaces:make_faults
"""

#: Methods of the plugin's objects, each of which is broken in turn: what supervisord or the link comes to call.
METHODS = (
    "_configure",
    "_twins.start",
    "_twins.settle",
    "_twins.live",
    "_twins.places",
    "_twins.changed",
    "_twins.kill",
    "_twins._remove",
    "_verbs.whois",
    "_verbs.processes",
    "_verbs.start",
    "_verbs.settle",
    "_life.changed",
    "_life._serve",
    "_life._process",
    "_life._deaths.watch",
    "_life._exchange",
    "_life._start_spare_in",
    "host._receive",
    "host._hear",
    "host._give_notify",
    "host._journal.put",
    "host._journal.save",
    "host.serve",
    "host.drain",
    "host.question",
)
GROUPS = 7


@pytest.fixture(scope="module")
def stage() -> Iterator[Supervisord]:
    """One process."""
    hold = {"sockshare_ready_hold": "0.1", "sockshare_quiesce": "0", "sockshare_ready_timeout": "10"}
    with supervisord("plain", watcher=hold, extra=INTERFACES) as started:
        all_ready(started)
        yield started


def restored(stage: Supervisord) -> None:
    """Return once everything is as it should be: supervisord needs no restart for that, at most the broker does."""
    stage.rpc("faults.mend")
    if stage.sockshare("status", timeout=30).returncode != 0:
        stage.ctl("restart", BROKER)
    for name in stage.processes():
        if name != "web":
            stage.ctl("stop", f"web:{name}")
    if len(stage.pids()) != 1:
        stage.ctl("restart", "web")
    all_ready(stage)


def test_supervisord_lives_when_any_method_raises(stage: Supervisord) -> None:
    """Through the death of the broker, `reread`, `status` and a reload, with traffic: each method broken in turn."""
    with loaded(stage, "fresh:20") as load:
        # Four at a time, of different objects, for want of time; `-m soak` has each alone.
        for some in (METHODS[start::GROUPS] for start in range(GROUPS)):
            for one in some:
                stage.rpc("faults.breakMethod", one)
            method = " and ".join(some)
            with suppress(Fault):  # a bug of ours is a fault of `reread`
                stage.rpc("supervisor.reloadConfig")
            command = stage.command("reload", "web", "--timeout", "0.5")
            try:
                stage.kill(stage.broker())
                assert stage.alive(), method
                # Where nobody answers any more the command waits for a broker, and says so itself.
                with suppress(subprocess.TimeoutExpired):
                    assert "Traceback" not in command.communicate(timeout=1.0)[1], method
            finally:
                command.kill()
                command.communicate()
            assert stage.alive(), method
            restored(stage)
        assert_none_failed(load.stop())
    stage.deploy("after")
    assert_replaced(stage, stage.pids(), stage.reload())


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "part",
    [
        "",
        "registry",
        "loop",
        "_twins",
        "_verbs",
        "_deaths",
        "_life",
        "_life._deaths",
        "host",
        "host._journal",
        "host._notify",
    ],
    ids=lambda part: part or "plugin",
)
def test_supervisord_lives_when_each_method_raises(stage: Supervisord, part: str) -> None:
    """As above, one by one, each method there is; and through `update`, `restart` and a `reload` of all."""
    methods = stage.rpc("faults.methods", part)
    print(f"\n{part or 'plugin'}: {len(methods)}: {' '.join(methods)}")
    for number, method in enumerate(methods):
        stage.sections["sockshare:web"]["socket_backlog"] = str(100 + number % 2)
        stage.configure()
        with loaded(stage, "fresh:20") as load:
            stage.rpc("faults.breakMethod", method)
            command = stage.command("reload", "web", "--timeout", "0.5")
            try:
                stage.kill(stage.broker())
                assert stage.alive(), method
                stage.ctl("update", "all")
                with suppress(Fault):
                    stage.rpc("sockshare.status")
                with suppress(subprocess.TimeoutExpired):
                    assert "Traceback" not in command.communicate(timeout=0.5)[1], method
            finally:
                command.kill()
                command.communicate()
            assert stage.alive(), method
            stage.rpc("faults.mend")
            restored(stage)
            result = load.stop()
        failures = [record for record in result.failures if record.outcome in ("refused", "timeout")]
        assert not failures, (method, failures)
    for method in methods:
        stage.rpc("faults.breakMethod", method)
        stage.ctl("reload")
        wait_until(stage.alive, 20, "supervisord answers", 0.1)
        stage.rpc("faults.mend")
        if stage.sockshare("status", timeout=30).returncode == 75:  # what was broken had made no directory
            stage.ctl("reload")
            wait_until(stage.alive, 20, "supervisord answers", 0.1)
        restored(stage)


@pytest.mark.parametrize("text", ["garbage\n", "[]\n", '{"type": "hello"}\n', '{"fds": 3}\n', "[" * 10000 + "\n"])
def test_garbage_on_the_link_ends_the_broker_only(stage: Supervisord, text: str) -> None:
    """A broker that can't make sense of its host, or a host of its broker, is followed by the next one."""
    assert stage.rpc("faults.say", text)
    wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "a broker answers", 0.1)
    assert stage.alive()
    assert len(stage.pids()) == 1


def test_stopped_broker_delays_nobody(stage: Supervisord) -> None:
    """SIGSTOP of the broker: supervisord answers, the program serves, a tool is told; after SIGCONT all goes on."""
    wait_until(lambda: stage.ctl("status").returncode == 0, 15, "all that it runs is running", 0.1)
    broker = stage.broker()
    with loaded(stage, "fresh:50") as load:
        assert stage.kill(broker, signal.SIGSTOP)
        with pytest.raises(Exception, match="no answer within"):
            stage.rpc("sockshare.status")
        assert stage.alive()
        assert stage.ctl("status").returncode == 0
        assert stage.kill(broker, signal.SIGCONT)
        wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "it answers again", 0.1)
        assert_none_failed(load.stop())
    assert stage.broker() == broker
    assert json.loads(stage.rpc("sockshare.status"))["version"] == 1


def test_all_is_well_when_supervisord_may_open_descriptors_again(stage: Supervisord) -> None:
    """At its limit during some commands, which fail with a sentence; afterwards they work, with nothing restarted."""
    assert stage.process is not None
    manager, broker = stage.process.pid, stage.broker()
    wait_until(stage.spare_stands_by, 20, "a spare broker stands by", 0.05)
    soft, hard = resource.prlimit(manager, resource.RLIMIT_NOFILE)
    # The lowest number that is free: nothing can be opened from here on, and what is open can be polled (poll(2)).
    used = {int(name) for name in os.listdir(f"/proc/{manager}/fd")}
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    with loaded(stage, "fresh:20") as load:
        resource.prlimit(manager, resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            for arguments in (("status",), ("reload", "web"), ("doctor",)):
                said = stage.sockshare(*arguments)
                assert "Traceback" not in said.stderr, said
                if arguments[0] == "reload":
                    assert said.returncode not in (0, 75), said
        finally:
            resource.prlimit(manager, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "status works again", 0.1)
        assert_replaced(stage, stage.pids(), stage.reload())
        assert_none_failed(load.stop())
    assert is_running(manager)
    assert stage.broker() == broker


def test_removed_runtime_directory_is_made_anew(stage: Supervisord) -> None:
    """Within some seconds there is a broker again, in the same place, and the next reload works; nobody noticed."""
    with loaded(stage, "fresh:50") as load:
        removed = stage.runtime.with_name("removed")
        stage.runtime.rename(removed)
        shutil.rmtree(removed)
        assert stage.alive()
        wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "a broker answers", 0.2)
        assert_replaced(stage, stage.pids(), stage.reload())
        assert_none_failed(load.stop())
    stage.kill(stage.broker())  # the next ones find the link where it is now
    wait_until(lambda: len(stage.pids(BROKER)) == 2 and stage.sockshare("status").returncode == 0, 15, "all is well")


def test_program_runs_on_without_any_broker(stage: Supervisord) -> None:
    """Nothing of ours is on the data path: with the broker stopped for good, not one request notices."""
    with loaded(stage, "fresh:50") as load:
        assert stage.ctl("stop", BROKER).returncode == 0
        measure(1.0)
        assert_none_failed(load.stop())
    assert stage.ctl("start", BROKER).returncode == 0
    all_ready(stage)


@pytest.mark.parametrize("times", [3, pytest.param(100, marks=(pytest.mark.soak, pytest.mark.timeout(900)))])
def test_loop_is_never_held_up_by_reloads(stage: Supervisord, times: int) -> None:
    """supervisord is back at its poller within 50 ms, whatever we do between."""
    stage.rpc("loop.worst")
    for number in range(times):
        stage.deploy(f"v{number}")
        assert stage.reload().status == 0
    (own, wall), (callback, _) = stage.rpc("loop.worst")
    print(
        f"\n{times} reloads: away for {own * 1000:.1f} ms at most ({wall * 1000:.1f} with what others ran)"
        f", a callback of ours for {callback * 1000:.1f} ms"
    )
    assert 0 < callback <= own < 0.05, (own, wall, callback)
    assert stage.process is not None
    assert is_running(stage.process.pid)
