"""Observe, suspend and resume another process's epoll registration of a shared socket.

/proc/PID/fdinfo shows every entry of an epoll (proc(5)). `suspend` takes from an entry the events that the program
asked for, and leaves the record of it in the entry itself: event bits 16-26 mean nothing to the kernel, which keeps
and shows them. So whoever comes later, a new broker too, resumes from what it reads there and needs no file:

    bit 26      the marker: suspended by us
    bit 25      the entry was EPOLLEXCLUSIVE
    bits 16-24  the events of `_SAVED`, in that order
    bits 29-31  EPOLLWAKEUP, EPOLLONESHOT, EPOLLET: left as they are
    bits 3-4    EPOLLERR, EPOLLHUP: the kernel sets them in every entry that is modified

The kernel refuses to modify an EPOLLEXCLUSIVE entry: it is deleted and added again. Lest the record be lost when we are
killed in between, a marked *copy* of the entry is there meanwhile, under another number. Such an entry can only have
asked for EPOLLIN and EPOLLOUT (epoll_ctl(2)), so seven of the bits are free to say that it is one, and of which number:

    bit 17      with bit 25: a copy
    bits 19-24  its number less that of the entry, in two's complement

`suspend_all` and `resume_all` first put in order what they find of that.

The program does not notice, and its own EPOLL_CTL_DEL works. Its own EPOLL_CTL_MOD undoes the suspension: one-shot
programs do that after each event, so `suspend_all` again while one may still work on its last event. It all needs the
rights of a tracer (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS): see `sockshare.kernel.epoll_rights`.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
import select
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from sockshare.core.errors import NotPermitted
from sockshare.kernel import processes, syscalls
from sockshare.kernel.epoll_control import Change, ControlError, control

_MARKER = 1 << 26
_WAS_EXCLUSIVE = 1 << 25
_EPOLLWAKEUP = 1 << 29
_KEPT = select.EPOLLET | select.EPOLLONESHOT | _EPOLLWAKEUP
_ALWAYS = select.EPOLLERR | select.EPOLLHUP
_SAVED = {
    event: 1 << (16 + position)
    for position, event in enumerate(
        (
            select.EPOLLIN,
            select.EPOLLPRI,
            select.EPOLLOUT,
            select.EPOLLRDNORM,
            select.EPOLLRDBAND,
            select.EPOLLWRNORM,
            select.EPOLLWRBAND,
            select.EPOLLMSG,
            select.EPOLLRDHUP,
        )
    )
}
_ASKED = sum(_SAVED)
#: Of a copy: the mark, and where the distance of its number begins.
_COPY = _SAVED[select.EPOLLPRI]
_DISTANCE_AT, _DISTANCE_BITS = 19, 0x3F
_SAVED_EXCLUSIVE = _SAVED[select.EPOLLIN] | _SAVED[select.EPOLLOUT]
_DISTANCES = (*range(-1, -32, -1), *range(1, 32))  # lower numbers first, which no limit on descriptors forbids

#: Numbers for entries of our own in other processes' epolls.
_REMINDER = (1000, 1001)
_EVENTPOLL = "anon_inode:[eventpoll]"
_ENTRY = re.compile(rb"tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)\s+pos:\S+ ino:([0-9a-f]+) ")
#: How often `suspend_all` and `resume_all` look again for what came meanwhile.
_ROUNDS = 8


class Registration(NamedTuple):
    """One entry of one epoll, as it was when it was read."""

    pid: int
    epfd: int  # the epoll's descriptor in that process
    tfd: int  # the number under which the program added the socket; it need not be open any more
    events: int
    data: int
    inode: int  # of the socket

    @property
    def suspended(self) -> bool:
        """Whether the entry carries our marker."""
        return bool(self.events & _MARKER)

    @property
    def copied(self) -> int | None:
        """The number of the entry that this is the copy of; None if it is an entry of its program."""
        if not self.suspended or not self.events & _WAS_EXCLUSIVE or not self.events & _COPY:
            return None
        distance = self.events >> _DISTANCE_AT & _DISTANCE_BITS
        return self.tfd - (distance - 64 if distance > 31 else distance)

    @property
    def armed(self) -> bool:
        """Whether the entry reports readiness: not suspended, nor paused by its program, nor a one-shot that fired."""
        return not self.suspended and bool(self.events & _ASKED)

    @property
    def wanted(self) -> int:
        """The events as the program asked for them, suspended or not."""
        if not self.suspended:
            return self.events
        exclusive = select.EPOLLEXCLUSIVE if self.events & _WAS_EXCLUSIVE else 0
        record = self.events & (_SAVED_EXCLUSIVE if exclusive else ~0)
        asked = sum(event for event, saved in _SAVED.items() if record & saved)
        return self.events & (_KEPT | _ALWAYS) | asked | exclusive

    @property
    def marked(self) -> int:
        """The events of the entry once it is suspended."""
        if self.suspended:
            return self.events
        saved = sum(saved for event, saved in _SAVED.items() if self.events & event)
        exclusive = _WAS_EXCLUSIVE if self.events & select.EPOLLEXCLUSIVE else 0
        return self.events & _KEPT | _ALWAYS | _MARKER | saved | exclusive


def epolls(pid: int) -> list[int]:
    """The descriptors of *pid* that are epolls.

    Raises:
        ProcessLookupError: *pid* is gone.
        NotPermitted: *pid* may not be looked into.
    """
    try:
        return [fd for fd, target in processes.descriptors(pid) if target == _EVENTPOLL]
    except PermissionError as error:
        if not processes.alive(pid):  # a zombie's directory is root's
            return []
        raise NotPermitted(
            f"can't observe the registrations of pid {pid}: {error.strerror} (/proc/{pid}/fd)"
        ) from error


def entries(pid: int, epfd: int) -> list[Registration]:
    """Every entry of the epoll *epfd* of *pid*, whatever it watches; none if that is gone, or no epoll.

    Raises:
        PermissionError: *pid* may not be looked into.
    """
    return [Registration(pid, epfd, *numbers) for numbers in _numbers(_fdinfo(pid, epfd))]


def entries_of(pid: int, epfd: int, inodes: Collection[int]) -> tuple[list[Registration], int]:
    """The entries of the sockets *inodes* among those that `entries` lists, and how many it lists.

    Raises:
        PermissionError: *pid* may not be looked into.
    """
    text = _fdinfo(pid, epfd)
    return list(_mentioned(pid, epfd, text, _mentions(inodes))), text.count(b"tfd:")


def registrations(pid: int, inodes: Collection[int], *, tree: bool = True) -> list[Registration]:
    """Every registration of the sockets *inodes* in *pid* and, with *tree*, in all its descendants.

    An entry is listed once, even if several processes or descriptors share its epoll (kcmp(2)). The list is complete or
    an error. Costs some 0.1 ms a process, and 0.5 us an entry of any epoll that is read: an epoll with 10,000 entries
    takes 5 ms and holds its program up as long, so don't do that periodically (`present` is for that).

    Raises:
        NotPermitted: A process among them may not be looked into.
    """
    wanted = _mentions(inodes)
    found: list[Registration] = []
    for member in processes.tree(pid) if tree else [pid]:
        try:
            for epfd in epolls(member):
                found += _entries(member, epfd, wanted)
        except ProcessLookupError:
            continue
    return _distinct(found)


def suspend(registration: Registration, sock_fd: int) -> bool:
    """Stop the program from being told of connections on the shared socket, of which *sock_fd* is our duplicate.

    The program finishes the batch of the one event that it may have been given already. Give it a fresh registration.

    Returns:
        False when there was nothing to do: the entry is gone, suspended already, or asks for nothing.

    Raises:
        NotPermitted: The kernel does not let us touch that process's epoll.
        OSError: Any other reason, in one sentence.
    """
    if not registration.armed:
        return False
    return _change("suspend", registration, sock_fd, registration.marked)


def resume(registration: Registration, sock_fd: int) -> bool:
    """Give a suspended entry back what its program asked for; connections that wait are reported to it at once.

    Returns:
        False when there was nothing to do: the entry is gone or not suspended, or is a copy.

    Raises:
        NotPermitted, OSError: As `suspend`.
    """
    if not registration.suspended or registration.copied is not None:
        return False
    return _change("resume", registration, sock_fd, registration.wanted)


def present(registration: Registration, sock_fd: int) -> bool:
    """Whether the entry still exists, suspended or not: a few microseconds (kcmp(2)) where the kernel has that call.

    Raises:
        NotPermitted: The process may not be looked into.
    """
    pid, epfd, tfd, *_, inode = registration
    # Two files may have been added under one number, one after the other: then the first is not all there is.
    for offset in range(64):
        result = syscalls.kcmp_epoll(os.getpid(), sock_fd, pid, epfd, tfd, offset)
        if result >= 0:
            if result == 0:
                return True
        elif result == -errno.EPERM:
            raise NotPermitted(f"can't observe the registrations of pid {pid}: {os.strerror(-result)} (kcmp)")
        elif result in (-errno.ENOSYS, -errno.EOPNOTSUPP):
            break
        else:
            return False
    try:
        return any(entry.tfd == tfd for entry in _entries(pid, epfd, _mentions([inode])))
    except ProcessLookupError:
        return False


def remind(registration: Registration, sock_fd: int) -> bool:
    """Have the program told once more of what waits on the shared socket, of which *sock_fd* is our duplicate.

    A second entry, good for one event, is added beside its own, which is not touched: with the same data, so that it is
    to the program an event of its own. Take it away again by `end_reminder` once it may have been delivered; left there
    it does nothing.

    Returns:
        False when the entry is gone.

    Raises:
        NotPermitted, OSError: As `suspend`.
    """
    events = select.EPOLLIN | select.EPOLLONESHOT
    return _remind("remind", registration, sock_fd, Change(syscalls.EPOLL_CTL_ADD, events, registration.data))


def end_reminder(registration: Registration, sock_fd: int) -> bool:
    """Take away what `remind` has added; results and errors as there."""
    return _remind("end the reminder of", registration, sock_fd, Change(syscalls.EPOLL_CTL_DEL))


def _remind(verb: str, entry: Registration, sock_fd: int, change: Change) -> bool:
    # An entry is known by file and number: any other number makes another entry.
    return _control(verb, entry._replace(tfd=_REMINDER[entry.tfd == _REMINDER[0]]), sock_fd, change)


_Which = Callable[[Registration], bool]


def suspend_all(pid: int, sockets: Mapping[int, int], *, spared: _Which = lambda entry: False) -> int:
    """Suspend every registration of *sockets* (inode: our descriptor) in *pid* and its descendants, but those *spared*.

    Looks again until it finds none that is armed, as a worker may register meanwhile.

    Returns:
        How many entries were suspended.

    Raises:
        NotPermitted, OSError: As `suspend`; what was suspended before stays so.
    """
    return _all(pid, sockets, lambda entry: entry.armed and not spared(entry), suspend)


def resume_all(pid: int, sockets: Mapping[int, int], *, spared: _Which = lambda entry: False) -> int:
    """Resume every suspended registration of *sockets* in *pid* and its descendants: `suspend_all` undone."""
    return _all(pid, sockets, lambda entry: entry.suspended and not spared(entry), resume)


def _all(
    pid: int,
    sockets: Mapping[int, int],
    due: _Which,
    change: Callable[[Registration, int], bool],
) -> int:
    count = 0
    for _ in range(_ROUNDS):
        found = registrations(pid, sockets)
        copies = [entry for entry in found if entry.copied is not None]
        for copy in copies:
            _put_back(copy, sockets[copy.inode])
        entries = [entry for entry in (registrations(pid, sockets) if copies else found) if due(entry)]
        if not entries:
            break
        count += sum(change(entry, sockets[entry.inode]) for entry in entries)
    return count


def _change(verb: str, entry: Registration, sock_fd: int, events: int) -> bool:
    if (entry.events | events) & select.EPOLLEXCLUSIVE:
        return _as_sentence(verb, entry, lambda: _replace(entry, sock_fd, events))
    return _control(verb, entry, sock_fd, Change(syscalls.EPOLL_CTL_MOD, events, entry.data))


def _control(verb: str, entry: Registration, sock_fd: int, change: Change) -> bool:
    def work() -> bool:
        control(entry.pid, entry.epfd, entry.tfd, sock_fd, [change])
        return True

    return _as_sentence(verb, entry, work)


def _as_sentence(verb: str, entry: Registration, work: Callable[[], bool]) -> bool:
    try:
        return work()
    except ControlError as error:
        if _is_gone(error):
            return False
        facts = f"{error.step}; descriptor {entry.tfd} in epoll {entry.epfd}"
        sentence = f"can't {verb} the registration of pid {entry.pid}: {error.strerror} ({facts})"
        if error.errno == errno.EPERM:
            raise NotPermitted(sentence) from error
        raise OSError(error.errno, sentence) from error


def _replace(entry: Registration, sock_fd: int, events: int) -> bool:
    """Delete *entry* and add it again with *events*; at each moment the kernel has a record of it."""
    taken = {one.tfd for one in _entries(entry.pid, entry.epfd, _mentions([entry.inode]))}
    if entry.tfd not in taken:
        return False
    distance = next(one for one in _DISTANCES if entry.tfd + one >= 0 and entry.tfd + one not in taken)
    marks = _COPY | (distance & _DISTANCE_BITS) << _DISTANCE_AT
    copy = entry._replace(tfd=entry.tfd + distance, events=entry.marked | marks)
    drop = Change(syscalls.EPOLL_CTL_DEL, number=copy.tfd, settled=errno.ENOENT)
    changes = [
        Change(syscalls.EPOLL_CTL_ADD, copy.events, copy.data, copy.tfd),
        Change(syscalls.EPOLL_CTL_DEL),
        Change(syscalls.EPOLL_CTL_ADD, _addable(events), entry.data),
        drop,
    ]
    try:
        control(entry.pid, entry.epfd, entry.tfd, sock_fd, changes)
    except ControlError as error:
        if error.done == 1 or (error.done == 2 and error.errno == errno.EEXIST):
            # Its program has deleted it, or deleted it and added it anew: that is what counts.
            control(entry.pid, entry.epfd, entry.tfd, sock_fd, [drop])
            return False
        if error.done == 2:
            _put_back(copy, sock_fd)
        raise
    return True


def _put_back(copy: Registration, sock_fd: int) -> None:
    """Have the entry of which *copy* was left, suspended if there was no other of it, and the copy no more."""
    assert copy.copied is not None
    events = copy.events & ~(_COPY | _DISTANCE_BITS << _DISTANCE_AT)
    changes = [
        Change(syscalls.EPOLL_CTL_ADD, events, copy.data, settled=errno.EEXIST),
        Change(syscalls.EPOLL_CTL_DEL, number=copy.tfd, settled=errno.ENOENT),
    ]
    try:
        control(copy.pid, copy.epfd, copy.copied, sock_fd, changes)
    except ControlError as error:
        if not _is_gone(error):
            raise


def _addable(events: int) -> int:
    # With EPOLLEXCLUSIVE the kernel takes these and no others, our note least of all (epoll_ctl(2)).
    if not events & select.EPOLLEXCLUSIVE:
        return events
    allowed = select.EPOLLIN | select.EPOLLOUT | _ALWAYS | _EPOLLWAKEUP | select.EPOLLET | select.EPOLLEXCLUSIVE
    return events & allowed


def _is_gone(error: ControlError) -> bool:
    if error.step in ("process", "epoll"):
        return error.errno in (errno.ESRCH, errno.EBADF)
    # EINVAL: that number is another kind of file now, or the program has replaced its entry by an exclusive one.
    # EEXIST: it has added one under the number of our copy.
    return error.step == "change" and error.errno in (errno.ENOENT, errno.EINVAL, errno.EEXIST)


def _mentions(inodes: Collection[int]) -> dict[int, bytes]:
    return {inode: b" ino:%x " % inode for inode in inodes}


def _entries(pid: int, epfd: int, wanted: Mapping[int, bytes]) -> Iterator[Registration]:
    return _mentioned(pid, epfd, _fdinfo(pid, epfd), wanted)


def _mentioned(pid: int, epfd: int, text: bytes, wanted: Mapping[int, bytes]) -> Iterator[Registration]:
    for inode, mention in wanted.items():
        # Only the lines that mention it are taken apart: of 10,000 that takes 5 ms, in which no other thread runs.
        at = text.find(mention)
        while at >= 0:
            end = text.find(b"\n", at)
            for numbers in _numbers(text[text.rfind(b"\n", 0, at) + 1 : end if end >= 0 else len(text)]):
                if numbers[-1] == inode:
                    yield Registration(pid, epfd, *numbers)
            at = text.find(mention, end) if end >= 0 else -1


def _fdinfo(pid: int, epfd: int) -> bytes:
    try:
        return processes.content(f"/proc/{pid}/fdinfo/{epfd}")
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _numbers(text: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Of each entry in *text*: tfd, events, data, inode."""
    for tfd, events, data, ino in _ENTRY.findall(text):
        yield int(tfd), int(events, 16), int(data, 16), int(ino, 16)


def _distinct(found: list[Registration]) -> list[Registration]:
    """*found* without the entries of an epoll that is listed already, under another number or in another process."""
    alike: dict[tuple[int, int], list[Registration]] = {}
    for entry in found:
        alike.setdefault((entry.tfd, entry.inode), []).append(entry)
    kept: set[tuple[int, int]] = set()
    for group in alike.values():
        # Sorting by the kernel's own order makes n log n comparisons of what would be n squared. Where it does not
        # answer, an entry may stay listed twice: changing it twice does no harm.
        ordered = sorted(group, key=functools.cmp_to_key(_order)) if len(group) > 1 else group
        kept.add(ordered[0][:2])
        for before, entry in itertools.pairwise(ordered):
            if _compare(before, entry) != 0:
                kept.add(entry[:2])
    return [entry for entry in found if entry[:2] in kept]


def _compare(one: Registration, other: Registration) -> int:
    return syscalls.kcmp_file(one.pid, one.epfd, other.pid, other.epfd)


def _order(one: Registration, other: Registration) -> int:
    answer = {0: 0, 1: -1, 2: 1}.get(_compare(one, other))
    if answer is None:
        return (one[:2] > other[:2]) - (one[:2] < other[:2])
    return answer
