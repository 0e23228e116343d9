"""Observing, suspending and resuming the registrations of real processes."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockshare.kernel import epoll, epoll_control, processes, syscalls
from sockshare.kernel.epoll import Registration
from tests.support.registered import ROOT, Server, ask, finish, inode, listen, start, tally, until

MODES = ["level", "edge", "oneshot", "exclusive", "edge-exclusive", "many", "asyncio", "uvloop"]
ALWAYS = select.EPOLLERR | select.EPOLLHUP
POLLS = [1 << bit for bit in (0, 1, 2, 6, 7, 8, 9, 10, 13)]
PRIVATE = [1 << bit for bit in (28, 29, 30, 31)]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


def is_possible(events: set[int]) -> bool:
    """Whether epoll_ctl(2) takes them: exclusive entries may ask for few things."""
    few = {select.EPOLLIN, select.EPOLLOUT, select.EPOLLEXCLUSIVE, select.EPOLLET, 1 << 29}
    return bool(events & set(POLLS)) and (select.EPOLLEXCLUSIVE not in events or events <= few)


@given(st.sets(st.sampled_from(POLLS + PRIVATE)).filter(is_possible))
def test_record_in_the_entry_gives_the_events_back(chosen: set[int]) -> None:
    """Whatever a program asked for, the suspended entry says it and reports none of it."""
    before = Registration(1, 2, 3, sum(chosen) | ALWAYS, 4, 5)
    during = before._replace(events=before.marked)
    assert before.wanted == before.events
    assert (before.suspended, before.armed, during.suspended, during.armed) == (False, True, True, False)
    assert during.wanted == before.events
    assert during.marked == during.events
    assert not during.events & (sum(POLLS) | select.EPOLLEXCLUSIVE)
    assert during.events & sum(PRIVATE[1:]) == before.events & sum(PRIVATE[1:])


@pytest.mark.parametrize("mode", MODES)
def test_requests_go_to_the_other_process_while_one_is_suspended(listener: socket.socket, mode: str) -> None:
    """A suspended process gets no connection, a resumed one gets them again, and its entry is as it was."""
    with start(listener, mode) as one, start(listener, mode) as other:
        before = one.registration, other.registration
        kept = 2**32 - 1 if mode == "oneshot" else 2**64 - 1  # when it re-arms, Python leaves the upper half to chance
        assert epoll.suspend(before[0], listener.fileno())
        assert one.registration.suspended
        assert one.registration.wanted == before[0].events
        assert tally(listener) == {other.pid: 30}
        assert epoll.resume(one.registration, listener.fileno())
        until(lambda: other.registration.armed, "the one-shot is armed again")
        until(other.rests, "it has done what it was woken for")
        assert epoll.suspend(other.registration, listener.fileno())
        assert tally(listener) == {one.pid: 30}
        assert epoll.resume(other.registration, listener.fileno())
        until(lambda: one.registration.armed, "the one-shot is armed again")
        after = one.registration, other.registration
        assert [entry._replace(data=entry.data & kept) for entry in after] == [
            entry._replace(data=entry.data & kept) for entry in before
        ]


@pytest.mark.parametrize("mode", MODES)
def test_waiting_connection_is_answered_on_resume(listener: socket.socket, mode: str) -> None:
    """What arrives while the only process is suspended waits in the queue, and is reported by the resume itself."""
    with start(listener, mode) as server:
        epoll.suspend(server.registration, listener.fileno())
        with socket.create_connection(listener.getsockname()) as client:
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(10)
            assert epoll.resume(server.registration, listener.fileno())
            assert finish(client) == server.pid


def test_second_call_changes_nothing_and_says_so(listener: socket.socket) -> None:
    """Suspending what is suspended and resuming what is not are no-ops that return False."""
    with start(listener, "level") as server:
        before = server.registration
        assert not epoll.resume(before, listener.fileno())
        assert epoll.suspend(before, listener.fileno())
        during = server.registration
        assert not epoll.suspend(during, listener.fileno())
        assert server.registration == during
        assert epoll.resume(during, listener.fileno())
        assert server.registration == before


def test_every_worker_is_suspended_in_a_tree(listener: socket.socket) -> None:
    """suspend_all reaches each worker's own epoll, once, and resume_all undoes just that."""
    with start(listener, "tree") as group, start(listener, "level") as other:
        before = group.registrations
        assert len({entry.pid for entry in before}) == 2
        assert epoll.suspend_all(group.pid, group.sockets) == 2
        assert epoll.suspend_all(group.pid, group.sockets) == 0
        assert tally(listener) == {other.pid: 30}
        assert epoll.resume_all(group.pid, group.sockets) == 2
        assert epoll.resume_all(group.pid, group.sockets) == 0
        assert group.registrations == before


def test_a_worker_that_registers_later_is_found_by_the_next_call(listener: socket.socket) -> None:
    """Each call looks at the tree as it is now."""
    with start(listener, "level") as server:
        assert epoll.suspend_all(server.pid, server.sockets) == 1
        assert sorted([server.tell("f"), server.line()]) == ["ok", "worker"]
        assert [entry.suspended for entry in server.registrations] == [True, False]
        assert epoll.suspend_all(server.pid, server.sockets) == 1


def test_an_epoll_of_several_processes_is_listed_once(listener: socket.socket) -> None:
    """Inherited over fork or duplicated, one epoll has one entry for the socket, and one suspension."""
    with start(listener, "inherited") as group:
        shown = [
            (pid, fd)
            for pid in processes.tree(group.pid)
            for fd in epoll.epolls(pid)
            if b"ino:%x " % inode(listener) in Path(f"/proc/{pid}/fdinfo/{fd}").read_bytes()
        ]
        assert len(shown) == 5  # a duplicate in the parent, two descriptors in each of its two workers
        assert len(group.registrations) == 1
        assert epoll.suspend_all(group.pid, group.sockets) == 1
        assert epoll.resume_all(group.pid, group.sockets) == 1


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 63, 500])
def test_any_registered_number_can_be_had(listener: socket.socket, number: int) -> None:
    """The program's number may be in use here, by anything: it is suspended all the same, and ours stays."""
    with start(listener, "exclusive", number) as server:
        ours = processes.descriptors(os.getpid())
        before = server.registration
        assert before.tfd == number
        assert epoll.suspend(before, listener.fileno())
        assert server.registration.suspended
        assert epoll.resume(server.registration, listener.fileno())
        assert server.registration == before
        assert processes.descriptors(os.getpid()) == ours


SECOND = """
import sys
from sockshare.kernel import epoll
verb, pid, inode, fd = sys.argv[1], *map(int, sys.argv[2:])
print(getattr(epoll, verb)(pid, {inode: fd}), flush=True)
sys.stdin.read()
"""


def interpreter(verb: str, server: Server, listener: socket.socket) -> Server:
    fd = listener.fileno()
    return Server(listener, [sys.executable, "-c", SECOND, verb, str(server.pid), str(inode(listener)), str(fd)])


@pytest.mark.parametrize("mode", MODES)
def test_what_a_killed_process_suspended_another_resumes(listener: socket.socket, mode: str) -> None:
    """The record of a suspension is in the kernel: a process that knows only the pid and the socket restores it."""
    with start(listener, mode) as server:
        before = server.registration
        with interpreter("suspend_all", server, listener) as first:
            assert first.line() == "1"
            first.process.kill()
            assert first.process.wait() == -9
        assert server.registration.suspended
        with interpreter("resume_all", server, listener) as second:
            assert second.line() == "1"
        assert server.registration == before
        assert ask(listener) == server.pid


KILLED = """
import os, signal, sys
from sockshare.kernel import epoll, syscalls
verb, left, pid, inode, fd = sys.argv[1], *map(int, sys.argv[2:])
change = syscalls.epoll_ctl
def change_and_perhaps_die(*arguments):
    global left
    result = change(*arguments)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
syscalls.epoll_ctl = change_and_perhaps_die
getattr(epoll, verb)(pid, {inode: fd})
"""


@pytest.mark.parametrize("mode", ["exclusive", "edge-exclusive"])
@pytest.mark.parametrize("verb", ["suspend_all", "resume_all"])
@pytest.mark.parametrize("changes", [1, 2, 3])
def test_exclusive_entry_survives_a_kill_between_its_deletion_and_its_addition(
    listener: socket.socket, mode: str, verb: str, changes: int
) -> None:
    """After whichever call of epoll_ctl(2): what comes next finds a record of it, and the program its own entry."""
    for then in ("resume_all", "suspend_all"):
        with start(listener, mode, 7) as server:
            before = server.registration
            if verb == "resume_all":
                assert epoll.suspend_all(server.pid, server.sockets) == 1
            arguments = [verb, str(changes), str(server.pid), str(inode(listener)), str(listener.fileno())]
            run = subprocess.run(
                [sys.executable, "-c", KILLED, *arguments],
                pass_fds=[listener.fileno()],
                cwd=ROOT,
                timeout=20,
                check=False,
            )
            assert run.returncode == -signal.SIGKILL
            assert len([entry for entry in server.registrations if entry.copied == 7]) == 1
            getattr(epoll, then)(server.pid, server.sockets)
            if then == "suspend_all":
                assert server.registration == before._replace(events=before.marked)
                assert server.tell("u") == "ok"
                assert server.registrations == []
                assert server.tell("r") == "ok"
                after = server.registration  # Python leaves the upper half of the data to chance
                assert after._replace(data=after.data & 0xFFFFFFFF) == before._replace(data=before.data & 0xFFFFFFFF)
            else:
                assert server.registration == before
            assert ask(listener) == server.pid


@pytest.mark.parametrize("number", [0, 5])
def test_copy_has_a_number_that_its_program_has_not_used(listener: socket.socket, number: int) -> None:
    """One file under several numbers in one epoll: each entry is suspended and resumed as its own."""
    numbers = (number, number + 1, max(number - 1, 0))
    with start(listener, "exclusive", number) as server:
        before = server.registration
        # In the program's epoll, by the way that we change entries there.
        for other in set(numbers[1:]) - {number}:
            added = [epoll_control.Change(syscalls.EPOLL_CTL_ADD, before.events, 1000 + other)]
            epoll_control.control(server.pid, before.epfd, other, listener.fileno(), added)
        all_before = sorted(server.registrations)
        assert len(all_before) == len(set(numbers))
        assert epoll.suspend_all(server.pid, server.sockets) == len(all_before)
        assert sorted(entry.wanted for entry in server.registrations) == sorted(entry.events for entry in all_before)
        assert all(entry.suspended and entry.copied is None for entry in server.registrations)
        assert epoll.resume_all(server.pid, server.sockets) == len(all_before)
        assert sorted(server.registrations) == all_before


@pytest.mark.parametrize("mode", ["level", "edge", "oneshot", "exclusive"])
def test_the_program_itself_can_unregister_while_suspended(listener: socket.socket, mode: str) -> None:
    """The program's own EPOLL_CTL_DEL finds its entry; then there is nothing to resume."""
    with start(listener, mode) as server:
        epoll.suspend(server.registration, listener.fileno())
        during = server.registration
        assert server.tell("u") == "ok"
        assert server.registrations == []
        assert not epoll.resume(during, listener.fileno())
        assert server.registrations == []
        assert server.tell("r") == "ok"
        assert ask(listener) == server.pid


def test_a_oneshot_that_fired_is_left_as_it_is(listener: socket.socket) -> None:
    """It asks for nothing, so it is not marked; its program re-arms it, and then it can be suspended."""
    with start(listener, "slow") as server:
        armed = server.registration
        assert ask(listener) == server.pid
        fired = server.registration
        assert fired.events == select.EPOLLONESHOT
        assert (fired.armed, fired.suspended) == (False, False)
        assert not epoll.suspend(fired, listener.fileno())
        assert epoll.suspend_all(server.pid, server.sockets) == 0
        assert epoll.resume_all(server.pid, server.sockets) == 0
        assert server.registration == fired
        assert server.tell("a") == "ok"
        assert server.registration.events == armed.events  # Python leaves the upper half of the data to chance
        assert epoll.suspend_all(server.pid, server.sockets) == 1


@pytest.mark.parametrize("mode", ["level", "exclusive"])
def test_presence_follows_the_entry(listener: socket.socket, mode: str) -> None:
    """An entry is present armed or suspended, until its program deletes it or ends."""
    with listen() as stranger, start(listener, mode) as server:
        entry, fd = server.registration, listener.fileno()
        assert epoll.present(entry, fd)
        assert not epoll.present(entry, stranger.fileno())
        epoll.suspend(entry, fd)
        assert epoll.present(entry, fd)
        assert server.tell("u") == "ok"
        assert not epoll.present(entry, fd)
        assert server.tell("r") == "ok"
        assert epoll.present(entry, fd)
    assert not epoll.present(entry, fd)


def test_two_sockets_under_one_number_are_told_apart(listener: socket.socket) -> None:
    """A number that was used twice has two entries: each is present, and only the one that is meant is suspended."""
    with listen() as second, select.epoll() as own:
        number = os.dup(listener.fileno())
        own.register(number, select.EPOLLIN)
        os.dup2(second.fileno(), number)
        own.register(number, select.EPOLLIN)
        os.close(number)
        entries = {sock: epoll.registrations(os.getpid(), [inode(sock)], tree=False)[0] for sock in (listener, second)}
        assert {entry.tfd for entry in entries.values()} == {number}
        assert all(epoll.present(entry, sock.fileno()) for sock, entry in entries.items())
        assert epoll.suspend(entries[second], second.fileno())
        shown = epoll.registrations(os.getpid(), [inode(listener), inode(second)], tree=False)
        assert {entry.inode: entry.suspended for entry in shown} == {inode(listener): False, inode(second): True}


def test_a_kernel_without_kcmp_is_enough(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presence is read from fdinfo then, and a shared entry that is listed more than once is restored all the same."""
    monkeypatch.setattr(syscalls, "_KCMP", None)
    with start(listener, "inherited") as group:
        before = group.registrations
        assert epoll.present(before[0], listener.fileno())
        assert epoll.suspend_all(group.pid, group.sockets) == len(before)
        assert all(entry.suspended for entry in group.registrations)
        assert epoll.resume_all(group.pid, group.sockets) == len(before)
        assert group.registrations == before
    assert not epoll.present(before[0], listener.fileno())


def test_a_process_that_is_gone_has_nothing(listener: socket.socket) -> None:
    """No error: nothing is registered, and nothing can be changed."""
    with start(listener, "level") as server:
        armed = server.registration
        suspended = armed._replace(events=armed.marked)
        server.process.kill()
        until(lambda: not processes.alive(server.pid), "the process is a zombie")
        assert server.registrations == []
        assert not epoll.suspend(armed, listener.fileno())
    assert server.registrations == []
    assert not epoll.suspend(armed, listener.fileno())
    assert not epoll.resume(suspended, listener.fileno())
    assert epoll.suspend_all(server.pid, server.sockets) == 0


@pytest.mark.parametrize("mode", ["level", "exclusive"])
def test_descriptors_are_as_before_after_a_thousand_changes(listener: socket.socket, mode: str) -> None:
    """No descriptor is left here, in the target, or in the table of the thread that makes the changes."""
    with start(listener, mode) as server:
        armed, fd = server.registration, listener.fileno()
        assert epoll.suspend(armed, fd)
        suspended = server.registration
        assert epoll.resume(suspended, fd)
        before = processes.descriptors(os.getpid()), processes.descriptors(server.pid)
        for _ in range(500):
            assert epoll.suspend(armed, fd)
            assert epoll.resume(suspended, fd)
        assert (processes.descriptors(os.getpid()), processes.descriptors(server.pid)) == before
        assert server.registration == armed
        (thread,) = [one for one in threading.enumerate() if one.name == "sockshare-epoll"]
        assert os.listdir(f"/proc/self/task/{thread.native_id}/fd") == []


def test_garbage_is_not_collected_in_the_thread_of_changes(listener: socket.socket) -> None:
    """A finalizer that closes a descriptor must not run there: it would close that number in the wrong table."""
    collected_in: set[str] = set()
    threshold = gc.get_threshold()

    def note(phase: str, info: dict[str, int]) -> None:
        collected_in.add(threading.current_thread().name)

    with start(listener, "level") as server:
        armed = server.registration
        suspended = armed._replace(events=armed.marked)
        gc.callbacks.append(note)
        gc.set_threshold(1)
        try:
            for _ in range(50):
                epoll.suspend(armed, listener.fileno())
                epoll.resume(suspended, listener.fileno())
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(note)
    assert collected_in == {threading.main_thread().name}


def test_threads_of_one_process_take_turns(listener: socket.socket) -> None:
    """Calls from several threads at once all succeed."""
    with start(listener, "level") as server:
        armed = server.registration
        suspended = armed._replace(events=armed.marked)
        results: list[bool] = []

        def work() -> None:
            for _ in range(50):
                results.append(epoll.suspend(armed, listener.fileno()))
                results.append(epoll.resume(suspended, listener.fileno()))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 400


FORK = """
import os, sys
from sockshare.kernel import epoll
pid, inode, fd = map(int, sys.argv[1:])
print(epoll.suspend_all(pid, {inode: fd}), flush=True)
if os.fork() == 0:
    print(epoll.resume_all(pid, {inode: fd}), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_child_starts_a_thread_of_its_own(listener: socket.socket) -> None:
    """The thread that makes the changes does not survive a fork, and is not waited for in the child."""
    with start(listener, "level") as server:
        arguments = [str(server.pid), str(inode(listener)), str(listener.fileno())]
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, *arguments]
        run = subprocess.run(
            command, pass_fds=[listener.fileno()], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
        assert (run.stdout.split(), run.stderr) == (["1", "1"], "")
        assert server.registration.armed


def test_a_number_above_our_limit_is_an_error_with_the_facts(listener: socket.socket) -> None:
    """What can't be done for a reason of ours is said, not taken for a registration that is gone."""
    with start(listener, "level") as server:
        entry = server.registration._replace(tfd=2**31 - 1)
        with pytest.raises(
            OSError, match=rf"can't suspend the registration of pid {server.pid}: .*number; descriptor 21"
        ):
            epoll.suspend(entry, listener.fileno())


def test_failure_of_a_step_is_named() -> None:
    """The error of a change says which step failed, with its errno."""
    with pytest.raises(epoll_control.ControlError) as caught:
        epoll_control.control(os.getpid(), 0, 5, 10**6, [])
    assert (caught.value.step, caught.value.errno) == ("socket", 9)
