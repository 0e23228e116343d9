"""Bugs of `sockshare.cli`."""

from __future__ import annotations

from ..mutant import mutant

_CLI, _TESTS = "sockshare/cli", "tests/cli"

CLI = (
    mutant(
        "cli: descriptors are placed one over the other",
        f"{_CLI}/exec.py",
        "moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(fds)) for fd in fds]",
        "moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0) for fd in fds]",
        f"{_TESTS}/test_exec.py::test_sockets_are_at_3_and_on_when_command_runs",
        felt="a program with two sockets has one of them twice",
    ),
    mutant(
        "cli: LISTEN_PID is the parent's",
        f"{_CLI}/exec.py",
        'environment["LISTEN_PID"] = str(os.getpid())',
        'environment["LISTEN_PID"] = str(os.getppid())',
        f"{_TESTS}/test_exec.py::test_listen_fds_is_set_where_no_number_is_asked_for",
        felt="servers of sd_listen_fds find no socket",
    ),
    mutant(
        "cli: LISTEN_FDS is set beside the number",
        f"{_CLI}/exec.py",
        "listen_fds = options.listen_fds or command == options.command",
        "listen_fds = True",
        f"{_TESTS}/test_exec.py::test_sockets_are_at_3_and_on_when_command_runs",
        felt="`gunicorn -b fd://{fd:web}` takes its socket twice, and ends",
    ),
    mutant(
        "cli: manager's NOTIFY_SOCKET is passed on",
        f"{_CLI}/exec.py",
        '"LISTEN_FDNAMES", "NOTIFY_SOCKET"})',
        '"LISTEN_FDNAMES"})',
        f"{_TESTS}/test_exec.py::test_what_another_process_was_told_of_its_sockets_is_not_passed_on",
        felt="a program tells systemd that its manager is ready",
    ),
    mutant(
        "cli: failed reload exits 0",
        f"{_CLI}/reload.py",
        '            self.printer.quote(str(answer.get("stderr") or ""))\n        return status\n',
        '            self.printer.quote(str(answer.get("stderr") or ""))\n        return ExitStatus.OK\n',
        f"{_TESTS}/test_commands.py::test_reason_and_last_lines_are_on_stderr_when_it_failed",
        felt="a deploy script goes on after a reload that was rolled back",
    ),
    mutant(
        "cli: reload is not asked for again",
        f"{_CLI}/reload.py",
        "            for question in self._questions:\n                self._broker.repeat(question)\n",
        "",
        f"{_TESTS}/test_commands.py::test_reload_is_followed_on_when_the_broker_is_restarted",
        felt="the command hangs when the broker is killed",
    ),
    mutant(
        "cli: suspended process serves",
        f"{_CLI}/status.py",
        'holder.get("ready") and not holder.get("suspended") and not holder.get("quiesced")',
        'holder.get("ready")',
        f"{_TESTS}/test_commands.py::test_status_exits_3_when_a_named_socket_is_not_served",
        felt="status exits 0 while nobody accepts",
    ),
    mutant(
        "cli: what can't be seen is not served",
        f"{_CLI}/status.py",
        '        or any(holder.get("unseen") for holder in entry["holders"])\n',
        "",
        f"{_TESTS}/test_commands.py::test_status_exits_0_where_the_broker_cannot_see",
        felt="status exits 3 in a container in which everything serves",
    ),
    mutant(
        "cli: second interrupt cancels once more",
        f"{_CLI}/reload.py",
        "        if self.count > 1:\n",
        "        if self.count < 0:\n",
        f"{_TESTS}/test_commands.py::test_reload_is_cancelled_when_interrupted_and_left_at_the_second_time",
        felt="Ctrl-C does not end the command",
    ),
    mutant(
        "cli: LC_CTYPE of our own Python is passed on",
        f"{_CLI}/exec.py",
        'if environment.pop("LC_CTYPE", None) is not None:',
        'if environment.get("LC_CTYPE") is None:',
        f"{_TESTS}/test_script.py::test_nothing_is_imported_by_way_of_the_environment",
        felt="a program in the C locale is told that it is in another",
    ),
    mutant(
        "cli: status of several is that of the last",
        f"{_CLI}/reload.py",
        "            status = status or ended\n",
        "            status = ended\n",
        "tests/e2e/test_names.py::test_status_is_that_of_the_first_which_was_not_reloaded",
        felt="a deploy script goes on after a program that was not reloaded",
    ),
    mutant(
        "cli: next program is begun after Ctrl-C",
        f"{_CLI}/reload.py",
        "            if interrupt.count:\n",
        "            if interrupt.count > 1:\n",
        f"{_TESTS}/test_commands.py::test_what_was_not_begun_is_said_when_the_first_is_cancelled",
        felt="Ctrl-C cancels one program and reloads the rest",
    ),
)
