"""The vocabulary of sd_notify(3), from senders that may be anybody."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockshare.core.sdnotify import LONGEST, Notification, parse


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("READY=1", "ready", True),
        ("RELOADING=1", "reloading", True),
        ("STOPPING=1", "stopping", True),
        ("STATUS=warm: 3/4 = fine", "status", "warm: 3/4 = fine"),
        ("STATUS=", "status", ""),
        ("STATUS=größer", "status", "größer"),
        ("ERRNO=2", "errno", 2),
        ("BUSERROR=org.example.Timeout", "bus_error", "org.example.Timeout"),
        ("VARLINKERROR=org.example.Timeout", "varlink_error", "org.example.Timeout"),
        ("EXIT_STATUS=255", "exit_status", 255),
        ("MAINPID=4711", "main_pid", 4711),
        ("MAINPIDFD=1", "main_pidfd", True),
        ("MAINPIDFDID=77", "main_pidfd_inode", 77),
        ("WATCHDOG=1", "watchdog", True),
        ("WATCHDOG=trigger", "watchdog", "trigger"),
        ("WATCHDOG_USEC=20000000", "watchdog_usec", 20_000_000),
        ("EXTEND_TIMEOUT_USEC=0", "extend_timeout_usec", 0),
        ("MONOTONIC_USEC=18446744073709551615", "monotonic_usec", 2**64 - 1),
        ("NOTIFYACCESS=exec", "notify_access", "exec"),
        ("RESTART_RESET=1", "restart_reset", True),
        ("FDSTORE=1", "fdstore", True),
        ("FDSTOREREMOVE=1", "fdstoreremove", True),
        ("FDNAME=a-9/~", "fdname", "a-9/~"),
        ("FDPOLL=0", "fdpoll", False),
        ("BARRIER=1", "barrier", True),
    ],
)
def test_field_is_set_and_no_other_by_a_known_assignment(line: str, field: str, value: Any) -> None:
    """Each assignment means its field, and that alone."""
    expected = Notification()._replace(**{field: value})
    assert parse(line.encode()) == expected
    assert type(getattr(parse(line.encode()), field)) is type(value)


@pytest.mark.parametrize(
    "line",
    [
        "READY=0",
        "READY=",
        "READY=10",
        "READY",
        "=1",
        "ready=1\x00",
        "STATUS=a\x00b",
        "ERRNO=ENOENT",
        "ERRNO=4096",
        "EXIT_STATUS=256",
        "EXIT_STATUS=-1",
        "MAINPID=0",
        "MAINPID=2147483648",
        "MAINPID= 1",
        "MAINPID=1_0",
        "MAINPID=٣",
        "MAINPIDFDID=0",
        "WATCHDOG=2",
        "WATCHDOG_USEC=18446744073709551616",
        "WATCHDOG_USEC=" + "9" * 4000,
        "NOTIFYACCESS=some",
        "FDNAME=a:b",
        "FDNAME=" + "a" * 256,
        "FDPOLL=1",
        "BARRIER=0",
    ],
)
def test_malformed_assignment_is_listed_and_sets_nothing(line: str) -> None:
    """What is malformed changes nothing, and what is beside it counts."""
    notification = parse(b"STOPPING=1\n" + line.encode() + b"\nRELOADING=1\n")
    ignored = notification.ignored
    assert notification == Notification(stopping=True, reloading=True, ignored=ignored)
    assert len(ignored) == 1
    assert ascii(line)[1:40].startswith(ignored[0][:20])
    assert len(ignored[0]) < 400


def test_several_assignments_are_read_together_with_unknown_ones() -> None:
    """Unknown keys are kept, for whoever knows them; empty lines and a last NUL say nothing."""
    notification = parse(b"READY=1\n\nMAINPID=12\nX_WORKERS=4\nX_EMPTY=\n\0")
    assert notification == Notification(ready=True, main_pid=12, unknown={"X_WORKERS": "4", "X_EMPTY": ""})


def test_first_counts_when_a_key_is_repeated() -> None:
    """As in systemd."""
    notification = parse(b"STATUS=a\nSTATUS=b\nX=1\nX=2")
    assert notification == Notification(status="a", unknown={"X": "1"}, ignored=("STATUS=b",))


def test_rest_is_ignored_when_there_is_a_barrier() -> None:
    """A barrier is to be alone (sd_notify_barrier(3))."""
    assert parse(b"READY=1\nBARRIER=1\nX=1") == Notification(barrier=True, ignored=("READY=1", "X=1"))
    assert parse(b"BARRIER=1\n") == Notification(barrier=True)


def test_bytes_that_are_not_utf8_are_listed() -> None:
    """A line in another encoding is left out, with what can be shown of it."""
    assert parse(b"STATUS=\xff\nREADY=1") == Notification(ready=True, ignored=("STATUS=\\\\xff",))


def test_assignment_that_the_limit_cuts_is_not_believed() -> None:
    """READY=1 is not read out of READY=10; what was whole before the limit is."""
    long = b"STATUS=".ljust(LONGEST - 8, b"a") + b"\nREADY=10\n"
    assert long[:LONGEST].endswith(b"\nREADY=1")
    notification = parse(long)
    assert notification.status is not None
    assert not notification.ready
    assert notification.ignored == ("what follows byte 4096",)
    assert parse(long[:LONGEST]).ready


def test_nothing_is_said_when_datagram_is_empty() -> None:
    """No news."""
    assert parse(b"") == Notification()


def test_unknown_is_not_shared_between_notifications() -> None:
    """What one sender says does not appear in another's."""
    parse(b"X=1").unknown["Y"] = "2"
    assert parse(b"READY=1").unknown == {}


@given(
    st.one_of(
        st.binary(max_size=LONGEST + 10),
        st.lists(
            st.tuples(st.sampled_from([*"READY STATUS MAINPID BARRIER WATCHDOG X".split()]), st.text(max_size=12)).map(
                "=".join
            )
        ).map(lambda lines: "\n".join(lines).encode()),
    )
)
def test_any_bytes_are_read_without_an_error(datagram: bytes) -> None:
    """Nothing raises; what is listed is on one line; ready is said by READY=1 alone."""
    notification = parse(datagram)
    assert all(shown.isprintable() for shown in notification.ignored)
    assert not notification.ready or b"READY=1" in datagram.rstrip(b"\0").split(b"\n")
