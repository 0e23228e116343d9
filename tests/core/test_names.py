"""What somebody means by the names that are typed."""

from __future__ import annotations

import pytest

from sockshare.core.errors import ExitStatus, UnknownProgram
from sockshare.core.names import programs_named

PROCESSES = {
    "web": ["web:web_0", "web:web_1"],
    "api": ["site:api"],
    "jobs": ["site:jobs_0", "site:jobs_1"],
    "mail": ["mail"],
}
SHARING = ["web", "api", "mail"]


@pytest.mark.parametrize(
    ("names", "programs"),
    [
        (["web"], {"web": True}),
        (["mail", "web"], {"mail": True, "web": True}),
        (["web:web_1"], {"web": True}),
        (["site:api", "site:jobs_0", "site:jobs_1"], {"api": True, "jobs": True}),
        (["site:*"], {"api": False, "jobs": False}),
        (["site:"], {"api": False, "jobs": False}),
        (["web:*"], {"web": False}),
        (["mail:*"], {"mail": False}),
        (["all"], {"web": False, "api": False, "mail": False}),
        (["site:*", "api"], {"api": True, "jobs": False}),
        (["api", "all"], {"api": True, "web": False, "mail": False}),
        ([], {}),
    ],
)
def test_names_mean_programs_in_their_order(names: list[str], programs: dict[str, bool]) -> None:
    """Each program once; whether it was named by itself decides what is said of one that does not run."""
    found = programs_named(names, PROCESSES, SHARING)
    assert (found, list(found)) == (programs, list(programs))


def test_program_called_all_is_what_is_meant() -> None:
    """A program's own name comes first."""
    assert programs_named(["all"], {**PROCESSES, "all": ["all"]}, SHARING) == {"all": True}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wbe", "can't reload 'wbe': no such program; did you mean 'web'?"),
        ("web:web_7", "can't reload 'web:web_7': no such program; did you mean 'web:web_1'?"),
        ("stie:*", "can't reload 'stie:*': no such program; did you mean 'site:*'?"),
        ("site", "can't reload 'site': no such program; did you mean 'site:*'?"),
        ("site:ap", "can't reload 'site:ap': no such program; did you mean 'site:api'?"),
        ("", "can't reload '': no such program"),
        ("*", "can't reload '*': no such program"),
    ],
)
def test_unknown_name_gets_a_suggestion(name: str, sentence: str) -> None:
    """One line, exit status 4."""
    with pytest.raises(UnknownProgram) as raised:
        programs_named([name], PROCESSES, SHARING)
    assert str(raised.value) == sentence
    assert raised.value.exit_status == ExitStatus.UNKNOWN_NAME


def test_every_unknown_name_is_said_at_once() -> None:
    """And where nothing shares a socket, `all` is nothing."""
    with pytest.raises(UnknownProgram) as raised:
        programs_named(["wbe", "web", "aip", "all"], PROCESSES, [])
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "can't reload 'wbe'",
        "can't reload 'aip'",
        "can't reload all",
    ]
