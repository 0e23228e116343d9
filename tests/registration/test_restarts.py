"""The host dies, and the broker with it: who held the registration holds it still, and the others wait as before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.registration.scenes import Scene, holders, in_line, record, staged, state
from tests.registration.storm import broker_of
from tests.support.circusd import Circusd, descriptors, is_running, wait_until
from tests.support.oracle import Oracle, children, is_broker

PROCESSES = 3


@pytest.fixture(scope="module", params=["gated", "taking"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A circusd with three processes, in gate mode or in suspend mode."""
    with staged("circus", request.param, processes=PROCESSES) as stage:
        yield Scene(stage)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=(pytest.mark.soak, pytest.mark.timeout(600)))])
def test_registration_survives_the_host(scene: Scene, times: int) -> None:
    """circusd starts another, which has the line from the file; gates, which were lost, are shown again; nobody is
    stopped for not letting go, nor registered beside the holder."""
    stage = scene.stage
    assert stage.process is not None
    before, holder, epoch = stage.pids(), scene.holder(), record(stage)["last_epoch"]
    with Oracle(scene.inode, stage.process.pid) as oracle:
        for _ in range(times):
            host = stage.host()
            assert stage.kill(host)
            wait_until(lambda host=host: stage.host() not in (0, host), 10, "a host follows", 0.05)  # type: ignore[misc]
            wait_until(lambda: broker_of(stage, scene.inode), 10, "a broker serves", 0.05)
            assert scene.ask() == holder
            standing = wait_until(lambda: all_known(scene), 10, "everybody is known again", 0.05)
            assert standing == {pid: "held" if pid == holder else "waiting" for pid in before}
        watch = oracle.stop()
    assert watch.several() == []
    assert (stage.pids(), scene.armed(), record(stage)["last_epoch"]) == (before, [holder], epoch)
    scene.signal(holder, signal.SIGKILL)
    assert scene.ask() != holder
    assert scene.holder() != holder
    wait_until(lambda: len(in_line(stage)) == PROCESSES, 15, "another one is in line")
    assert len(holders(stage)) == 1


def all_known(scene: Scene) -> dict[int, str]:
    """Where each process stands; nothing while one of them has not been heard of, or is not known to have let go."""
    found = {one["pid"]: one["standing"] for one in scene.facts()["holders"]}
    return {} if "revoking" in found.values() or None in found.values() else found


def test_descriptors_are_the_same_after_many_hand_overs(scene: Scene) -> None:
    """In the host and in the broker, whoever came and went."""
    stage = scene.stage
    wait_until(lambda: len(in_line(stage)) == PROCESSES, 15, "everybody is in line")

    def counts() -> tuple[int, int]:
        return descriptors(stage.host()), descriptors(broker_of(stage, scene.inode))

    def settled() -> tuple[int, int]:
        seen = [counts()]

        def is_still() -> bool:
            seen.append(counts())
            return len(seen) > 3 and len(set(seen[-4:])) == 1  # a connection that was answered stays a while

        wait_until(is_still, 10, "they have settled", 0.3)
        return seen[-1]

    before = settled()
    for _ in range(5):
        holder = scene.holder()
        scene.signal(holder, signal.SIGKILL)
        scene.holder(holder)
        wait_until(lambda: len(in_line(stage)) == PROCESSES, 15, "another one is in line")
        assert not is_running(holder)
    wait_until(lambda: settled() == before, 10, f"they are {before} again, not {settled()}")


def test_spare_broker_takes_over_also_when_supervisord_has_buried_the_other_before_it_hears_of_its_death() -> None:
    """As happens when it and the holder die at once: the next holder does not wait for the start of a broker."""
    with staged("supervisord", "taking", processes=PROCESSES) as stage:
        scene = Scene(stage)
        broker, holder = broker_of(stage, scene.inode), scene.holder()
        spare = wait_until(lambda: connected(stage, broker), 10, "a spare one stands by", 0.05)
        scene.signal(stage.host(), signal.SIGSTOP)
        try:
            assert stage.kill(broker)
            scene.signal(holder, signal.SIGKILL)
            wait_until(lambda: not is_running(broker) and not is_running(holder), 5, "both have died")
        finally:
            assert stage.kill(stage.host(), signal.SIGCONT)
        wait_until(lambda: broker_of(stage, scene.inode), 10, "a broker serves")
        assert broker_of(stage, scene.inode) == spare
        assert scene.holder(holder) in stage.pids()
        wait_until(lambda: len(in_line(stage)) == PROCESSES, 15, "another one is in line")


def connected(stage: Circusd, broker: int) -> int:
    """The broker that stands by, once it waits for nothing but its host; 0 if there is none."""
    spares = [pid for pid in children(stage.host()) if is_broker(pid) and pid != broker]
    return next((pid for pid in spares if state(pid) == "S" and len(descriptors_of(pid, "socket:")) >= 1), 0)


def descriptors_of(pid: int, kind: str) -> list[str]:
    """What the descriptors of a process of this kind lead to."""
    found = []
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                found += [target] if target.startswith(kind) else []
    return found
