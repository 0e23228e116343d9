"""Bugs of `supervisor_sockshare`."""

from __future__ import annotations

from ..mutant import Kind, mutant

_SUPERVISOR, _TESTS = "supervisor_sockshare", "tests/supervisor"
_TWINS, _OF_TWINS = f"{_SUPERVISOR}/twins.py", f"{_TESTS}/test_twin_processes.py"
_IN_PROCESS = f"{_TESTS}/test_in_process.py"

SUPERVISOR = (
    mutant(
        "supervisord: group does not know its new configuration",
        _TWINS,
        "        configs[:] = [real if config.name == key else config for config in configs]\n",
        "",
        _OF_TWINS,
        felt="after reread and reload, `update` stops the whole group",
    ),
    mutant(
        "supervisord: workers of a killed twin stay",
        _TWINS,
        "        for pid in pids[1:]:\n            _kill(pid)\n",
        "",
        _OF_TWINS,
        felt="workers of a version that failed go on serving",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: workers of a given-up twin stay",
        _TWINS,
        "                _kill(one)\n",
        "                pass\n",
        _OF_TWINS,
        felt="workers of a version that failed go on serving",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: later process of a pid is killed",
        _TWINS,
        "if start is not None and _start_time(one) == start:",
        "if start is not None:",
        _OF_TWINS,
        felt="a stranger's process is killed",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: failed start leaves its place",
        _TWINS,
        "            del group.processes[beside.name]\n            raise\n",
        "            raise\n",
        _OF_TWINS,
        felt="`start all` starts web.next1 beside web",
    ),
    mutant(
        "supervisord: old one goes though the new one is gone",
        _TWINS,
        '            raise CannotStart("the new process is gone")\n',
        "            pass\n",
        _OF_TWINS,
        felt="the only process is stopped, and nobody serves until another one has started",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: stop signal before the program is forgotten",
        _TWINS,
        "        elif not is_itself:\n",
        "        elif is_itself is None:\n",
        _OF_TWINS,
        felt="a process that was stopped as it started lives until SIGKILL",
    ),
    mutant(
        "supervisord: twin takes another one's place",
        _TWINS,
        "(one for one in places if is_of(one, twin)),",
        "iter(places),",
        _OF_TWINS,
        felt="a process has the name of another one in its environment, and is replaced under it",
    ),
    mutant(
        "supervisord: what has ended stays in the group",
        _TWINS,
        "        if role is not None and process.state in _ENDED:\n            self._remove_later(process)\n        elif role is None",
        "        if role is None",
        _OF_TWINS,
        felt="`start all` starts the old version beside the new one",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: stopped program keeps its twin",
        _TWINS,
        "                    self._loop.call_later(0.0, lambda twin=twin: self._end(twin))  # type: ignore[misc]\n",
        "                    pass\n",
        _OF_TWINS,
        felt="`stop web` in the middle of a reload leaves a process that serves",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: anybody is a broker",
        f"{_SUPERVISOR}/life.py",
        "        process = self._process(pid)\n        if process is None or pid",
        "        process = self._process(pid) or self._named(BROKER)\n        if process is None or pid",
        _IN_PROCESS,
        felt="whoever connects to the link stops and starts programs as root",
        kind=Kind.AUTHORIZATION,
    ),
    mutant(
        "supervisord: exception of ours ends supervisord",
        f"{_SUPERVISOR}/polling.py",
        '        log.exception("host: a callback failed; going on")\n',
        "        raise\n",
        _IN_PROCESS,
        felt="a bug of ours orphans everything that supervisord runs",
    ),
    mutant(
        "supervisord: its reload closes the sockets",
        f"{_SUPERVISOR}/hooks.py",
        "                if low <= fd < high:\n",
        "                if low < fd < low:\n",
        _IN_PROCESS,
        felt="`supervisorctl reload` closes every shared socket",
    ),
    mutant(
        "supervisord: refused configuration closes sockets",
        f"{_SUPERVISOR}/registry.py",
        "            for one in made:\n                binding.remove(one.sock, one.declared.binding)\n            raise",
        "            for one in held.values():\n                binding.remove(one.sock, one.declared.binding)\n            raise",
        _IN_PROCESS,
        felt="an update that can't bind one new socket closes all the old ones",
    ),
)
