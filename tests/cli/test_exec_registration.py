"""``sockshare exec --registration``: a cold standby, against a broker that grants registrations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sockshare
from tests.client.gatehost import GateHost
from tests.client.host import TIMEOUT

#: Prints its pid and the names of its sockets, and what is open beyond.
REPORT = """
import os
fds = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
print(os.getpid(), os.environ["LISTEN_FDNAMES"], len(fds) - 1, flush=True)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GateHost]:
    """A host without a broker yet."""
    host = GateHost(tmp_path / "run")
    try:
        yield host
    finally:
        host.close()


@contextmanager
def standby(host: GateHost, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``exec --registration ARGUMENTS`` of the report."""
    command = [sys.executable, "-m", "sockshare", "exec", "--registration", *arguments, "--"]
    with subprocess.Popen(
        [*command, sys.executable, "-c", REPORT],
        env=host.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said, on stdout and stderr."""
    said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, said
    return said


def said(process: subprocess.Popen[str]) -> str:
    """Its next line on stderr that is not of the wait for the broker, which a busy machine makes it do."""
    assert process.stderr is not None
    return next(line for line in process.stderr if not line.startswith("sockshare: waiting for the broker"))


def claimed(host: GateHost) -> dict[str, object]:
    """The next claim."""
    claim: dict[str, object] = json.loads(host.wait_for("claim"))
    return claim


def standby_key(host: GateHost) -> object:
    """The key of the next claim that is none of the library's."""
    while not (claim := claimed(host))["cooperate"]:
        pass
    return claim["key"]


def test_command_runs_when_every_registration_is_held(host: GateHost) -> None:
    """Claimed in the order of their names, without a gate; the command has its sockets, and nothing of ours."""
    host.start()
    with standby(host) as process:
        out, error = finish(process)
        assert out.split() == [str(process.pid), "web:api:udp", "3"]
        assert all("waiting for" in line for line in error.splitlines())  # on a busy machine
        claims = [claimed(host) for _ in range(3)]
        assert [claim["socket"] for claim in claims] == ["api", "udp", "web"]
        assert all(claim["cooperate"] is True and claim["gate"] is False for claim in claims)
        host.wait_for("inherit")
    host.kill()
    assert not [line for line in host.said() if line.startswith("release")]


def test_only_the_named_sockets_are_waited_for(host: GateHost) -> None:
    """Those of --socket, also when another one's is taken."""
    host.start()
    with (
        sockshare.attach(str(host.directory)) as share,
        share.registration("web"),
        standby(host, "--socket", "udp", "--socket=api") as process,
    ):
        assert finish(process)[0].split()[1:] == ["udp:api", "2"]


def test_command_waits_while_another_holds(host: GateHost) -> None:
    """It says so, in one line, and runs when the holder lets go."""
    host.start()
    with sockshare.attach(str(host.directory)) as share, standby(host, "--socket", "web") as process:
        with share.registration("web"):
            assert said(process) == "sockshare exec: waiting for the registration of 'web' ...\n"
            assert process.poll() is None
        out, error = finish(process)
        assert out.split()[:2] == [str(process.pid), "web"]
        assert error == ""


def test_command_waits_on_when_the_broker_is_killed(host: GateHost) -> None:
    """The next broker hears of the claim at once, with the same key."""
    host.start()
    with (
        sockshare.attach(str(host.directory)) as share,
        share.registration("web"),
        standby(host, "--socket", "web") as process,
    ):
        key = standby_key(host)
        for _ in range(3):
            host.wait_for("waiting")
            host.kill()
            host.said()
            host.start()
            assert standby_key(host) == key
        share.close()
        assert finish(process)[0].split()[1] == "web"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_waiting_ends_with_the_signal(host: GateHost, number: signal.Signals, status: int) -> None:
    """At once, and no traceback is shown; its claim is the broker's to forget, as it is its process that ended."""
    host.start()
    with (
        sockshare.attach(str(host.directory)) as share,
        share.registration("web"),
        standby(host, "--socket", "web") as process,
    ):
        said(process)
        process.send_signal(number)
        assert process.wait(TIMEOUT) == status
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_refusal_is_said(host: GateHost) -> None:
    """In the broker's words, with the exit status of a refusal."""
    refusal = {"error": "NotPermitted", "message": "can't claim 'web': registration = rotate needs a gate", "exit": 7}
    host.start(errors={"claim": refusal})
    ran = host.run("exec", "--registration", "--", "true")
    assert (ran.returncode, ran.stdout) == (125, "")
    assert ran.stderr == "sockshare exec: can't claim 'web': registration = rotate needs a gate\n"


def test_what_is_revoked_before_all_are_held_is_given_back(host: GateHost) -> None:
    """Nothing is served yet: it obeys, gives all of them back, and is in line anew."""
    host.start()
    with sockshare.attach(str(host.directory)) as share, standby(host) as process:
        with share.registration("web"):
            for name in ("api", "udp", "web"):
                while claimed(host)["socket"] != name:
                    pass
            host.wait_for("waiting")
            first = json.loads(os.fsdecode((host.directory / "journal").read_bytes()))["line"]
            host.order("revoke api")
            epochs = {one[1]: one[3] for one in first}
            assert json.loads(host.wait_for("release"))["epoch"] == epochs["api"]
            assert json.loads(host.wait_for("release"))["epoch"] == epochs["udp"]
            assert json.loads(host.wait_for("release"))["epoch"] == 0
            host.order("go")
        assert finish(process)[0].split()[1] == "web:api:udp"
