"""What may happen to each of those who take part in a reload, at each step of it.

A step is known by the journal in the runtime directory: the broker has the host write each state before it acts on it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sockshare.core.rollout import State
from tests.support.circusd import Circusd, Reload, is_running, wait_until

PAUSE = 1.5  # s for which what is stopped stays stopped; clients wait 5
SILENCE = 17.0  # s: longer than the host's patience (5), and than the command's after that (10)
#: A watcher whose `incr` makes circusd refuse other commands, with errno 5, for its warmup_delay.
OTHER = {"cmd": "sleep 3600", "warmup_delay": "2", "priority": "-1", "copy_env": "True"}
OTHER_INI = "\n".join(["[watcher:other]", *(f"{key} = {value}" for key, value in OTHER.items()), ""])

#: A sitecustomize: the kernel says to whoever asks for a pidfd that it has no such call.
WITHOUT_PIDFD = """\
import errno, os
def pidfd_open(pid, flags=0):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
os.pidfd_open = pidfd_open
"""


class Scene(NamedTuple):
    """A reload that has come to the step in question."""

    stage: Circusd
    command: subprocess.Popen[str]
    old: int
    new: int  # 0: none was started yet
    later: list[threading.Timer]


def journalled(stage: Circusd) -> dict[str, Any]:
    """The record of the running reload, or an empty one."""
    with suppress(OSError, ValueError):
        records = json.loads((stage.runtime / "journal.json").read_text())["records"]
        if "reload:web" in records:
            rollout: dict[str, Any] = records["reload:web"]["rollout"]
            return rollout
    return {}


class Missed(Exception):
    """The reload has ended, and was not seen at the step in question, which may take 2 ms."""


def scene_at(stage: Circusd, command: subprocess.Popen[str], state: State, later: list[threading.Timer]) -> Scene:
    """Return as soon as the journal says *state*.

    Raises:
        Missed: The command has ended before.
        TimeoutError: It never did.
    """

    def record() -> dict[str, Any] | None:
        found = journalled(stage)
        if found.get("state") == state.value:
            return found
        if command.poll() is not None:
            raise Missed(state)
        return None

    found = wait_until(record, 15, f"the reload is at {state}", 0.0005)
    return Scene(stage, command, found["pending"][0][0], (found["newcomer"] or [0])[0], later)


def _signal(scene: Scene, pid: int, number: int) -> bool:
    if number == signal.SIGSTOP:
        timer = threading.Timer(PAUSE, scene.stage.kill, (pid, signal.SIGCONT))
        scene.later.append(timer)
        timer.start()
    return scene.stage.kill(pid, number)


def _to(who: Callable[[Scene], int], number: int) -> Callable[[Scene], object]:
    return lambda scene: _signal(scene, who(scene), number)


def _stop_circusd(scene: Scene, seconds: float) -> None:
    process = scene.stage.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(seconds, process.send_signal, (signal.SIGCONT,))
    scene.later.append(timer)
    timer.start()


def _occupy_circusd(scene: Scene) -> None:
    scene.stage.call("incr", name="other")  # it answers at once, and goes on for warmup_delay


#: What may happen, by name: "WHO WHAT".
MISHAPS: dict[str, Callable[[Scene], object]] = {
    "broker killed": _to(lambda scene: scene.stage.broker(), signal.SIGKILL),
    "host killed": _to(lambda scene: scene.stage.host(), signal.SIGKILL),
    "new killed": _to(lambda scene: scene.new, signal.SIGKILL),
    "old killed": _to(lambda scene: scene.old, signal.SIGKILL),
    "command killed": lambda scene: scene.command.kill(),
    "broker stopped": _to(lambda scene: scene.stage.broker(), signal.SIGSTOP),
    "new stopped": _to(lambda scene: scene.new, signal.SIGSTOP),
    "old stopped": _to(lambda scene: scene.old, signal.SIGSTOP),
    "circusd busy": _occupy_circusd,
    "circusd late": lambda scene: _stop_circusd(scene, 2.0),
    "circusd silent": lambda scene: _stop_circusd(scene, SILENCE),
}


class Reach(NamedTuple):
    """How a reload is brought to a state, and kept there for long enough to be met."""

    keys: tuple[tuple[str, str], ...] = ()  # of the watcher's section
    before: Callable[[Scene], object] | None = None
    on_the_way: State | None = None  # where something has to happen first
    then: Callable[[Scene], object] = lambda scene: None


#: Every state in which something may happen to a reload.
REACH: dict[State, Reach] = {
    State.START: Reach(before=_occupy_circusd),
    State.WARM: Reach(),
    State.HOLD: Reach(),
    State.SWITCH: Reach(),
    State.VERIFY: Reach((("sockshare.verify", "http:/slow"),)),
    State.QUIESCE: Reach(),
    State.DRAIN: Reach((("sockshare.drain", "observe"), ("sockshare.drain_timeout", "10"))),
    State.STOP: Reach(),
    State.RESPAWN: Reach(on_the_way=State.STOP, then=MISHAPS["new killed"]),
    State.UNDO: Reach(on_the_way=State.HOLD, then=lambda scene: scene.command.send_signal(signal.SIGINT)),
    State.SWEEP: Reach(on_the_way=State.HOLD, then=lambda scene: scene.command.send_signal(signal.SIGINT)),
}


def applies(state: State, mishap: str) -> bool:
    """Whether there is somebody for *mishap* to befall at *state*."""
    if mishap.startswith("new"):
        return state not in (State.START, State.SWEEP)
    return not (mishap.startswith("old") and state is State.RESPAWN)


@contextmanager
def mishap_at(stage: Circusd, state: State, mishap: str) -> Iterator[tuple[Scene, float]]:
    """Begin a reload, and let *mishap* happen when it is at *state*; yields when that has happened, and since when.

    What was stopped goes on, and the command has ended, when the block is left.
    """
    later: list[threading.Timer] = []
    reach = REACH[state]
    command = None
    try:
        command = stage.command("reload", "web", "--json")
        if reach.before is not None:
            reach.before(Scene(stage, command, 0, 0, later))  # the command takes longer to start
        if reach.on_the_way is not None:
            reach.then(scene_at(stage, command, reach.on_the_way, later))
        scene = scene_at(stage, command, state, later)
        MISHAPS[mishap](scene)
        yield scene, time.monotonic()
    finally:
        for timer in later:
            timer.join()
        if command is not None:
            if command.poll() is None:
                command.kill()
            command.communicate()


def end_of(scene: Scene, began: float, timeout: float = 60.0) -> Reload:
    """How the command of *scene* ended."""
    output, errors = scene.command.communicate(timeout=timeout)
    return Reload.read(scene.command.returncode, output, errors, began)


def members(stage: Circusd) -> list[int]:
    """The processes of the program, counted or not by circusd."""
    found = []
    for pid in stage.family():
        with suppress(OSError):
            if b"--app-dir" in Path(f"/proc/{pid}/cmdline").read_bytes() and is_running(pid):
                found.append(pid)
    return found


def at_rest(stage: Circusd) -> list[int]:
    """The processes of the program, if it is one generation that serves, and no reload is running; else none."""
    try:
        pids = stage.pids()
        if len(pids) != stage.numprocesses() or pids != members(stage):
            return []
        done = stage.sockshare("status", "--json", timeout=20)
    except (TimeoutError, KeyError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    document = json.loads(done.stdout)
    holders = [one["pid"] for one in document["sockets"][0]["holders"] if one["registered"] and not one["suspended"]]
    return pids if sorted(holders) == pids and document["programs"][0]["reload"]["state"] == "idle" else []
