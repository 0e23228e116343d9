"""circusd's sockets on their way to the plugin: real sockets and descriptors, in one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from circus.exc import MessageError

from circus_sockshare import descriptors
from circus_sockshare.circusd import Circusd, Refusal
from circus_sockshare.inherited import Inherited
from sockshare.kernel import listeners
from sockshare.kernel.directory import Directory


class Manager:
    """circusd, as far as its sockets go; asked, it does what our command inside it does."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.refusal: Refusal | None = None

    def told(self) -> list[dict[str, Any]]:
        """What it says of its sockets."""
        return [
            {"name": name, "inode": listeners.inode(sock.fileno()), "so_reuseport": False}
            for name, sock in self.sockets.items()
        ]

    def ask(self, done: Callable[[dict[str, Any]], None], refused: Callable[[Refusal], None], **fields: Any) -> None:
        """See `Circusd.ask`."""
        assert fields["op"] == "send"
        if self.refusal is not None:
            refused(self.refusal)
            return
        held = {name: SimpleNamespace(name=name, fileno=sock.fileno) for name, sock in self.sockets.items()}
        descriptors.send(SimpleNamespace(sockets=held), fields["names"], fields["to"])
        done({})


@pytest.fixture
def manager() -> Iterator[Manager]:
    one = Manager()
    yield one
    for sock in one.sockets.values():
        sock.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    one = Directory(str(tmp_path))
    yield one
    one.close()


def fetch(inherited: Inherited, manager: Manager, directory: Directory) -> Sequence[str]:
    """Fetch what is missing; the names that are there then."""
    over: list[bool] = []
    inherited.fetch(cast(Circusd, manager), directory, manager.told(), lambda: over.append(True))
    assert over == [True]
    assert os.listdir(directory.path) == []
    return sorted(inherited)


def test_sockets_that_come_later_are_the_very_same(manager: Manager, directory: Directory) -> None:
    """Hundreds of them, each under its name by its inode, close-on-exec; what we have is not sent again."""
    with ExitStack() as stack:
        inherited = Inherited()
        manager.sockets["first"] = stack.enter_context(socket.socket())
        inherited.take(manager.told(), [os.dup(manager.sockets["first"].fileno())])
        for number in range(450):
            manager.sockets[f"s{number}"] = stack.enter_context(socket.socket())
        assert len(inherited.missing(manager.told())) == 450
        before = len(os.listdir("/proc/self/fd"))
        assert fetch(inherited, manager, directory) == sorted(manager.sockets)
        assert len(os.listdir("/proc/self/fd")) == before + 450
        for name, sock in inherited.items():
            assert listeners.inode(sock.fileno()) == listeners.inode(manager.sockets[name].fileno())
            assert not sock.get_inheritable()
            stack.callback(sock.close)


def test_another_socket_under_the_same_name_is_another_socket(manager: Manager, directory: Directory) -> None:
    """And two that have exchanged their names are told apart."""
    for name in ("a", "b"):
        manager.sockets[name] = socket.create_server(("127.0.0.1", 0))
    inherited = Inherited()
    fetch(inherited, manager, directory)
    assert inherited.drop(manager.told()) == []
    manager.sockets["a"].close()
    manager.sockets["a"] = manager.sockets.pop("b")
    manager.sockets["b"] = socket.create_server(("127.0.0.1", 0))
    gone = inherited.drop(manager.told())
    assert (len(gone), sorted(inherited)) == (2, [])
    for sock in gone:
        sock.close()
    fetch(inherited, manager, directory)
    for name, sock in inherited.items():
        assert sock.getsockname() == manager.sockets[name].getsockname()
        sock.close()


def test_what_circusd_does_not_send_is_not_asked_for_again(manager: Manager, directory: Directory) -> None:
    """Unless it only had no time: an older circusd would be asked at each look."""
    manager.sockets["a"] = socket.create_server(("127.0.0.1", 0))
    inherited = Inherited()
    for refusal, missing in ((Refusal("late", 0, passing=True), ["a"]), (Refusal("unknown", 2, passing=False), [])):
        manager.refusal = refusal
        assert fetch(inherited, manager, directory) == []
        assert inherited.missing(manager.told()) == missing


def test_circusd_says_why_it_can_t_send(manager: Manager, tmp_path: Path) -> None:
    """In a sentence, as to any command."""
    with pytest.raises(MessageError, match=r"can't send sockets to .*: No such file"):
        descriptors.send(SimpleNamespace(sockets={}), [], str(tmp_path / "gone"))
