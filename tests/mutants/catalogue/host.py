"""Bugs of `sockshare.host`."""

from __future__ import annotations

from ..mutant import Kind, mutant

_HOST, _TESTS = "sockshare/host", "tests/host"
_JOURNAL, _LIFE, _MEETING = f"{_HOST}/journal.py", f"{_HOST}/life.py", f"{_HOST}/meeting.py"
_FILE = f"{_HOST}/host.py"

HOST = (
    mutant(
        "host: journal is written in place",
        _JOURNAL,
        '        aside = f"{self.path}~"\n',
        "        aside = self.path\n",
        f"{_TESTS}/test_journal.py::test_file_is_replaced_whole",
        felt="a host killed while it writes leaves half a journal: the reload is forgotten",
        kind=Kind.JOURNAL,
    ),
    mutant(
        "host: journal of another manager counts",
        _JOURNAL,
        'if document.get("owner") != owner:',
        "if False:",
        f"{_TESTS}/test_journal.py::test_records_are_passed_over_when_they_are_another_manager_s",
        felt="a reload of a manager that is gone is taken up, with pids of strangers",
        kind=Kind.JOURNAL,
    ),
    mutant(
        "host: journal is in memory only",
        _FILE,
        '                self._give_up(link, "most of what it says can\'t be done")\n                return False\n        self._journal.save()\n',
        '                self._give_up(link, "most of what it says can\'t be done")\n                return False\n',
        f"{_TESTS}/test_host.py::test_journal_lines_count_when_broker_dies_right_after_them",
        felt="a reload is forgotten when circus's plugin is killed",
        kind=Kind.JOURNAL,
    ),
    mutant(
        "host: last words of a broker are not read",
        _FILE,
        "            while self._link is not None and self._receive():\n                pass\n",
        "            pass\n",
        f"{_TESTS}/test_host.py::test_journal_lines_count_when_broker_dies_right_after_them",
        felt="what a broker recorded just before it was killed is lost",
        kind=Kind.JOURNAL,
    ),
    mutant(
        "host: answer goes to the next broker",
        _FILE,
        "        if link is self._link:\n            self._send(link, message)\n",
        "        if self._link is not None:\n            self._send(self._link, message)\n",
        f"{_TESTS}/test_host.py::test_answer_is_dropped_when_its_broker_has_died",
        felt="a broker takes another one's answer: who a pid is, which process was started",
    ),
    mutant(
        "host: broker that can't run is started in a busy loop",
        _LIFE,
        "pause = min(_FIRST_PAUSE * 2 ** min(excess, 10), _LONGEST_PAUSE)",
        "pause = 0.0",
        f"{_TESTS}/test_host.py::test_attempts_are_spaced_when_broker_cannot_run",
        felt="a broken installation takes a processor",
    ),
    mutant(
        "host: nobody hears that the broker died",
        _LIFE,
        "            self._ended()\n        finally:",
        "            pass\n        finally:",
        f"{_TESTS}/test_life.py::test_end_of_a_broker_is_told_before_the_next_one_starts",
        felt="questions to a broker that died are answered late",
    ),
    mutant(
        "host: broker is started once more after the end",
        _LIFE,
        "        if self._stopped or self._broker is not None:\n            return\n        instance, self._spare",
        "        if self._broker is not None:\n            return\n        instance, self._spare",
        f"{_TESTS}/test_life.py::test_nothing_is_started_after_the_end",
        felt="a broker is left when circusd has ended",
    ),
    mutant(
        "host: notify socket of a dead process stays",
        f"{_HOST}/notify.py",
        "        self._close(pid)\n        _unlink(self.path(pid))\n",
        "        self._close(pid)\n",
        f"{_TESTS}/test_host.py::test_notify_socket_outlives_broker_and_host",
        felt="the runtime directory fills up with sockets",
    ),
    mutant(
        "host: replaced descriptor stays open",
        f"{_HOST}/store.py",
        "        self.forget(key)\n        self._kept[key] = fds[0]\n",
        "        self._kept[key] = fds[0]\n",
        f"{_TESTS}/test_store.py::test_no_more_is_kept_than_leaves_the_manager_its_descriptors",
        felt="the manager loses a descriptor with each gate that is shown again",
    ),
    mutant(
        "host: runtime directory of another manager",
        _MEETING,
        "    if other is not None and other != pid:",
        "    if False:",
        f"{_TESTS}/test_meeting.py::test_configured_directory_is_refused_when_it_cannot_serve",
        felt="two managers with one runtime_dir take each other's clients",
        kind=Kind.AUTHORIZATION,
    ),
    mutant(
        "host: base that others can write is used",
        _MEETING,
        "        if not meeting.trusted(base, uid):\n",
        "        if False:\n",
        f"{_TESTS}/test_meeting.py::test_next_place_is_taken_when_the_first_is_not_to_be_had",
        felt="root's manager makes its sockets where another user can replace them",
        kind=Kind.AUTHORIZATION,
    ),
)
