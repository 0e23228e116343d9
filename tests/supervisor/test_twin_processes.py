"""Twins of real processes, among supervisord's own objects."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest
from supervisor.states import ProcessStates

from sockshare.host.verbs import Answer
from sockshare.kernel import peers
from supervisor_sockshare.twins import CannotStart
from supervisor_sockshare.verbs import SupervisorVerbs
from tests.support.circusd import is_running
from tests.support.groups import Groups, groups

WEB = """\
[program:web]
command = {directory}/program
directory = {directory}
startsecs = 0
stopwaitsecs = 60
stdout_logfile = NONE
stderr_logfile = NONE
"""
TWO = f"{WEB}numprocs = 2\nprocess_name = web_%(process_num)s\n"

Start = Callable[..., Groups]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the groups of a configuration."""
    with ExitStack() as stack:

        def begin(configuration: str = WEB) -> Groups:
            found = stack.enter_context(groups(tmp_path, configuration))
            found.up()
            return found

        yield begin


def twin_of(stage: Groups, program: str = "web") -> Any:
    """A twin, once it has come to its program."""
    twin = stage.twins.start(program)
    stage.until(lambda: twin.pid in stage.noted("started"), "the twin runs")
    return twin


def at_rest(stage: Groups, *keys: str) -> None:
    """Return once there are *keys* in the group, and no others."""
    stage.until(lambda: stage.keys() == sorted(keys), f"there are only {keys}")


def test_twin_takes_the_place_and_the_old_one_is_stopped(start: Start) -> None:
    """The new one has the name, the old one its stop signal; then it is gone from the group."""
    stage = start()
    old, twin = stage.process("web"), twin_of(stage)
    pid, new = old.pid, twin.pid
    assert stage.twins.settle("web", [pid], [new], None, None) == [pid]
    at_rest(stage, "web")
    assert stage.process("web").pid == new
    assert is_running(new)
    assert not is_running(pid)


def test_old_one_is_stopped_by_the_signal_of_its_server(start: Start) -> None:
    """Which the broker says, where `stopsignal` is TERM by default; the new one keeps what its section says."""
    stage = start()
    old, twin = stage.process("web"), twin_of(stage)
    answers: list[object] = []
    verbs = SupervisorVerbs(stage.loop, lambda: stage.supervisord, stage.twins, lambda name, inode: None)
    verbs.settle("web", [old.pid], [twin.pid], 1, False, 0.0, Answer(answers.append), int(signal.SIGINT))
    assert (old.config.stopsignal, stage.process("web").config.stopsignal) == (signal.SIGINT, signal.SIGTERM)
    at_rest(stage, "web")
    assert answers


def test_old_one_that_was_drained_first_is_stopped_by_the_signal_of_its_server(start: Start) -> None:
    """Its place was taken before the broker told the signal; the new one keeps what its section says."""
    stage = start(f"{WEB}stopsignal = HUP\n")
    old, twin = stage.process("web"), twin_of(stage)
    pid = old.pid
    stage.twins.replace("web", [pid], [twin.pid], stage.twins.reading(), None)
    assert stage.twins.settle("web", [pid], [twin.pid], None, int(signal.SIGTERM)) == [pid]
    assert (old.config.stopsignal, stage.process("web").config.stopsignal) == (signal.SIGTERM, signal.SIGHUP)
    stage.until(lambda: pid in stage.statuses, "it has ended")
    assert os.waitstatus_to_exitcode(stage.statuses[pid]) == 0, "it handles TERM only"
    at_rest(stage, "web")


def test_group_has_the_configuration_that_was_read_once_it_is_taken_over(start: Start) -> None:
    """After reread and reload nothing has changed, as far as `update` can tell: it would stop the group."""
    stage = start()
    old = stage.process("web")
    stage.reread(f"{WEB}environment = VERSION=2\n")
    assert [config.name for config in stage.supervisord.diff_to_active()[1]] == ["web"]
    twin = twin_of(stage)
    stage.twins.settle("web", [old.pid], [twin.pid], None, None)
    at_rest(stage, "web")
    assert stage.supervisord.diff_to_active() == ([], [], [])
    assert b"VERSION=2" in Path(f"/proc/{twin.pid}/environ").read_bytes().split(b"\0")


def test_each_twin_takes_the_place_for_which_it_was_started(start: Start) -> None:
    """In whichever order they were started: a process has the name that its environment says."""
    stage = start(TWO)
    first = stage.process("web_0")
    first.laststart += 1  # so that the other one is the older
    twins = [twin_of(stage) for _ in range(2)]
    twins[1].laststart += 1
    retire = [stage.process(key).pid for key in ("web_0", "web_1")]
    stage.twins.settle("web", retire, [twin.pid for twin in twins], None, None)
    at_rest(stage, "web_0", "web_1")
    for key in ("web_0", "web_1"):
        environment = Path(f"/proc/{stage.process(key).pid}/environ").read_bytes().split(b"\0")
        assert f"SUPERVISOR_PROCESS_NAME={key}".encode() in environment


def test_only_the_one_that_is_to_go_is_stopped(start: Start) -> None:
    """Of two processes the other one is not touched."""
    stage = start(TWO)
    old, other = stage.process("web_1"), stage.process("web_0")
    other.laststart += 1
    pid, stays = old.pid, other.pid
    twin = twin_of(stage)
    assert stage.twins.settle("web", [pid], [stays, twin.pid], None, None) == [pid]
    at_rest(stage, "web_0", "web_1")
    assert stage.process("web_0").pid == stays
    assert stage.process("web_1").pid == twin.pid
    assert is_running(stays)


def test_nothing_is_left_of_a_start_that_failed(start: Start) -> None:
    """`start all` would start it."""
    stage = start()
    stage.reread(WEB.replace("/program", "/no-such-program"))
    with pytest.raises(CannotStart):
        stage.twins.start("web")
    assert stage.keys() == ["web"]


def test_old_one_stays_when_the_new_one_is_gone(start: Start) -> None:
    """It died just before it was to take over: nothing is stopped."""
    stage = start()
    old, twin = stage.process("web"), twin_of(stage)
    new = twin.pid
    os.kill(new, signal.SIGKILL)
    at_rest(stage, "web")
    with pytest.raises(CannotStart, match="gone"):
        stage.twins.settle("web", [old.pid], [new], None, None)
    assert old.state == ProcessStates.RUNNING
    assert stage.process("web") is old


def test_stop_of_the_program_ends_its_twin(start: Start) -> None:
    """`stop web` in the middle of a reload leaves nothing that serves."""
    stage = start()
    twin = twin_of(stage)
    pid, worker = twin.pid, stage.noted("workers")[-1]
    stage.process("web").stop()
    at_rest(stage, "web")
    assert not is_running(pid)
    assert stage.process("web").state == ProcessStates.STOPPED
    assert os.waitstatus_to_exitcode(stage.statuses[pid]) == 0, "it may serve: by its stop signal"
    assert is_running(worker), "which ends when its time is over"


@pytest.mark.parametrize("patience", [0.0, 0.2])
def test_workers_go_with_a_twin_that_is_given_up(start: Start, patience: float) -> None:
    """Also when it ends by its stop signal and leaves them."""
    stage = start()
    twin = twin_of(stage)
    pid, worker = twin.pid, stage.noted("workers")[-1]
    assert stage.twins.settle("web", [pid], [], patience, None) == [pid]
    at_rest(stage, "web")
    stage.until(lambda: not is_running(worker), "its worker is gone")
    assert not is_running(pid)
    assert all(map(is_running, stage.noted("workers")[:1])), "that of the old one is not"


def test_later_process_of_a_worker_s_pid_is_left_alone(start: Start) -> None:
    """Its pid is known from before its end; whoever has it now was not meant."""
    stage = start()
    twin = twin_of(stage)
    with subprocess.Popen(["/bin/sleep", "1000"]) as stranger:
        try:
            before = peers.start_time(stranger.pid) - 1
            stage.twins._end_family(twin, twin.pid, [(stranger.pid, before), (stage.noted("workers")[-1], None)])
            at_rest(stage, "web")
            with pytest.raises(subprocess.TimeoutExpired):
                stranger.wait(0.05)
            assert is_running(stage.noted("workers")[0])
        finally:
            stranger.kill()


def test_process_that_is_stopped_before_it_is_its_program_meets_its_signal(start: Start, tmp_path: Path) -> None:
    """Between fork and exec it has supervisord's own handlers, which forget it: it is sent once more."""
    stage = start()
    go, waits = tmp_path / "go", tmp_path / "waits"
    execve = stage.options.execve

    def late(filename: str, argv: list[str], environment: dict[str, str]) -> NoReturn:
        signal.signal(signal.SIGTERM, lambda *_: None)
        waits.touch()
        while not go.exists():
            signal.sigtimedwait([], 0.005)
        execve(filename, argv, environment)
        raise AssertionError("unreachable")

    stage.options.execve = late
    twin = stage.twins.start("web")
    pid = twin.pid
    stage.until(waits.exists, "it has not become its program")
    stage.twins.settle("web", [pid], [], 30.0, None)
    go.touch()
    at_rest(stage, "web")
    assert not is_running(pid)
