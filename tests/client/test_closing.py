"""A share that is closed, dropped or broken leaves nothing behind: no thread, no descriptor, nobody who waits."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import sockshare
from sockshare import aio
from sockshare.client import door
from sockshare.client.channel import Channel, Standing

from .host import TIMEOUT, Host, descriptors

_others: set[threading.Thread] = set()  # that tests before have left


def ours() -> list[str]:
    """The threads of the library that are this test's."""
    threads = set(threading.enumerate()) - _others
    return sorted(thread.name for thread in threads if thread.name.startswith("sockshare-"))


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


#: What stays open, as at a real broker.
DEAF = ["claim", "receive", "introduce", "retiring"]


@pytest.fixture
def broker(host: Host) -> Iterator[Host]:
    """A broker; the library's threads and descriptors end with the test."""
    _others.clear()
    _others.update(threading.enumerate())
    host.start()
    sockshare.attach(str(host.directory)).close()
    host.kill()
    before = descriptors()
    host.start(deaf=DEAF)
    yield host
    host.kill()
    assert ours() == []
    assert descriptors() == before


def test_nothing_is_left_when_a_share_that_did_everything_is_closed(broker: Host) -> None:
    """Sockets, lanes, the channel and its thread; and closing it again changes nothing, in whatever thread."""
    for _ in range(5):
        share = sockshare.attach(str(broker.directory))
        share.socket("web")
        with pytest.raises(TimeoutError):
            share.receive(0.01)
        assert not share.retiring.is_set()
        with pytest.raises(TimeoutError), share.registration("web", timeout=0.01):
            pass
        assert ours() == ["sockshare-channel", "sockshare-registrar"]
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(share.close) for _ in range(4)]:
                done.result(TIMEOUT)
        share.close()
        assert ours() == []


def _receive(share: sockshare.Share) -> None:
    try:
        share.receive(0.005)
    except TimeoutError:
        pass


def _hand_over(share: sockshare.Share) -> None:
    one, other = socket.socketpair()
    with one, other:
        try:
            share.hand_over(one, "chat", timeout=0.005)
        except TimeoutError:
            pass


def _register(share: sockshare.Share) -> None:
    try:
        with share.registration("web", timeout=0.005):
            pass
    except TimeoutError:
        pass


USES: dict[str, Callable[[sockshare.Share], object]] = {
    "receive": _receive,
    "hand_over": _hand_over,
    "registration": _register,
    "socket": lambda share: share.socket("web"),
    "duplicate": lambda share: share.duplicate("web", os.getpid()),
    "redeem": lambda share: share.redeem(share.duplicate("api", os.getpid())),
    "ready": lambda share: share.ready(),
    "retiring": lambda share: share.retiring,
    "waiting": lambda share: share.waiting,
    "retired": lambda share: share.retired(),
}


def _use(share: sockshare.Share, uses: list[str], turns: list[int], number: int) -> str:
    """Use it until it can't be used."""
    while True:
        try:
            USES[uses[(number + turns[number]) % len(uses)]](share)
        except sockshare.SockshareError as error:
            return str(error)
        turns[number] += 1


@pytest.mark.parametrize("uses", [["receive"], ["receive", "hand_over"], sorted(USES)], ids=" ".join)
def test_every_thread_is_told_and_nothing_begins_anew_when_a_share_is_closed_under_it(
    broker: Host, uses: list[str]
) -> None:
    """Eight threads use it again and again; after close() each has an error, and no second exchange is there."""
    for _ in range(8):
        share = sockshare.attach(str(broker.directory))
        turns = [0] * 8
        with ThreadPoolExecutor(8) as pool:
            errors = [pool.submit(_use, share, uses, turns, number) for number in range(8)]
            until(functools.partial(all, turns))
            share.close()
            assert ours() == [], "at once, while threads still come"
            for error in errors:
                assert any(word in error.result(TIMEOUT) for word in ("closed", "it was released"))
        assert ours() == []


@pytest.mark.parametrize("use", USES)
def test_nothing_begins_anew_with_a_share_that_was_closed(broker: Host, use: str) -> None:
    """Whatever was used before, and whatever is used now."""
    for before in (None, *USES):
        share = sockshare.attach(str(broker.directory))
        if before is not None:
            USES[before](share)
        share.close()
        with pytest.raises(sockshare.SockshareError, match="closed"):
            USES[use](share)
        assert ours() == []


def test_blocked_calls_are_told_when_a_share_is_closed(broker: Host) -> None:
    """Without a time-out of their own."""
    share = sockshare.attach(str(broker.directory))
    with ThreadPoolExecutor(4) as pool:
        blocked = [pool.submit(share.receive) for _ in range(3)]
        blocked.append(pool.submit(share.registration("web").__enter__))  # type: ignore[arg-type]
        until(lambda: ours() == ["sockshare-channel", "sockshare-registrar"])
        share.close()
        for one in blocked:
            with pytest.raises(sockshare.SockshareError):
                one.result(TIMEOUT)


def test_share_that_is_closed_without_a_broker_is_closed_all_the_same(broker: Host) -> None:
    """Whoever waits for the broker has its time; receivers are told at once."""
    share = sockshare.attach(str(broker.directory), timeout=2)
    with ThreadPoolExecutor(3) as pool:
        receiving = pool.submit(share.receive)
        until(lambda: ours() == ["sockshare-channel"] and not share._turn.locked())
        broker.kill()
        asking = pool.submit(share.ready)
        until(lambda: share._turn.locked())
        closing = pool.submit(share.close)
        with pytest.raises(sockshare.SockshareError):
            receiving.result(TIMEOUT)
        assert not asking.done()
        with pytest.raises(sockshare.NoBroker):
            asking.result(TIMEOUT)
        closing.result(TIMEOUT)


def test_child_that_closes_its_copy_leaves_its_parent_alone(broker: Host) -> None:
    """Its descriptors are its own, and so are its threads."""
    share = sockshare.attach(str(broker.directory))
    with pytest.raises(TimeoutError):
        share.receive(0.01)
    before = descriptors()
    for _ in range(2):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                share.close()
                share.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert descriptors() == before
    with pytest.raises(TimeoutError):
        share.receive(0.01)
    share.close()


def test_many_threads_attach_at_once(broker: Host) -> None:
    """Each has a share of its own."""

    def play(number: int) -> str:
        with sockshare.attach(str(broker.directory)) as share:
            return f"{share.socket('web').fileno() >= 0}"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(play, range(24))) == ["True"] * 24


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_share_that_was_dropped_receives_no_more(broker: Host) -> None:
    """Nobody could receive what it is handed: its lanes end, and so do its threads."""
    share = sockshare.attach(str(broker.directory))
    with pytest.raises(TimeoutError):
        share.receive(0.01)
    with pytest.raises(TimeoutError), share.registration("web", timeout=0.01):
        pass
    del share
    gc.collect()
    until(lambda: ours() == [])


def test_registration_outlives_the_name_of_its_share(broker: Host) -> None:
    """What stands is somebody's."""
    share = sockshare.attach(str(broker.directory))
    registration = share.claim("web")
    del share
    gc.collect()
    broker.wait_for("claim")
    assert ours() == ["sockshare-registrar"]
    registration.leave()
    until(lambda: ours() == [])


def test_loop_goes_on_when_its_share_was_dropped(broker: Host) -> None:
    """The descriptors that it watches leave it first; whoever has them next can be watched."""

    async def body() -> None:
        share = await aio.attach(str(broker.directory))
        with pytest.raises(TimeoutError):
            await share.receive(0.01)
        del share
        gc.collect()
        while ours():
            await asyncio.sleep(0.002)
        loop = asyncio.get_running_loop()
        socks = [sock for _ in range(20) for sock in socket.socketpair()]
        for sock, peer in zip(socks, [socks[number ^ 1] for number in range(40)], strict=True):
            heard = asyncio.Event()
            loop.add_reader(sock, heard.set)
            peer.send(b"x")
            await asyncio.wait_for(heard.wait(), TIMEOUT)
            loop.remove_reader(sock)
        for sock in socks:
            sock.close()

    asyncio.run(body())


def test_share_of_a_loop_that_has_ended_is_no_receiver(broker: Host) -> None:
    """It was not closed, and no loop is there to do it."""

    async def body() -> None:
        share = await aio.attach(str(broker.directory))
        with pytest.raises(TimeoutError):
            await share.receive(0.01)

    asyncio.run(body())
    gc.collect()
    until(lambda: ours() == [])


def test_tasks_are_told_when_their_share_is_closed_under_them(broker: Host) -> None:
    """Also the one whose first receive() was just under way, and a close() that is cancelled itself."""

    async def body() -> None:
        for turn in range(6):
            share = await aio.attach(str(broker.directory))
            tasks = [asyncio.ensure_future(share.receive()) for _ in range(3)]
            for _ in range(turn):
                await asyncio.sleep(0.002)
            closing = asyncio.ensure_future(share.close())
            if turn % 2:
                await asyncio.sleep(0)
                closing.cancel()
            results = await asyncio.wait_for(asyncio.gather(*tasks, closing, return_exceptions=True), TIMEOUT)
            for result in results[:3]:
                assert isinstance(result, sockshare.SockshareError), result
            with pytest.raises(sockshare.SockshareError, match="closed"):
                await share.receive()
            with pytest.raises(sockshare.SockshareError, match="closed"):
                await share.ready()
            await share.close()

    asyncio.run(body())


# What breaks.


class Attended:
    """What a channel looks after, which fails so many times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.looks = 0

    def watch(self) -> tuple[int, float | None]:
        self.looks += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a defect")
        return -1, None

    def attend(self) -> None:
        """Nothing."""

    def abandoned(self) -> None:
        """Nothing."""


def test_channel_tells_who_waits_and_goes_on_when_its_thread_meets_a_defect(broker: Host) -> None:
    """An unexpected error is an answer for all that stands; what is asked afterwards is asked."""
    failed: list[Exception] = []
    heard: list[object] = []
    attended = Attended(0)
    channel = Channel(str(broker.directory), attended)
    channel.ask(Standing("receive", dict, heard.append, failed.append))
    broker.wait_for("receive")
    attended.failures = 1
    channel.ask(Standing("introduce", dict, heard.append, failed.append))
    until(lambda: len(failed) == 2)
    assert "sockshare has a bug (RuntimeError('a defect'))" in str(failed[0])
    channel.ask(Standing("retired", dict, heard.append, failed.append))
    broker.wait_for("retired")
    until(lambda: heard)
    assert len(failed) == 2
    channel.close()
    channel.ask(Standing("retired", dict, heard.append, failed.append))
    assert "closed" in str(failed[2])


def test_receiver_receives_again_when_a_broker_that_talks_nonsense_was_replaced(broker: Host) -> None:
    """Its caller is told; the next call asks again, of whatever broker is there then."""
    share = sockshare.attach(str(broker.directory))
    with pytest.raises(TimeoutError):
        share.receive(0.01)
    broker.wait_for("receive")
    broker.kill()
    broker.start(garbage_dialogue="nonsense")
    assert not share.retiring.is_set()
    until(functools.partial(_fails, share))
    broker.kill()
    broker.start(deaf=DEAF)

    def receives() -> bool:
        try:
            share.receive(0.05)
        except TimeoutError:
            return True
        except sockshare.ProtocolError:
            pass
        return False

    until(receives)
    broker.wait_for("receive")
    share.close()


def _fails(share: sockshare.Share) -> bool:
    try:
        share.receive(0.01)
    except sockshare.ProtocolError:
        return True
    except TimeoutError:
        pass
    return False


def test_registration_can_be_claimed_again_when_a_broker_talked_nonsense(broker: Host) -> None:
    """Who waits is told, and the next claim begins anew."""
    share = sockshare.attach(str(broker.directory))
    broker.kill()
    broker.start(garbage_dialogue="nonsense")
    with pytest.raises(sockshare.ProtocolError), share.registration("web", timeout=TIMEOUT):
        pass
    broker.kill()
    broker.start(deaf=DEAF)
    with pytest.raises(TimeoutError), share.registration("web", timeout=0.1):
        pass
    broker.wait_for("claim")
    share.close()


@pytest.mark.parametrize("count", [17, 33, 40])
def test_nothing_is_kept_when_a_later_batch_of_tickets_is_refused(broker: Host, count: int) -> None:
    """The descriptors of the batches before it are closed: nobody has their numbers."""
    with sockshare.attach(str(broker.directory)) as share:
        tickets = [share.duplicate("web", os.getpid()) for _ in range(count - 1)]
        before = descriptors()
        with pytest.raises(sockshare.TicketRefused):
            door.redeem(str(broker.directory), [*tickets, bytes(16)], time.monotonic() + TIMEOUT)
        assert descriptors() == before
