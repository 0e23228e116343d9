"""Bugs of `sockshare.client`."""

from __future__ import annotations

from ..mutant import Kind, mutant

_CLIENT, _TESTS = "sockshare/client", "tests/client"
_GIVING, _TAKING, _EXCHANGE, _SYNC = (f"{_CLIENT}/{name}.py" for name in ("giving", "taking", "exchange", "sync"))

CLIENT = (
    mutant(
        "client: giver leaves without WITHDRAW",
        _GIVING,
        "            self._perform(outlet, outlet.giving.withdraw(list(outlet.transfers)))\n",
        "",
        f"{_TESTS}/test_lane_ends.py",
        felt="a connection that was on its way when its giver closed has two owners",
        kind=Kind.OWNERSHIP,
    ),
    mutant(
        "client: exception leaves the offer open",
        _EXCHANGE,
        "                for one in transfers:\n                    self.giver.withdraw(one)\n            raise\n",
        "                pass\n            raise\n",
        f"{_TESTS}/test_lane_ends.py",
        felt="a connection whose hand_over was interrupted has two owners",
        kind=Kind.OWNERSHIP,
    ),
    mutant(
        "client: copy of a given connection stays open",
        _GIVING,
        "                    close_all(fd for fd in (transfer.connection.detach(),) if fd >= 0)\n",
        "                    transfer.connection.detach()\n",
        f"{_TESTS}/test_lane_ends.py",
        felt="clients never see the end of a connection that was handed over",
        kind=Kind.OWNERSHIP,
    ),
    mutant(
        "client: garbage counts as the giver's death",
        _TAKING,
        "            # Not the end of a giver: what it has not committed stays its own.\n            self._close(inlet)",
        "            self._feed(inlet, Ended())\n            self._close(inlet)",
        f"{_TESTS}/test_lane_ends.py",
        felt="a connection of a giver that lives is taken",
        kind=Kind.OWNERSHIP,
    ),
    mutant(
        "client: fork withdraws its parent's connections",
        _EXCHANGE,
        "        self.giver.forget()\n",
        "        self.giver.close()\n",
        f"{_TESTS}/test_lane_ends.py",
        felt="a fork takes back what its parent is handing over",
        kind=Kind.OWNERSHIP,
    ),
    mutant(
        "client: what was undecided leaks",
        _TAKING,
        "        lanes.drop_all(inlet.arrivals.values())\n        inlet.arrivals.clear()\n        inlet.taking.feed(Withdrawn",
        "        inlet.arrivals.clear()\n        inlet.taking.feed(Withdrawn",
        f"{_TESTS}/test_lane_ends.py",
        felt="a receiver loses descriptors to each giver that breaks",
    ),
    mutant(
        "client: half-refused redeem leaks",
        f"{_CLIENT}/door.py",
        "        close_all(fd for _, fd in redeemed)\n",
        "        pass\n",
        f"{_TESTS}/test_door.py",
        felt="a process keeps sockets open that it was refused",
    ),
    mutant(
        "client: broker of another manager",
        f"{_CLIENT}/finding.py",
        "            if command and not _is_young(manager.pid):",
        "            if not _is_young(0 or manager.pid) or not command:",
        f"{_TESTS}/test_finding.py::test_broker_of_another_manager_is_never_taken",
        felt="a program is given the sockets of another circusd",
        kind=Kind.AUTHORIZATION,
    ),
    mutant(
        "client: flags of the shared socket are changed",
        _SYNC,
        "        sock = sockets_of_python.socket(domain, kind, protocol)\n        try:\n            sock.setblocking(os.get_blocking(fd))\n",
        "        sock = sockets_of_python.socket(domain, kind, protocol)\n        try:\n            os.set_blocking(fd, True)\n            sock.setblocking(os.get_blocking(fd))\n",
        f"{_TESTS}/test_sync.py::test_shared_flags_are_unchanged_when_socket_is_made",
        felt="all processes of the program hang in accept",
    ),
    mutant(
        "client: ticket of a dead broker is final",
        _SYNC,
        "                if attempt == _TICKETS:\n                    raise\n",
        "                raise\n",
        f"{_TESTS}/test_sync.py::test_socket_is_handed_out_when_broker_dies_in_between",
        felt="a start fails when the broker is killed in its middle",
    ),
    mutant(
        "client: fork speaks for its parent",
        f"{_CLIENT}/dialogue.py",
        "        if os.getpid() != self._pid:\n            raise SockshareError",
        "        if self._pid < 0:\n            raise SockshareError",
        f"{_TESTS}/test_sync.py::test_clear_error_is_raised_when_a_fork_asks_on_an_inherited_connection",
        felt="a forked child hangs, or has its parent's answers",
    ),
    mutant(
        "client: fork holds its parent's registration",
        f"{_CLIENT}/registration.py",
        "        if os.getpid() != self._pid:\n            raise RegistrationLost",
        "        if self._pid < 0:\n            raise RegistrationLost",
        f"{_TESTS}/test_registration.py::test_registration_is_not_held_by_a_fork",
        felt="two processes accept on an exclusive socket",
    ),
    mutant(
        "client: held registration is released as if it waited",
        f"{_CLIENT}/claims.py",
        "        return self.epoch if holds else 0\n",
        "        return 0\n",
        f"{_TESTS}/test_registration.py::test_next_one_holds_when_the_holder_leaves",
        felt="the next process in line waits until the holder ends",
    ),
)
