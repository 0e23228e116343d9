"""What strangers, and hasty administrators, do to a broker that serves."""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zmq

from sockshare.core.rollout import State
from tests.e2e.rehearsal import all_ready, assert_replaced, loaded, measure
from tests.support import door
from tests.support.circusd import Circusd, descriptors, wait_until
from tests.support.load import assert_none_failed
from tests.support.mishaps import at_rest, scene_at
from tests.support.puppets import puppets

Circusds = Callable[..., Circusd]
STORM = 1.0  # s


def test_one_reload_runs_when_several_are_asked_for_at_once(circusd: Circusds) -> None:
    """One does it, the others are told so and exit 10; and all of it costs no request and no descriptor."""
    stage = circusd("uvicorn")
    all_ready(stage)
    before, broker = stage.pids(), descriptors(stage.broker())
    stage.deploy("v2")
    with loaded(stage, "fresh:100") as load:
        commands = [stage.command("reload", "web") for _ in range(5)]
        ended = [(command.communicate(timeout=60)[1], command.returncode) for command in commands]
        result = load.stop()
    assert sorted(status for _, status in ended) == [0, 10, 10, 10, 10], ended
    assert all("is running already" in text for text, status in ended if status), ended
    assert_none_failed(result)
    pids = wait_until(lambda: at_rest(stage), 10, "one generation serves")
    assert not set(pids) & set(before)
    # A thread of the broker may have some of /proc open just now.
    wait_until(lambda: descriptors(stage.broker()) == broker, 5, "no descriptor is left")


def test_reload_ends_when_its_runtime_directory_is_removed(circusd: Circusds) -> None:
    """The host makes it anew, with the journal that it has in memory: what had begun is undone, what comes works."""
    stage = circusd("uvicorn", import_seconds=0.3)
    all_ready(stage)
    before = stage.pids()
    stage.deploy("v2")
    with loaded(stage, "fresh:100") as load:
        with stage.command("reload", "web", "--json") as command:
            scene_at(stage, command, State.WARM, [])
            removed = stage.runtime.with_name(f"{stage.mark}-removed")
            stage.runtime.rename(removed)
            # The host writes its journal by the descriptor that it has, until it sees that the path leads elsewhere.
            wait_until(lambda: _is_gone(removed), 5, "the directory is removed", 0.01)
            output, errors = command.communicate(timeout=30)
        pids = wait_until(lambda: at_rest(stage), 10, "one generation serves", 0.1)
        assert (command.returncode, pids == before) in ((0, False), (5, True)), output + errors
        assert_replaced(stage, pids, stage.reload())
        assert_none_failed(load.stop())


def test_nothing_is_left_when_circusd_quits_during_a_reload(circusd: Circusds) -> None:
    """Neither generation, nor host, nor broker."""
    stage = circusd("uvicorn")
    all_ready(stage)
    stage.deploy("v2")
    with stage.command("reload", "web", "--json") as command:
        try:
            scene_at(stage, command, State.QUIESCE, [])
            assert stage.call("quit")["status"] == "ok"
            assert stage.process is not None
            stage.process.wait(20)
            wait_until(lambda: stage.family() in ([], [command.pid]), 5, "all have ended", 0.05)
        finally:
            command.kill()


def test_program_that_is_stopped_during_its_reload_stays_stopped(circusd: Circusds) -> None:
    """The reload says so; and once it is started again, everything works."""
    stage = circusd("uvicorn")
    all_ready(stage)
    stage.deploy("v2")
    with stage.command("reload", "web", "--json") as command:
        scene_at(stage, command, State.HOLD, [])
        assert stage.call("stop", name="web", waiting=True)["status"] == "ok"
        output, errors = command.communicate(timeout=30)
    assert command.returncode == 3, output + errors
    assert "web was stopped meanwhile" in errors
    assert stage.pids() == []
    stage.call("start", name="web", waiting=True)
    pids = wait_until(lambda: at_rest(stage), 10, "one generation serves", 0.1)
    assert_replaced(stage, pids, stage.reload())


def _is_gone(path: Path) -> bool:
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


@contextmanager
def stranger(work: Callable[[], object]) -> Iterator[None]:
    """A forked process that does *work* again and again."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            while not select.select([reading], [], [], 0)[0]:
                work()
        finally:
            os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


def test_managed_processes_are_served_while_strangers_storm_the_door_and_the_endpoint() -> None:
    """Silent connections, garbage, requests without right: each costs its own sender, and the log stays small."""
    with puppets(1) as (stage, [puppet]):
        runtime, broker = str(stage.runtime), stage.broker()
        before = descriptors(broker)
        held: list[socket.socket] = []
        dialogues: list[zmq.Socket[bytes]] = []

        def knock() -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.setblocking(False)
            with suppress(OSError):
                sock.connect(f"{runtime}/door")
            held.append(sock)
            if len(held) > 100:
                held.pop(0).close()
            measure(0.0005)  # not so many that the queue of the door is full: then the puppet, too, has to ask again

        def ask() -> None:
            if not dialogues:
                dialogues.append(zmq.Context().socket(zmq.DEALER))
                dialogues[0].connect(f"ipc://{runtime}/broker")
            with suppress(zmq.Again):
                dialogues[0].send(os.urandom(64), zmq.NOBLOCK)
                dialogues[0].send(b'{"v":1,"id":1,"op":"ticket","socket":"web"}', zmq.NOBLOCK)

        def babble() -> None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f"{runtime}/broker")
                sock.sendall(os.urandom(4096))

        for work in (knock, ask, babble):
            with stranger(work):
                began, served = time.monotonic(), 0
                while time.monotonic() < began + STORM:
                    served += puppet.do("round_trips", times=1)
                    measure(0.05)
            assert served >= 3, work
        assert stage.broker() == broker
        wait_until(lambda: descriptors(broker) <= before + 1, 5, "what the strangers held is closed")
        assert len(stage.sockshare_log.read_text().splitlines()) < 300
        assert puppet.reply("redeem", ticket=puppet.do("ticket")).granted
        assert not door.redeem(runtime, [os.urandom(16)]).granted
