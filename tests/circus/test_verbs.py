"""The verbs towards a circusd that is busy, late, or silent."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from circus.exc import MessageError

from circus_sockshare.circusd import COMMAND_ERROR, Circusd
from circus_sockshare.inside import Sockshare
from circus_sockshare.verbs import CircusVerbs
from sockshare.core.spec import ProgramSpec
from sockshare.host.verbs import Answer


class Timer:
    """One call that was put off."""

    def __init__(self, due: float, call: Callable[[], object]) -> None:
        self.due = due
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """A loop whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[Timer] = []

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        self._timers.append(Timer(self.now + delay, callback))
        return self._timers[-1]

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.call is not None and timer.due <= end]:
            timer = min(due, key=lambda timer: timer.due)
            self.now = timer.due
            call, timer.call = timer.call, None
            assert call is not None
            call()
        self.now = end

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        raise NotImplementedError

    def remove_reader(self, fd: int, /) -> None:
        raise NotImplementedError

    add_writer, remove_writer = add_reader, remove_reader


class Stage:
    """The verbs, and the circusd that they ask: what it was asked, and how it answers."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.asked: list[dict[str, Any]] = []
        self.circusd = Circusd(self.loop, lambda data: self.asked.append(json.loads(data)))
        self.verbs = CircusVerbs(self.loop, self.circusd, lambda told: None)
        self.answers: list[dict[str, Any]] = []

    @property
    def ops(self) -> list[str]:
        return [question["properties"]["op"] for question in self.asked]

    def say(self, **fields: Any) -> None:
        """circusd's answer to the last question."""
        self.circusd.hear([json.dumps({"id": self.asked[-1]["id"], **fields}).encode()])

    def busy(self) -> None:
        self.say(status="error", errno=COMMAND_ERROR, reason="arbiter is already running watcher_incr command")

    def start(self) -> None:
        self.verbs.start("web", Answer(self.answers.append))

    def settle(self) -> None:
        self.verbs.settle("web", [], [11], 1, True, 2.5, Answer(self.answers.append))


def test_stop_signal_is_that_of_the_server_before_that_of_the_section() -> None:
    """The broker says it only where the section names none."""
    stage = Stage()
    stage.verbs.specs = {"web": ProgramSpec("web", stop_signal=1)}
    stage.verbs.settle("web", [11], [], 1, False, 0.0, Answer(stage.answers.append), 3)
    stage.settle()
    stage.verbs.release("web", 11, False, [], 0.0, Answer(stage.answers.append), 3)
    assert [question["properties"]["signal"] for question in stage.asked] == [3, 1, 3]


def test_start_is_tried_again_while_circusd_is_busy() -> None:
    """Another command of circusd's is over in a moment."""
    stage = Stage()
    stage.start()
    for _ in range(3):
        stage.busy()
        stage.loop.pass_time(0.2)
    assert stage.ops == ["start"] * 4
    stage.say(status="ok", pid=21, wid=3)
    assert stage.answers == [{"ok": True, "pid": 21, "process": "web:3"}]


def test_start_is_not_tried_again_once_the_program_was_settled() -> None:
    """The reload that wanted it has been undone: one that came now would be left over for ever."""
    stage = Stage()
    stage.start()
    stage.busy()
    stage.settle()
    stage.loop.pass_time(3.0)
    assert stage.ops == ["start", "settle"]
    assert stage.answers == [
        {"ok": False, "message": "can't start a process of web: it is not wanted any more"},
    ]


@pytest.mark.parametrize("verb", ["start", "settle"])
def test_silence_is_told_from_refusal(verb: str) -> None:
    """After a refusal it was not done; after silence nobody knows."""
    stage = Stage()
    getattr(stage, verb)()
    stage.loop.pass_time(10.0)
    [silent] = stage.answers
    assert silent["silent"]
    assert stage.ops == [verb]
    stage = Stage()
    getattr(stage, verb)()
    stage.say(status="error", errno=4, reason="no", tb="Traceback")
    [refused] = stage.answers
    assert "silent" not in refused


def test_circusd_does_nothing_that_it_was_asked_too_long_ago() -> None:
    """What was given up must not be done when circusd goes on: nobody would know of the process."""
    stage = Stage()
    stage.start()
    asked = stage.asked[0]["properties"]["before"]
    assert time.monotonic() < asked < time.monotonic() + 5.1
    with pytest.raises(MessageError, match="too long ago"):
        Sockshare().execute(None, {"op": "start", "name": "web", "before": time.monotonic() - 0.001})


def test_question_is_asked_again_when_its_answer_could_not_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the limit of descriptors: whoever waits is told, and the next one has an answer of its own."""
    stage = Stage()
    told = {"wid": 1, "pid": os.getpid(), "started": 0.0, "stopping": False, "held": False, "newcomer": None}
    heard: list[str] = []

    def ask() -> None:
        stage.verbs.refresh(lambda: heard.append("done"), lambda refusal: heard.append(refusal.reason))
        stage.say(status="ok", watchers={"web": {"processes": [told]}}, sockets=[])

    def no_more(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr("sockshare.kernel.peers.start_time", no_more)
        ask()
    ask()
    assert heard == ["can't take circusd's answer: [Errno 24] Too many open files", "done"]
    assert stage.ops == ["processes", "processes"]


def test_later_process_of_a_pid_is_not_taken_for_the_managed_one() -> None:
    """circusd is asked anew: who has the pid now may be anybody."""
    stage = Stage()
    pid = os.getpid()
    told = {"wid": 1, "pid": pid, "started": 0.0, "stopping": False, "held": False, "newcomer": None}
    stage.verbs.refresh(lambda: None, lambda refusal: None)
    stage.say(status="ok", watchers={"web": {"processes": [told]}}, sockets=[])
    stage.verbs.whois(pid, Answer(stage.answers.append))
    assert stage.answers == [{"ok": True, "process": {"program": "web", "process": "web:1", "pid": pid}}]
    managed = stage.verbs._managed
    managed[pid] = managed[pid]._replace(start=managed[pid].start - 1)
    stage.verbs.whois(pid, Answer(stage.answers.append))
    stage.say(status="ok", watchers={}, sockets=[])
    assert stage.ops == ["processes", "processes"]
    assert stage.answers[1:] == [{"ok": True, "process": None}]
