"""The dialogue with the broker: one ZeroMQ DEALER a process (docs/protocol.md).

A question that stays unanswered is asked again with the same id, so a broker that is killed and comes back costs its
clients milliseconds. One thread at a time may use a `Dialogue`; the process that made it is the only one that may.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import zmq

from sockshare.core.errors import NoBroker, ProtocolError, SockshareError

from .door import error_of

Answer = dict[str, Any]

#: The first wait for an answer before the question is sent again, and the longest, seconds.
RESEND_FIRST = 0.1
RESEND_LAST = 1.0
#: A status of very many holders is large; a broker that says more than this is broken, bytes.
_LARGEST_ANSWER = 16 * 1024 * 1024

_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class Dialogue:
    """A connection to the broker of *directory*, which need not be there yet.

    Args:
        directory: The broker's runtime directory.
        context: Whose ZeroMQ context to use; None: one of its own, ended by `close`.

    Raises:
        NoBroker: The path is too long for an ``AF_UNIX`` address (107 bytes, unix(7)).
        OSError: This process may open no more descriptors.
    """

    def __init__(self, directory: str, context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        self.directory = directory
        self._pid = os.getpid()
        self._last_id = 0
        self._receive_timeout = -1
        self._owned = context is None
        try:
            self._context = context or zmq.Context(1)
            try:
                self._socket = self._context.socket(zmq.DEALER)
            except BaseException:
                if self._owned:
                    self._context.term()
                raise
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"can't ask the broker: {error.strerror}") from None
        self._socket.setsockopt(zmq.LINGER, 0)
        # The default of 100 ms would be most of what a restart of the broker costs.
        self._socket.setsockopt(zmq.RECONNECT_IVL, 5)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST_ANSWER)
        try:
            self._socket.connect(f"ipc://{directory}/broker")
        except zmq.ZMQError as error:
            self.close()
            raise NoBroker(f"can't reach the broker at {directory}: {error.strerror}") from None

    def close(self) -> None:
        """End it. In a forked child this does nothing: the connection is the parent's."""
        # libzmq's threads do not follow a fork: its sockets are of no use in a child, and recv on one spins for ever.
        if os.getpid() != self._pid:
            return
        socket = getattr(self, "_socket", None)
        if socket is not None and not socket.closed:
            socket.close(0)
            if self._owned:
                self._context.term()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # the interpreter is ending
            pass

    def ask(self, op: str, *, deadline: float, **fields: object) -> Answer:
        """Ask, and wait for the answer until *deadline* (`time.monotonic`).

        Raises:
            NoBroker: No answer by then.
            ProtocolError: What came is no answer.
            SockshareError: The broker refused; the type is its word.
        """
        question = self.begin(op, **fields)
        wait = RESEND_FIRST
        while (left := deadline - time.monotonic()) > 0:
            answer = self.answer(question, min(wait, left))
            if answer is None:
                self.repeat(question)
                wait = min(wait * 2, RESEND_LAST)
            elif "ok" in answer:
                return checked(answer)
        raise NoBroker(f"can't ask the broker at {self.directory} for {op!r}: no answer in time; see its log")

    def begin(self, op: str, **fields: object) -> Question:
        """Send a question, and return it, for `answer` and `repeat`."""
        if os.getpid() != self._pid:
            raise SockshareError(
                f"can't ask the broker: pid {self._pid} attached, not its fork {os.getpid()}; attach again"
            )
        self._last_id += 1
        return self.begin_as(self._last_id, op, **fields)

    def begin_as(self, number: int, op: str, **fields: object) -> Question:
        """Send a question whose id is *number*, which an earlier one had that said the same in other words."""
        question = Question(number, _encode({"v": 1, "id": number, "op": op, **fields}).encode())
        self.repeat(question)
        return question

    def repeat(self, question: Question) -> None:
        """Send *question* again, with the same id."""
        try:
            self._socket.send(question.data, zmq.NOBLOCK)
        except zmq.Again:
            pass  # a thousand of them wait already

    def answer(self, question: Question, timeout: float) -> Answer | None:
        """The next event of, or the answer to, *question*; None if there is none within *timeout* seconds.

        Raises:
            ProtocolError: What came is no answer.
        """
        deadline = time.monotonic() + timeout
        wait = timeout
        while wait >= 0:
            data = self._receive(max(1, round(wait * 1000)))
            if data is None:
                return None
            answer = self._understood(data)
            # What is left over from a question that was given up, or asked twice, is dropped.
            if answer.get("id") == question.id:
                return answer
            wait = deadline - time.monotonic()
        return None

    def heard(self) -> Answer | None:
        """The next event of, or the answer to, any question, if one has come.

        Raises:
            ProtocolError: What came is no answer.
        """
        try:
            return self._understood(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The DEALER, for a poller."""
        return self._socket

    def handshakes(self) -> zmq.Socket[bytes]:
        """A socket that has a message for each broker that has begun to answer (zmq_socket_monitor(3)).

        It is the caller's to close, before this.
        """
        return self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)

    def _understood(self, data: bytes) -> Answer:
        try:
            answer = _decode(data.decode())
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ProtocolError(f"can't understand the broker at {self.directory}: it says {data[:60]!r}")
        return answer

    def _receive(self, milliseconds: int) -> bytes | None:
        if milliseconds != self._receive_timeout:
            self._socket.setsockopt(zmq.RCVTIMEO, milliseconds)
            self._receive_timeout = milliseconds
        try:
            return self._socket.recv()
        except zmq.Again:
            return None


class Question:
    """A question that was sent."""

    __slots__ = ("data", "id")

    def __init__(self, id: int, data: bytes) -> None:
        self.id = id
        self.data = data


def checked(answer: Answer) -> Answer:
    """The *answer*, unless it is a refusal, which is raised as the error that it names."""
    if answer["ok"] is not True:
        raise error_of(answer)
    return answer
