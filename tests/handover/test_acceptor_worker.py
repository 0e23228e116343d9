"""The example in which one process accepts, and hands each connection to the least loaded worker."""

from __future__ import annotations

import shutil
import threading
from collections import Counter

import pytest

from sockshare.cli.stage import Stage, free_port, wait_until
from tests.examples.test_circus_examples import EXAMPLES, PORT_LINE, ask_http, command, stage

__all__ = ["stage"]  # a fixture


@pytest.fixture
def port(stage: Stage) -> int:
    """The example, started as its README says, on this port."""
    shutil.copytree(EXAMPLES / "acceptor-worker", stage.directory, dirs_exist_ok=True)
    ini = stage.directory / "circus.ini"
    port = free_port()
    text, replaced = PORT_LINE.subn(f"port = {port}", ini.read_text())
    assert replaced == 1
    ini.write_text(text)
    stage.start()
    wait_until(lambda: versions(port)["1"], 30, "the workers answer", 0.2)
    return port


def versions(port: int) -> Counter[str]:
    try:
        return Counter([ask_http(port).version])
    except (OSError, AssertionError):
        return Counter()


def test_workers_share_the_connections_and_none_fails_in_a_reload(stage: Stage, port: int) -> None:
    """Both workers get some; while they are replaced every connection is answered."""
    wait_until(lambda: len({ask_http(port).pid for _ in range(10)}) == 2, 20, "both workers are known", 0.1)
    source = stage.directory / "worker.py"
    source.write_text(source.read_text().replace('VERSION = "1"', 'VERSION = "2"'))
    over = threading.Event()
    answers: Counter[str] = Counter()
    failures: list[str] = []

    def ask() -> None:
        while not over.is_set():
            try:
                answers[ask_http(port).version] += 1
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        ran = command(stage, "reload", "worker")
    finally:
        over.set()
        asking.join()
    assert ran.returncode == 0, ran.stdout + ran.stderr + stage.tail(stage.log)
    assert not failures
    assert answers["1"] > 0
    assert answers["2"] > 0
    assert {ask_http(port).version for _ in range(10)} == {"2"}
