"""Every limit has an act: memory, requests, the peers that ask for too much of either; with a real broker and host."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from sockshare.broker.endpoint import _AFTER_REFUSALS, _REFUSALS, Caller, Endpoint
from sockshare.broker.shared import Shared
from sockshare.core.errors import SockshareError
from sockshare.kernel import listeners
from tests.broker.stage import Stage, hostile, stage, until
from tests.support import door
from tests.support.circusd import resident, wait_until

#: Seconds within which a command is answered, whatever a peer does: the patience of a command.
SOON = 10.0

OPERATIONS = (
    *("status", "doctor", "attach", "ticket", "inherit", "ready", "reload", "cancel", "claim", "release", "move"),
    *("quiesce", "wake", "receive", "introduce", "retiring", "retired", "nonsense", "garbage"),
)


@pytest.fixture(scope="module")
def serving() -> Iterator[Stage]:
    """A broker."""
    with stage() as one:
        yield one


def ask(one: Stage, op: str = "status") -> float:
    """How long the answer took to a question that was asked once, over a connection of its own."""
    began = time.monotonic()
    dialogue = door.Dialogue(str(one.directory))
    try:
        identity = dialogue.send(op)
        assert dialogue.socket.poll(int(SOON * 1000)), f"no answer to {op} within {SOON} s"
        assert json.loads(dialogue.socket.recv())["id"] == identity
    finally:
        dialogue.close()
    return time.monotonic() - began


@pytest.mark.parametrize("what", ["endless", "large"])
def test_broker_is_replaced_when_peers_make_it_buffer_without_end(what: str) -> None:
    """It ends before the kernel lets it have no more, says so, and the next one answers, while they go on."""
    with stage() as one, hostile(one, what, count=3):
        first = one.broker
        until(lambda: one.broker not in (0, first), "the next broker")
        assert "ends, for want of memory" in one.said()
        assert ask(one) < SOON


def test_memory_is_given_back_when_its_peer_has_gone(serving: Stage) -> None:
    """Of the same broker: within 10 % of what it had, some seconds later."""
    ask(serving)
    broker, before = serving.broker, resident(serving.broker)
    with hostile(serving, "endless"):
        until(lambda: resident(broker) > before + 100 * 1024, "it has buffered 100 MiB")
        # What another one needs lies behind that, and keeps the C library from giving it back by itself.
        dialogue = door.Dialogue(str(serving.directory))
        dialogue.ask("status")
    try:
        until(lambda: resident(broker) < before * 1.1, "it has given them back")
    finally:
        dialogue.close()
    assert serving.broker == broker


def test_broker_is_replaced_when_libzmq_gets_no_memory() -> None:
    """Which ends the process itself, and is followed as any death."""
    with stage() as one:
        ask(one)
        first = one.broker
        resource.prlimit(first, resource.RLIMIT_DATA, (1, 1))
        with hostile(one, "endless"):
            until(lambda: one.broker not in (0, first), "the next broker")
        assert ask(one) < SOON


def test_broker_is_replaced_when_connections_take_all_its_descriptors() -> None:
    """libzmq ends a process that has none for a connection (libzmq issue 1306): it is followed as any death."""
    with stage() as one:
        ask(one)
        first = one.broker
        _, hard = resource.prlimit(first, resource.RLIMIT_NOFILE)
        resource.prlimit(first, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{first}/fd")) + 4, hard))
        with ExitStack() as stack:
            for _ in range(20):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(one.directory / "broker"))
            until(lambda: one.broker not in (0, first), "the next broker")
            assert ask(one) < SOON
        assert "Too many open files" in one.said()


NO_MEMORY = """
import asyncio, gc, logging, sys, threading
from sockshare.broker import memory

def fail(*ignored):
    [None] * (1 << 60)

async def caught():
    try:
        fail()
    except Exception:
        logging.getLogger("sockshare").exception("a bug")

class Late:
    __del__ = fail

async def body():
    loop = asyncio.get_running_loop()
    memory.watch(loop)
    {deed}
    gc.collect()
    await asyncio.sleep(20)

handler = logging.StreamHandler()
handler.addFilter(memory.NoMemory())
logging.basicConfig(handlers=[handler])
memory.limit()
asyncio.run(body())
"""


@pytest.mark.parametrize(
    "deed",
    [
        "loop.call_soon(fail)",
        "await caught()",
        "threading.Thread(target=fail).start()",
        "loop.run_in_executor(None, fail); await asyncio.sleep(0.1)",
        "Late()",
        "loop.create_task(asyncio.to_thread(fail)); await asyncio.sleep(0.1)",
        "memory.end_without(zmq_error)",
    ],
)
def test_broker_ends_wherever_it_gets_no_memory(deed: str) -> None:
    """In a callback, a task, a thread, where all is caught, where nothing can be raised, in libzmq: it says so."""
    deed = deed.replace("zmq_error", "__import__('zmq').ZMQError(12)")
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY.replace("{deed}", deed)], capture_output=True, text=True, timeout=15
    )
    assert "ends, for want of memory" in done.stderr, done.stderr
    assert done.returncode == 1


def test_peer_that_asks_for_too_much_is_told(serving: Stage) -> None:
    """What waits of one process is bounded: what is beyond is refused, with a sentence, here and in the log."""
    dialogue = door.Dialogue(str(serving.directory))
    try:
        sent = 0
        while not dialogue.socket.poll(0):
            sent = dialogue.send("status")
        answer: dict[str, Any] = {"id": 0, "ok": True}
        while answer["ok"] and answer["id"] < sent:
            assert dialogue.socket.poll(int(SOON * 1000))
            answer = json.loads(dialogue.socket.recv())
        assert f"too many requests of pid {os.getpid()}" in answer["message"]
        while answer["id"] < sent:  # its turn is over
            answer = json.loads(dialogue.socket.recv())
    finally:
        dialogue.close()
    assert f"pid {os.getpid()} (uid 0) asks for more" in serving.said()


def test_request_that_is_over_counts_no_more(serving: Stage) -> None:
    """One process may ask as often as it likes, one thing after the other, also for what is refused."""
    before = door.Dialogue(str(serving.directory))
    # What this process has asked for in other tests may wait still.
    wait_until(lambda: before.ask("status")["ok"], 20, "its requests are over")
    before.close()
    dialogue = door.Dialogue(str(serving.directory))
    try:
        for number in range(50):
            asked = dialogue.send("status" if number % 2 else "conjure")
            assert dialogue.socket.poll(int(SOON * 1000)), number
            answer = json.loads(dialogue.socket.recv())
            assert (answer["id"], answer["ok"]) == (asked, bool(number % 2))
    finally:
        dialogue.close()


def test_commands_are_answered_while_many_peers_ask_without_end(serving: Stage) -> None:
    """One peer for each operation, every second of them managed, of another user where we may be one; none of them
    reads an answer. Each question that is asked once meanwhile has its answer, and the broker grows by little."""
    uid = 65534 if os.geteuid() == 0 else None
    ask(serving)
    broker, before = serving.broker, resident(serving.broker)
    times = []
    with ExitStack() as stack:
        for number, op in enumerate(OPERATIONS):
            [pid] = stack.enter_context(hostile(serving, op, uid=uid))
            if number % 2:
                serving.verbs.managed[pid] = f"web_{pid}"
        until_then = time.monotonic() + 2
        while time.monotonic() < until_then:
            times.append(ask(serving))
    serving.verbs.managed.clear()
    print(f"\n{len(times)} answers, the slowest after {max(times):.2f} s")
    assert ask(serving) < SOON
    assert serving.broker == broker
    assert resident(broker) < before + 50 * 1024


@pytest.mark.soak
@pytest.mark.parametrize("managed", [False, True], ids=["stranger", "managed"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_command_is_answered_while_peers_ask_for_one_thing(serving: Stage, op: str, managed: bool) -> None:
    """As above, each operation alone."""
    with hostile(serving, op, count=2) as pids:
        if managed:
            serving.verbs.managed.update({pid: f"web_{pid}" for pid in pids})
        until_then = time.monotonic() + 3
        times = [ask(serving)]
        while time.monotonic() < until_then:
            times.append(ask(serving))
    serving.verbs.managed.clear()
    print(f"\n{op}: {len(times)} answers, the slowest after {max(times):.2f} s")
    assert ask(serving) < SOON


@contextmanager
def endpoint_at(path: str, answer: Callable[[Caller, Any, bytes], None]) -> Iterator[Endpoint]:
    """An endpoint in the running loop, which answers all users by *answer*."""
    endpoint = Endpoint(listeners.make(path, socket.SOCK_STREAM).detach(), path, (), answer)
    try:
        yield endpoint
    finally:
        asyncio.get_running_loop().remove_reader(endpoint._events)
        endpoint._socket.close(0)
        endpoint._context.term()


def test_message_is_not_forgotten_when_an_answer_can_not_be_sent(tmp_path: Path) -> None:
    """Sending takes the edge of what has come meanwhile, also where it fails (ZMQ_FD is edge-triggered)."""

    async def body() -> None:
        heard: asyncio.Queue[int] = asyncio.Queue()
        path = str(tmp_path / "broker")
        with (
            endpoint_at(path, lambda caller, request, data: heard.put_nowait(request.id)) as endpoint,
            zmq.Context() as context,
            context.socket(zmq.DEALER) as sock,
        ):
            sock.linger = 0
            sock.connect(f"ipc://{path}")
            for number in range(20):
                sock.send(json.dumps({"v": 1, "id": number, "op": "status"}).encode())
                # It has come, and the loop has not seen it.
                assert select.select([endpoint._events], [], [], 5)[0]
                assert not endpoint.reply(Caller(b"nobody", 1, 0, 0), {"ok": True})
                assert await asyncio.wait_for(heard.get(), 5) == number

    asyncio.run(body())


def test_reading_pauses_after_so_many_refusals(tmp_path: Path) -> None:
    """However many edges come meanwhile: others have the loop."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        path = str(tmp_path / "broker")
        refused: list[int] = []

        def refuse(caller: Caller, request: object, data: bytes) -> None:
            refused.append(caller.pid)
            endpoint.fail(caller, SockshareError("no"))

        with endpoint_at(path, refuse) as endpoint:
            many, over = threading.Event(), threading.Event()
            flooding = loop.run_in_executor(None, _flood, path, many, over)
            try:
                assert many.wait(20)
                began = loop.time()
                count = 0
                while count < 400:
                    for _ in range(20):
                        endpoint._readable()  # an edge
                    count = len(refused)
                    assert count <= _REFUSALS * (1 + (loop.time() - began) / _AFTER_REFUSALS), count
                    await asyncio.sleep(0.001)
            finally:
                over.set()
                await flooding

    asyncio.run(body())


def _flood(path: str, many: threading.Event, over: threading.Event) -> None:
    """Requests whose answers nobody reads, of ever new connections: each of them is an edge."""
    with zmq.Context() as context:
        asking: deque[zmq.Socket[bytes]] = deque()
        while not over.is_set() or asking:
            if not over.is_set():
                try:
                    asking.append(context.socket(zmq.DEALER))
                except zmq.ZMQError as error:  # those that were closed are not gone yet
                    if error.errno != errno.EMFILE:
                        raise
                    continue
                asking[-1].linger = 0
                asking[-1].connect(f"ipc://{path}")
                for _ in range(20):
                    with suppress(zmq.Again):
                        asking[-1].send(b'{"v":1,"id":1,"op":"status"}', zmq.NOBLOCK)
            if len(asking) > 50:
                many.set()
            if over.is_set() or len(asking) > 100:
                asking.popleft().close()


def test_who_speaks_the_first_zmtp_is_not_heard(tmp_path: Path) -> None:
    """It has no handshake, so its sender is unknown; and most random bytes are a greeting of it."""

    async def body() -> None:
        path = str(tmp_path / "broker")
        heard: list[bytes] = []
        with endpoint_at(path, lambda caller, request, data: heard.append(data)) as endpoint:
            reader, writer = await asyncio.open_unix_connection(path)
            request = b'{"v":1,"id":1,"op":"status"}'
            # The identity, which is empty, and a frame.
            writer.write(b"\x01\x00" + bytes([len(request) + 1, 0]) + request)
            with suppress(ConnectionError):
                while await asyncio.wait_for(reader.read(100), 5):
                    pass
            writer.close()
            assert not endpoint._socket.poll(0)
        assert not heard

    asyncio.run(body())


def test_all_who_ask_at_once_have_one_answer() -> None:
    """Who asks while one is made has the next, with all who ask meanwhile; a failure is that of those who waited."""

    async def body() -> None:
        made: list[asyncio.Future[int]] = []

        async def make() -> int:
            made.append(asyncio.get_running_loop().create_future())
            return await made[-1]

        async def turn() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        shared = Shared(make)
        first = [asyncio.ensure_future(shared.get()) for _ in range(3)]
        await turn()
        later = [asyncio.ensure_future(shared.get()) for _ in range(3)]
        await turn()
        later[0].cancel()  # which is nothing to the others
        assert len(made) == 1
        made[0].set_exception(OSError("a"))
        await turn()
        assert all(isinstance(one.exception(), OSError) for one in first)
        assert len(made) == 2
        made[1].set_result(2)
        assert await asyncio.gather(*later[1:]) == [2, 2]

    asyncio.run(body())
