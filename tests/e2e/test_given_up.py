"""A new version that is given up answers the requests that it had accepted before it was held back."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.rehearsal import all_ready, assert_as_before, loaded
from tests.support.circusd import Circusd, Reload, circusd, is_running, wait_until
from tests.support.load import assert_answered_by_old_ones, assert_none_failed
from tests.support.supervisord import supervisord

ROLLED_BACK, TIMED_OUT = 5, 6
HELD_FOR_LONG = {"sockshare.ready_hold": "5"}
SOAK = (pytest.mark.soak, pytest.mark.timeout(900))

Managers = Callable[..., Any]


@pytest.fixture(params=["circus", "supervisor"])
def manager(request: pytest.FixtureRequest) -> Iterator[Managers]:
    """Start a manager of that kind, with one program."""
    start = circusd if request.param == "circus" else supervisord
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(start(*arguments, **options))


def answer_on(client: socket.socket) -> dict[str, object]:
    """What the server says on *client* until it closes it; a reset is an OSError."""
    received = b"".join(iter(lambda: client.recv(65536), b""))
    answer: dict[str, object] = json.loads(received.partition(b"\r\n\r\n")[2])
    return answer


def give_up_early(stage: Circusd, client: socket.socket, path: str, then: Callable[[], object]) -> Reload:
    """A reload that is interrupted while it holds the new process back, which got *client*'s request for *path* first.

    Args:
        then: Called as soon as it is given up.
    """
    (old,) = stage.pids()
    # What waits in the queue is given to the first that waits for it: the new one, in the moment in which it registers.
    assert stage.kill(old, signal.SIGSTOP)
    began, lines = time.monotonic(), []
    command = stage.command("reload", "web", "--json")
    try:
        client.connect(("127.0.0.1", stage.port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        assert command.stdout is not None
        for line in command.stdout:
            lines.append(line)
            if '"ready"' in line:
                assert stage.kill(old, signal.SIGCONT)
                command.send_signal(signal.SIGINT)
            if '"failed"' in line:
                then()
                break
        output, errors = command.communicate(timeout=60)
        return Reload.read(command.returncode, "".join(lines) + output, errors, began)
    finally:
        stage.kill(old, signal.SIGCONT)
        if command.poll() is None:
            command.kill()
        command.communicate()


def new_of(reload: Reload) -> int:
    """The pid that it started."""
    return int(next(step["pid"] for step in reload.steps if step["step"] == "start"))


def give_up_with_a_request(stage: Circusd, then: Callable[[], object] = lambda: None) -> Reload:
    """`give_up_early`, and the proof: the request was answered, by the version that was given up."""
    pids = stage.pids()
    for number in range(5):
        version = f"given up {number}"
        stage.deploy(version)
        with socket.socket() as client:
            client.settimeout(10)
            reload = give_up_early(stage, client, "/slow", then)
            answer = answer_on(client)
        assert reload.status == ROLLED_BACK, reload
        assert_as_before(stage, pids, reload)
        assert not is_running(new_of(reload))
        if answer["version"] == version:
            return reload
    raise AssertionError(f"the old process was quicker five times: {answer}")


@pytest.mark.parametrize(
    ("program", "times"),
    [
        pytest.param("uvicorn", 1, id="drains-itself"),
        pytest.param("threaded", 1, id="no-handler"),
        *(
            pytest.param(program, 10, id=f"{program}-soak", marks=SOAK)
            for program in ("uvicorn", "gthread", "threaded", "node")
        ),
    ],
)
def test_request_met_before_the_hold_is_answered(manager: Managers, program: str, times: int) -> None:
    """It takes a second; the one that serves it is given up at once."""
    stage = manager(program, watcher=HELD_FOR_LONG)
    all_ready(stage)
    for _ in range(times):
        reload = give_up_with_a_request(stage)
        failed, rolled_back = reload.steps[-2:]
        print(f"\n{program}: given up, and gone after {rolled_back['seconds'] - failed['seconds']:.3f} s")
        assert failed["step"] == "failed"
        assert rolled_back["step"] == "rolled_back"


@pytest.mark.parametrize("program", ["uvicorn", pytest.param("threaded", marks=SOAK)])
def test_request_is_answered_though_the_broker_is_killed_meanwhile(circusd: Managers, program: str) -> None:
    """The next broker goes on undoing, as gently."""
    stage = circusd(program, watcher=HELD_FOR_LONG)
    all_ready(stage)
    give_up_with_a_request(stage, lambda: stage.kill(stage.broker()))


def suspended_beside(stage: Circusd, old: list[int]) -> list[int]:
    """Which processes other than *old* are held back, by the broker's word."""
    (sock,) = stage.status()["sockets"]
    return [one["pid"] for one in sock["holders"] if one["suspended"] and one["pid"] not in old]


def test_version_that_never_says_that_it_is_ready_serves_next_to_nobody(manager: Managers) -> None:
    """It has registered the socket, and is held back all the same; what it had accepted before is answered."""
    stage = manager("uvicorn", watcher={"sockshare.ready": "client", "sockshare.ready_timeout": "5"})
    pids = stage.pids()
    stage.deploy("never ready")
    with loaded(stage, "fresh:100", "slow:10") as load, stage.command("reload", "web", "--json") as command:
        wait_until(lambda: suspended_beside(stage, pids), 5, "the new one is held back", 0.1)
        output, errors = command.communicate(timeout=30)
        result = load.stop()
    assert command.returncode == TIMED_OUT, (output, errors)
    assert stage.pids() == pids
    assert_none_failed(result)
    assert_answered_by_old_ones(result, pids)


@pytest.mark.parametrize(
    ("start", "keys"),
    [
        pytest.param(circusd, {"graceful_timeout": "1"}, id="circus"),
        pytest.param(supervisord, {"stopwaitsecs": "1"}, id="supervisor"),
    ],
)
def test_version_that_does_not_come_to_an_end_is_killed(start: Managers, keys: dict[str, str]) -> None:
    """What it has in hand takes for ever: the program's own stop timeout bounds the patience with it."""
    with start("uvicorn", watcher={**HELD_FOR_LONG, **keys}) as stage, socket.socket() as client:
        all_ready(stage)
        pids = stage.pids()
        stage.deploy("bad")
        reload = give_up_early(stage, client, "/never", lambda: None)
        assert reload.status == ROLLED_BACK, reload
        assert_as_before(stage, pids, reload)
        assert not is_running(new_of(reload))
        failed, rolled_back = reload.steps[-2:]
        print(f"\nkilled after {rolled_back['seconds'] - failed['seconds']:.3f} s")
        assert 1.0 <= rolled_back["seconds"] - failed["seconds"] < 5.0, reload


@pytest.mark.parametrize("fault", ["hang_at_import", "never_register"])
def test_version_with_nothing_in_hand_is_killed_at_once(circusd: Managers, fault: str) -> None:
    """The command waits for nobody: SIGKILL comes without a stop signal."""
    stage = circusd("uvicorn", watcher={"sockshare.ready_timeout": "1"})
    all_ready(stage)
    stage.deploy("bad", fault)
    reload = stage.reload()
    assert reload.status == TIMED_OUT, reload
    failed, rolled_back = reload.steps[-2:]
    print(f"\n{fault}: gone after {rolled_back['seconds'] - failed['seconds']:.3f} s")
    assert rolled_back["seconds"] - failed["seconds"] < 1.0, reload
