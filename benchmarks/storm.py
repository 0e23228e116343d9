"""A thousand clients of the broker at once: processes with many connections each, speaking the protocol themselves.

A thousand Pythons would measure this machine's memory; what the broker sees is the same: a thousand ZeroMQ connections,
and a connection at the door for each hand-out.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import zmq

from benchmarks import figures
from sockshare.kernel import descriptors

# One process may have 64 tickets: those asked for, and those whose acknowledgement the broker has not read yet.
PROCESSES, CLIENTS = 40, 25
HAND_OUTS = 20  # of each client, after its first
TIMEOUT = 60  # s for a child to do all of it; then SIGALRM ends it


class Moments(NamedTuple):
    """When something was over in one child, `time.monotonic`."""

    answered: float
    redeemed: float
    done: float


class Swarm:
    """Many connections of one process, served in one loop."""

    def __init__(self, directory: str) -> None:
        self.door = os.path.join(directory, "door")
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.poller = zmq.Poller()
        self.sockets: list[zmq.Socket[bytes]] = []
        for _ in range(CLIENTS):
            dealer = self.context.socket(zmq.DEALER)
            dealer.linger = 0
            self.sockets.append(dealer)
            self.poller.register(dealer, zmq.POLLIN)
        self.address = f"ipc://{directory}/broker"
        self.last_id = 0

    def connect(self) -> None:
        """Connect all, at once."""
        for dealer in self.sockets:
            dealer.connect(self.address)

    def ask(self, dealer: zmq.Socket[bytes], op: str, **fields: object) -> None:
        """Send a question."""
        self.last_id += 1
        dealer.send(json.dumps({"v": 1, "id": self.last_id, "op": op, **fields}).encode())

    def each(self, op: str, then: Callable[[dict[str, str]], None], rounds: int = 1, **fields: object) -> None:
        """Ask on every connection *rounds* times, one after the other on each; *then* takes every answer."""
        left = dict.fromkeys(self.sockets, rounds)
        for dealer in self.sockets:
            self.ask(dealer, op, **fields)
        waiting = len(left)
        while waiting:
            for dealer, _ in self.poller.poll():
                answer = json.loads(dealer.recv())
                if answer["ok"] is not True:
                    raise RuntimeError(answer["message"])
                then(answer)
                left[dealer] -= 1
                if left[dealer]:
                    self.ask(dealer, op, **fields)
                else:
                    waiting -= 1

    def redeem(self, answer: dict[str, str]) -> None:
        """Show the ticket at the door, and close what comes."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(self.door)
            sock.send(b"R" + bytes.fromhex(answer["ticket"]))
            data, fds = descriptors.receive(sock, 4096, 1)
            if len(fds) != 1:
                raise RuntimeError(f"no descriptor: {data!r}")
            sock.send(b"A")
            os.close(fds[0])


def child(directory: str, go: int, result: int) -> None:
    """One process of many: begin when the pipe *go* ends; write the moments to *result*."""
    signal.alarm(TIMEOUT)
    swarm = Swarm(directory)
    os.write(result, b"ready\n")
    os.read(go, 1)
    tickets: list[dict[str, str]] = []
    swarm.connect()
    swarm.each("ticket", tickets.append, socket="web")
    answered = time.monotonic()
    for ticket in tickets:
        swarm.redeem(ticket)
    redeemed = time.monotonic()
    swarm.each("ticket", swarm.redeem, HAND_OUTS, socket="web")
    os.write(result, json.dumps(Moments(answered, redeemed, time.monotonic())).encode() + b"\n")


def run(directory: str, broker: int) -> dict[str, float]:
    """Let the storm loose on the broker of *directory*, from below a managed process.

    Raises:
        RuntimeError: A child failed; its reason is on stderr.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    go, let_go = os.pipe()
    pids, pipes = [], []
    try:
        for _ in range(PROCESSES):
            outcome, result = os.pipe()
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    os.close(let_go)
                    child(directory, go, result)
                    status = 0
                except Exception as error:
                    os.write(2, f"storm: {type(error).__name__}: {error}\n".encode())
                finally:
                    os._exit(status)
            os.close(result)
            pids.append(pid)
            pipes.append(os.fdopen(outcome))
        if any(pipe.readline() != "ready\n" for pipe in pipes):
            raise RuntimeError("a child did not start")
        before, start = figures.cpu_seconds(broker), time.monotonic()
        os.close(let_go)
        let_go = -1
        lines = [pipe.readline() for pipe in pipes]
        used = figures.cpu_seconds(broker) - before
    finally:
        if let_go >= 0:
            os.close(let_go)
        os.close(go)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            os.waitpid(pid, 0)
        for pipe in pipes:
            pipe.close()
    if not all(lines):
        raise RuntimeError("a child failed")
    moments = [Moments(*json.loads(line)) for line in lines]
    return {
        "first": max(one.answered for one in moments) - start,
        "first_descriptor": max(one.redeemed for one in moments) - start,
        "seconds": max(one.done for one in moments) - start,
        "cpu": used,
        "hand_outs": PROCESSES * CLIENTS * (1 + HAND_OUTS),
    }
