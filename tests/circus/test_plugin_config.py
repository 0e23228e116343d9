"""What the plugin makes of a configuration: pure readings of it, and a real circusd for what only circus can do."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from circus_sockshare import plugin, settings
from circus_sockshare.inherited import Inherited, passed_on
from sockshare.cli.stage import wait_until
from sockshare.core.spec import SocketSpec
from sockshare.kernel import listeners, meeting, reach
from tests.support.circusd import Circusd, is_running

Circusds = Callable[..., Circusd]
SECTION = "plugin:sockshare"
OPTIONS = {"__name__": SECTION, "name": SECTION, "use_sockets": "True", "priority": "5"}


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def told(sock: socket.socket, watcher: Mapping[str, Any] | None = None, **of_socket: Any) -> dict[str, Any]:
    """circusd's answer, with one watcher and one socket."""
    web = {
        "numprocesses": 2,
        "graceful_timeout": 30.0,
        "cmd": "server",
        "uid": None,
        "hooks": [],
        "options": {"sockshare.sockets": "web"},
        **(watcher or {}),
    }
    inode = listeners.inode(sock.fileno())
    web_socket = {"name": "web", "fd": 99, "inode": inode, "so_reuseport": False, "blocking": False, **of_socket}
    return {"watchers": {"web": web}, "sockets": [web_socket]}


def mistakes(answer: Mapping[str, Any], inherited: Mapping[str, socket.socket], **options: str) -> str:
    return "\n".join(settings.read(SECTION, {**OPTIONS, **options}, answer, inherited)[0].mistakes)


def test_what_the_configuration_shows_of_descriptors_and_names_is_refused(sock: socket.socket) -> None:
    """What `exec` could not replace, in `cmd` or `args`; a key that has lost its prefix."""
    web = {
        "cmd": "sockshare exec -- x",
        "args": "--fd {fd:wbe}",
        "options": {},
        "foreign": {"sockets": "web", "x": "y"},
    }
    assert mistakes(told(sock, web), {"web": sock}).splitlines() == [
        "[watcher:web] sockets: no such key; did you mean 'sockshare.sockets'?",
        "[watcher:web] cmd: {fd:wbe} needs a socket, and there is no 'wbe'; did you mean 'web'?",
    ]


def test_sections_of_supervisord_are_refused(tmp_path: Path) -> None:
    """circus passes over them, so the sockets would not be there; also in an included file."""
    (tmp_path / "circus.ini").write_text("[circus]\ninclude = more.ini\n[program:x]\ncommand = cat\n")
    (tmp_path / "more.ini").write_text("[sockshare:web]\nsocket = tcp://127.0.0.1:1\n[program:y]\nsockshare_ready=x\n")
    said = [str(mistake) for mistake in settings.foreign_sections(str(tmp_path / "circus.ini"))]
    assert [line.partition("; ")[2] for line in said] == [
        "write [socket:web] with host and port, and what else it has as web.KEY in [plugin:sockshare]",
        "write [watcher:y], and its keys as sockshare.KEY",
    ]
    assert settings.foreign_sections(str(tmp_path / "none")) == []


def test_programs_and_sockets_are_read(sock: socket.socket) -> None:
    """The specs go over the link as they are, with the socket's descriptor and the users that may ask."""
    answer = told(sock, {"uid": "12345", "options": {"sockshare.sockets": "web", "sockshare.stop_signal": "QUIT"}})
    options = {**OPTIONS, "runtime_dir": "/run/app"}
    configuration, specs = settings.read(SECTION, options, answer, {"web": sock})
    assert configuration.mistakes == []
    assert configuration.programs[0]["sockets"] == ("web",)
    assert specs["web"].stop_signal == 3
    ((described, given),) = configuration.sockets
    assert given is sock
    assert described == msgspec.to_builtins(SocketSpec("web"))
    assert configuration.uids == sorted({os.geteuid(), 12345})
    assert settings.warnings(configuration, answer) == []
    unknown_user = told(sock, {"uid": "no-such-user"})
    assert settings.read(SECTION, options, unknown_user, {"web": sock})[0].uids == []


def test_warning_is_given_when_blocking_socket_is_shared(sock: socket.socket) -> None:
    """By our key or by circus's own; not when only one process waits on it."""
    for answer, options in (
        (told(sock, blocking=True), OPTIONS),
        (told(sock), {**OPTIONS, "web.blocking": "True"}),
    ):
        configuration, _ = settings.read(SECTION, options, answer, {"web": sock})
        assert configuration.sockets[0][0]["blocking"]
        assert "blocking" in settings.warnings(configuration, answer)[0]
        answer["watchers"]["web"]["numprocesses"] = 1
        assert settings.warnings(configuration, answer) == []


def test_every_mistake_is_found(sock: socket.socket) -> None:
    """Each with its section, its key, and what was probably meant."""
    options = {"sockshare.sockets": "wbe", "sockshare.raedy": "auto", "sockshare_ready": "auto"}
    found = mistakes(
        told(sock, {"options": options}), {"web": sock}, runtime_dri="/x", **{"web.registratoin": "shared"}
    )
    for words in (
        "[watcher:web] sockshare.sockets: no such socket 'wbe'; did you mean 'web'?",
        "[watcher:web] sockshare.raedy: no such key; did you mean 'sockshare.ready'?",
        "[watcher:web] sockshare_ready: no such key; did you mean 'sockshare.ready'?",
        "[plugin:sockshare] runtime_dri: no such key; did you mean 'runtime_dir'?",
        "[plugin:sockshare] web.registratoin: no such key",
    ):
        assert words in found
    assert len(found.splitlines()) == 5


def test_socket_is_refused_when_it_cannot_be_shared(sock: socket.socket) -> None:
    """so_reuseport, a missing use_sockets, one that came after the plugin: a sentence, and what to do."""
    assert "[socket:web] so_reuseport: can't share" in mistakes(told(sock, so_reuseport=True), {})
    without = {key: value for key, value in OPTIONS.items() if key != "use_sockets"}
    configuration, _ = settings.read(SECTION, without, told(sock), {})
    assert "write use_sockets = True" in configuration.mistakes[0]
    assert "circusctl restart plugin:sockshare" in mistakes(told(sock), {})
    hook = {"hooks": ["before_signal"], "graceful_timeout": 30.0}
    assert "graceful_timeout" in mistakes(told(sock, hook), {"web": sock})


def test_socket_is_recognized_by_inode_not_by_number(sock: socket.socket) -> None:
    """The number circusd names may be another socket's here. What was passed on and is none of circusd's any more is
    closed: clients would wait on it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        duplicate, stale = os.dup(sock.fileno()), os.dup(other.fileno())
        for number in (duplicate, stale):
            os.set_inheritable(number, True)
        sockets = told(sock, fd=other.fileno())["sockets"] + [{"name": "gone", "inode": 1, "so_reuseport": False}]
        assert {duplicate, stale} <= set(passed_on())
        assert not {sock.fileno(), other.fileno(), 0, 1, 2} & set(passed_on())
        found = Inherited()
        found.take(sockets, [duplicate, stale])
        assert set(found) == {"web"}
        with found["web"] as web:
            assert web.fileno() == duplicate
            assert web.getsockname() == sock.getsockname()
            assert not web.get_inheritable()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(stale)


def test_circusd_imports_little() -> None:
    """Inside circusd there is our command and a name; the plugin, its zmq and its loop are its own process's."""
    program = (
        "import sys, circus.arbiter\nfrom circus.util import resolve_name\nfrom circus.controller import Controller\n"
        "assert resolve_name('circus_sockshare.SockShare')\nassert Controller.initialize.knows_sockshare\n"
        "assert not {'circus_sockshare.plugin', 'sockshare.host.host', 'msgspec'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=60)


@pytest.mark.parametrize(
    ("without", "said", "knows"),
    [
        ("circus.controller.Controller.initialize", "can't add its command to circusd", False),
        ("circus.arbiter.Arbiter._start_watchers", "can't install circus_sockshare.on_demand", True),
        ("circus.plugins._cfg2str", "can't install circus_sockshare.plugin_command", True),
    ],
)
def test_circusd_starts_when_our_part_of_it_is_broken(without: str, said: str, knows: bool) -> None:
    """A circus that is another than we know is a line in circusd's log, never its end, nor that of all the rest."""
    program = (
        f"import sys, circus.arbiter, circus.controller, circus.plugins\ndel {without}\n"
        "from circus.util import resolve_name\nassert resolve_name('circus_sockshare.SockShare')\n"
        "initialize = getattr(circus.controller.Controller, 'initialize', None)\n"
        f"assert getattr(initialize, 'knows_sockshare', False) is {knows}\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], timeout=60, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert said in ran.stderr


def test_shared_socket_is_circus_s_own_and_fit_to_share(circusd: Circusds) -> None:
    """The host has circusd's very socket, non-blocking, with TCP_NODELAY; the runtime directory is for everybody."""
    stage = circusd("uvicorn")
    [sock] = stage.call("sockshare", op="processes")["sockets"]
    links = {os.readlink(f"/proc/{stage.host()}/fd/{fd}") for fd in os.listdir(f"/proc/{stage.host()}/fd")}
    assert f"socket:[{sock['inode']}]" in links
    for name in ("broker", "door"):
        assert stat.S_IMODE((stage.runtime / name).stat().st_mode) == 0o666
    with socket.create_connection(("127.0.0.1", stage.port)):
        pass
    assert stage.process is not None
    flags = Path(f"/proc/{stage.process.pid}/fdinfo/{sock['fd']}").read_text().split("flags:")[1].split()[0]
    assert int(flags, 8) & os.O_NONBLOCK


def test_meeting_point_goes_with_circusd(circusd: Circusds) -> None:
    """The orderly end and SIGKILL alike leave nothing where clients look, nor in the runtime directory but its log."""
    for kill in (False, True):
        stage = circusd("uvicorn", plugin={"logfile": ""})
        assert stage.process is not None
        pid, host = stage.process.pid, stage.host()
        point = meeting.find(pid)
        assert point is not None
        assert os.path.samefile(point, stage.runtime)
        assert "serving" in (stage.runtime / "sockshare.log").read_text()
        stage.process.kill() if kill else stage.process.terminate()
        stage.process.wait(10)
        wait_until(lambda point=point: not os.path.lexists(point), 5, "the meeting point is gone")  # type: ignore[misc]
        wait_until(lambda host=host: not is_running(host), 5, "the host is gone")  # type: ignore[misc]
        assert {entry.name for entry in stage.runtime.iterdir()} == {"sockshare.log", "notify"}


def test_broker_meets_at_the_default_place_when_runtime_dir_is_bad(circusd: Circusds) -> None:
    """The refused broker still says what is wrong, and so does the log, with no traceback; values may have spaces."""
    stage = circusd("uvicorn", leave=True, plugin={"runtime_dir": "/dev/null/x y", "logfile": "/dev/null/log"})
    stage.start()
    assert stage.process is not None
    pid = stage.process.pid
    point = wait_until(lambda: meeting.find(pid), 10, "there is a meeting point")
    stage.runtime = Path(point)
    wait_until(lambda: stage.sockshare("status").returncode == 2, 10, "status answers", 0.1)
    said = stage.sockshare("status").stdout + stage.sockshare("status").stderr
    logged = Path(point, "sockshare.log").read_text()
    for text in (said, logged):
        assert "can't write runtime directory /dev/null/x y: Not a directory" in text
        assert "can't write logfile /dev/null/log: Not a directory" in text
        assert "Traceback" not in text


def test_plugin_says_so_when_circusd_is_older_than_it(circusd: Circusds) -> None:
    """Added by a reloadconfig, the plugin meets a circusd without our command: refused, with what to do."""
    stage = circusd("uvicorn", leave=True)
    ini = stage.directory / "circus.ini"
    text = ini.read_text()
    before, _, after = text.partition("[plugin:sockshare]")
    ini.write_text(before)
    stage.start()
    wait_until(lambda: _answers(stage), 20, "circusd is up", 0.05)
    ini.write_text(before + "[plugin:sockshare]" + after)
    stage.call("reloadconfig", waiting=True, timeout=60)
    wait_until(lambda: stage.sockshare("status").returncode == 2, 20, "status answers", 0.1)
    done = stage.sockshare("status")
    assert "restart circusd once" in done.stdout + done.stderr


def _answers(stage: Circusd) -> bool:
    try:
        return bool(stage.call("status", timeout=1.0)["statuses"].get("web") == "active")
    except TimeoutError:
        return False


def test_mistake_costs_its_own_section_once_all_was_right(sock: socket.socket) -> None:
    """What was in force of it goes on; of a new one nothing is. At first, it costs everything."""
    first = told(sock)
    configuration, specs = settings.read(SECTION, {**OPTIONS, "web.registration": "exclusive"}, first, {"web": sock})
    good = settings.in_force(SECTION, {**OPTIONS, "web.registration": "exclusive"}, first, configuration)
    # Three mistakes: in the plugin's section, in a program's that was right before, in a new one.
    second = told(sock, {"options": {"sockshare.sockets": "web", "sockshare.ready": "soon"}})
    second["watchers"]["new"] = {**second["watchers"]["web"], "options": {"sockshare.sockets": "wbe"}}
    second["watchers"]["fine"] = {**second["watchers"]["web"], "options": {"sockshare.sockets": "web"}}
    options = {**OPTIONS, "web.registration": "exclusiv"}
    assert len(settings.read(SECTION, options, second, {"web": sock})[0].mistakes) == 3
    second["in_force"] = good
    configuration, now = settings.read(SECTION, options, second, {"web": sock})
    assert (configuration.mistakes, len(configuration.refused)) == ([], 3)
    assert (now["web"], "new" in now, now["fine"].sockets) == (specs["web"], False, ("web",))
    assert configuration.sockets[0][0]["registration"] == "exclusive"
    # That is what goes on from here on, also where it is read the next time.
    again = settings.in_force(SECTION, options, second, configuration)
    assert again is not None
    assert again["options"]["web.registration"] == "exclusive"
    assert sorted(again["programs"]) == ["fine", "web"]
    # A socket that is gone is none of the last good section's any more.
    second["sockets"] = []
    configuration, now = settings.read(SECTION, options, {**second, "in_force": again}, {})
    assert now["web"].sockets == ()
    assert any("no such socket 'web'" in mistake for mistake in configuration.refused)


def test_socket_that_each_process_binds_is_refused_only_to_who_names_it(sock: socket.socket) -> None:
    """Others of circus's may have such a one."""
    answer = told(sock, so_reuseport=True, name="other")
    answer["sockets"] += told(sock)["sockets"]
    assert mistakes(answer, {"web": sock}) == ""


def test_two_sections_of_one_path_are_refused_by_name(tmp_path: Path) -> None:
    """circus, told to replace what is there, binds both; clients come to one of them alone."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind(path)
        os.unlink(path)
        second.bind(path)
        answer = told(first)
        answer["sockets"] += told(second, name="other")["sockets"]
        said = mistakes(answer, {"web": first, "other": second})
        assert f"[socket:other] path: can't share a socket at {path}: [socket:web] is bound there too" in said


def test_second_name_of_a_path_goes_with_its_socket(tmp_path: Path) -> None:
    """Of a socket that circusd has dropped, and its path with it; what else lives at that name stays."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dropped, socket.socket(socket.AF_UNIX) as other:
        dropped.bind(path)
        at = reach.place(dropped, "", "/")
        assert at is not None
        reach.keep_name(at)
        os.unlink(path)
        plugin._forget_name(dropped)
        assert os.listdir(tmp_path) == []
        other.bind(f"{path}.private")
        plugin._forget_name(dropped)
        assert os.listdir(tmp_path) == ["s.private"]
