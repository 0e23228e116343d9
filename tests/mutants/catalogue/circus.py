"""Bugs of `circus_sockshare`."""

from __future__ import annotations

from ..mutant import Kind, mutant

_CIRCUS, _TESTS = "circus_sockshare", "tests/circus"
_INSIDE, _HOLDING, _VERBS = f"{_CIRCUS}/inside.py", f"{_CIRCUS}/holding.py", f"{_CIRCUS}/verbs.py"
_COMMAND, _SETTLE, _HOLDS, _OF_VERBS = (
    f"{_TESTS}/test_{name}.py" for name in ("command", "settle", "holding", "verbs")
)

CIRCUS = (
    mutant(
        "circus: workers of a given-up process stay",
        _INSIDE,
        "        _kill(self._doomed)  # psutil's: a pid that is somebody else's by now is left alone\n",
        "",
        f"{_SETTLE}::test_workers_go_with_a_newcomer_that_ends_by_its_signal",
        felt="workers of a version that failed go on serving",
        kind=Kind.STOPPED,
    ),
    mutant(
        "circus: the oldest stranger goes",
        _INSIDE,
        "key=lambda p: -p.started)",
        "key=lambda p: p.started)",
        f"{_SETTLE}::test_youngest_stranger_goes_when_there_are_too_many",
        felt="a process of the good version is stopped instead of the one that was respawned for a crash",
        kind=Kind.STOPPED,
    ),
    mutant(
        "circus: those known go too",
        _INSIDE,
        "(process for process in staying if process.pid not in known)",
        "(process for process in staying)",
        f"{_SETTLE}::test_youngest_stranger_goes_when_there_are_too_many",
        felt="the new process is stopped instead of the one that was respawned for a crash",
        kind=Kind.STOPPED,
    ),
    mutant(
        "circus: twice the graceful_timeout",
        _INSIDE,
        "killed = holding.stop_process(watcher, process, signum, watcher.graceful_timeout)",
        "killed = holding.stop_process(watcher, process, signum, watcher.graceful_timeout * 2)",
        f"{_SETTLE}::test_retired_process_has_as_long_as_circus_gives_to_any",
        felt="an old process that hangs serves for twice as long as was asked for",
    ),
    mutant(
        "circus: stop does not wait for what drains",
        _INSIDE,
        "            await one.over()\n",
        "            pass\n",
        f"{_COMMAND}::test_stop_waits_for_what_drains[stop]",
        felt="circusd ends and leaves processes",
    ),
    mutant(
        "circus: refused start counts",
        _INSIDE,
        "        watcher.numprocesses -= 1\n        raise\n",
        "        raise\n",
        f"{_COMMAND}::test_refusal_changes_nothing",
        felt="after a start that failed circus runs one process more for ever",
    ),
    mutant(
        "circus: what was given up is done",
        _CIRCUS + "/circusd.py",
        '        properties["before"] = time.monotonic() + within\n',
        "",
        f"{_OF_VERBS}::test_circusd_does_nothing_that_it_was_asked_too_long_ago",
        felt="a circusd that goes on after a hang stops what was resumed since",
        kind=Kind.STOPPED,
    ),
    mutant(
        "circus: start without an answer is tried again",
        _VERBS,
        "if refusal.passing and not refusal.silent and attempts[0] > 0:",
        "if refusal.passing and attempts[0] > 0:",
        f"{_OF_VERBS}::test_silence_is_told_from_refusal",
        felt="two new processes run where one was to",
    ),
    mutant(
        "circus: later process of a pid is the managed one",
        _VERBS,
        "if managed is not None and peers.start_time(candidate) == managed.start:",
        "if managed is not None and peers.start_time(candidate) >= 0:",
        f"{_OF_VERBS}::test_later_process_of_a_pid_is_not_taken_for_the_managed_one",
        felt="a stranger that has the pid of a dead process is given its sockets",
        kind=Kind.AUTHORIZATION,
    ),
    mutant(
        "circus: socket is known by its number",
        f"{_CIRCUS}/settings.py",
        'sock = socket.socket(fileno=own[one["inode"]])',
        'sock = socket.socket(fileno=one["fd"])',
        f"{_TESTS}/test_plugin_config.py::test_socket_is_recognized_by_inode_not_by_number",
        felt="after a reloadconfig a program is given another socket",
        kind=Kind.AUTHORIZATION,
    ),
    mutant(
        "circus: held process is never released",
        _HOLDING,
        "            elif now - began >= watcher.graceful_timeout:\n",
        "            elif now - began >= math.inf:\n",
        f"{_HOLDS}::test_claimed_process_is_stopped_when_its_time_is_over",
        felt="circusctl reload hangs circusd when the broker hangs",
    ),
    mutant(
        "circus: stop of a watcher waits for what is held",
        _HOLDING,
        "if _is_dead(process) or not watcher.is_active() or host is None",
        "if _is_dead(process) or host is None",
        f"{_HOLDS}::test_nothing_is_held_when_there_is_nobody_to_hold_it_for",
        felt="circusctl stop takes as long as a reload",
    ),
    mutant(
        "circus: end of circusd waits for what is held",
        _HOLDING,
        "host is None or _is_ending(watcher.arbiter):\n                why",
        "host is None:\n                why",
        f"{_HOLDS}::test_nothing_is_held_when_there_is_nobody_to_hold_it_for",
        felt="SIGTERM of circusd takes as long as a reload",
    ),
    mutant(
        "circus: kept process is stopped",
        _HOLDING,
        "        if keep or pid not in self._watcher.processes:\n",
        "        if pid not in self._watcher.processes:\n",
        f"{_HOLDS}::test_word_of_the_broker_decides",
        felt="circusctl reload to a bad version stops the good one",
        kind=Kind.STOPPED,
    ),
    # At the limit of descriptors, and on an old kernel.
    mutant(
        "circus: answer that can't be taken is lost",
        f"{_CIRCUS}/circusd.py",
        "                question.refused(Refusal(f\"can't take circusd's answer: {error}\", 0, passing=True))\n",
        "",
        f"{_OF_VERBS}::test_question_is_asked_again_when_its_answer_could_not_be_taken",
        felt="a plugin that was at its limit of descriptors once answers nothing any more",
    ),
    mutant(
        "circus: flag of a question stays set",
        _VERBS,
        "            finish(_partial(one, refusal) for _, one in waiting)\n",
        "            for _, one in waiting:\n                one(refusal)\n",
        f"{_OF_VERBS}::test_question_is_asked_again_when_its_answer_could_not_be_taken",
        felt="a plugin that was refused an answer once answers nothing any more",
    ),
    mutant(
        "circus: kernel that can't do it is not said",
        f"{_CIRCUS}/plugin.py",
        "            self._mistakes.append(self._unsupported)\n",
        "            pass\n",
        f"{_TESTS}/test_faults.py::test_kernel_without_pidfd_is_one_sentence",
        felt="on an old kernel nothing says why nothing works",
    ),
    mutant(
        "circus: broker is started on a kernel that can't do it",
        f"{_CIRCUS}/plugin.py",
        '            self._say(REFUSED, "\\n".join(self._mistakes))\n            return\n',
        '            self._say(REFUSED, "\\n".join(self._mistakes))\n',
        f"{_TESTS}/test_faults.py::test_kernel_without_pidfd_is_one_sentence",
        felt="on an old kernel the log fills up, four lines a second",
    ),
)
