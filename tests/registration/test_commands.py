"""`sockshare registration move`, `quiesce`, `wake`: what they do, what they refuse, and their exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from sockshare.cli.registration import move
from sockshare.core.errors import NotPermitted
from tests.registration.scenes import Scene, holders, in_line, staged
from tests.support.circusd import wait_until
from tests.support.supervisord import supervisord

NOBODY = 65534


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A supervisord with three processes that use the library."""
    with staged("supervisord", "gated", processes=3) as stage:
        yield Scene(stage)


def run(scene: Scene, *arguments: str) -> tuple[int, str]:
    """Exit status and what was said."""
    done: subprocess.CompletedProcess[str] = scene.stage.sockshare(*arguments)
    return done.returncode, (done.stdout + done.stderr).strip()


def test_move_hands_the_registration_over(scene: Scene) -> None:
    """To whom it names, at once, also away from one that is stopped; done twice, it is done."""
    holder = scene.holder()
    other = next(pid for pid in in_line(scene.stage) if pid != holder)
    name = scene.names()[other]
    scene.signal(holder, signal.SIGSTOP)
    try:
        status, said = run(scene, "registration", "move", "web", name)
        assert (status, said) == (0, f"web: {name}: it holds the registration now")
        assert scene.armed() == [other]
        assert scene.ask() == other
    finally:
        scene.stage.kill(holder, signal.SIGCONT)
    assert run(scene, "registration", "move", "web", name) == (0, f"web: {name}: it holds the registration already")
    assert scene.tally(5) == {other: 5}


def test_what_can_not_be_moved_is_refused(scene: Scene) -> None:
    """A name that nobody has: 4, with the nearest there is."""
    status, said = run(scene, "registration", "move", "wbe", scene.names()[scene.holder()])
    assert status == 4, said
    assert "no such socket" in said
    status, said = run(scene, "registration", "move", "web", "web:web_7")
    assert status == 4, said
    assert "no such process" in said
    status, said = run(scene, "registration", "move", "web")
    assert status == 2, said
    status, said = run(scene, "quiesce", "web:web_7")
    assert status == 4, said


def test_quiesced_process_has_nothing_until_it_is_woken(scene: Scene) -> None:
    """Whoever dies meanwhile, the broker among them; and it can't be moved to."""
    holder = scene.holder()
    name = scene.names()[holder]
    assert run(scene, "quiesce", name)[0] == 0
    assert scene.holder() != holder
    (mine,) = [one for one in scene.facts()["holders"] if one["pid"] == holder]
    assert (mine["standing"], mine["paused"]) == ("waiting", True)
    status, said = run(scene, "registration", "move", "web", name)
    assert (status, "it is quiesced" in said) == (7, True), said
    assert scene.stage.kill(scene.stage.broker())
    for _ in range(2):
        follower = scene.holder(holder)
        scene.signal(follower, signal.SIGKILL)
        assert scene.ask() != holder
    wait_until(lambda: len(in_line(scene.stage)) == 2, 15, "two others are in line")
    assert run(scene, "wake", name) == (0, f"{name}: it takes part again")
    assert run(scene, "wake", name) == (0, f"{name}: it was not quiesced")
    assert scene.move(holder) == "it holds the registration now"
    assert scene.armed() == [holder]
    wait_until(lambda: holders(scene.stage) == [holder], 5, "the record says so too")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_strangers_may_not_move_anything(scene: Scene) -> None:
    """Another user than root and the manager's own is refused: 7."""
    holder = scene.holder()
    name = scene.names()[next(pid for pid in in_line(scene.stage) if pid != holder)]
    with pytest.raises(NotPermitted):
        as_nobody(scene, name)
    assert scene.armed() == [holder]


def as_nobody(scene: Scene, name: str) -> None:
    """Ask as another user, in a child: what it raises is raised here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            move(str(scene.stage.runtime), "web", name)
        except BaseException as error:
            os.write(writing, type(error).__name__.encode() + b": " + str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading, "rb") as file:
        said = file.read().decode()
    if said.startswith("NotPermitted: "):
        raise NotPermitted(said)
    assert not said, said


ROTATE = ("taking", "rotate", "only a program that uses the library can keep")
LATEST = ("standby", "latest", "leave --registration out")


@pytest.mark.parametrize(("program", "registration", "means"), [ROTATE, pytest.param(*LATEST, marks=pytest.mark.soak)])
def test_supervisord_does_not_start_with_a_pair_of_policy_and_means_that_can_not_be_kept(
    program: str, registration: str, means: str
) -> None:
    """It exits with 2, and says which, and what to do."""
    with supervisord(program, leave=True, sock={"registration": registration}) as stage:
        stage.start()
        assert stage.process is not None
        assert stage.process.wait(20) == 2
        said = stage.output.read_text()
        assert f"registration = {registration}" in said
        assert means in said


@pytest.mark.parametrize(("program", "registration", "means"), [LATEST, pytest.param(*ROTATE, marks=pytest.mark.soak)])
def test_circus_hands_nothing_out_with_a_pair_of_policy_and_means_that_can_not_be_kept(
    program: str, registration: str, means: str
) -> None:
    """It can't be kept from starting: so the broker stays up to say it, and `exec` is refused."""
    with staged("circus", program, registration, waiting=False, processes=1) as stage:

        def status() -> tuple[int, str]:
            done = stage.sockshare("status")
            return done.returncode, done.stdout + done.stderr

        wait_until(lambda: status()[0] == 2, 20, "the broker says that it is refused", 0.1)
        said = status()[1]
        assert f"registration = {registration}" in said
        assert means in said
        wait_until(lambda: "can't" in stage.stderr_log.read_text(), 10, "exec is refused")
