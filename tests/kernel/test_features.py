"""What the kernel has is tried, and trying it leaves nothing behind."""

from __future__ import annotations

import os
import platform

import pytest

from sockshare.kernel.features import features


def test_trying_leaves_no_descriptor() -> None:
    """Each has its say of what is so without it."""
    before = os.listdir("/proc/self/fd")
    found = features()
    assert os.listdir("/proc/self/fd") == before
    assert len({one.name for one in found}) == len(found) == 4
    assert all(one.present or one.without for one in found)


@pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 16), reason="this kernel is older than what is asked for"
)
def test_kernel_that_has_all_is_seen_to() -> None:
    """On Linux 6.16 all of its own features are there; Yama is a matter of the machine."""
    assert [one.present for one in features()][:3] == [True] * 3
