"""``circusctl reloadconfig`` under a real circusd: what changes is in force, and a mistake costs its own section."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from sockshare.cli.stage import free_port, wait_until
from tests.support.circusd import Circusd, behind_exec, command_of

Circusds = Callable[..., Circusd]


def configured(stage: Circusd, *changes: tuple[str, str], add: str = "") -> dict[str, Any]:
    """circusd's answer to ``reloadconfig --waiting`` after *changes* of circus.ini, and with *add* at its end."""
    ini = stage.directory / "circus.ini"
    text = ini.read_text()
    for old, new in changes:
        assert old in text, text
        text = text.replace(old, new)
    ini.write_text(text + add)

    def answered() -> dict[str, Any] | None:
        answer = stage.call("reloadconfig", waiting=True, timeout=30)
        return (
            None if "already running" in answer.get("reason", "") else answer
        )  # a check of circus's, which starts one

    found: dict[str, Any] = wait_until(answered, 10, "circusd reloads its configuration", 0.05)
    return found


def broken(stage: Circusd) -> subprocess.CompletedProcess[str]:
    """``sockshare status``, once it says that something is refused."""

    def refused() -> subprocess.CompletedProcess[str] | None:
        done = stage.sockshare("status")
        return done if done.returncode == 2 else None

    done: subprocess.CompletedProcess[str] = wait_until(refused, 10, "status says what is refused", 0.05)
    return done


def respawned(stage: Circusd) -> list[int]:
    """Kill every process of web, as an OOM killer would; those that serve in their place."""
    old = stage.pids()
    for pid in old:
        assert stage.kill(pid)
    stage.wait_for_answer(stage.port)
    wait_until(lambda: len(stage.pids()) == len(old) and not set(old) & set(stage.pids()), 10, "all are back", 0.05)
    return stage.pids()


def connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def test_mistake_costs_its_own_section(circusd: Circusds) -> None:
    """A broken new watcher, a broken key of another, one in the plugin's section: each is refused by name, web goes on,
    and its processes are respawned; also by a new broker, and a new host."""
    stage = circusd("uvicorn", plugin={"web.registration": "shared"})
    other = f"\n[watcher:other]\ncmd = {sys.executable} -m sockshare exec -- sleep 100\ncopy_env = True\n"
    other += "stderr_stream.class = FileStream\nstderr_stream.filename = other.err\n"
    answer = configured(stage, add=f"{other}sockshare.sockets = wbe\n")
    assert answer["status"] == "ok", answer
    done = broken(stage)
    assert "REFUSED: [watcher:other] sockshare.sockets: no such socket 'wbe'; did you mean 'web'?" in done.stdout
    assert "uvicorn" in done.stdout or "web:" in done.stdout  # all the rest is shown as ever
    assert stage.status(2)["state"] == "serving"
    respawned(stage)
    said = "sockshare.sockets: no such socket 'wbe'; did you mean 'web'?"
    wait_until(lambda: said in stage.tail(stage.directory / "other.err"), 10, "its own `exec` says why")
    # The same section of web itself.
    configured(stage, ("sockshare.ready_hold = 0.5", "sockshare.ready_hold = soon"))
    wait_until(lambda: "'soon' is not a number" in broken(stage).stdout, 5, "that is refused", 0.05)
    respawned(stage)
    stage.deploy("v2")
    assert stage.reload().status == 0
    assert stage.ask(stage.port) == "v2"
    # The plugin's: circus starts the plugin anew, which has to know what was right.
    host = stage.host()
    configured(stage, ("web.registration = shared", "web.registration = sharde"))
    wait_until(lambda: stage.host() not in (0, host), 10, "there is another host", 0.05)
    wait_until(lambda: "'sharde' is not one of" in broken(stage).stdout, 10, "that is refused", 0.05)
    respawned(stage)
    assert stage.kill(stage.broker())
    respawned(stage)
    doctor = stage.sockshare("doctor")
    assert doctor.returncode == 3
    for words in ("[watcher:other]", "[watcher:web] sockshare.ready_hold", "[plugin:sockshare] web.registration"):
        assert words in doctor.stdout, doctor.stdout
    refused = stage.reload(program="other")
    assert (refused.status, "no such socket 'wbe'" in refused.stderr) == (2, True), refused
    # Mended, all is in force.
    changes = (("= soon", "= 0.2"), ("= sharde", "= shared"), ("= wbe", "= web"))
    configured(stage, *changes)
    wait_until(lambda: stage.sockshare("status").returncode == 0, 15, "nothing is refused", 0.1)


@pytest.mark.parametrize(
    ("mistake", "mended"),
    [
        pytest.param({"sockshare.raedy": "hold"}, ("sockshare.raedy", "sockshare.ready"), id="misspelt"),
        pytest.param({"sockshare.sockets": ""}, ("copy_env", "sockshare.sockets = web\ncopy_env"), id="missing"),
    ],
)
def test_refused_start_is_mended_by_reloadconfig(
    circusd: Circusds, mistake: dict[str, str], mended: tuple[str, str]
) -> None:
    """A key that is renamed, or added: circus alone takes no notice of either. The same circusd runs on."""
    stage = circusd("uvicorn", leave=True, watcher=mistake)
    stage.start()
    assert broken(stage).stdout.startswith("[watcher:web] ")
    assert stage.process is not None
    pid = stage.process.pid
    assert configured(stage, mended)["status"] == "ok"
    wait_until(lambda: stage.sockshare("status").returncode == 0, 10, "nothing is refused", 0.05)
    stage.wait_for_answer(stage.port)
    assert (stage.process.pid, stage.process.poll()) == (pid, None)
    assert stage.call("dstats")["info"]["pid"] == pid


def test_included_stock_section_concerns_nobody(circusd: Circusds) -> None:
    """A new file below conf.d, with a socket and a watcher that knows nothing of us: web is respawned as ever."""
    stage = circusd("uvicorn", leave=True)
    ini, included = stage.directory / "circus.ini", stage.directory / "conf.d"
    included.mkdir()
    ini.write_text(ini.read_text().replace("[circus]\n", "[circus]\ninclude = conf.d/*.ini\n", 1))
    stage.up()
    port = free_port()
    (included / "api.ini").write_text(
        f"[socket:api]\nhost = 127.0.0.1\nport = {port}\n\n[watcher:api]\ncmd = sleep 1000\nuse_sockets = True\n"
    )
    assert configured(stage)["status"] == "ok"
    wait_until(lambda: stage.pids("api"), 10, "the included watcher runs", 0.05)
    assert connects(port)
    respawned(stage)
    done = stage.sockshare("status")
    assert ("REFUSED" in done.stdout, done.returncode) == (False, 0), done
    assert stage.ask(stage.port) == "v1"


def _watcher(name: str, port: int, keys: str = "") -> str:
    """A socket, and a watcher that serves it; what it says is in NAME.err."""
    command = behind_exec("uvicorn", command_of("uvicorn")).replace("{fd:web}", f"{{fd:{name}}}")
    return (
        f"\n[socket:{name}]\nhost = 127.0.0.1\nport = {port}\n\n[watcher:{name}]\ncmd = {command}\ncopy_env = True\n"
        f"sockshare.sockets = {name}\nsockshare.ready_hold = 0.2\n{keys}"
        f"stderr_stream.class = FileStream\nstderr_stream.filename = {name}.err\n"
    )


def test_sockets_come_and_go(circusd: Circusds) -> None:
    """Added and served; taken out and refused to clients; put back; moved to another port; while web serves on."""
    stage = circusd("uvicorn")
    web, host = stage.pids(), stage.host()
    first, second = free_port(), free_port()
    api = _watcher("api", first, "warmup_delay = 1\n")  # while circus waits, it has been started and asks
    assert configured(stage, add=api)["status"] == "ok"
    stage.wait_for_answer(first)
    assert configured(stage, (api, ""))["status"] == "ok"
    wait_until(lambda: not connects(first), 5, "nobody listens on it", 0.02)
    wait_until(lambda: [one["name"] for one in stage.status()["sockets"]] == ["web"], 5, "status shows web alone", 0.05)
    assert configured(stage, add=api)["status"] == "ok"
    stage.wait_for_answer(first)
    # Another address under the same name: what runs has the old one, and that is said.
    assert configured(stage, (f"port = {first}", f"port = {second}"))["status"] == "ok"

    def moved() -> bool:
        [shown] = [one for one in stage.status()["sockets"] if one["name"] == "api"]
        return bool(shown["address"] == f"tcp://127.0.0.1:{second}")

    wait_until(moved, 5, "status shows where it is now", 0.05)
    assert stage.sockshare("status").returncode == 3
    doctor = stage.sockshare("doctor")
    assert (doctor.returncode, "run `sockshare reload api`" in doctor.stdout) == (3, True), doctor.stdout
    # What serves the old one is no sign that a version serves the new one.
    stage.deploy("crash", "exit_at_import", import_seconds=1.5)
    failed = stage.reload(program="api")
    assert (failed.status, "ready" in failed.names) == (3, False), failed
    assert failed.reason.endswith(", which stays, is not seen to serve api")
    assert stage.ask(first) == "v1"
    stage.deploy("v2")
    assert stage.reload(program="api").status == 0
    assert stage.ask(second) == "v2"
    wait_until(lambda: not connects(first), 5, "nobody listens on the old one", 0.02)
    assert stage.sockshare("status").returncode == 0
    assert (stage.pids(), stage.host()) == (web, host)
    assert "sockshare" not in (stage.directory / "api.err").read_text()


def test_socket_is_changed_in_place_or_not_at_all(circusd: Circusds) -> None:
    """Its backlog changes under it, which circus alone would lose it for; an address in use refuses the whole
    reloadconfig with a sentence, and what was in force goes on."""
    stage = circusd("uvicorn")
    before = stage.status()["sockets"][0]
    assert before["backlog"] != 77
    port = f"port = {stage.port}"
    assert configured(stage, (port, f"{port}\nbacklog = 77"))["status"] == "ok"
    wait_until(lambda: stage.status()["sockets"][0]["backlog"] == 77, 5, "the backlog is another one", 0.05)
    assert stage.status()["sockets"][0]["inode"] == before["inode"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        api = _watcher("api", used)
        for change, section in (((port, f"port = {used}"), "web"), ((port, f"{port}"), "api")):
            answer = configured(stage, change, add=api if section == "api" else "")
            assert answer["status"] == "error", answer
            assert f"[socket:{section}]: can't bind 127.0.0.1:{used}: Address already in use" in answer["reason"]
            wait_until(lambda: "nothing has changed" in stage.sockshare("status").stdout, 5, "status says so", 0.05)
            assert stage.pids("api") == []
            respawned(stage)
            configured(stage, (f"port = {used}", port)) if section == "web" else None
    assert configured(stage)["status"] == "ok"
    stage.wait_for_answer(used)
    wait_until(lambda: "WARNING" not in stage.sockshare("status").stdout, 5, "nothing is to be said any more", 0.05)


def test_path_goes_with_its_socket_and_belongs_to_one_section(circusd: Circusds) -> None:
    """Its private name too; and another word for the same address changes nothing."""
    stage = circusd("uvicorn")
    path = stage.directory / "api"
    api = f"\n[socket:api]\npath = {path}\n"
    assert configured(stage, add=api)["status"] == "ok"
    private = stage.directory / "api.private"
    wait_until(private.exists, 10, "the broker keeps its second name", 0.05)
    answer = configured(stage, add=f"\n[socket:twice]\npath = {path}\nreplace = True\n")
    assert answer["status"] == "error", answer
    assert f"[socket:twice]: can't bind {path}: [socket:api] has it already" in answer["reason"]
    assert configured(stage, (f"\n[socket:twice]\npath = {path}\nreplace = True\n", ""), (api, ""))["status"] == "ok"
    wait_until(lambda: not path.exists() and not private.exists(), 10, "both names are gone", 0.05)
    before, pids = stage.status()["sockets"][0]["inode"], stage.pids()
    assert configured(stage, ("host = 127.0.0.1", "host = localhost"))["status"] == "ok"
    assert (stage.status()["sockets"][0]["inode"], stage.pids()) == (before, pids)


def test_keys_that_are_added_and_taken_out_are_in_force(circusd: Circusds) -> None:
    """At once, without a restart of the program; circus alone ignores the one and restarts for another value."""
    stage = circusd("uvicorn")
    pids = stage.pids()
    hold = "sockshare.ready_hold = 0.5"
    verify = f"{hold}\nsockshare.verify = http:/page"
    assert configured(stage, (hold, verify))["status"] == "ok"
    assert stage.pids() == pids
    done = stage.reload()
    assert (done.status, "/page answered 200" in done.stdout) == (0, True), done
    pids = stage.pids()
    assert configured(stage, (verify, "sockshare.ready_hold = 0.1"))["status"] == "ok"
    assert stage.pids() == pids
    done = stage.reload()
    assert (done.status, "/page" in done.stdout) == (0, False), done
    held = {step["step"]: step["seconds"] for step in done.steps}
    assert held["hold"] - held["ready"] < 0.45  # it was 0.5


def test_watchers_start_on_demand(circusd: Circusds) -> None:
    """Beside the plugin, and beside a watcher that runs; at the first connection, which is answered."""
    port = free_port()
    stage = circusd("uvicorn", extra=_watcher("lazy", port, "on_demand = True\n"))
    assert stage.pids("lazy") == []
    wait_until(lambda: stage.sockshare("doctor").returncode == 0, 10, "a program that waits is no problem", 0.05)
    assert stage.sockshare("status").returncode == 0
    stage.wait_for_answer(port)
    assert len(stage.pids("lazy")) == 1
    assert stage.sockshare("status").returncode == 0
