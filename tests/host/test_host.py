"""The host and its broker's life, with a real child that speaks the link protocol."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from sockshare.host import host
from sockshare.host.verbs import Answer, Manager
from sockshare.kernel.channel import Channel
from sockshare.kernel.descriptors import close_all
from tests.host.embedded import Embedded, Orders, embedded
from tests.support.circusd import wait_until

SLEEPER = (sys.executable, "-c", "import signal; signal.pause()")


@pytest.fixture
def shared() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *body* in a loop of its own; no descriptor is left."""
    before = descriptors()
    asyncio.run(body())
    wait_until(lambda: descriptors() == before, 10, "all descriptors are closed")  # some by threads


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


async def do(one: Embedded, **order: Any) -> dict[str, Any]:
    """Give the broker an order, and return its next report."""
    _, answer = await one.verbs.report()
    answer.give(**order)
    report, again = await one.verbs.report()
    one.verbs.reports.put_nowait((report, again))
    return report


def test_same_descriptors_are_handed_on_when_broker_is_killed(tmp_path: Path, shared: socket.socket) -> None:
    """Twenty times: the next broker is started within 100 ms, and its hello has the very same sockets."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report, _ = await one.verbs.report()
            first, pids = report["inodes"], {report["pid"]}
            assert report["hello"]["listeners"] == ["broker", "door"]
            assert first[2] == os.fstat(shared.fileno()).st_ino
            assert len(first) == 3
            for _ in range(20):
                killed = one.host._loop.time()  # type: ignore[attr-defined]
                one.kill()
                report, _ = await one.verbs.report()
                assert report["inodes"] == first
                assert report["pid"] not in pids
                assert one.started[-1] - killed < 0.1
                pids.add(report["pid"])

    run(body)


def test_journal_lines_count_when_broker_dies_right_after_them(tmp_path: Path, shared: socket.socket) -> None:
    """What was written to the link before a SIGKILL is in the next hello, and in the file; None forgets a key."""
    lines: list[Any] = [[f"key{number}", {"number": number, "padding": "x" * 1000}] for number in range(100)]

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report = await do(one, journal=[*lines, ["key0", None]], do="die")
            assert report["hello"]["journal"] == dict(lines[1:])

    run(body)

    async def later() -> None:
        async with embedded(tmp_path, shared) as one:
            report, _ = await one.verbs.report()
            assert report["hello"]["journal"] == dict(lines[1:])

    run(later)


def test_journal_is_in_its_file_before_anything_else_is_done(tmp_path: Path, shared: socket.socket) -> None:
    """The host may be killed as well; what its broker said before it asked for something is there for the next host."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            await do(one, journal=[["key", {"a": 1}]], ask={"verb": "settle", **SETTLE})
            assert json.loads((tmp_path / "journal.json").read_text())["records"] == {"key": {"a": 1}}

    run(body)


def test_last_words_of_a_broker_are_in_the_file_once_it_has_ended(tmp_path: Path) -> None:
    """Not only when the next one says something: there may be none for a while, and the host be killed meanwhile."""

    async def body() -> None:
        (tmp_path / "notify").mkdir()
        one = host.Host(asyncio.get_running_loop(), Orders(), Manager("circus", os.getpid(), 0, "1-1"), str(tmp_path))
        one.open()
        ours, theirs = socket.socketpair()
        one.serve(ours)
        broker = Channel(theirs)
        for _, fds in broker.receive():
            close_all(fds)
        broker.send({"type": "journal", "key": "key", "record": {"a": 1}})
        broker.close()
        one.ended()
        assert json.loads((tmp_path / "journal.json").read_text())["records"] == {"key": {"a": 1}}
        one.close()

    run(body)


def test_trouble_is_told_until_it_is_over(
    tmp_path: Path, shared: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the journal, whose file can't be written, and of the notify sockets: to the broker that runs, and the next."""
    monkeypatch.setattr(host, "_LOOK_AGAIN", 0.05)
    aside, notify = tmp_path / "journal.json~", tmp_path / "notify"

    def warnings(report: dict[str, Any]) -> list[str]:
        return [message["warnings"] for message in report["told"]][-1]  # type: ignore[no-any-return]

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            aside.mkdir()
            notify.rmdir()
            question = {"verb": "notify", "pid": os.getpid()}
            report = await do(one, journal=[["key", {"a": 1}]], ask=question)
            assert not report["answer"]["ok"]
            said = warnings(await do(one, ask={"verb": "settle", **SETTLE}))
            assert any(f"can't write {tmp_path}/journal.json: " in one for one in said)
            assert any("can't make notify sockets: " in one for one in said)
            one.kill()
            one.verbs.reports.get_nowait()
            report, answer = await one.verbs.report()
            assert report["hello"]["warnings"] == said
            aside.rmdir()
            notify.mkdir()
            await until(lambda: not one.host._troubles.sentences, "it has looked again")
            assert json.loads((tmp_path / "journal.json").read_text())["records"] == {"key": {"a": 1}}
            answer.give(ask={"verb": "settle", **SETTLE})
            report, _ = await one.verbs.report()
            assert warnings(report) == []

    run(body)


@pytest.mark.parametrize("deed", ["garble", "hang up"])
def test_broker_is_replaced_when_it_breaks_the_link(tmp_path: Path, shared: socket.socket, deed: str) -> None:
    """A broker that talks nonsense, or no more, is killed; what it had written to the journal before counts."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report, answer = await one.verbs.report()
            answer.give(journal=[["key", {"a": 1}]], ask={"verb": "settle", **SETTLE})
            _, answer = await one.verbs.report()
            answer.give(do=deed)
            again, _ = await one.verbs.report()
            assert again["pid"] != report["pid"]
            assert again["hello"]["journal"] == {"key": {"a": 1}}
            with pytest.raises(ProcessLookupError):
                os.kill(report["pid"], 0)

    run(body)


SETTLE = {"program": "web", "retire": [1], "known": [2], "count": 3, "kill": True, "patience": 2.5}


def test_every_question_has_an_answer(tmp_path: Path, shared: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """Verbs get their fields; one that refuses, raises, or does not exist is answered with a sentence."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report = await do(one, ask={"verb": "settle", **SETTLE})
            assert report["answer"]["ok"]
            assert report["answer"]["retired"] == [1]
            assert report["answer"]["seen"] == ["web", [2], 3, True, 2.5]
            for verb, fields, word in (
                ("processes", {}, "circusd is busy"),
                ("whois", {"pid": 1}, "a defect of the plugin"),
                ("conjure", {}, "no such verb"),
                ("settle", {"program": "web"}, "retire"),
                ("notify", {"pid": 2**22 + 1}, "no such process"),
            ):
                report = await do(one, ask={"verb": verb, **fields})
                assert report["answer"]["ok"] is False
                assert word in report["answer"]["message"]

    run(body)
    assert "a defect of the plugin" in caplog.text


def test_answer_is_dropped_when_its_broker_has_died(tmp_path: Path, shared: socket.socket) -> None:
    """The next broker hears answers to its own questions only."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            _, late = await one.verbs.report()
            one.kill()
            _, answer = await one.verbs.report()
            late.give(do="die")
            answer.give(ask={"verb": "settle", **SETTLE})
            report, _ = await one.verbs.report()
            assert report["answer"]["ok"]
            assert len(one.started) == 2

    run(body)


def test_broker_is_told_when_configuration_changes(tmp_path: Path, shared: socket.socket) -> None:
    """Once for a change, not at all for the same again; the next broker's hello has it too."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            _, answer = await one.verbs.report()
            for mistakes in ([], ["a"], ["a"], ["b"]):
                one.host.configure(one.configuration(shared, mistakes))
            answer.give(ask={"verb": "settle", **SETTLE})
            report, _ = await one.verbs.report()
            assert [message["mistakes"] for message in report["told"]] == [["a"], ["b"]]
            assert {message["type"] for message in report["told"]} == {"programs"}
            one.kill()
            report, _ = await one.verbs.report()
            assert report["hello"]["mistakes"] == ["b"]

    run(body)


def test_attempts_are_spaced_when_broker_cannot_run(tmp_path: Path, shared: socket.socket) -> None:
    """A broken installation is tried a few times at once, then ever less often; it does not spin."""
    broken = (sys.executable, "-S", "-E", "-c", "raise SystemExit(3)")

    async def body() -> None:
        async with embedded(tmp_path, shared, broken) as one:
            await until(lambda: len(one.started) >= 9, "nine attempts")
            gaps = [later - earlier for earlier, later in zip(one.started, one.started[1:], strict=False)]
            assert gaps[7] > 0.3
            assert gaps[5] > 0.1
            assert sum(gaps[:3]) < sum(gaps[5:8])

    run(body)


def test_notify_socket_outlives_broker_and_host(tmp_path: Path, shared: socket.socket) -> None:
    """What a process says between two brokers waits; a new host binds the same path; it goes with its process."""
    process = subprocess.Popen(SLEEPER)
    path = tmp_path / "notify" / str(process.pid)

    def say(text: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text, str(path))

    async def first() -> None:
        async with embedded(tmp_path, shared) as one:
            report = await do(one, ask={"verb": "notify", "pid": process.pid})
            assert report["answer"]["path"] == str(path)
            inode = report["inodes"][0]
            one.kill()
            say(b"READY=1")
            await one.verbs.report()  # of the one that was killed
            report, answer = await one.verbs.report()
            assert report["hello"]["notify"] == [process.pid]
            assert report["inodes"][3] == inode
            answer.give(ask={"verb": "notify", "pid": process.pid})
            report, _ = await one.verbs.report()
            assert report["said"] == ["READY=1"]

    async def second() -> None:
        (tmp_path / "notify" / str(2**22 + 1)).touch()
        async with embedded(tmp_path, shared) as one:
            report, answer = await one.verbs.report()
            assert report["hello"]["notify"] == [process.pid]
            assert [entry.name for entry in path.parent.iterdir()] == [str(process.pid)]
            say(b"STOPPING=1")
            answer.give(ask={"verb": "notify", "pid": process.pid})
            report, _ = await one.verbs.report()
            assert report["said"] == ["STOPPING=1"]
            process.kill()
            await until(lambda: not path.exists(), "the notify socket goes with its process")

    try:
        run(first)
        assert path.exists()
        run(second)
    finally:
        process.kill()
        process.wait()


def test_nothing_but_the_journal_is_left_when_host_closes(tmp_path: Path, shared: socket.socket) -> None:
    """The listeners' paths go, the broker too; what a later host of the manager needs stays."""
    pids = []

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            report, _ = await one.verbs.report()
            pids.append(report["pid"])
            assert {entry.name for entry in tmp_path.iterdir()} == {"broker", "door", "journal.json", "notify"}

    run(body)
    assert {entry.name for entry in tmp_path.iterdir()} == {"journal.json", "notify"}
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_other_sockets_wait_for_the_end_of_a_reload(tmp_path: Path, shared: socket.socket) -> None:
    """They come with the hello, and the end of the broker would undo a reload that runs; the next broker has them."""

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            async with embedded(tmp_path, shared) as one:
                await do(one, journal=[["reload:web", {"a": 1}]], ask={"verb": "settle", **SETTLE})
                one.host.configure(one.configuration(other))
                report = await do(one, ask={"verb": "settle", **SETTLE})  # it is there, and was told nothing
                assert (report["answer"]["ok"], report["told"], len(one.started)) == (True, [], 1)
                # The same name and settings: it is another one all the same.
                _, answer = await one.verbs.report()
                answer.give(journal=[["reload:web", None]])
                while "hello" not in report:
                    report, _ = await one.verbs.report()
                assert report["inodes"][2] == os.fstat(other.fileno()).st_ino
                assert len(one.started) == 2

    run(body)


def test_sockets_that_do_not_come_cost_no_broker(tmp_path: Path, shared: socket.socket) -> None:
    """Nor do those that are again what they were: it is told the rest, and given the answers that have waited."""

    async def body() -> None:
        async with embedded(tmp_path, shared) as one:
            asked: list[int] = []

            def whois(pid: int, answer: Answer) -> None:
                answer.give(process={"program": "api", "process": "api:1", "pid": pid})
                asked.append(pid)

            one.verbs.whois = whois  # type: ignore[method-assign]
            _, answer = await one.verbs.report()
            one.host.outdate()
            answer.give(ask={"verb": "whois", "pid": 4242})
            await until(lambda: asked, "the host is asked")
            configuration = one.configuration(shared, ["a"])
            one.host.configure(configuration._replace(programs=[*configuration.programs, {"name": "api"}]))
            report, again = await one.verbs.report()
            assert report["answer"]["process"]["program"] == "api"
            assert [len(message["programs"]) for message in report["told"]] == [2]  # before the answer
            again.give(journal=[["reload:web", {"a": 1}]], ask={"verb": "settle", **SETTLE})
            report, again = await one.verbs.report()
            with socket.create_server(("127.0.0.1", 0)) as other:
                one.host.configure(one.configuration(other))
                one.host.configure(one.configuration(shared))
            again.give(journal=[["reload:web", None]], ask={"verb": "settle", **SETTLE})
            report, _ = await one.verbs.report()
            assert [message["mistakes"] for message in report["told"]] == [["a"], []]
            assert len(one.started) == 1

    run(body)
