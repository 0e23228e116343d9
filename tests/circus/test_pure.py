"""What our patches of circus decide, without a circusd."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from circus_sockshare import configuration, on_demand, replacing  # isort: skip - first: what follows loads circusd
from circus.exc import MessageError
from circus.sockets import CircusSocket


def section(**keys: Any) -> dict[str, Any]:
    """``[socket:web]``, as circus reads it."""
    return {"name": "web", "host": "127.0.0.1", "port": "0", "so_reuseport": False, "replace": False, **keys}


@pytest.fixture
def held() -> Iterator[CircusSocket]:
    one = CircusSocket.load_from_config(section())
    one.bind_and_listen()
    yield one
    one.close()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, ""),
        ({"backlog": "77"}, ""),
        ({"backlog": "77k"}, "[socket:web]: ValueError: "),
        ({"blocking": "soon"}, "[socket:web]: ValueError: "),
        ({"family": "AF_FOO"}, "[socket:web]: KeyError: "),
        ({"path": "/nowhere/web.sock"}, "/nowhere is not there"),
        ({"path": "/"}, "it exists"),
    ],
)
def test_socket_that_circus_would_lose_is_refused(held: CircusSocket, keys: dict[str, str], said: str) -> None:
    """circus closes the old one first, and then meets what is wrong with the new one."""
    found = configuration._try_address(SimpleNamespace(sockets={"web": held}), section(**keys))
    assert (said in found) if said else not found
    assert held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_changes_in_place_touch_what_is_changed_only(held: CircusSocket) -> None:
    """The flag of a socket that our plugin has made blocking is every process's; one that is not bound stays so."""
    held.setblocking(True)  # by a key of the plugin's
    arbiter = SimpleNamespace(sockets={"web": held})
    configuration._take_socket(arbiter, section(backlog="77"))
    assert (held.backlog, held.getblocking()) == (77, True)
    configuration._take_socket(arbiter, section(backlog="77", blocking="True"))
    configuration._take_socket(arbiter, section(backlog="77"))
    assert not held.getblocking()
    each = CircusSocket.load_from_config(section(so_reuseport=True))
    configuration._take_socket(SimpleNamespace(sockets={"web": each}), section(so_reuseport=True, backlog="77"))
    assert not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    each.close()


def test_nobody_waits_on_a_socket_that_does_not_listen(held: CircusSocket) -> None:
    """poll(2) reports it all the same; one on which a client waits is named."""
    with CircusSocket.load_from_config(section()) as idle:
        arbiter = SimpleNamespace(sockets={"web": held, "idle": idle})
        assert on_demand._waiting(arbiter) == set()
        with socket.create_connection(held.getsockname()):
            assert on_demand._waiting(arbiter) == {"web"}


class Watcher:
    """One, as far as its numbers go."""

    def __init__(self, *, plugin: bool = True) -> None:
        self.name, self.numprocesses, self.processes = "web", 2, dict[int, Any]()
        ours = SimpleNamespace(name="plugin:sockshare", cmd="circus_sockshare.SockShare", is_stopped=lambda: not plugin)
        self.arbiter = SimpleNamespace(watchers=[ours], ctrl=SimpleNamespace(commands={"sockshare": None}))


def test_crash_is_the_reload_s_to_judge_until_all_replacements_are_over() -> None:
    """One of two that overlap is proven: the other is not yet."""
    watcher = Watcher()
    for pid in (1, 2):
        replacing.begin(watcher)
        replacing.on_probation(watcher, pid)
    assert replacing.settle(watcher, 3, 2, proven=True) == 3
    assert (set(replacing._probation), replacing.extra(watcher)) == ({1, 2}, 1)
    assert replacing.settle(watcher, 2, 2, proven=True) == 2
    assert (set(replacing._probation), replacing.extra(watcher)) == (set(), 0)


def test_reload_is_refused_only_while_somebody_is_there_to_end_the_other() -> None:
    """Our plugin may have been stopped in the middle, for good."""
    for plugin in (True, False):
        watcher = Watcher(plugin=plugin)
        replacing.begin(watcher)
        if plugin:
            with pytest.raises(MessageError, match="a sockshare reload of web is running"):
                replacing._refuse([watcher], "reload web")
        else:
            replacing._refuse([watcher], "reload web")
