"""Every mistake in the configuration is found at once, and named with section, key and a suggestion."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockshare.core.servers import SERVERS
from sockshare.core.spec import (
    MOST_SOCKETS,
    Mistake,
    PluginSpec,
    ProgramSpec,
    SocketSpec,
    check_command,
    check_descriptors,
    check_foreign,
    check_givers,
    check_timeouts,
    parse_plugin_options,
    parse_program,
    parse_socket,
)
from sockshare.core.suggest import did_you_mean

SOCKETS = ("web", "chat", "web.api")


def program(options: Mapping[str, str]) -> tuple[ProgramSpec | None, list[str]]:
    spec, mistakes = parse_program("web", "watcher:web", options, "sockshare.", SOCKETS)
    assert (spec is None) == bool(mistakes)
    return spec, [str(mistake) for mistake in mistakes]


def good(options: Mapping[str, str]) -> ProgramSpec:
    spec, mistakes = program(options)
    assert spec is not None, mistakes
    return spec


def test_program_has_the_defaults_and_no_socket_when_nothing_is_said() -> None:
    """Deny by default."""
    assert good({}) == ProgramSpec(
        name="web",
        sockets=(),
        ready="auto",
        ready_timeout=30.0,
        ready_hold=1.0,
        quiesce=0.3,
        settle=0.0,
        drain="auto",
        drain_timeout=30.0,
        max_draining=2,
        stop_signal=None,
        verify=None,
        server="auto",
    )


def test_program_takes_connections_of_those_that_it_names() -> None:
    """Once each, and only of programs that there are; from itself it takes them anyhow."""
    spec = good({"receive_from": "web, gateway web", "drain": "hand_over"})
    assert spec.receive_from == ("web", "gateway")
    assert spec.drain == "hand_over"
    assert check_givers("watcher:web", "sockshare.", spec, ["web", "gateway"]) == []
    assert [str(one) for one in check_givers("watcher:web", "sockshare.", spec, ["web", "gatewya"])] == [
        "[watcher:web] sockshare.receive_from: no such program 'gateway'; did you mean 'gatewya'?"
    ]
    assert program({"receive_from": " , "})[1] == [
        "[watcher:web] sockshare.receive_from: no program is named; "
        "leave the key out where only the program itself may hand over"
    ]


def test_program_has_what_was_said_when_every_key_is_there() -> None:
    """Each key sets its field, with blanks around the value or not."""
    options = {
        "sockets": " web,chat  web.api ",
        "ready": "notify",
        "ready_timeout": "0.5",
        "ready_hold": "0",
        "quiesce": "1e-1",
        "settle": " 2.5",
        "drain": " signal ",
        "drain_timeout": "86400",
        "max_draining": " 3",
        "stop_signal": "INT",
    }
    assert good(options) == ProgramSpec(
        name="web",
        sockets=("web", "chat", "web.api"),
        ready="notify",
        ready_timeout=0.5,
        ready_hold=0.0,
        quiesce=0.1,
        settle=2.5,
        drain="signal",
        drain_timeout=86400.0,
        max_draining=3,
        stop_signal=2,
    )


@pytest.mark.parametrize("value", ["TERM", "SIGTERM", "sigterm", "15"])
def test_stop_signal_is_the_same_however_it_is_written(value: str) -> None:
    """Name, long name and number mean one signal."""
    assert good({"stop_signal": value}).stop_signal == signal.SIGTERM


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("quiese", "1", "[watcher:web] sockshare.quiese: no such key; did you mean 'sockshare.quiesce'?"),
        ("colour", "red", "[watcher:web] sockshare.colour: no such key"),
        ("sockets", "wbe", "[watcher:web] sockshare.sockets: no such socket 'wbe'; did you mean 'web'?"),
        ("sockets", "Web", "[watcher:web] sockshare.sockets: no such socket 'Web'; did you mean 'web'?"),
        (
            "sockets",
            "mail",
            "[watcher:web] sockshare.sockets: no such socket 'mail' (there are: chat, web, web.api)",
        ),
        ("sockets", "web, web", "[watcher:web] sockshare.sockets: 'web' is named twice"),
        (
            "sockets",
            " , ",
            "[watcher:web] sockshare.sockets: no socket is named; leave the key out for a program without sockets",
        ),
        (
            "ready",
            "notfy",
            "[watcher:web] sockshare.ready: 'notfy' is not one of auto, notify, registration, client, hold;"
            " did you mean 'notify'?",
        ),
        (
            "ready",
            "registration",
            "[watcher:web] sockshare.ready: 'registration' is of a socket, and the program has none;"
            " name it in sockshare.sockets",
        ),
        ("ready_hold", "1s", "[watcher:web] sockshare.ready_hold: '1s' is not a number of seconds"),
        ("ready_hold", "", "[watcher:web] sockshare.ready_hold: '' is not a number of seconds"),
        ("ready_hold", "nan", "[watcher:web] sockshare.ready_hold: 'nan' is not a number of seconds"),
        ("ready_hold", "1_0", "[watcher:web] sockshare.ready_hold: '1_0' is not a number of seconds"),
        ("ready_hold", "\u0661", "[watcher:web] sockshare.ready_hold: '\u0661' is not a number of seconds"),
        (
            "ready_hold",
            "-0.1",
            "[watcher:web] sockshare.ready_hold: '-0.1' is out of range:"
            " it must be 0 or more and at most 86400 seconds",
        ),
        (
            "ready_timeout",
            "0",
            "[watcher:web] sockshare.ready_timeout: '0' is out of range:"
            " it must be more than 0 and at most 86400 seconds",
        ),
        (
            "quiesce",
            "inf",
            "[watcher:web] sockshare.quiesce: 'inf' is out of range: it must be 0 or more and at most 86400 seconds",
        ),
        (
            "drain_timeout",
            "86401",
            "[watcher:web] sockshare.drain_timeout: '86401' is out of range:"
            " it must be 0 or more and at most 86400 seconds",
        ),
        ("stop_signal", "TREM", "[watcher:web] sockshare.stop_signal: 'TREM' is not a signal; did you mean 'TERM'?"),
        ("max_draining", "two", "[watcher:web] sockshare.max_draining: 'two' is not a number"),
        (
            "max_draining",
            "0",
            "[watcher:web] sockshare.max_draining: 0 is out of range: it must be at least 1 and at most 4096",
        ),
        (
            "max_draining",
            "9" * 20,
            f"[watcher:web] sockshare.max_draining: {'9' * 20} is out of range: it must be at least 1 and at most 4096",
        ),
        ("stop_signal", "0", "[watcher:web] sockshare.stop_signal: there is no signal 0"),
        ("stop_signal", "99", "[watcher:web] sockshare.stop_signal: there is no signal 99"),
        (
            "stop_signal",
            "KILL",
            "[watcher:web] sockshare.stop_signal: KILL can't be handled, so the program would lose what it has in hand;"
            " write TERM, or what it drains on",
        ),
        (
            "drain",
            "obsrve",
            "[watcher:web] sockshare.drain: 'obsrve' is not one of auto, signal, observe, hand_over;"
            " did you mean 'observe'?",
        ),
        (
            "verify",
            "health",
            "[watcher:web] sockshare.verify: 'health' is not of the form http:/PATH"
            " (an absolute path, no host, no spaces)",
        ),
        (
            "server",
            "dafne",
            f"[watcher:web] sockshare.server: 'dafne' is not one of auto, {', '.join(SERVERS)}; did you mean 'daphne'?",
        ),
    ],
)
def test_mistake_is_one_sentence_with_section_key_and_remedy(key: str, value: str, sentence: str) -> None:
    """One mistake, one sentence, and no spec."""
    assert program({key: value}) == (None, [sentence])


def test_unknown_socket_says_so_when_there_are_none_at_all() -> None:
    """A missing [socket:*] is the likely mistake then."""
    _, mistakes = parse_program("web", "program:web", {"sockets": "web"}, "sockshare_", ())
    assert mistakes == [Mistake("program:web", "sockshare_sockets", "no such socket 'web' (there are none)")]


def test_program_with_more_sockets_than_it_can_be_given_is_refused() -> None:
    """It would never come to its start."""
    names = [f"s{number}" for number in range(MOST_SOCKETS + 1)]

    def read(count: int) -> list[str]:
        options = {"sockets": " ".join(names[:count])}
        return [str(one) for one in parse_program("web", "program:web", options, "sockshare_", names)[1]]

    assert read(MOST_SOCKETS) == []
    assert read(MOST_SOCKETS + 1) == [
        "[program:web] sockshare_sockets: it names 401 sockets; a program may have 400 at most: divide it in several"
    ]


def test_every_mistake_is_found_at_once() -> None:
    """Nobody restarts circusd once for each."""
    _, mistakes = program({"quiese": "1", "sockets": "wbe chat chat", "ready": "x", "ready_hold": "-1", "verify": "x"})
    assert [mistake.split(": ")[0] for mistake in mistakes] == [
        "[watcher:web] sockshare.quiese",
        "[watcher:web] sockshare.ready",
        "[watcher:web] sockshare.ready_hold",
        "[watcher:web] sockshare.verify",
        "[watcher:web] sockshare.sockets",
        "[watcher:web] sockshare.sockets",
    ]


def test_registration_as_readiness_is_no_second_mistake_when_the_sockets_are_one() -> None:
    """A mistake in the sockets is not reported as their absence."""
    for sockets in ("wbe", ","):
        _, mistakes = program({"ready": "registration", "sockets": sockets})
        assert len(mistakes) == 1
    assert good({"ready": "registration", "sockets": "web"}).ready == "registration"


def test_page_to_verify_is_read() -> None:
    """A path, with a query if need be."""
    assert good({"verify": "http:/health?deep=1"}).verify == "http:/health?deep=1"


def test_every_registration_is_read() -> None:
    """The four words, and a number of holders."""
    for value, expected in [("exclusive", "exclusive"), ("4", 4), ("rotate", "rotate"), ("latest", "latest")]:
        assert parse_socket("web", "sockshare:web", {"registration": value}, "") == (
            SocketSpec("web", registration=expected),  # type: ignore[arg-type]
            [],
        )


def test_keys_of_the_registration_are_read() -> None:
    """Beside a registration that they are about."""
    options = {"registration": "rotate", "stall_timeout": "0", "enforce": "stop", "rotate_ms": "12.5"}
    spec, _ = parse_socket("web", "sockshare:web", options, "")
    assert spec == SocketSpec("web", registration="rotate", stall_timeout=0.0, enforce="stop", rotate_ms=12.5)


@pytest.mark.parametrize(
    ("command", "policy", "refused"),
    [
        ("sockshare exec -- app", "rotate", True),
        ("/opt/venv/bin/sockshare exec --socket web -- app", "rotate", True),
        ("sockshare exec --socket=other -- app", "rotate", False),
        ("python -m sockshare exec -- app", "rotate", True),
        ("python server.py", "rotate", False),
        ("sockshare status", "rotate", False),
        ("sockshare exec -- app", "latest", False),
        ("sockshare exec --registration -- app", "latest", True),
        ("sockshare exec --registration -- app", "exclusive", False),
        ("sockshare exec -- app --registration", "latest", False),
        ("sockshare exec --socket web", "rotate", True),
    ],
)
def test_command_is_refused_where_its_registration_can_not_be_kept(command: str, policy: str, refused: bool) -> None:
    """One table of policies and means: what is not in it is refused before anything runs."""
    specs = {"web": SocketSpec("web", registration=policy)}  # type: ignore[arg-type]
    found = check_command("watcher:web", "cmd", command, ["web"], specs)
    assert bool(found) == refused
    assert all(str(mistake).startswith(f"[watcher:web] cmd: 'web' has registration = {policy}") for mistake in found)


@pytest.mark.parametrize(
    ("rest", "sockets", "said"),
    [
        ("-- x --fd {fd:web}", ["web"], ""),
        ("-- x --fd {fd:WEB}", ["web"], ""),
        ("--socket web -- x {fd:web}", ["web", "api"], ""),
        ("uwsgi --socket fd://{fd:web}", ["web"], ""),
        ("-- x {fd:%(program_name)s}", ["web"], ""),
        ("-- x {fd:web}", ["%(program_name)s"], ""),
        ("--endpoint /x --socket api x {fd:api}", ["web", "api"], ""),
        ("-- node -e 'listen({fd: 3})'", ["web"], ""),
        ("-- x {fd:web}", [], "{fd:web} needs a socket that the section does not name; write p_sockets = web"),
        ("-- x {fd:api}", ["web"], "{fd:api} needs a socket that the section does not name; write p_sockets = web api"),
        ("-- x {fd:wbe}", ["web"], "{fd:wbe} needs a socket, and there is no 'wbe'; did you mean 'web'?"),
        ("-- x {fd:zzz}", ["web"], "{fd:zzz} needs a socket, and there is no 'zzz' (there are: api, web)"),
        ("-- x {fd:0}", ["web"], "{fd:0} needs the name of a socket, not a number; write {fd:web}"),
        ("-- x '{ fd:web }'", ["web"], "{ fd:web } is not replaced; write {fd:web}"),
        ("-- x {FD:web}", ["web"], "{FD:web} is not replaced; write {fd:web}"),
        ("-- x {fd=web}", ["web"], "{fd=web} is not replaced; write {fd:web}"),
        ("-- x {fd:web", ["web"], "{fd:web is not replaced; write {fd:web}"),
        ("-- x {fd:web }", ["web"], "{fd:web } is not replaced; write {fd:web}"),
        (
            "--socket=web -- x {fd:api}",
            ["web", "api"],
            "{fd:api} is not replaced, as --socket does not choose 'api'; add --socket api",
        ),
    ],
)
def test_descriptor_that_exec_could_not_replace_is_refused(rest: str, sockets: list[str], said: str) -> None:
    """What `exec` would say at each start is said once, before the first; with what to write instead."""
    found = check_descriptors("program:web", "command", f"sockshare exec {rest}", sockets, ["web", "api"], "p_")
    assert [str(mistake) for mistake in found] == ([f"[program:web] command: {said}"] if said else [])


def test_descriptors_are_what_somebody_else_replaces_where_there_is_no_exec() -> None:
    """A script may pass the command on to `sockshare exec`: that is seen only when it runs. No socket, no list."""
    assert check_descriptors("s", "cmd", "start.sh x {fd:web}", [], ["web"], "") == []
    found = check_descriptors("s", "cmd", "sockshare exec -- x {fd:web}", [], [], "")
    assert "(there are none)" in str(found[0])


def test_key_without_its_prefix_is_refused() -> None:
    """A manager passes over what it does not know, so the sockets would be nobody's; a stranger's key is not ours."""
    strange = ("priority", "socket_owner", "socket_timeout", "websocket_ready", "sockets_dir")
    keys = dict.fromkeys(("ready", "sockshre_ready", *strange), "x")
    misspelt = "[program:web] sockshre_ready: no such key; did you mean 'sockshare_ready'?"
    sockets = "[program:web] sockets: no such key; did you mean 'sockshare_sockets'?"
    ready = "[program:web] ready: no such key; did you mean 'sockshare_ready'?"
    for named, is_ours, said in (
        ("web, api", False, [sockets, misspelt]),
        ("api", False, [misspelt]),
        ("api", True, [sockets, ready, misspelt]),
    ):
        options = {"sockets": named, **keys}
        found = check_foreign("program:web", options, "sockshare_", ["web"], is_ours=is_ours)
        assert [str(mistake) for mistake in found] == said


@pytest.mark.parametrize("value", ["http://host/x", "http:x", "http:/a b", "https:/x", "http:", "http:/a\nb"])
def test_verify_is_refused_when_it_is_not_a_path(value: str) -> None:
    """The page is of the socket's own address."""
    spec, _ = program({"verify": value})
    assert spec is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stall_timeout": "2"}, "it means nothing without a registration other than 'shared'"),
        ({"registration": "exclusive", "rotate_ms": "5"}, "it means nothing without registration = rotate"),
        ({"registration": "rotate", "rotate_ms": "fast"}, "'fast' is not a number of milliseconds, at most 999999"),
        (
            {"registration": "exclusive", "enforce": "kill"},
            "'kill' is not one of warn, suspend, stop",
        ),
        ({"registration": "0"}, "0 is out of range: it must be at least 1 and at most 4096"),
        ({"registration": "4097"}, "4097 is out of range: it must be at least 1 and at most 4096"),
        # int() itself refuses so many digits.
        ({"registration": "9" * 5000}, f"{'9' * 5000} is out of range: it must be at least 1 and at most 4096"),
        (
            {"registration": "sharde"},
            "'sharde' is not one of shared, exclusive, latest, rotate, or a number; did you mean 'shared'?",
        ),
        ({"blocking": "maybe"}, "'maybe' is neither true nor false"),
        ({"blockin": "1"}, "no such key; did you mean 'web.blocking'?"),
    ],
)
def test_socket_mistake_is_named(options: dict[str, str], message: str) -> None:
    """As for programs."""
    spec, mistakes = parse_socket("web", "plugin:sockshare", options, "web.")
    assert spec is None
    assert [mistake.message for mistake in mistakes] == [message]


@pytest.mark.parametrize(("text", "value"), [("True", True), ("on", True), ("1", True), ("no", False), ("0", False)])
def test_blocking_is_read_in_any_usual_spelling(text: str, value: bool) -> None:
    """The spellings that circus and supervisord take."""
    spec, _ = parse_socket("web", "sockshare:web", {"blocking": text, "registration": "shared"}, "")
    assert spec == SocketSpec("web", blocking=value)


IGNORED = {"use", "use_sockets", "name", "priority", "stop_signal"}


def test_plugin_section_is_read_among_what_is_circus_own() -> None:
    """circus hands its own keys over too; every socket gets a spec, also one whose name has a dot."""
    options = {
        "use_sockets": "True",
        "name": "plugin:sockshare",
        "runtime_dir": "/run/app/sockshare",
        "logfile": "/var/log/sockshare.log",
        "web.api.blocking": "yes",
        "chat.registration": "shared",
    }
    assert parse_plugin_options("plugin:sockshare", options, SOCKETS, IGNORED) == (
        PluginSpec(
            "/run/app/sockshare",
            "/var/log/sockshare.log",
            (SocketSpec("web"), SocketSpec("chat"), SocketSpec("web.api", blocking=True)),
        ),
        [],
    )


def test_every_mistake_of_a_plugin_section_is_found_at_once() -> None:
    """Unknown keys, unknown sockets, bad values and relative paths together."""
    options = {
        "logfle": "/x",
        "wbe.registration": "shared",
        "web.registraton": "shared",
        "nonsense.key": "1",
        "web.blocking": "x",
        "logfile": "sockshare.log",
        "runtime_dir": "/" + "é" * 46,
        "use": "circus_sockshare.SockShare",
    }
    spec, mistakes = parse_plugin_options("plugin:sockshare", options, SOCKETS, IGNORED)
    assert spec is None
    assert [str(mistake) for mistake in mistakes] == [
        "[plugin:sockshare] logfle: no such key; did you mean 'logfile'?",
        "[plugin:sockshare] wbe.registration: no such socket 'wbe'; did you mean 'web'?",
        "[plugin:sockshare] nonsense.key: no such key",
        "[plugin:sockshare] logfile: 'sockshare.log' is not an absolute path",
        "[plugin:sockshare] runtime_dir: the path is too long for the sockets in it: 93 bytes of at most 92 (unix(7))",
        "[plugin:sockshare] web.registraton: no such key; did you mean 'web.registration'?",
        "[plugin:sockshare] web.blocking: 'x' is neither true nor false",
    ]


def test_longest_runtime_dir_has_room_for_every_socket_in_it() -> None:
    """The limit is that of sun_path, not less."""
    longest = "/" + "a" * 91
    spec, _ = parse_plugin_options("plugin:sockshare", {"runtime_dir": longest}, (), ())
    assert spec is not None
    assert len(f"{longest}/notify/4194304") == 107


@pytest.mark.parametrize(
    ("graceful_timeout", "has_hook", "refused"), [(61.3, True, True), (61.4, True, False), (1.0, False, False)]
)
def test_timeouts_are_refused_when_circus_would_kill_in_mid_reload(
    graceful_timeout: float, has_hook: bool, refused: bool
) -> None:
    """The sum must be less than graceful_timeout, with the hook only."""
    mistakes = check_timeouts(ProgramSpec("web"), graceful_timeout, has_hook)
    assert bool(mistakes) == refused


def test_timeouts_mistake_says_what_would_do() -> None:
    """The remedy is accepted."""
    (mistake,) = check_timeouts(ProgramSpec("web"), 30.0, True)
    assert str(mistake) == (
        "[watcher:web] graceful_timeout: 30 s is too short for hooks.before_signal: circus kills then, and"
        " ready_timeout + ready_hold + quiesce + drain_timeout are 61.3 s; write at least 62"
    )
    assert check_timeouts(ProgramSpec("web"), 62.0, True) == []


def test_timeouts_count_the_longer_of_quiesce_and_settle() -> None:
    """Both pass at once: the old one has had its quiesce when the new one has settled."""
    spec = ProgramSpec("web", ready_timeout=1.0, ready_hold=1.0, quiesce=0.5, settle=2.0, drain_timeout=1.0)
    assert check_timeouts(spec, 5.1, True) == []
    assert len(check_timeouts(spec, 5.0, True)) == 1


def test_sum_of_timeouts_is_not_decided_by_rounding() -> None:
    """0.7 + 0.1 is 0.8, though less in floating point."""
    spec = ProgramSpec("web", ready_timeout=0.7, ready_hold=0.1, quiesce=0.0, drain_timeout=0.0)
    assert len(check_timeouts(spec, 0.8, True)) == 1


@given(
    st.builds(
        ProgramSpec,
        name=st.text(),
        sockets=st.lists(st.text()).map(tuple),
        ready=st.sampled_from(["auto", "notify", "registration", "client", "hold"]),
        ready_timeout=st.floats(0, 1e5),
        drain=st.sampled_from(["auto", "signal", "observe"]),
        stop_signal=st.none() | st.integers(1, 64),
        verify=st.none() | st.text(),
        server=st.sampled_from(["auto", "nginx"]),
    )
)
def test_program_spec_survives_json(spec: ProgramSpec) -> None:
    """The host sends it to the broker."""
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(spec))), ProgramSpec) == spec


@pytest.mark.parametrize("registration", ["exclusive", 3])
def test_plugin_spec_survives_json(registration: str | int) -> None:
    """A number stays one."""
    spec = PluginSpec("/run/x", None, (SocketSpec("web", registration, blocking=True),))  # type: ignore[arg-type]
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(spec))), PluginSpec) == spec


def test_unknown_field_is_passed_over_between_host_and_broker() -> None:
    """A host one version later says more than the broker knows."""
    assert msgspec.convert({"name": "web", "canary": 1}, ProgramSpec) == ProgramSpec("web")
    assert msgspec.convert({"name": "web", "shape": "round"}, SocketSpec) == SocketSpec("web")


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12)))
def test_any_text_is_read_without_an_error(options: dict[str, str]) -> None:
    """A mistake is a return value, whatever was typed."""
    keyed = {**options, **dict(zip(["sockets", "ready_hold", "stop_signal", "verify"], options.values(), strict=False))}
    program(keyed)
    parse_socket("web", "s", dict(zip(["registration", "blocking"], options.values(), strict=False)), "")
    parse_plugin_options("s", options, SOCKETS, ())


def test_suggestion_is_not_made_when_nothing_is_like_it_or_the_word_is_huge() -> None:
    """A wrong suggestion is worse than none, and a peer's 64 KiB are not compared."""
    assert did_you_mean("web", ["chat", "WEBB"]) == "; did you mean 'WEBB'?"
    assert did_you_mean("mail", ["chat", "web"]) == ""
    assert did_you_mean("w" * 65, ["w" * 64]) == ""
