"""``sockshare reload``: ask for a reload, and follow it to its end.

The reload is the broker's: this command may be killed, and it goes on. A broker that is killed goes on after its
restart, so the question is sent again, with the same key, for as long as nothing is heard.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from sockshare.client.door import error_of
from sockshare.core.errors import ExitStatus, NoBroker, SockshareError
from sockshare.core.names import ALL

from .connection import Connection, Endpoint, connect

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

#: After this silence the question is sent again, and after that one the broker is asked at its door whether it lives,
#: seconds.
_RESEND = 0.2
_PROBE = 5.0
#: The broker enforces --timeout, and has this long to undo what it began, seconds.
_GRACE = 15.0
_INTERRUPTED = 130

_FIELDS = ("step", "program", "process", "pid", "seconds", "reason")
_ENDS = {"ok": "done", "rolled_back": "rolled_back"}


def run(
    endpoint: Endpoint, names: Sequence[str], *, every: bool, as_json: bool, timeout: float | None, dry_run: bool
) -> int:
    """Reload the programs that are meant by *names*, or *every* one, and return the exit status of the first that was
    not reloaded: what the broker gives it, or 130 where Ctrl-C ended it before the broker did."""
    interrupt = _Interrupt()
    try:
        broker = connect(endpoint)
        try:
            broker.check()
            programs, stopped = _meant(broker, names, every)
            interrupt.listen()
            return _reload_all(broker, programs, stopped, interrupt, as_json=as_json, timeout=timeout, dry_run=dry_run)
        finally:
            broker.close()
    except KeyboardInterrupt:
        if not interrupt.is_listening:
            print("sockshare reload: interrupted: no reload was begun", file=sys.stderr)
        return _INTERRUPTED
    finally:
        interrupt.close()


def _meant(broker: Connection, names: Sequence[str], every: bool) -> tuple[list[str], list[str]]:
    """The programs to reload, and those that are left out, as they do not run."""
    if len(names) == 1 and names[0] != ALL and ":" not in names[0]:
        return list(names), []
    answer = broker.ask("programs", programs=[ALL] if every else list(names))
    return [str(name) for name in answer["programs"]], [str(name) for name in answer["stopped"]]


def _reload_all(
    broker: Connection,
    programs: Sequence[str],
    stopped: Sequence[str],
    interrupt: _Interrupt,
    *,
    as_json: bool,
    timeout: float | None,
    dry_run: bool,
) -> int:
    status: int = ExitStatus.OK
    printer = _Printer(as_json=as_json)
    for name in stopped:
        printer.say(f"{name} is not running: left as it is")
    with printer:
        for at, program in enumerate(programs):
            if interrupt.count:
                printer.say(f"not begun: {' '.join(programs[at:])}")
                return status or _INTERRUPTED
            try:
                following = _Following(broker, program, printer, interrupt, timeout=timeout, dry_run=dry_run)
                ended: int = following.follow()
            except SockshareError as error:
                if len(programs) == 1:
                    raise
                print(f"sockshare: {error}", file=sys.stderr)
                ended = error.exit_status
                if isinstance(error, NoBroker):  # the next one would wait as long, to be told the same
                    if programs[at + 1 :]:
                        printer.say(f"not begun: {' '.join(programs[at + 1 :])}")
                    return status or ended
            status = status or ended
    return status


class _Interrupt:
    """Ctrl-C while reloads run: the first is counted, for the next look at it; with the second the command leaves.

    Before `listen` it is a KeyboardInterrupt, as ever.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_listening = False
        self._before = signal.getsignal(signal.SIGINT)

    def listen(self) -> None:
        """Count from now on; where the signal is ignored, as in the background of a shell, it stays so."""
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupted)
        self.is_listening = True

    def _interrupted(self, number: int, frame: object) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Have it as before."""
        if self.is_listening:
            signal.signal(signal.SIGINT, self._before)


class _Following:
    """One reload, as the one who asked for it sees it."""

    def __init__(
        self,
        broker: Connection,
        program: str,
        printer: _Printer,
        interrupt: _Interrupt,
        *,
        timeout: float | None,
        dry_run: bool,
    ) -> None:
        self.printer = printer
        self._broker = broker
        self._program = program
        self._interrupt = interrupt
        self._timeout = timeout
        self._key = secrets.token_hex(16)
        fields: dict[str, object] = {"program": program, "key": self._key}
        if timeout is not None:
            fields["timeout"] = timeout
        if dry_run:
            fields["dry_run"] = True
        self._questions = [broker.begin("reload", **fields)]
        self._seen: set[tuple[object, ...]] = set()
        self._cancelled = False

    def follow(self) -> int:
        """Print the steps until the end."""
        try:
            return self._follow()
        except NoBroker as error:
            raise NoBroker(f"can't follow the reload of {self._program}: {error}") from None
        except KeyboardInterrupt:
            goes_on = "is being cancelled" if self._cancelled else "goes on"
            self.printer.say(f"left: the reload of {self._program} {goes_on} without this command: `sockshare status`")
            raise

    def _follow(self) -> int:
        backstop = None if self._timeout is None else time.monotonic() + self._timeout + _GRACE
        heard = time.monotonic()
        while True:
            if self._interrupt.count and not self._cancelled:
                self._cancel()
            answer = self._broker.answer(self._questions[0], _RESEND)
            now = time.monotonic()
            if answer is not None:
                heard = now
                if "event" not in answer:
                    return self._end(answer)
                self._event(answer["event"])
                continue
            for question in self._questions:
                self._broker.repeat(question)
            if backstop is not None and now >= backstop:
                return self._gave_up()
            if now - heard >= _PROBE:
                self._broker.probe()
                heard = time.monotonic()

    def _cancel(self) -> None:
        self.printer.say("cancelling, unless the new process has taken over; Ctrl-C once more leaves at once")
        self._cancelled = True  # before it is asked: the second Ctrl-C may come meanwhile
        self._questions.append(self._broker.begin("cancel", program=self._program, key=self._key))

    def _event(self, event: dict[str, Any]) -> None:
        # A broker that was restarted tells again what its predecessor told.
        mark = tuple(event.get(field) for field in ("step", "process", "pid", "reason"))
        if mark not in self._seen:
            self._seen.add(mark)
            self.printer.step(event)

    def _end(self, answer: dict[str, Any]) -> int:
        if answer.get("ok") is not True:
            raise error_of(answer)
        status = int(answer.get("exit", ExitStatus.INTERNAL))
        result, reason = str(answer.get("result")), str(answer.get("reason") or "")
        last = _ENDS.get(result, "failed")
        if not any(step == last for step, *_ in self._seen):
            # It ended while there was no broker to tell us, or while we were not heard.
            known = {key: answer.get(key) for key in ("seconds", "cost")}
            event = {"step": last, "program": self._program, "reason": reason, **known}
            self._event(event)
        if status != ExitStatus.OK:
            self.printer.say(f"can't reload {self._program}: {reason or result}")
            self.printer.quote(str(answer.get("stderr") or ""))
        return status

    def _gave_up(self) -> int:
        self.printer.say(f"can't reload {self._program}: no end within {self._timeout:g} s; the broker goes on with it")
        return ExitStatus.TIMED_OUT


class _Printer(AbstractContextManager["_Printer"]):
    """Prints steps: JSON, plain lines, or lines above a live one on a terminal."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console: Console | None = None
        self._live: AbstractContextManager[Status | None] = nullcontext()
        self._status: Status | None = None
        if not as_json and sys.stdout.isatty():
            from rich.console import Console

            self._console = Console(highlight=False)
            self._live = self._console.status("starting")

    def __enter__(self) -> _Printer:
        self._status = self._live.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        self._live.__exit__(*about)
        self._status = None

    def step(self, event: dict[str, Any]) -> None:
        """Print one step."""
        if self._as_json:
            fields = {field: event.get(field) for field in _FIELDS}
            if event.get("cost") is not None:
                fields["cost"] = event["cost"]
            print(json.dumps(fields), flush=True)
            return
        line = line_of(event)
        if self._console is None:
            print(line, flush=True)
            return
        from rich.text import Text

        styles = {"failed": "red", "rolled_back": "yellow", "done": "green"}
        self._console.print(Text(line, styles.get(str(event.get("step")), "")))
        if self._status is not None:
            self._status.update(Text(f"after {event.get('step')} of {event.get('process') or event.get('program')}"))

    def say(self, text: str) -> None:
        """Say *text* on stderr."""
        print(f"sockshare reload: {text}", file=sys.stderr, flush=True)

    def quote(self, text: str) -> None:
        """Show what a child wrote to its stderr."""
        for line in text.splitlines():
            print(f"  | {line}", file=sys.stderr, flush=True)


def line_of(event: dict[str, Any]) -> str:
    """One step for people: ``  1.20 s  web:1 (pid 21): ready: READY=1``."""
    seconds = event.get("seconds")
    when = f"{seconds:6.2f} s" if isinstance(seconds, (int, float)) else "       -"
    whom = str(event.get("process") or event.get("program") or "")
    pid = f" (pid {event['pid']})" if event.get("pid") is not None else ""
    reason = " ".join(str(event.get("reason") or "").split())
    return f"{when}  {whom}{pid}: {event.get('step')}{f': {reason}' if reason else ''}"
