"""Servers that know nothing of this: each is the only one with an exclusive socket, behind a real manager."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress

import pytest

from tests.e2e.rehearsal import loaded, measure
from tests.registration.scenes import Scene, in_line, staged
from tests.registration.storm import broker_of
from tests.support.circusd import is_running, wait_until
from tests.support.load import assert_none_failed
from tests.support.oracle import tree

PROCESSES = 3
#: Each server, the manager it is behind in the short form, and what has to be installed for it.
SERVERS = {
    "asyncio": ("circus", ""),
    "uvloop": ("supervisord", ""),
    "gthread": ("supervisord", ""),
    "node": ("circus", ""),
    "taking-edge": ("circus", ""),
    "go": ("supervisord", "go"),
    "nginx": ("circus", "nginx"),
}
SOAK = (pytest.mark.soak, pytest.mark.timeout(600))


def installed(program: str) -> bool:
    """Whether *program* is to be found, in PATH or where Debian has servers."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") is not None


@pytest.mark.parametrize(
    ("program", "manager", "rounds"),
    [
        *(pytest.param(program, manager, 1, id=program) for program, (manager, _) in SERVERS.items()),
        *(
            pytest.param(program, manager, 10, id=f"{program}-{manager}-soak", marks=SOAK)
            for program in SERVERS
            for manager in ("circus", "supervisord")
        ),
    ],
)
def test_unmodified_server_is_alone_and_followed(program: str, manager: str, rounds: int) -> None:
    """One of three answers everything; moved to another under load nothing fails; killed, the next one answers, and
    no worker it leaves behind does; the broker's death changes nothing."""
    needed = SERVERS[program][1]
    if needed and not installed(needed):
        pytest.skip(f"{needed} is not installed (.ci/run installs it)")
    with staged(manager, program, processes=PROCESSES) as stage:
        scene = Scene(stage)
        for _ in range(rounds):
            holder = scene.holder()
            assert {scene.root(pid) for pid in scene.tally(10)} == {holder}
            (held,) = [one for one in scene.facts()["holders"] if one["standing"] == "held"]
            assert (held["pid"], held["kept_by"], held["registered"]) == (holder, "suspend", True)
            with loaded(stage, "fresh:60") as load:
                for pid in [pid for pid in in_line(stage) if pid != holder]:
                    assert scene.move(pid) == "it holds the registration now"
                    assert {scene.root(one) for one in scene.tally(3)} == {pid}
                    measure(0.2)
                assert_none_failed(load.stop(), at_least=10)

            broker = broker_of(stage, scene.inode)
            assert stage.kill(broker)
            wait_until(lambda broker=broker: broker_of(stage, scene.inode) not in (0, broker), 10, "a broker follows")  # type: ignore[misc]
            wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "it serves", 0.02)
            assert scene.holder() == pid
            assert {scene.root(one) for one in scene.tally(5)} == {pid}

            workers = tree(pid)
            scene.signal(pid, signal.SIGKILL)
            scene.ask()
            successor = scene.holder(pid, *workers)
            answered = scene.tally(10)
            assert not set(answered) & set(workers)
            assert {scene.root(one) for one in answered} == {successor}
            for worker in workers:  # which gunicorn's ends by itself, and nginx's does not, nor has it the stage's mark
                with suppress(ProcessLookupError):
                    if is_running(worker):
                        os.kill(worker, signal.SIGKILL)
            wait_until(lambda: len(in_line(stage)) == PROCESSES, 20, "the manager has started another one", 0.05)
