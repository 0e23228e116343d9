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
        f"{_OF_TWINS}::test_group_has_the_configuration_that_was_read_once_it_is_taken_over",
        felt="after reread and reload, `update` stops the whole group",
    ),
    mutant(
        "supervisord: workers of a killed twin stay",
        _TWINS,
        "        for pid in pids[1:]:\n            _kill(pid)\n",
        "",
        f"{_OF_TWINS}::test_workers_go_with_a_twin_that_is_given_up",
        felt="workers of a version that failed go on serving",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: workers of a given-up twin stay",
        _TWINS,
        "                _kill(one)\n",
        "                pass\n",
        f"{_OF_TWINS}::test_workers_go_with_a_twin_that_is_given_up",
        felt="workers of a version that failed go on serving",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: later process of a pid is killed",
        _TWINS,
        "if start is not None and _start_time(one) == start:",
        "if start is not None:",
        f"{_OF_TWINS}::test_later_process_of_a_worker_s_pid_is_left_alone",
        felt="a stranger's process is killed",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: failed start leaves its place",
        _TWINS,
        "            del group.processes[beside.name]\n            raise\n",
        "            raise\n",
        f"{_OF_TWINS}::test_nothing_is_left_of_a_start_that_failed",
        felt="`start all` starts web.next1 beside web",
    ),
    mutant(
        "supervisord: old one goes though the new one is gone",
        _TWINS,
        '            raise CannotStart("the new process is gone")\n',
        "            pass\n",
        f"{_OF_TWINS}::test_old_one_stays_when_the_new_one_is_gone",
        felt="the only process is stopped, and nobody serves until another one has started",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: stop signal before the program is forgotten",
        _TWINS,
        "        elif not is_itself:\n",
        "        elif is_itself is None:\n",
        f"{_OF_TWINS}::test_process_that_is_stopped_before_it_is_its_program_meets_its_signal",
        felt="a process that was stopped as it started lives until SIGKILL",
    ),
    mutant(
        "supervisord: twin takes another one's place",
        _TWINS,
        "(one for one in places if is_of(one, twin)),",
        "iter(places),",
        f"{_OF_TWINS}::test_each_twin_takes_the_place_for_which_it_was_started",
        felt="a process has the name of another one in its environment, and is replaced under it",
    ),
    mutant(
        "supervisord: what has ended stays in the group",
        _TWINS,
        "        if role is not None and process.state in _ENDED:\n            self._remove_later(process)\n        elif role is None",
        "        if role is None",
        f"{_OF_TWINS}::test_twin_takes_the_place_and_the_old_one_is_stopped",
        felt="`start all` starts the old version beside the new one",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: stopped program keeps its twin",
        _TWINS,
        "                    self._loop.call_later(0.0, lambda twin=twin: self._end(twin))  # type: ignore[misc]\n",
        "                    pass\n",
        f"{_OF_TWINS}::test_stop_of_the_program_ends_its_twin",
        felt="`stop web` in the middle of a reload leaves a process that serves",
        kind=Kind.STOPPED,
    ),
    mutant(
        "supervisord: anybody is a broker",
        f"{_SUPERVISOR}/life.py",
        "        process = self._process(pid)\n        if process is None or pid",
        "        process = self._process(pid) or self._named(BROKER)\n        if process is None or pid",
        f"{_IN_PROCESS}::test_link_takes_nobody_but_our_own_brokers",
        felt="whoever connects to the link stops and starts programs as root",
        kind=Kind.AUTHORIZATION,
    ),
    mutant(
        "supervisord: exception of ours ends supervisord",
        f"{_SUPERVISOR}/polling.py",
        '        log.exception("host: a callback failed; going on")\n',
        "        raise\n",
        f"{_IN_PROCESS}::test_nothing_that_a_callback_raises_leaves_the_loop",
        felt="a bug of ours orphans everything that supervisord runs",
    ),
    mutant(
        "supervisord: its reload closes the sockets",
        f"{_SUPERVISOR}/hooks.py",
        "                if low <= fd < high:\n",
        "                if low < fd < low:\n",
        f"{_IN_PROCESS}::test_sockets_are_spared_when_supervisord_closes_what_it_does_not_know",
        felt="`supervisorctl reload` closes every shared socket",
    ),
    mutant(
        "supervisord: refused configuration closes sockets",
        f"{_SUPERVISOR}/registry.py",
        "            for one in made:\n                binding.remove(one.sock, one.declared.binding)\n            raise",
        "            for one in held.values():\n                binding.remove(one.sock, one.declared.binding)\n            raise",
        f"{_IN_PROCESS}::test_nothing_changes_when_one_of_the_new_sockets_can_not_be_bound",
        felt="an update that can't bind one new socket closes all the old ones",
    ),
)
