"""Connections of a real process, ours, that is drained from outside."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from sockshare.broker import drain
from sockshare.broker.drain import Address, Drainer, Left
from sockshare.core.cost import Cost
from sockshare.kernel import processes, strike
from sockshare.kernel.connections import CLOSE_WAIT

TIMEOUT = 10.0


@contextmanager
def listening() -> Iterator[tuple[socket.socket, Address]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        yield listener, Address(int(listener.family), port, host)


def accepted(stack: ExitStack, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """The client's end of a connection, and the server's."""
    client = stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
    server = stack.enter_context(listener.accept()[0])
    server.settimeout(TIMEOUT)
    return client, server


async def until(condition: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TIMEOUT
    while not condition():
        assert loop.time() < deadline
        await asyncio.sleep(0.002)


def has_ended(server: socket.socket) -> bool:
    """Whether its server reads the end of file."""
    server.setblocking(False)
    try:
        return server.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    finally:
        server.settimeout(TIMEOUT)


def test_only_what_is_idle_is_ended() -> None:
    """A connection whose request is at work is left alone until its answer is there."""

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            _, idle = accepted(stack, listener)
            client, busy = accepted(stack, listener)
            client.sendall(b"request")
            assert busy.recv(100) == b"request"
            drainer = Drainer(os.getpid(), [address])
            drainer.end_idle()
            told: list[Left] = []
            drained: list[str] = []
            running = asyncio.ensure_future(drainer.run(told.append, drained.append))
            await until(lambda: has_ended(idle))
            idle.close()
            await until(lambda: told)  # about once a second: looked at a hundred times by now
            assert told[0] == Left(idle=0, busy=1)
            assert not has_ended(busy)
            busy.sendall(b"answer")
            assert client.recv(100) == b"answer"
            await until(lambda: has_ended(busy))
            busy.close()
            await until(lambda: drained)
            assert drained == ["no connection left"]
            drainer.stop()
            await asyncio.wait_for(running, TIMEOUT)

    asyncio.run(body())


def test_client_that_was_just_accepted_has_time_for_its_first_request() -> None:
    """A server that can't be suspended accepts during its drain; such a client has asked nobody before."""

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            drainer = Drainer(os.getpid(), [address])
            drainer.end_idle()
            looks: list[Left] = []
            running = asyncio.ensure_future(drainer.run(looks.append, lambda how: None))
            client, server = accepted(stack, listener)
            await until(lambda: drainer._watched)
            assert not has_ended(server)
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            _, silent = accepted(stack, listener)
            await until(lambda: has_ended(silent))  # in the end
            drainer.stop()
            await asyncio.wait_for(running, TIMEOUT)

    asyncio.run(body())


def test_connection_that_was_accepted_meanwhile_is_seen() -> None:
    """Descriptors are looked through now and then; and once more before it is said that nothing is left."""
    with ExitStack() as stack, listening() as (listener, address):
        drainer = Drainer(os.getpid(), [address])
        assert drainer._look()[0] == Left(0, 0)
        client, busy = accepted(stack, listener)
        client.sendall(b"request")
        assert busy.recv(100) == b"request"
        drainer.end_idle()
        assert drainer._look()[0] == Left(idle=0, busy=1)
        drainer._close()


def test_client_need_not_wait_for_a_server_that_leaves_an_ended_connection_open() -> None:
    """hypercorn reads no more, and closes five seconds later; one that has read a request is left alone."""

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            ended, _ = accepted(stack, listener)
            busy, server = accepted(stack, listener)
            drainer = Drainer(os.getpid(), [address])
            drainer.end_idle()
            drained: list[str] = []
            running = asyncio.ensure_future(drainer.run(lambda left: None, drained.append))
            await until(lambda: has_ended(server))
            busy.sendall(b"request")
            await until(lambda: server.recv(100) == b"request")
            await until(lambda: has_ended(ended))  # sees the end at the time when the other one would
            await asyncio.sleep(drain._CLOSES_WITHIN * 2)  # a span: nothing is to happen in it
            server.sendall(b"answer")
            assert busy.recv(100) == b"answer"
            await until(lambda: has_ended(busy))
            await until(lambda: drained)
            drainer.stop()
            await asyncio.wait_for(running, TIMEOUT)

    asyncio.run(body())


def test_next_request_does_not_hide_that_a_server_reads_no_more() -> None:
    """It has read one that came with the end, and the next one came before anybody had looked again."""
    with ExitStack() as stack, listening() as (listener, address):
        client, server = accepted(stack, listener)

        def ask() -> None:
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"

        def look_until(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + TIMEOUT
            while not condition():
                assert time.monotonic() < deadline
                drainer._look()

        ask()
        drainer = Drainer(os.getpid(), [address])
        stack.callback(drainer._close)
        drainer.end_idle()
        look_until(lambda: has_ended(server))
        ask()
        client.sendall(b"request")
        look_until(lambda: has_ended(client))


#: Accepts two connections, reads a request from each, answers the first, and ends when told how.
SERVER = """
import os, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
first, second = listener.accept()[0], listener.accept()[0]
first.recv(100), second.recv(100)
first.sendall(b"answer")
print("read", flush=True)
how = sys.stdin.readline().strip()
if how == "answers":
    second.sendall(b"answer")
if how != "dies":
    first.close(), second.close()
    print("closed", flush=True)
    sys.stdin.readline()
os._exit(0)
"""


def serving(stack: ExitStack, listener: socket.socket) -> subprocess.Popen[bytes]:
    """`SERVER` on *listener*; it is ended with *stack*."""
    server = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    stack.callback(server.kill)
    return server


@pytest.mark.parametrize(
    ("how", "may_hear", "cost"),
    [
        ("answers", True, Cost()),
        ("dies", True, Cost(cut=1)),
        ("closes", True, Cost(cut=1)),  # twisted does, and ends a while later
        ("leaves", True, Cost()),  # its client
        ("dies", False, "may have had a request in hand at the end, and to hear how they ended takes"),
        ("answers", False, "may have had a request in hand at the end, and to hear how they ended takes"),
    ],
)
def test_end_of_a_process_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, how: str, may_hear: bool, cost: Cost | str
) -> None:
    """A request without an answer is counted, whenever its connection was closed; never *none* where nobody can see."""

    def refuse(ports: object) -> None:
        raise PermissionError

    if not may_hear:
        monkeypatch.setattr(drain, "Ends", refuse)

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            server = serving(stack, listener)
            assert server.stdin is not None
            assert server.stdout is not None
            clients = [socket.create_connection(listener.getsockname(), TIMEOUT) for _ in range(2)]
            for client in clients:
                stack.enter_context(client).sendall(b"request")
            assert server.stdout.readline() == b"read\n"
            assert clients[0].recv(100) == b"answer"
            drainer = Drainer(server.pid, [address])
            running = asyncio.ensure_future(drainer.run(lambda left: None, lambda how: None))
            await until(lambda: len(drainer._watched) == 2)
            drainer.expect_stop()
            if how == "leaves":
                clients[1].close()
                await until(lambda: any(one.seen.state == CLOSE_WAIT for one in drainer._watched.values()))
            server.stdin.write(how.encode() + b"\n")
            server.stdin.flush()
            for client in clients if how != "leaves" else []:  # gone before anybody looks
                while client.recv(100):
                    pass
                client.close()
            server.stdin.close()
            server.wait(TIMEOUT)
            found = await drainer.cost()
            drainer.stop()
            await asyncio.wait_for(running, TIMEOUT)
            if isinstance(cost, str):
                assert cost in found.unseen
                assert found._replace(unseen="") == Cost()
            else:
                assert found == cost

    asyncio.run(body())


@pytest.mark.parametrize("how", ["answers", "dies"])
def test_request_that_came_between_the_last_look_and_the_end_is_not_called_answered(how: str) -> None:
    """Nobody has seen whose it was: what can't be seen is said, and an answered one costs nothing."""

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            server = serving(stack, listener)
            assert server.stdin is not None
            assert server.stdout is not None
            drainer = Drainer(server.pid, [address])
            stack.callback(drainer._looker.shutdown)
            stack.callback(drainer._close)
            drainer._look()
            clients = [socket.create_connection(listener.getsockname(), TIMEOUT) for _ in range(2)]
            for client in clients:
                stack.enter_context(client).sendall(b"request")
            assert server.stdout.readline() == b"read\n"
            server.stdin.write(how.encode() + b"\n")
            server.stdin.flush()
            for client in clients:
                while client.recv(100):
                    pass
            server.stdin.close()
            server.wait(TIMEOUT)
            found = await drainer.cost()
            assert found._replace(unseen="") == Cost()
            assert ("1 connection may have had a request in hand" in found.unseen) is (how == "dies"), found

    asyncio.run(body())


def test_request_of_another_process_that_ended_meanwhile_is_not_ascribed() -> None:
    """The new process has the same listener: what it was seen to have is not the old one's cost."""

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            server = stack.enter_context(subprocess.Popen([sys.executable, "-c", ""]))
            server.wait(TIMEOUT)
            drainer = Drainer(server.pid, [address])
            stack.callback(drainer._looker.shutdown)
            stack.callback(drainer._close)
            client, end = accepted(stack, listener)
            client.sendall(b"request")
            assert end.recv(100) == b"request"
            drainer._look()  # begins to listen
            drainer._look()
            end.close()
            assert client.recv(100) == b""
            client.close()
            assert (await drainer.cost()).unseen == ""

    asyncio.run(body())


def test_what_can_not_be_judged_is_not_called_none() -> None:
    """Of unix sockets the kernel counts nothing."""

    async def body() -> None:
        drainer = Drainer(os.getpid(), [])
        running = asyncio.ensure_future(drainer.run(lambda left: None, lambda how: None))
        assert await drainer.cost() == Cost(unseen="only TCP connections can be judged from outside")
        drainer.stop()
        await asyncio.wait_for(running, TIMEOUT)

    asyncio.run(body())


def test_process_that_nobody_has_looked_at_is_not_called_whole() -> None:
    """It ended at once: that nothing was seen of it says nothing."""

    async def body() -> None:
        with listening() as (_, address):
            drainer = Drainer(2**22 + 1, [address])
            assert await drainer.cost() == Cost(unseen="it ended before anybody had looked")
            drainer._looker.shutdown()

    asyncio.run(body())


def test_other_sockets_of_a_program_stay_unseen() -> None:
    """It has a unix socket beside the TCP one: that none of its TCP connections was cut is not all."""

    async def body() -> None:
        with listening() as (_, address):
            drainer = Drainer(os.getpid(), [address], unseen=drain.NO_TCP)
            assert drainer._look()[0] == Left(0, 0)
            assert await drainer.cost() == Cost(unseen="only TCP connections can be judged from outside")
            drainer._close()
            drainer._looker.shutdown()

    asyncio.run(body())


def test_what_may_not_be_looked_into_is_said_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's process: its connections are not none."""

    def refuse(pid: int) -> dict[int, int]:
        raise PermissionError(13, "Permission denied", f"/proc/{pid}/fd")

    monkeypatch.setattr(processes, "socket_descriptors", refuse)

    async def body() -> None:
        with listening() as (_, address):
            drainer = Drainer(os.getpid(), [address])
            drainer.end_idle()
            told: list[str] = []
            running = asyncio.ensure_future(drainer.run(lambda left: None, told.append))
            await until(lambda: told)
            why = f"the connections of pid {os.getpid()} can't be seen: that takes CAP_SYS_PTRACE"
            assert told == [f"not drained: {why}"]
            assert await drainer.cost() == Cost(unseen=why)
            drainer.stop()
            await asyncio.wait_for(running, TIMEOUT)

    asyncio.run(body())


def test_connections_that_can_not_be_ended_are_looked_at_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """To end one takes a tracer's rights, to look at it less: what the stop costs then can be seen."""

    def refuse(pid: int, fd: int) -> int:
        raise PermissionError(1, "can't duplicate it")

    monkeypatch.setattr(strike, "duplicate", refuse)

    async def body() -> None:
        with ExitStack() as stack, listening() as (listener, address):
            client, server = accepted(stack, listener)
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            drainer = Drainer(os.getpid(), [address])
            drainer.end_idle()
            told: list[str] = []
            running = asyncio.ensure_future(drainer.run(lambda left: None, told.append))
            await until(lambda: told)
            assert told == ["not drained: can't duplicate it"]
            assert drainer._watched
            assert (await drainer.cost()).unseen == ""
            drainer.stop()
            await asyncio.wait_for(running, TIMEOUT)

    asyncio.run(body())
