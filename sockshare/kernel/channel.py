"""A private channel between two processes of ours: JSON lines with descriptors (docs/protocol.md, the link)."""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from sockshare.core.errors import ProtocolError

from .descriptors import MOST, Truncated, close_all, receive, send

Message = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":")).encode
#: A line longer than this is garbage.
_LONGEST_LINE = 4 * 1024 * 1024
#: So many bytes are enough for one `receive`: less than a hundred messages, some milliseconds of a host's loop.
_ENOUGH = 4096


class Channel:
    """One end of a connected ``AF_UNIX`` stream socket, which becomes non-blocking and this object's to close."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._received = bytearray()
        self._descriptors: deque[int | None] = deque()  # None: as many as a message carries, which were lost
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self.unsent = 0  # bytes that wait for the socket to become writable
        self.more = False  # whether the last `receive` ended before there was nothing left to read

    def fileno(self) -> int:
        """The descriptor to watch; -1 once closed."""
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the socket to become writable; then `flush`."""
        return bool(self._unsent)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send *message*, with duplicates of *fds*; what the socket does not take now waits for `flush`.

        *fds* must stay open until `wants_write` is false.

        Raises:
            OSError: The other end is gone.
        """
        if fds:
            message = {**message, "fds": len(fds)}
        line = _encode(message).encode() + b"\n"
        self.unsent += len(line)
        # Descriptors travel with the first bytes of their line: they never arrive later than what counts them.
        for start in range(0, len(fds), MOST):
            self._unsent.append((line[:1] if start + MOST < len(fds) else line, fds[start : start + MOST]))
            if start + MOST < len(fds):
                line = line[1:]
        if not fds:
            self._unsent.append((line, ()))
        self.flush()

    def send_line(self, line: bytes) -> None:
        """As `send`, of a message that is encoded already, with its newline."""
        self.unsent += len(line)
        self._unsent.append((line, ()))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it.

        Raises:
            OSError: The other end is gone.
        """
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                if fds:
                    # One byte carries the descriptors: a short write can then never separate or repeat them.
                    send(self._sock, data[:1], fds)
                    sent = 1
                else:
                    sent = self._sock.send(data)
            except BlockingIOError:
                return
            self.unsent -= sent
            if sent < len(data):
                self._unsent[0] = (data[sent:], ())
            else:
                self._unsent.popleft()

    def receive(self) -> list[tuple[Message, list[int]]]:
        """The whole messages that have arrived, each with its descriptors, which are the caller's to close.

        One whose descriptors this process had no room for comes without any: its "fds" counts more than there are.

        Of very many the first, which `more` tells; the socket stays readable.

        Raises:
            EOFError: The other end is gone, and all that it said was returned before.
            ProtocolError: A line is no JSON object, or counts descriptors that did not come: the channel is of no use.
        """
        ended, read, self.more = False, 0, False
        # An end to it, also where the other writes as fast as we read: the loop of a host is not ours alone.
        while not self.more:
            try:
                data, fds = receive(self._sock, _ENOUGH, MOST)
                self._descriptors.extend(fds)
            except BlockingIOError:
                break
            except Truncated as error:
                data = error.data
                self._descriptors.append(None)
            except ConnectionError:
                ended = True
                break
            if not data:
                ended = True
                break
            self._received += data
            read += len(data)
            self.more = read >= _ENOUGH
        messages = []
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            messages.append(self._decode(line))
        if len(self._received) > _LONGEST_LINE:
            raise ProtocolError(f"can't read the link: a line of more than {_LONGEST_LINE} bytes")
        if ended and not messages:
            raise EOFError
        return messages

    def _decode(self, line: bytes) -> tuple[Message, list[int]]:
        try:
            message = json.loads(line)
        except ValueError:
            raise ProtocolError("can't read the link: a line is not JSON") from None
        if not isinstance(message, dict):
            raise ProtocolError("can't read the link: a line is not an object")
        count = message.get("fds", 0)
        if not isinstance(count, int):
            raise ProtocolError(f"can't read the link: {count!r} is no number of descriptors")
        fds: list[int] = []
        came = 0
        while came < count and self._descriptors:
            fd = self._descriptors.popleft()
            if fd is not None:
                fds.append(fd)
            came += 1 if fd is not None else min(MOST, count - came)
        if len(fds) == count:
            return message, fds
        close_all(fds)
        if came != count:
            raise ProtocolError(f"can't read the link: {count} descriptors were announced, {came} came")
        return message, []

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        close_all(fd for fd in self._descriptors if fd is not None)
        self._descriptors.clear()
        self._unsent.clear()
        self._sock.close()
