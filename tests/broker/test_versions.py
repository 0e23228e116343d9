"""A broker, as a process, with the hello of a version before, of a later one, or with a bug somewhere in it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from select import select
from typing import Any

import pytest

from sockshare.client.dialogue import Dialogue
from sockshare.core import versions
from sockshare.core.errors import SockshareError
from sockshare.kernel import listeners
from sockshare.kernel.channel import Channel, Message
from sockshare.kernel.descriptors import close_all
from sockshare.kernel.gate import Gate
from tests.recorded import MANAGERS, Said, recorded
from tests.support.circusd import wait_until
from tests.support.copies import ROOT, Copy

#: So that no recorded pid is one of a process here: proc_sys_kernel(5) has 4194304 for the largest pid_max.
ABOVE = 5_000_000


def elsewhere(manager: str) -> list[Said]:
    """What was recorded under *manager*, with pids that no process has."""
    text = json.dumps(recorded(manager))
    for pid in {pid for pid in map(int, re.findall(r'"pid": ([0-9]+)', text)) if pid > 1}:
        text = re.sub(rf"(?<![0-9.]){pid}(?![0-9.])", str(pid + ABOVE), text)
    return [Said(*one) for one in json.loads(text)]


class Played:
    """A host that says *hello* to a real broker, and answers it from *answers*, by verb."""

    def __init__(self, directory: Path, hello: Message, answers: dict[str, Message], root: Path) -> None:
        self.directory = directory
        self.heard: list[Message] = []
        self.log = directory / "log"
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._saying = threading.Lock()  # a channel is one thread's, and two speak here
        self._answers = answers
        kinds = {"broker": socket.SOCK_STREAM, "door": socket.SOCK_SEQPACKET}
        opened = [
            listeners.make(str(directory / name), kinds.get(name, socket.SOCK_STREAM)) for name in hello["listeners"]
        ]
        opened += [socket.create_server(("127.0.0.1", 0)) for _ in hello["sockets"]]
        gates = [Gate() for _ in hello["kept"]]
        with self.log.open("ab") as log:
            self.broker = subprocess.Popen(
                [sys.executable, "-m", "sockshare.broker", "--link-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": str(root)},
                cwd=directory,
                stdout=log,
                stderr=log,
            )
        theirs.close()
        manager = {**hello["manager"], "pid": os.getpid(), "uid": os.getuid()}
        said = {**hello, "manager": manager, "directory": str(directory), "notify": [], "uids": []}
        self.say(said, [*(sock.fileno() for sock in opened), *(gate.fileno() for gate in gates)])
        for sock in opened:
            sock.close()
        for gate in gates:
            gate.close()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def say(self, message: Message, fds: list[int] | None = None) -> None:
        """Say *message*."""
        with self._saying:
            self._channel.send(message, fds or [])
            assert not self._channel.wants_write

    def _play(self) -> None:
        while not self._ended.is_set():
            if not select([self._channel], [], [], 0.05)[0]:
                continue
            try:
                messages = self._channel.receive()
            except EOFError:
                return
            for message, fds in messages:
                close_all(fds)
                self.heard.append(message)
                if message["type"] == "ask":
                    answer = self._answers.get(message["verb"], {"ok": False, "message": "can't: no such verb"})
                    with self._saying, suppress(OSError):  # it has ended meanwhile
                        self._channel.send({**answer, "type": "answer", "id": message["id"]})

    def has_said(self, message: Message) -> bool:
        """Whether it has said *message*."""
        return message in self.heard

    @property
    def playing(self) -> bool:
        """Whether there is more to hear."""
        return self._thread.is_alive()

    def types(self) -> list[str]:
        """What kinds of messages it has said."""
        return [message["type"] for message in self.heard]

    def serves(self) -> dict[str, Any]:
        """Its `status`, once it serves."""
        return dict(self.ask("status")["status"])

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """What it answers over ZeroMQ."""
        dialogue = Dialogue(str(self.directory))
        try:
            return dialogue.ask(op, deadline=time.monotonic() + 20, **fields)
        finally:
            dialogue.close()

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self.broker.wait(20)

    def close(self) -> None:
        """End it."""
        self.broker.kill()
        self.broker.wait()
        self._ended.set()
        self._thread.join()
        self._channel.close()


@contextmanager
def played(directory: Path, hello: Message, answers: dict[str, Message], root: Path = ROOT) -> Iterator[Played]:
    one = Played(directory, hello, answers, root)
    try:
        yield one
    finally:
        one.close()


HELLO: dict[str, Any] = {
    "type": "hello",
    "version": versions.LINK,
    "package": "0.9",
    "manager": {"kind": "supervisor", "pid": 1, "uid": 0},
    "listeners": ["broker", "door"],
    "sockets": [{"name": "web"}],
    "programs": [{"name": "web", "sockets": ["web"]}],
    "kept": [],
    "journal": {},
}
NOTHING_RUNS: dict[str, Message] = {"processes": {"ok": True, "programs": {}}, "whois": {"ok": True, "process": None}}


def answers_of(said: list[Said], journal: dict[str, Any]) -> dict[str, Message]:
    """A recorded answer to each verb; the manager's processes as they were with *journal*."""
    verbs = {one.message["id"]: one.message["verb"] for one in said if one.message["type"] == "ask"}
    found = {}
    for one in said:
        if one.message["type"] == "answer" and one.message["ok"]:
            found[verbs[one.message["id"]]] = one.message
    return {**NOTHING_RUNS, **found}


@pytest.mark.parametrize("manager", MANAGERS)
def test_broker_serves_a_host_of_the_version_before(tmp_path: Path, manager: str) -> None:
    """Each hello that was recorded, also in the middle of a reload: it takes up what there was, and answers."""
    said = elsewhere(manager)
    hellos = [one.message for one in said if one.message["type"] == "hello"]
    for number, hello in enumerate(hellos):
        assert hello["version"] == versions.LINK - 1
        directory = tmp_path / str(number)
        directory.mkdir()
        with played(directory, hello, answers_of(said, hello["journal"])) as one:
            assert [program["name"] for program in one.serves()["programs"]] == ["web"]
            assert one.ask("doctor")["findings"]
            for key in hello["journal"]:
                if key.startswith(("reload:", "retirement:")):
                    over = {"type": "journal", "key": key, "record": None}
                    wait_until(partial(one.has_said, over), 20, f"{key} is over")
            one.say({"type": "programs", "programs": hello["programs"], "mistakes": ["a later one"]})
            with pytest.raises(SockshareError, match="a later one"):
                wait_until(lambda: one.ask("doctor") and False, 10, "it has heard")
            log = one.log.read_text()
            assert "unreadable" not in one.types()
        assert not [word for word in ("Traceback", "can't be read", "passed over", "bug") if word in log], log


def test_broker_ends_with_one_sentence_when_it_cannot_read_its_host(tmp_path: Path) -> None:
    """It tells the host, and its log; it is gone then, with a status of its own."""
    with played(tmp_path, {**HELLO, "version": versions.LINK + 2}, {}) as one:
        assert one.status() == 1
        wait_until(lambda: one.heard, 10, "the host hears of it")
        [message] = one.heard
        assert message["type"] == "unreadable"
        assert message["version"] == versions.LINK
        pid = os.getpid()
        assert message["message"].startswith(f"can't serve supervisor (pid {pid}): its hello is of version")
        assert message["message"].endswith("restart supervisord, or install sockshare 0.9 again")
        [line] = one.log.read_text().splitlines()
        assert message["message"] in line


def test_broker_ends_when_a_later_message_cannot_be_read(tmp_path: Path) -> None:
    """A change of the configuration counts as the hello does; messages of an unknown type do not."""
    with played(tmp_path, HELLO, NOTHING_RUNS) as one:
        one.serves()
        one.say({"type": "weather", "rain": True})
        one.say({"type": "held"})
        one.serves()
        assert "a message of type 'weather' was passed over" in one.log.read_text()
        one.say({"type": "programs", "programs": [{"name": "web", "ready": "in a way of 2030"}]})
        assert one.status() == 1
        wait_until(lambda: "unreadable" in one.types(), 10, "the host hears of it")


def test_unreadable_record_costs_itself_only(tmp_path: Path) -> None:
    """It is dropped with one sentence, from the host's journal too; the others are taken up."""
    journal = {
        "process:1": {"start": 1, "generations": 2},
        "generation:web": {"last": 7},
        "canary:web": {"a": 1},
        "last:web": {"key": "k", "answer": {"result": "ok", "exit": 0, "reason": "as before"}},
        "registration:web": {"last_epoch": "x"},
    }
    with played(tmp_path, {**HELLO, "journal": journal}, NOTHING_RUNS) as one:
        [program] = one.serves()["programs"]
        assert program["reload"]["last"]["reason"] == "as before"
        dropped = {message["key"] for message in one.heard if message["type"] == "journal" and not message["record"]}
        assert dropped == {"process:1"}
        log = one.log.read_text()
    assert log.count("process:1 is dropped, for it can't be read: Object missing required field `generation`") == 1
    assert log.count("web: the record of its registration can't be read, so it begins anew") == 1
    assert "Traceback" not in log
    assert "canary" not in log


def journal_of_reload(manager: str) -> tuple[list[Said], dict[str, Any], str]:
    """What was recorded, the first hello with a reload under way in its journal, and the key of the command."""
    said = elsewhere(manager)
    hello = next(one.message for one in said if one.message["type"] == "hello" and _reload(one.message))
    return said, hello, _reload(hello)["rollout"]["plan"]["key"]


def _reload(hello: Message) -> dict[str, Any]:
    return dict(hello["journal"].get("reload:web", {}))


@pytest.mark.parametrize("change", ["cut", "renamed", "failed twice"])
@pytest.mark.parametrize("manager", MANAGERS)
def test_reload_that_cannot_be_taken_up_is_over_and_its_command_is_told(
    tmp_path: Path, manager: str, change: str
) -> None:
    """Its record can't be read, or two brokers have ended by a bug in it: the command must not begin another."""
    said, hello, key = journal_of_reload(manager)
    record = hello["journal"]["reload:web"]
    if change == "cut":
        del record["mode"]
    elif change == "renamed":
        record["rollout"]["newcomer_is_gone"] = record["rollout"].pop("newcomer_gone")
    else:
        record["failures"] = 2
    with played(tmp_path, hello, answers_of(said, hello["journal"])) as one:
        answer = one.ask("reload", program="web", key=key)
        assert (answer["result"], answer["exit"]) == ("failed", 1)
        assert "is given up as it stands" in answer["reason"]
        assert one.serves()["programs"][0]["reload"]["state"] == "idle"
        assert {"type": "journal", "key": "reload:web", "record": None} in one.heard
        assert "start" not in [message.get("verb") for message in one.heard]


#: What is broken, in which file; by which message of the host, if not by the hello, it is met.
BUGS: dict[str, tuple[str, str, str, Message | None]] = {
    "begin": ("sockshare/broker/server.py", "        rest = list(fds)\n", "        rest = fds.no_such\n", None),
    "task": (
        "sockshare/broker/server.py",
        "        if self._state.roster.ended:\n",
        "        if self._state.roster.no_such():\n",
        None,
    ),
    "timer": (
        "sockshare/broker/server.py",
        "        self._loop.call_later(1.0, self._expire)\n        log.info(\n",
        "        self._loop.call_later(0.1, lambda: self.no_such)\n        log.info(\n",
        None,
    ),
    "link": (
        "sockshare/broker/server.py",
        '        if message.get("type") == "held":\n',
        '        if message.get("type") == "held" and self.no_such:\n',
        {"type": "held"},
    ),
}


@pytest.mark.parametrize("where", BUGS)
def test_broker_ends_when_a_callback_raises(tmp_path: Path, where: str) -> None:
    """With the traceback in its log: the next one may fare better, and this one would lack what did not happen."""
    path, old, new, message = BUGS[where]
    copy = Copy(tmp_path / "copy")
    copy.change(path, old, new)
    with played(tmp_path, HELLO, NOTHING_RUNS, copy.directory) as one:
        if message is not None:
            one.serves()
            one.say(message)
        assert one.status() == 1
        log = one.log.read_text()
    assert "Traceback" in log
    assert "no_such" in log
    assert "broker: ends: it has a bug" in log


def test_bug_in_a_reload_ends_the_broker_and_then_the_reload(tmp_path: Path) -> None:
    """The next broker takes it up, and after a second one it is given up: nobody is left waiting for ever."""
    hello: dict[str, Any] = {**HELLO, "journal": {}}
    running = {
        "web": {
            "numprocesses": 1,
            "active": True,
            "stderr": None,
            "stop_signal": 15,
            "stop_timeout": 1,
            "processes": [{"pid": os.getpid(), "process": "web:1", "started": 1.0}],
        }
    }
    started = {"ok": True, "pid": ABOVE, "process": "web:1"}  # which has died
    answers = {**NOTHING_RUNS, "processes": {"ok": True, "programs": running}, "start": started}
    copy = Copy(tmp_path / "copy")
    copy.change(
        "sockshare/broker/reloads.py",
        "            stopped = await self._have_settled(",
        "            stopped = self.no_such(",
    )
    for attempt in (1, 2, 3):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        with played(directory, hello, answers, copy.directory) as one:
            if attempt == 3:
                answer = one.ask("reload", program="web", key="k")
                assert (answer["result"], answer["exit"]) == ("failed", 1)
                assert "2 brokers have ended by a bug in it" in answer["reason"]
                break
            dialogue = Dialogue(str(directory))
            try:
                dialogue.begin("reload", program="web", key="k")
                assert one.status() == 1
            finally:
                dialogue.close()
            wait_until(lambda: not one.playing, 10, "the host has read all")
            assert "web: its reload has a bug" in one.log.read_text()
            for message in one.heard:
                if message["type"] == "journal":
                    hello["journal"][message["key"]] = message["record"]
            hello["journal"] = {name: record for name, record in hello["journal"].items() if record is not None}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            '        if request.op == "ticket" and request.pid is None',
            '        if request.op == "wake" and self.no_such:\n            pass\n'
            '        if request.op == "ticket" and request.pid is None',
        ),
        ('        self._authority.check(caller, "wake a process")\n', "        self.no_such(caller)\n"),
    ],
    ids=["at once", "in its turn"],
)
def test_bug_met_by_one_client_is_its_answer_and_nobody_else_s(tmp_path: Path, old: str, new: str) -> None:
    """What one peer asks must not be able to end the broker, again and again, for all."""
    copy = Copy(tmp_path / "copy")
    copy.change("sockshare/broker/operations.py", old, new)
    with played(tmp_path, HELLO, NOTHING_RUNS, copy.directory) as one:
        for _ in range(3):
            with pytest.raises(SockshareError, match="can't wake: the broker has a bug"):
                one.ask("wake", process="web:1")
        one.serves()


@pytest.mark.parametrize("change", [-1, 0, 1, 2])
def test_client_of_a_neighbour_is_answered(tmp_path: Path, change: int) -> None:
    """With fields that this broker does not know; any other version is refused with a sentence."""
    with played(tmp_path, HELLO, NOTHING_RUNS):
        dialogue = Dialogue(str(tmp_path))
        try:
            dialogue._socket.send(json.dumps({"v": 1 + change, "id": 1, "op": "status", "shape": "x"}).encode())
            assert dialogue.socket.poll(10_000)
            answer = dialogue.heard()
        finally:
            dialogue.close()
        assert answer is not None
        assert answer["ok"] is (change < 2)
        if change == 2:
            assert "speaks versions 1 to 2, the client version 3" in answer["message"]


def test_what_a_later_broker_has_kept_stays_with_the_host(tmp_path: Path) -> None:
    """Under a key of a kind that this one does not know: it is not used, and not forgotten."""
    hello = {**HELLO, "kept": ["probe:1", "gate:00000000000000000000000000000000"]}
    with played(tmp_path, hello, NOTHING_RUNS) as one:
        one.serves()
        forgotten = [message["key"] for message in one.heard if message["type"] == "forget"]
        assert forgotten == ["gate:00000000000000000000000000000000"]
        assert "probe:1, which the host keeps, was passed over" in one.log.read_text()
