"""``python -m benchmarks.handout``: what a hand-out costs, beside the two bare exchanges that it consists of.

A real circusd, with the plugin and its broker, runs one program, which is this module again (``--inside``): only a
managed process is handed anything.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import sockshare
from benchmarks import figures, storm
from benchmarks.peers import Descriptors, RoundTrip, Server
from sockshare.cli.stage import Stage, free_port, wait_until
from sockshare.client import door
from sockshare.client.dialogue import Dialogue

ROUNDS, IN_A_ROUND = 20, 100
STARTS = 30
Samples = dict[str, list[float]]

INI = """
[socket:web]
host = 127.0.0.1
port = {port}

[plugin:sockshare]
use = circus_sockshare.SockShare
use_sockets = True
runtime_dir = {runtime}

[watcher:bench]
cmd = {python} -m benchmarks.handout --inside {result}
copy_env = True
respawn = False
sockshare.sockets = web
stderr_stream.class = FileStream
stderr_stream.filename = {result}.log
"""


def timed(samples: list[float], work: Callable[[], object]) -> None:
    """Add how long *work* took, in seconds."""
    start = time.perf_counter()
    work()
    samples.append(time.perf_counter() - start)


def hand_outs(directory: Path, broker: int) -> Samples:
    """Seconds of each exchange, in rounds that take turns; all of its processes on one processor."""
    samples: Samples = {"descriptors": [], "zmq": [], "ours": [], "program": []}
    runtime = str(directory / "run")
    with (
        Server("descriptors", str(directory / "d")) as server_of_descriptors,
        Server("zmq", str(directory / "z")) as server_of_zmq,
        sockshare.attach() as share,
        closing(Dialogue(runtime)) as dialogue,
    ):
        bare, round_trip = Descriptors(str(directory / "d")), RoundTrip(str(directory / "z"))
        everywhere = os.sched_getaffinity(0)
        one = {min(everywhere)}

        def ours() -> None:
            deadline = time.monotonic() + 10
            ticket = bytes.fromhex(dialogue.ask("ticket", socket="web", deadline=deadline)["ticket"])
            ((_, fd),) = door.redeem(runtime, [ticket], deadline)
            os.close(fd)

        def as_a_program() -> None:
            share.socket("web").close()  # closed, so that the next call asks for another

        ways: dict[str, Callable[[], object]] = {
            "descriptors": bare.once,
            "zmq": round_trip.once,
            "ours": ours,
            "program": as_a_program,
        }
        for work in ways.values():
            for _ in range(IN_A_ROUND):
                work()
        try:
            for pid in (0, broker, server_of_descriptors, server_of_zmq):
                figures.pin(pid, one)
            for _ in range(ROUNDS):
                for name, work in ways.items():
                    for _ in range(IN_A_ROUND):
                        timed(samples[name], work)
        finally:
            for pid in (0, broker):
                figures.pin(pid, everywhere)
        round_trip.close()
    return samples


def starts(bytecode: Path) -> Samples:
    """Seconds from the start of a process to its end, taking turns; all compiled before, as pip leaves it."""
    script = Path(sys.executable).with_name("sockshare")
    ours = [str(script)] if script.exists() else [sys.executable, "-m", "sockshare"]
    ways = {
        "true": ["true"],
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import zmq'": [sys.executable, "-c", "import zmq"],
        "sockshare exec -- true": [*ours, "exec", "--", "true"],
    }
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start(command: list[str]) -> None:
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)

    samples: Samples = {name: [] for name in ways}
    for command in ways.values():
        start(command)
    for _ in range(STARTS):
        for name, command in ways.items():
            timed(samples[name], partial(start, command))
    return samples


def broker_pid(directory: str) -> int:
    """Who answers at the door."""
    return door.hello(directory, time.monotonic() + 10).pid


def inside(result: Path) -> None:
    """Measure, as a managed process; leave what was seen in *result*, all at once."""
    runtime = str(result.parent / "run")
    broker = broker_pid(runtime)
    document = {
        "hand_outs": hand_outs(result.parent, broker),
        "storm": storm.run(runtime, broker),
        "starts": starts(result.parent / "bytecode"),
    }
    partial = result.with_suffix(".part")
    partial.write_text(json.dumps(document))
    partial.rename(result)


def measure() -> dict[str, Any]:
    """Everything, under a circusd of its own.

    Raises:
        RuntimeError: The measuring process ended without a result.
    """
    with Stage() as stage:
        result = stage.directory / "result.json"
        python, runtime = shlex.quote(sys.executable), stage.runtime
        stage.write(INI.format(port=free_port(), runtime=runtime, python=python, result=result))
        stage.start()
        try:
            wait_until(lambda: stage.pids("bench"), 20, "the measuring process runs", 0.1)
            wait_until(lambda: result.exists() or not stage.pids("bench"), 180, "the measurement ended", 0.2)
        except TimeoutError as error:
            raise RuntimeError(f"{error}: {stage.tail(stage.log)}") from None
        if not result.exists():
            raise RuntimeError(stage.tail(stage.directory / "result.json.log"))
        document: dict[str, Any] = json.loads(result.read_text())
        return document


def report(document: dict[str, Any]) -> None:
    """Print the tables."""
    p50 = {name: figures.median(samples) for name, samples in document["hand_outs"].items()}
    both = p50["descriptors"] + p50["zmq"]
    us = figures.microseconds
    figures.show(
        f"A hand-out, p50 of {ROUNDS * IN_A_ROUND}, client and server pinned to one CPU",
        [
            ("", "p50", "ratio to a + b"),
            ("a: connect, SO_PEERCRED, SCM_RIGHTS", us(p50["descriptors"]), f"{p50['descriptors'] / both:.2f}"),
            ("b: pyzmq ipc round trip", us(p50["zmq"]), f"{p50['zmq'] / both:.2f}"),
            ("sockshare: ask, ticket, redeem", us(p50["ours"]), f"{p50['ours'] / both:.2f}"),
            ("the same as Share.socket(), an object", us(p50["program"]), f"{p50['program'] / both:.2f}"),
        ],
        ["aim: at most 1.50"],
    )
    rush = document["storm"]
    figures.show(
        f"{storm.PROCESSES * storm.CLIENTS} clients at once: {storm.PROCESSES} processes of {storm.CLIENTS}",
        [
            ("", "", "aim"),
            ("first connections, until all have an answer", f"{rush['first']:.3f} s", "0.2 s"),
            ("the same, until all have a descriptor", f"{rush['first_descriptor']:.3f} s", ""),
            ("hand-outs a second of the broker's own CPU time", f"{rush['hand_outs'] / rush['cpu']:,.0f}", "15,000"),
            ("hand-outs a second, clients on the same machine", f"{rush['hand_outs'] / rush['seconds']:,.0f}", ""),
        ],
    )
    p50 = {name: figures.median(samples) for name, samples in document["starts"].items()}
    bare = p50["python -c pass"]
    figures.show(
        f"Start to end of a process, p50 of {STARTS}",
        [
            ("", "p50", "over python -c pass"),
            *((name, figures.milliseconds(value), f"{(value - bare) * 1e3:+.1f} ms") for name, value in p50.items()),
        ],
        ["aim for sockshare exec: at most +40 ms"],
    )


def main() -> None:
    """Measure and report; or, inside, only measure."""
    # By default it would end at once, and leave all that it has started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]))
    else:
        report(measure())


if __name__ == "__main__":
    main()
