"""Registrations of programs that use the library: claimed, held, revoked, released, across brokers that are killed."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sockshare
from sockshare import Registration

from .gatehost import GateHost
from .host import TIMEOUT, descriptors
from .test_sync import in_child


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GateHost]:
    """A host without a broker yet; afterwards this process has the descriptors that it had."""
    host = GateHost(tmp_path / "run")
    before = descriptors()
    try:
        yield host
        host.kill()
        assert descriptors() == before
    finally:
        host.close()


def attach(host: GateHost, timeout: float = TIMEOUT) -> sockshare.Share:
    """A claimant: the broker of these tests does not mind that they are all of one process."""
    return sockshare.attach(str(host.directory), timeout)


@contextmanager
def client(host: GateHost, name: str = "web") -> Iterator[socket.socket]:
    """A connection that waits on a socket."""
    with socket.create_connection(host.sockets[name].getsockname(), timeout=TIMEOUT) as sock:
        yield sock


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


class Waiter:
    """Enters a block in a thread of its own, and stays there until told to leave."""

    def __init__(self, share: sockshare.Share, timeout: float | None = None) -> None:
        self.held = threading.Event()
        self.error: Exception | None = None
        self.registration: Registration | None = None
        self._leave = threading.Event()
        self._share, self._timeout = share, timeout
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._share.registration("web", self._timeout) as self.registration:
                self.held.set()
                assert self._leave.wait(TIMEOUT)
        except Exception as error:
            self.error = error

    def leave(self) -> None:
        """Leave the block; the error, if one was raised, is raised."""
        self._leave.set()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def test_program_hears_of_what_waits_while_it_holds(host: GateHost) -> None:
    """The registration is readable when something waits, and only while it is held; its epoch is a number."""
    host.start()
    with attach(host) as share, share.registration("web") as registration:
        listener = share.socket("web")
        assert registration.epoch > 0
        assert not registration.revoked.is_set()
        assert not registration.waiting()
        with client(host):
            assert select.select([registration], [], [], TIMEOUT)[0]
            assert registration.waiting()
            listener.accept()[0].close()
            assert not registration.waiting()
        registration.wait()  # it is held: at once
    assert registration.fileno() == -1
    assert not registration.waiting()
    assert registration.revoked.is_set()
    with pytest.raises(sockshare.RegistrationLost, match="released"):
        _ = registration.epoch
    with pytest.raises(sockshare.RegistrationLost, match="released"):
        registration.wait()
    registration.release()


def test_what_is_taken_is_tallied_where_turns_are_taken(host: GateHost) -> None:
    """Each time the program was told to take something, and never else; also to the next broker."""
    host.start(tally=True)
    with attach(host) as share, share.registration("web") as registration:
        key = host.wait_for("tallies")
        listener = share.socket("web")

        def take(count: int) -> str:
            for _ in range(count):
                assert not registration.waiting()
                with client(host):
                    assert select.select([registration], [], [], TIMEOUT)[0]
                    assert registration.waiting()
                    listener.accept()[0].close()
            host.give("tally")
            return host.wait_for("taken")

        until(lambda: registration.claim.tally is not None, "it has its tally")
        assert take(3) == "3"
        assert take(0) == "0"
        host.kill()
        host.start(tally=True)
        assert host.wait_for("tallies") == key
        until(lambda: take(1) == "1", "the next broker's is used")
        assert take(2) == "2"


def test_datagrams_are_told_as_connections_are(host: GateHost) -> None:
    """A socket of datagrams has a registration too."""
    host.start()
    with attach(host) as share, share.registration("udp") as registration:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"1", host.sockets["udp"].getsockname())
        assert select.select([registration], [], [], TIMEOUT)[0]
        assert share.socket("udp").recv(10) == b"1"


def test_next_one_holds_when_the_holder_leaves(host: GateHost) -> None:
    """In line order; each hold has a larger epoch; who waits hears of nothing."""
    host.start()
    with attach(host) as one, attach(host) as other:
        with one.registration("web") as first:
            epoch = first.epoch
            waiter = Waiter(other)
            host.wait_for("waiting")
            host.wait_for("waiting")
            assert not waiter.held.is_set()
            with client(host):
                assert first.waiting()
        assert waiter.held.wait(TIMEOUT)
        assert waiter.registration is not None
        assert waiter.registration.epoch > epoch
        waiter.leave()


def test_claim_is_withdrawn_when_its_time_is_over(host: GateHost) -> None:
    """TimeoutError, and the one behind it is the next."""
    host.start()
    with attach(host) as one, attach(host) as impatient, attach(host) as other:
        with one.registration("web"):
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=r"'web': not within 0\.2 s"), impatient.registration("web", 0.2):
                raise AssertionError("it was not held")
            assert time.monotonic() - began < TIMEOUT
            assert json.loads(host.wait_for("release"))["epoch"] == 0
            waiter = Waiter(other)
            host.wait_for("waiting")
        assert waiter.held.wait(TIMEOUT)
        waiter.leave()
        with impatient.registration("web"):
            pass


def test_grant_that_crosses_the_withdrawal_is_given_back(host: GateHost) -> None:
    """Granted in the moment in which it gives up waiting, a claim is released with the epoch of that grant."""
    host.start(slip=True)
    host.wait_for("up")
    host.order("hold")
    with attach(host) as one, attach(host) as other:
        with pytest.raises(TimeoutError), one.registration("web", 0.1):
            raise AssertionError("it was not held")
        assert host.wait_for("kept") == "0"
        assert int(host.wait_for("released")) > 0
        host.order("go")
        with other.registration("web"):
            pass


def test_revoked_registration_is_silent_and_may_be_held_again(host: GateHost) -> None:
    """`revoked` is set and cleared, `wait` waits, and there is nothing to do meanwhile."""
    host.start()
    with attach(host) as share, share.registration("web") as registration:
        first = registration.epoch
        host.order("revoke web")
        assert registration.revoked.wait(TIMEOUT)
        with client(host):
            assert not select.select([registration], [], [], 0.05)[0]
            assert not registration.waiting()
            with pytest.raises(sockshare.RegistrationLost, match="not held now"):
                _ = registration.epoch
            with pytest.raises(TimeoutError):
                registration.wait(0.05)
            host.order("go")
            registration.wait(TIMEOUT)
            assert not registration.revoked.is_set()
            assert registration.epoch > first
            assert registration.waiting()


def test_revoked_one_leaves_the_line_when_it_is_released(host: GateHost) -> None:
    """With no epoch, as it holds none; it is not granted to it afterwards."""
    host.start()
    with attach(host) as share, attach(host) as other:
        with share.registration("web") as registration:
            host.order("revoke web")
            assert registration.revoked.wait(TIMEOUT)
        assert host.wait_for("released") == "0"
        waiter = Waiter(other)
        host.wait_for("waiting")
        host.order("go")
        assert waiter.held.wait(TIMEOUT)
        waiter.leave()


def test_cancelled_registration_is_lost_for_good(host: GateHost) -> None:
    """As a Winsock program whose former registration a new one cancels: it is told, and may claim anew."""
    host.start()
    with attach(host) as share:
        with share.registration("web") as registration:
            host.order("cancel web")
            assert registration.revoked.wait(TIMEOUT)
            with pytest.raises(sockshare.RegistrationLost, match="another process has registered"):
                registration.wait()
            with pytest.raises(sockshare.RegistrationLost, match="another process has registered"):
                _ = registration.epoch
            with client(host):
                assert registration.fileno() >= 0  # whoever watches it takes it out first
                assert not registration.waiting()
        assert registration.fileno() == -1
        with share.registration("web") as again:
            assert again is not registration
            assert again.epoch > 0


def test_holder_serves_on_when_the_broker_is_killed(host: GateHost) -> None:
    """Without a broker too, twenty times; each next one hears of the claim at once, and the epoch stays."""
    host.start()
    with attach(host) as share, share.registration("web") as registration:
        listener, epoch = share.socket("web"), registration.epoch
        for _ in range(20):
            host.kill()
            host.said()
            with client(host):
                assert select.select([registration], [], [], TIMEOUT)[0]
                listener.accept()[0].close()
            host.start()
            asked = json.loads(host.wait_for("claim"))
            assert asked["gate"] is True
            host.wait_for("held")
            with client(host):
                assert select.select([registration], [], [], TIMEOUT)[0]
                listener.accept()[0].close()
            assert registration.epoch == epoch
            assert not registration.revoked.is_set()


def test_gate_is_brought_back_when_the_broker_has_lost_it(host: GateHost) -> None:
    """The very one that the program watches: what the next broker does with it, it sees; killed meanwhile, again."""
    host.start()
    with attach(host) as share, share.registration("web") as registration:
        number = registration.fileno()
        for moment in ("", "present"):
            host.kill()
            if moment:
                host.start(lost=True, exit_at=moment)
                host.wait_dead()
                host.kill()
            host.start(lost=True)
            host.wait_for("presented")
            host.wait_for("held")
            assert registration.fileno() == number
            host.order("revoke web")
            assert registration.revoked.wait(TIMEOUT)
            with client(host):
                assert not registration.waiting()
                host.order("go")
                registration.wait(TIMEOUT)
                assert registration.waiting()
                share.socket("web").accept()[0].close()


@pytest.mark.parametrize("error", ["ManagerSilent", "BadConfiguration"])
def test_what_is_held_stays_held_while_a_broker_refuses_to_listen(host: GateHost, error: str) -> None:
    """circusd is busy, or somebody has made a mistake in its configuration: that passes, and a release waits for it."""
    refusal = {"error": error, "message": "can't", "exit": 1}
    host.start()
    host.wait_for("up")
    with attach(host, 2.0) as share:
        waiter = Waiter(share)
        assert waiter.held.wait(TIMEOUT)
        for op in ("claim", "release"):
            host.kill()
            host.start(errors={op: refusal})
            if op == "release":
                waiter.leave()
            for _ in range(2):
                host.wait_for(op)
            assert waiter.registration is not None
            assert waiter.registration.held
        host.kill()
        host.start()
        assert int(host.wait_for("released")) > 0
        until(lambda: waiter.registration.fileno() == -1, "it is over")  # type: ignore[union-attr]


@pytest.mark.parametrize("moment", ["claim", "gate", "redeem"])
def test_claim_stands_when_the_broker_dies_on_the_way(host: GateHost, moment: str) -> None:
    """Killed when it heard of it, when the ticket was sent, or at the door: the next one gives a gate all the same."""
    host.start(exit_at=moment)
    if moment == "redeem":  # attaching needs the door too
        host.kill()
        host.start()
    with attach(host) as share:
        if moment == "redeem":
            host.kill()
            host.start(exit_at=moment)
        waiter = Waiter(share)
        host.wait_dead()
        host.kill()
        host.start()
        assert waiter.held.wait(TIMEOUT)
        waiter.leave()


def test_release_is_heard_by_the_next_broker_when_one_dies_of_it(host: GateHost) -> None:
    """The block ends only when a broker knows, so that the next in line need not wait for our exit."""
    host.start(exit_at="release")
    with attach(host) as share:
        waiter = Waiter(share)
        assert waiter.held.wait(TIMEOUT)
        leaving = threading.Thread(target=waiter.leave)
        leaving.start()
        host.wait_dead()
        host.kill()
        host.start()
        assert int(host.wait_for("released")) > 0
        leaving.join(TIMEOUT)
        assert not leaving.is_alive()


def test_block_ends_in_time_when_there_is_no_broker(host: GateHost) -> None:
    """Within the share's time-out; the next broker is told as soon as it is there."""
    host.start()
    host.wait_for("up")
    with attach(host, 2.0) as share:
        waiter = Waiter(share)
        assert waiter.held.wait(TIMEOUT)
        host.kill()
        began = time.monotonic()
        waiter.leave()
        assert time.monotonic() - began < 5
        host.start()
        assert int(host.wait_for("released")) > 0
        assert waiter.registration is not None
        until(lambda: waiter.registration.fileno() == -1, "its gate is closed")  # type: ignore[union-attr]


def test_claim_is_said_again_when_it_is_not_answered(host: GateHost) -> None:
    """As every question, with the same id and key."""
    host.start(deaf_to=3)
    with attach(host) as share, share.registration("web"):
        asked = [json.loads(host.wait_for("claim")) for _ in range(4)]
        assert len({(one["id"], one["key"]) for one in asked}) == 1


def test_claim_that_no_broker_has_heard_of_is_over_when_it_is_left(host: GateHost) -> None:
    """There is nothing to release, and it is not asked for again and again."""
    host.start(deaf_to=1000)
    with attach(host) as share:
        registration = share.claim("web")
        assert registration.leave()
        assert host.wait_for("kept") == "0"
        until(lambda: registration.error is not None, "it is over")
        with pytest.raises(sockshare.RegistrationLost, match="released"):
            registration.wait()


def test_threads_share_one_registration(host: GateHost) -> None:
    """Eight threads have one object and one claim; it is held until the last has left."""
    host.start()
    with attach(host) as share, attach(host) as other:
        waiters = [Waiter(share) for _ in range(8)]
        for waiter in waiters:
            assert waiter.held.wait(TIMEOUT)
        assert len({id(waiter.registration) for waiter in waiters}) == 1
        behind = Waiter(other)
        for waiter in waiters[:-1]:
            waiter.leave()
        registration = waiters[-1].registration
        assert registration is not None
        assert registration.epoch > 0
        assert not behind.held.is_set()
        waiters[-1].leave()
        assert behind.held.wait(TIMEOUT)
        behind.leave()
    host.kill()
    keys = {json.loads(line.partition(" ")[2])["key"] for line in host.said() if line.startswith("claim")}
    assert len(keys) == 2


def test_release_is_for_all_threads(host: GateHost) -> None:
    """Explicitly released, it is over for everybody, and leaving the block afterwards is nothing more."""
    host.start()
    with attach(host) as share:
        waiter = Waiter(share)
        with share.registration("web") as registration:
            assert waiter.held.wait(TIMEOUT)
            registration.release()
            assert registration.revoked.is_set()
            registration.release()
            with share.registration("web") as another:
                assert another is not registration
        waiter.leave()


def test_registration_is_not_held_by_a_fork(host: GateHost) -> None:
    """The child is told whose it is, does no harm by leaving the block, and may claim one of its own."""
    host.start()
    with attach(host) as share, share.registration("web") as registration:

        def child() -> None:
            assert registration.revoked.is_set()
            for use in (lambda: registration.epoch, registration.wait, registration.waiting, registration.fileno):
                with pytest.raises(sockshare.RegistrationLost, match="not its fork"):
                    use()
            registration.release()
            with share.registration("api") as own:
                assert own.epoch > 0
            share.close()

        assert in_child(child) == 0
        assert registration.epoch > 0
        with client(host):
            assert registration.waiting()
    assert int(host.wait_for("released")) > 0


def test_fork_of_another_thread_does_not_stop_the_registrar(host: GateHost) -> None:
    """A child forked while a thread waits in line has no part of that, and can claim at once."""
    host.start()
    host.wait_for("up")
    host.order("hold")
    with attach(host) as share:
        waiter = Waiter(share)
        host.wait_for("waiting")

        def child() -> None:
            with pytest.raises(TimeoutError), share.registration("web", 0.1):
                pass
            share.close()

        assert in_child(child) == 0
        host.order("go")
        assert waiter.held.wait(TIMEOUT)
        waiter.leave()


def test_registrations_are_released_when_the_share_is_closed(host: GateHost) -> None:
    """Before its sockets are; who still waits is told, and nothing of it works afterwards."""
    host.start()
    with attach(host) as other:
        share = attach(host)
        held = Waiter(share)
        assert held.held.wait(TIMEOUT)
        behind = Waiter(other)
        host.wait_for("waiting")
        host.wait_for("waiting")
        share.close()
        assert behind.held.wait(TIMEOUT)
        held.leave()
        behind.leave()
        assert held.registration is not None
        assert held.registration.fileno() == -1
        with pytest.raises(sockshare.SockshareError, match="closed"), share.registration("web"):
            pass

    share = attach(host)
    host.order("hold")
    waiting = Waiter(share)
    host.wait_for("waiting")
    share.close()
    with pytest.raises(sockshare.SockshareError, match=r"closed|released"):
        waiting.leave()


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ({"errors": {"claim": {"error": "UnknownSocket", "message": "can't", "exit": 4}}}, sockshare.UnknownSocket),
        ({"errors": {"claim": {"error": "NotPermitted", "message": "can't", "exit": 7}}}, sockshare.NotPermitted),
    ],
)
def test_refusal_is_raised_at_once(host: GateHost, behaviour: dict[str, object], error: type[Exception]) -> None:
    """With the broker's type and sentence; the share is as good as before."""
    host.start(**behaviour)
    with attach(host) as share:
        for _ in range(2):
            with pytest.raises(error), share.registration("web"):
                raise AssertionError("it was not held")
        share.ready()


@pytest.mark.parametrize(
    "saying",
    [
        "[]",
        '{"id": 1, "event": 3}',
        '{"id": 1, "event": {"gate": "zz"}}',
        '{"id": 1, "event": {}}',
        '{"id": 1, "event": {"registration": "held", "epoch": "x"}}',
    ],
)
def test_broker_that_makes_no_sense_is_an_error(host: GateHost, saying: str) -> None:
    """Whatever it says, a waiting program is told, and the share can be used with the next broker."""
    host.start()
    with attach(host) as share:
        host.kill()
        host.start(garbage_dialogue=saying)
        with pytest.raises(sockshare.ProtocolError), share.registration("web"):
            raise AssertionError("it was not held")
        host.kill()
        host.start()
        with share.registration("web"):
            pass


def test_what_makes_no_sense_for_nobody_is_passed_over(host: GateHost) -> None:
    """Answers to what was never asked, and words of a later version."""
    host.start(garbage_dialogue='{"id": {"a": 1}, "event": {"registration": "held"}}')
    with pytest.raises(sockshare.NoBroker):
        attach(host, 0.3)
    host.kill()
    host.start()
    with attach(host) as share:
        host.kill()
        host.start(garbage_dialogue='{"id": 1, "event": {"registration": "on the moon", "epoch": 3}}')
        with pytest.raises(TimeoutError), share.registration("web", 0.3):
            raise AssertionError("it was not held")
