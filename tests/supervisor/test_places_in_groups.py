"""The places of a program in supervisord's groups: kept by who drains no more, added, taken out, of one reading."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from supervisor.states import ProcessStates

from supervisor_sockshare.places import key_of
from supervisor_sockshare.twins import CannotStart
from tests.supervisor.test_twin_processes import WEB, at_rest
from tests.support.circusd import is_running
from tests.support.groups import Groups, groups

Start = Callable[[str], Groups]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the groups of a configuration."""
    with ExitStack() as stack:

        def begin(configuration: str) -> Groups:
            found = stack.enter_context(groups(tmp_path, configuration))
            found.up()
            return found

        yield begin


def of(count: int, more: str = "") -> str:
    """A configuration with *count* processes."""
    return f"{WEB}numprocs = {count}\nprocess_name = web_%(process_num)s\n{more}"


def started(stage: Groups, beside: int | None, reading: int) -> Any:
    """A twin, once it has come to its program."""
    twin = stage.twins.start("web", beside=beside, reading=reading)
    stage.until(lambda: twin.pid in stage.noted("started"), "the twin runs")
    return twin


def _has_ended(pid: int) -> bool:
    return not is_running(pid)


def marks(pid: int) -> list[bytes]:
    """What the process *pid* has of our configuration."""
    return [one for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if one.startswith(b"MARK=")]


def test_old_process_drains_under_another_name_while_the_new_one_has_its_place(start: Start) -> None:
    """So `update` finds nothing to do, and another reload may begin; a repetition changes nothing."""
    stage = start(of(2))
    stage.reread(of(2, "environment = MARK=2\n"))
    reading = stage.twins.reading()
    old, other = stage.process("web_1"), stage.process("web_0")
    pid = old.pid
    twin = started(stage, pid, reading)
    for _ in range(2):
        stage.twins.replace("web", [pid], [other.pid, twin.pid], reading, None)
        assert stage.keys() == ["web_0", "web_1", f"web_1.old{pid}"]
    assert stage.process("web_1") is twin
    assert old.state == ProcessStates.RUNNING
    assert sorted(one.pid for one in stage.twins.live("web")) == sorted([other.pid, twin.pid])
    later = started(stage, twin.pid, reading)  # the next reload's
    assert stage.twins.settle("web", [pid], [other.pid, twin.pid, later.pid], None, None) == [pid]
    at_rest(stage, "web_0", "web_1", later.config.name)
    assert not is_running(pid)
    assert is_running(other.pid)


def test_old_process_has_its_place_again_when_the_new_one_is_given_up(start: Start) -> None:
    """Also when that has died, or supervisord has started it anew; its configuration is in force again."""
    stage = start(WEB)
    was = stage.process("web").config
    stage.reread(f"{WEB}environment = MARK=2\n")
    reading = stage.twins.reading()
    for dies in (False, True):
        old = stage.process("web")
        twin = started(stage, old.pid, reading)
        stage.twins.replace("web", [old.pid], [twin.pid], reading, None)
        new = twin.pid
        if dies:
            os.kill(new, signal.SIGKILL)
            stage.until(partial(_has_ended, new), "the new one is gone")
        stage.twins.settle("web", [new], [old.pid], 0.0, None)
        at_rest(stage, "web")
        assert stage.process("web") is old
        assert old.config is was
        assert stage.supervisord.process_groups["web"].config.process_configs == [was]
        assert old.state == ProcessStates.RUNNING
        assert not is_running(new)


def test_settle_leaves_the_twins_of_others_alone(start: Start) -> None:
    """Replacements overlap: the new process of one that serves still is not proven, and waits beside it."""
    stage = start(of(2))
    reading = stage.twins.reading()
    pids = [stage.process(key).pid for key in ("web_0", "web_1")]
    twins = [started(stage, pid, reading) for pid in pids]
    known = [pids[1], *(twin.pid for twin in twins)]
    assert stage.twins.settle("web", [pids[0]], known, None, None) == [pids[0]]
    at_rest(stage, "web_0", "web_1", twins[1].config.name)
    assert stage.process("web_1").pid == pids[1]


def test_numprocs_that_was_read_is_what_a_reload_makes_of_it(start: Start) -> None:
    """Places are added in the order that was read, and taken out; then `update` finds nothing to do."""
    stage = start(of(2))
    stage.reread(of(4))
    reading = stage.twins.reading()
    assert len(stage.twins.missing("web", reading)) == 2
    for pid in [stage.process(key).pid for key in ("web_0", "web_1")]:
        twin = started(stage, pid, reading)
        stage.twins.settle("web", [pid], [twin.pid], None, None)
    for key in ("web_2", "web_3"):
        twin = started(stage, None, reading)
        stage.twins.replace("web", [], [twin.pid], reading, None)
        assert stage.process(key) is twin
    with pytest.raises(CannotStart, match="every place"):
        stage.twins.start("web", reading=reading)
    at_rest(stage, "web_0", "web_1", "web_2", "web_3")
    assert stage.supervisord.diff_to_active() == ([], [], [])
    stage.reread(of(1))
    reading = stage.twins.reading()
    surplus = [stage.process(key).pid for key in ("web_1", "web_2", "web_3")]
    assert [stage.twins.is_surplus(one, reading) for one in stage.twins.live("web")] == [False, True, True, True]
    for pid in surplus:
        stage.twins.replace("web", [pid], [], reading, None)
        stage.twins.settle("web", [pid], [], None, None)
    at_rest(stage, "web_0")
    assert stage.supervisord.diff_to_active() == ([], [], [])
    assert not any(map(is_running, surplus))


def test_reload_has_the_configuration_that_it_began_with(start: Start) -> None:
    """Whatever is read meanwhile, and also for a process that supervisord itself starts."""
    stage = start(of(2, "environment = MARK=1\n"))
    stage.reread(of(2, "environment = MARK=2\n"))
    reading = stage.twins.reading()
    stage.reread(of(2, "environment = MARK=3\n"))
    assert stage.twins.reading() == reading + 1
    twin = started(stage, stage.process("web_0").pid, reading)
    assert marks(twin.pid) == [b"MARK=2"]
    stage.applied = reading
    other = stage.process("web_1")
    before = other.pid
    other.config.autorestart = True
    os.kill(before, signal.SIGKILL)
    stage.until(lambda: other.pid not in (0, before) and other.pid in stage.noted("started"), "it is started anew")
    assert marks(other.pid) == [b"MARK=2"]
    with pytest.raises(CannotStart, match="too long ago"):
        stage.twins.start("web", beside=other.pid, reading=99)


@pytest.mark.parametrize("proven", [False, True])
def test_process_that_began_with_what_failed_begins_with_what_was_before(start: Start, proven: bool) -> None:
    """It crashed in the middle of a reload that is rolled back; what a twin has taken a place with stays in force."""
    stage = start(of(2, "environment = MARK=1\n"))
    other = stage.process("web_1")
    other.config.autorestart = True
    stage.reread(of(2, "environment = MARK=2\nautorestart = true\n"))
    stage.applied = reading = stage.twins.reading()
    old = stage.process("web_0")
    twin = started(stage, old.pid, reading)

    def crashes() -> list[bytes]:
        before = other.pid
        os.kill(before, signal.SIGKILL)
        stage.until(lambda: other.pid not in (0, before) and other.pid in stage.noted("started"), "it is started anew")
        return marks(other.pid)

    assert crashes() == crashes() == [b"MARK=2"]
    if proven:
        stage.twins.replace("web", [old.pid], [twin.pid], reading, None)
    stage.twins.settle("web", [twin.pid], [old.pid], 0.0, None)
    stage.applied = None
    at_rest(stage, "web_0", "web_1")
    assert crashes() == [b"MARK=2" if proven else b"MARK=1"]
    configs = stage.supervisord.process_groups["web"].config.process_configs
    assert other.config in configs
    assert [one.name for one in configs] == ["web_0", "web_1"]


def test_process_that_died_a_moment_ago_is_replaced_in_its_place(start: Start) -> None:
    """It crashed before its turn came; whether supervisord has started it anew makes no difference."""
    stage = start(of(2))
    reading = stage.twins.reading()
    died = stage.process("web_1")
    pid = died.pid
    os.kill(pid, signal.SIGKILL)
    stage.until(lambda: died.pid != pid, "supervisord has noticed")
    twin = started(stage, pid, reading)
    assert key_of(twin) == "web_1"
    stage.process("web_0").stop()
    with pytest.raises(CannotStart, match="has ended"):
        stage.twins.start("web", beside=pid, reading=reading)  # what is left, somebody has stopped


def test_process_that_somebody_else_stops_is_known_and_not_replaced(start: Start) -> None:
    """With what was to replace it; what we stop ourselves is not among them."""
    stage = start(of(2))
    reading = stage.twins.reading()
    old, other = stage.process("web_0"), stage.process("web_1")
    pid, gone = old.pid, other.pid
    twin, second = started(stage, pid, reading), started(stage, gone, reading)
    new = twin.pid
    stage.twins.settle("web", [gone], [pid, new, second.pid], None, None)
    old.stop()
    with pytest.raises(CannotStart, match="being stopped"):
        stage.twins.start("web", beside=pid, reading=reading)
    at_rest(stage, "web_0", "web_1")
    assert stage.twins.stopped("web") == [pid, new]
    assert old.state == ProcessStates.STOPPED
    assert not is_running(new)


def test_place_that_is_added_has_a_log_of_its_own(start: Start) -> None:
    """supervisord names it where the section does not, as most do not: only when it adds a group."""
    default = WEB.replace("stdout_logfile = NONE\n", "") + "process_name = web_%(process_num)s\n"
    stage = start(default)
    stage.reread(f"{default}numprocs = 2\n")
    reading = stage.twins.reading()
    twin = started(stage, None, reading)
    stage.twins.replace("web", [], [twin.pid], reading, None)
    assert Path(twin.config.stdout_logfile).name.startswith("web_1-stdout---")
    assert twin.config.stdout_logfile != stage.process("web_0").config.stdout_logfile
    assert stage.supervisord.diff_to_active() == ([], [], [])


def test_nothing_is_added_to_a_program_that_was_stopped(start: Start) -> None:
    """It would run alone, and `stop` have been said."""
    stage = start(of(1))
    stage.reread(of(2))
    reading = stage.twins.reading()
    stage.process("web_0").stop()
    with pytest.raises(CannotStart, match="it is stopped"):
        stage.twins.start("web", reading=reading)
    at_rest(stage, "web_0")


def test_stop_goes_before_a_place_that_is_taken_in_the_same_moment(start: Start) -> None:
    """Between `stop` and the end of the twin the broker may say that it takes over."""
    stage = start(of(1))
    old = stage.process("web_0")
    twin = started(stage, old.pid, stage.twins.reading())
    new = twin.pid
    old.stop()
    with pytest.raises(CannotStart, match="gone"):
        stage.twins.settle("web", [old.pid], [new], None, None)
    at_rest(stage, "web_0")
    assert stage.process("web_0") is old
    stage.until(lambda: old.state == ProcessStates.STOPPED, "it is stopped")
    assert not is_running(new)


def test_what_was_read_before_a_reload_of_supervisord_is_in_force_no_more(start: Start) -> None:
    """Such a process would be in the books of the supervisord before: never buried, and waited for at the end."""
    stage = start(of(1))
    process = stage.process("web_0")
    config, pid = process.config, process.pid
    stage.reread(of(1, "environment = MARK=2\n"))
    stage.applied = reading = stage.twins.reading()
    stage.twins.renew()
    with pytest.raises(CannotStart, match="too long ago"):
        stage.twins.start("web", beside=pid, reading=reading)
    config.autorestart = True
    os.kill(pid, signal.SIGKILL)
    stage.until(lambda: process.pid not in (0, pid) and process.pid in stage.noted("started"), "it is started anew")
    assert process.config is config
    assert stage.twins.reading() > reading


def test_update_in_the_middle_has_what_was_read_last(start: Start) -> None:
    """The reload's end may come after the group's new beginning."""
    stage = start(of(1))
    stage.reread(of(1, "environment = MARK=2\n"))
    stage.applied = stage.twins.reading()
    stage.reread(of(1, "environment = MARK=3\n"))
    stage.process("web_0").stop()
    stage.until(lambda: stage.process("web_0").state == ProcessStates.STOPPED, "it is stopped")
    assert stage.supervisord.remove_process_group("web")
    (group,) = [one for one in stage.options.process_group_configs if one.name == "web"]
    stage.supervisord.add_process_group(group)
    stage.up()
    assert marks(stage.process("web_0").pid) == [b"MARK=3"]
    assert stage.supervisord.diff_to_active() == ([], [], [])


def test_process_of_a_group_that_was_removed_is_not_started_again(start: Start) -> None:
    """Nobody would see it, nor stop it."""
    stage = start(WEB)
    process = stage.process("web")
    process.config.autorestart = True
    assert stage.twins.settle("web", [process.pid], [], None, None)
    group = stage.supervisord.process_groups.pop("web")
    stage.until(lambda: process.state == ProcessStates.STOPPED and not stage.loop._timers, "it is stopped")
    assert not process.pid
    stage.supervisord.process_groups["web"] = group
