"""What a command speaks to: the broker by its dialogue, or by another way, such as supervisord's XML-RPC."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sockshare.client import door, finding

if TYPE_CHECKING:
    from sockshare.client.dialogue import Answer, Dialogue, Question


class Connection(Protocol):
    """A broker that has been found, and what it says of itself."""

    @property
    def pid(self) -> int:
        """The broker's."""

    @property
    def state(self) -> str:
        """``serving``, or ``refused``: then it only has its mistakes to tell."""

    @property
    def mistakes(self) -> Sequence[str]:
        """Why the configuration was refused."""

    def check(self) -> None:
        """Raise the `SockshareError` that says why nothing would be answered."""

    def ask(self, op: str, **fields: object) -> dict[str, Any]:
        """Ask, and return the answer; see `client.dialogue.Dialogue.ask`."""

    def begin(self, op: str, **fields: object) -> Any:
        """Send a question, and return it, for `answer` and `repeat`."""

    def answer(self, question: Any, timeout: float) -> dict[str, Any] | None:
        """The next event of, or the answer to, *question*; None if there is none within *timeout* seconds."""

    def repeat(self, question: Any) -> None:
        """Send *question* again."""

    def probe(self) -> None:
        """Return when the broker lives; raises `NoBroker` if it does not come back."""

    def close(self) -> None:
        """Leave."""


#: A runtime directory; the way to another connection; or None: the broker is looked for.
Endpoint = str | Callable[[], Connection] | None


def connect(endpoint: Endpoint) -> Connection:
    """Find the broker of *endpoint*.

    Raises:
        NoBroker: There is none.
    """
    return endpoint() if callable(endpoint) else _Direct(finding.find(endpoint, command=True))


class _Direct:
    """The broker's own dialogue."""

    def __init__(self, found: finding.Found) -> None:
        self._found = found
        self._opened: Dialogue | None = None
        self.pid = found.greeting.pid
        self.state = found.greeting.state
        self.mistakes = found.greeting.mistakes

    @property
    def _dialogue(self) -> Dialogue:
        # Imported now: who goes another way needs no zmq.
        from sockshare.client.dialogue import Dialogue

        if self._opened is None:
            self._opened = Dialogue(self._found.directory)
        return self._opened

    def check(self) -> None:
        finding.check(self._found)

    def ask(self, op: str, **fields: object) -> Answer:
        return self._dialogue.ask(op, deadline=time.monotonic() + finding.PATIENCE, **fields)

    def begin(self, op: str, **fields: object) -> Question:
        return self._dialogue.begin(op, **fields)

    def answer(self, question: Question, timeout: float) -> Answer | None:
        return self._dialogue.answer(question, timeout)

    def repeat(self, question: Question) -> None:
        self._dialogue.repeat(question)

    def probe(self) -> None:
        door.hello(self._found.directory, time.monotonic() + finding.PATIENCE)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
