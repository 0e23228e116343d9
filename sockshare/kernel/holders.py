"""Who has a socket open: every process there is, by what /proc shows of its descriptors (proc(5)).

That is how a duplicate is found that nobody was asked for: one that a child inherited, or that was passed on by
``SCM_RIGHTS``. What is in no table of descriptors is not found: a socket that lies in the queue of another one, or that
io_uring has registered; nor is what a thread has in a table of its own (unshare(2), ``CLONE_FILES``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from sockshare.kernel import processes

#: After so many descriptors the clock is looked at.
_BETWEEN_LOOKS = 256


class Scan(NamedTuple):
    """What a look through all processes found."""

    holders: dict[int, frozenset[int]]  # pid to the inodes it has open
    looked: int  # processes whose every descriptor was read, or every socket found
    refused: frozenset[int]  # those that may not be looked into (ptrace(2), PTRACE_MODE_READ_FSCREDS)
    unfinished: frozenset[int]  # those for which the time did not suffice
    seconds: float

    def holds(self, pid: int, inode: int) -> bool | None:
        """Whether *pid* has the socket *inode* open; None if that could not be seen."""
        if inode in self.holders.get(pid, ()):
            return True
        return None if pid in self.refused or pid in self.unfinished else False


def scan(inodes: Collection[int], seconds: float, *, clock: Callable[[], float] = time.monotonic) -> Scan:
    """Look through the descriptors of every process for the sockets *inodes*.

    Args:
        seconds: How long this may take; some 10 us a descriptor are needed. Processes with few descriptors come first,
            so that none of them is left out on account of one that has 100,000; of that one the low numbers do.
    """
    began = clock()
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    holders: dict[int, frozenset[int]] = {}
    refused, unfinished = set(), set()
    looked = 0
    for pid in _by_size():
        if clock() - began >= seconds:
            unfinished.add(pid)
            continue
        try:
            found, finished = _look(pid, wanted, lambda: clock() - began < seconds)
        except PermissionError:
            if processes.alive(pid):  # a zombie's directory is root's
                refused.add(pid)
            continue
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        if found:
            holders[pid] = found
        if finished:
            looked += 1
        else:
            unfinished.add(pid)
    return Scan(holders, looked, frozenset(refused), frozenset(unfinished), clock() - began)


def _by_size() -> list[int]:
    """Every process, those with few descriptors first."""
    sizes = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                # How many there are (Linux 6.2); before that 0, and the order is that of the numbers.
                sizes.append((os.stat(f"/proc/{name}/fd").st_size, int(name)))
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError:  # hidepid= (proc(5))
                sizes.append((0, int(name)))
    return [pid for _, pid in sorted(sizes)]


def _look(pid: int, wanted: dict[str, int], in_time: Callable[[], bool]) -> tuple[frozenset[int], bool]:
    """Those of *wanted* that *pid* has, and whether it can have no more."""
    found = set()
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(directory) as entries:
            for count, entry in enumerate(entries, 1):
                try:
                    target = os.readlink(entry.name, dir_fd=directory)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # closed meanwhile
                if target in wanted:
                    found.add(wanted[target])
                    if len(found) == len(wanted):
                        break
                if not count % _BETWEEN_LOOKS and not in_time():
                    return frozenset(found), False
    finally:
        os.close(directory)
    return frozenset(found), True
