"""circus's own commands and plugins while ``sockshare reload`` runs: done or refused, never undone, nobody blamed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from sockshare.cli.stage import wait_until
from tests.support.circusd import Circusd, Reload

Circusds = Callable[..., Circusd]
FLAPPING = "\n[plugin:flapping]\nuse = circus.plugins.flapping.Flapping\n"


@contextmanager
def reloading(stage: Circusd) -> Iterator[list[Reload]]:
    """A reload of web, of which the new process has been started and is not ready; in the end the list has it."""
    stage.wait_for_answer(stage.port)
    began, before, ended = time.monotonic(), stage.pids(), list[Reload]()
    with stage.command("reload", "web", "--json") as command:
        try:
            wait_until(lambda: len(stage.pids()) > len(before), 10, "the new process is started", 0.02)
            yield ended
            stdout, stderr = command.communicate(timeout=60)
        except BaseException:
            command.kill()
            raise
    ended.append(Reload.read(command.returncode, stdout, stderr, began))


def has(stage: Circusd, count: int) -> bool:
    """Whether circusd has, and wants, so many processes of web."""
    return stage.numprocesses() == count == len(stage.pids())


def test_retirement_is_no_crash_to_flapping(circusd: Circusds) -> None:
    """circus's own plugin, with its defaults, leaves a good reload alone, and a broken one too."""
    stage = circusd("uvicorn", numprocesses=2, watcher={"sockshare.ready_hold": "0.1"}, extra=FLAPPING)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    events = context.socket(zmq.SUB)
    try:
        events.subscribe(b"watcher.web.")
        events.connect(f"ipc://{stage.directory}/p")
        wait_until(
            lambda: stage.call("set", name="web", options={"max_retry": 5}) and events.poll(50), 5, "events come"
        )
        stage.deploy("v2")
        reloads = [stage.reload()]
        new = stage.pids()
        for _ in range(2):
            stage.deploy("broken", fault="exit_at_import")
            reloads.append(stage.reload())
        assert [reload.status for reload in reloads] == [0, 5, 5]
        stage.call("set", name="web", options={"graceful_timeout": 29})
        seen: list[bytes] = []
        spawned: list[int] = []
        while not seen or seen[-1] != b"watcher.web.updated":
            assert events.poll(5000), seen
            topic, message = events.recv_multipart()
            seen.append(topic)
            spawned += [json.loads(message)["process_pid"]] if topic == b"watcher.web.spawn" else []
            if seen[-1] == b"watcher.web.updated" and b"watcher.web.spawn" not in seen:
                seen.clear()  # of before
        started = [step["pid"] for reload in reloads for step in reload.steps if step["step"] == "start"]
        assert len(started) == 4
        assert [pid for pid in spawned if pid in started] == started
        # One that dies at once is started once more where circusd looks before it is told that it has failed.
        assert len(spawned) - len(started) <= 2
        assert b"watcher.web.reap" not in seen
    finally:
        context.destroy(linger=0)
    assert (stage.call("status", name="web")["status"], stage.pids()) == ("active", new)
    assert stage.ask(stage.port) == "v2"


def test_numbers_that_are_changed_meanwhile_stay_changed(circusd: Circusds) -> None:
    """More are started at once; fewer are stopped at the end, and not those to go back to."""
    stage = circusd("uvicorn", watcher={"sockshare.ready_hold": "0.2"})
    stage.deploy("v2", import_seconds=0.7)
    with reloading(stage) as ended:
        assert stage.call("incr", name="web", waiting=True)["numprocesses"] == 2
        assert stage.call("set", name="web", options={"numprocesses": 3}, waiting=True)["status"] == "ok"
        assert stage.call("decr", name="web", waiting=True)["numprocesses"] == 2
    assert ended[0].status == 0, ended
    wait_until(lambda: has(stage, 2), 10, "there are two from now on", 0.05)
    assert stage.ask(stage.port) == "v2"
    # Fewer, while the first of two is replaced by a version that turns out to be broken.
    old = stage.pids()
    stage.deploy("broken", fault="exit_at_import", import_seconds=0.7)
    with reloading(stage) as ended:
        assert stage.call("decr", name="web", waiting=True)["numprocesses"] == 1
        assert set(old) <= set(stage.pids())
    assert ended[0].status == 5, ended
    wait_until(lambda: has(stage, 1), 10, "there is one", 0.05)
    assert set(stage.pids()) <= set(old)
    # By the configuration.
    ini = stage.directory / "circus.ini"
    ini.write_text(ini.read_text().replace("numprocesses = 1", "numprocesses = 3"))
    stage.deploy("v3", import_seconds=0.7)
    with reloading(stage) as ended:
        assert stage.call("reloadconfig", waiting=True)["status"] == "ok"
    assert ended[0].status == 0, ended
    wait_until(lambda: has(stage, 3), 10, "there are three", 0.05)
    wait_until(lambda: stage.ask(stage.port) == "v3", 5, "the new version answers")
    assert "KeyError" not in stage.log.read_text()


def test_commands_that_would_end_it_are_refused_or_obeyed(circusd: Circusds) -> None:
    """circus reloads nothing meanwhile, and says so; kill, stop and restart are done, and no fault of the version."""
    stage = circusd("uvicorn", watcher={"sockshare.ready_hold": "0.2"})
    stage.deploy("v2", import_seconds=0.7)
    with reloading(stage) as ended:
        for command, properties in (
            ("reload", {"name": "web"}),
            ("reload", {}),
            ("set", {"name": "web", "options": {"cmd": "sleep 1"}}),
        ):
            answer = stage.call(command, waiting=True, **properties)
            assert (answer["status"], "a sockshare reload of web is running" in answer["reason"]) == ("error", True)
    assert ended[0].status == 0, ended
    assert stage.ask(stage.port) == "v2"
    assert stage.call("reload", name="web", waiting=True)["status"] == "ok"
    wait_until(lambda: has(stage, 1), 10, "there is one", 0.05)
    # The new process is killed by hand.
    [old] = stage.pids()
    with reloading(stage) as ended:
        [new] = [pid for pid in stage.pids() if pid != old]
        assert stage.call("kill", name="web", pid=new, waiting=True)["status"] == "ok"
    assert (ended[0].status, "was stopped by its manager" in ended[0].reason) == (5, True), ended
    assert stage.pids() == [old]
    for command in ("restart", "stop"):
        with reloading(stage) as ended:
            assert stage.call(command, name="web", waiting=True)["status"] == "ok"
        assert ended[0].status == 3, ended
        assert "stopped meanwhile" in ended[0].reason
        assert "killed by signal" not in ended[0].stdout
        count = 1 if command == "restart" else 0
        wait_until(lambda count=count: len(stage.pids()) == count, 10, f"{command} is done", 0.05)  # type: ignore[misc]
    assert "KeyError" not in stage.log.read_text()
