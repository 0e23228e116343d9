"""Where sockshare runs."""

from __future__ import annotations

import sys

import pytest

from sockshare.core.errors import UnsupportedPlatform
from sockshare.core.platforms import require_support, unsupported


def test_linux_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is an ImportError with one sentence."""
    require_support()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UnsupportedPlatform, match=r"it needs Linux \(this is darwin\)"):
        require_support()


def test_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was installed by other means than pip."""
    monkeypatch.setattr(sys, "version_info", (3, 9))
    assert str(unsupported()).startswith("can't run sockshare: it needs Python 3.10")
