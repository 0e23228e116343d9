"""The command ``sockshare``: the way to `exec`, which must be light, and to the others, which need click and rich."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from sockshare.core.errors import ExitStatus, SockshareError
from sockshare.core.platforms import unsupported

if TYPE_CHECKING:
    from .connection import Endpoint

_INTERRUPTED = 130  # as a shell says it: 128 + SIGINT


def command(mask: Iterable[int] | None) -> NoReturn:
    """Be the command that the process's arguments name; SIGINT is blocked, and *mask* is what was blocked before.
    (None: it is no Unix.)

    Python answers Ctrl-C with a traceback wherever nobody expects it: so it arrives where `main` does.
    """
    status: int = _INTERRUPTED
    try:
        try:
            status = main(mask=mask)
        finally:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        pass
    sys.exit(status)


def main(
    arguments: Sequence[str] | None = None, endpoint: Endpoint = None, *, mask: Iterable[int] | None = None
) -> int:
    """Run the command of *arguments* (the process's own) and return its exit status; no traceback leaves this.

    It goes to *endpoint*, if the arguments name none. The signals of *mask* are the only ones that are blocked then.

    With ``SOCKSHARE_DEBUG=1`` in the environment an unexpected error shows its traceback.
    """
    try:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _run(list(sys.argv[1:] if arguments is None else arguments), endpoint)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough. What is left in the buffer must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitStatus.OK
    except SockshareError as error:
        return _say(error, error.exit_status)
    except Exception as error:
        if os.environ.get("SOCKSHARE_DEBUG") == "1":
            raise
        text = " ".join(str(error).split()) or "no reason given"
        return _say(f"can't go on: {type(error).__name__}: {text} (SOCKSHARE_DEBUG=1 shows where)", ExitStatus.INTERNAL)


def _run(arguments: list[str], above: Endpoint) -> int:
    # Before anything that only Linux or a later Python has is imported.
    wrong = unsupported()
    if wrong is not None:
        return _say(wrong, ExitStatus.USAGE)
    rest, endpoint = _leading_endpoint(arguments)
    if rest[:1] == ["exec"]:
        # This process is about to become another: what a collection would free is freed by that. It saves 2 ms.
        gc.disable()
        from .exec import run

        return run(rest[1:], endpoint)
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        return _say(f"can't run this command: {error.name} is missing; install sockshare[cli]", ExitStatus.INTERNAL)
    from .commands import run_command

    return run_command(arguments, above)


def _leading_endpoint(arguments: list[str]) -> tuple[list[str], str | None]:
    """*arguments* without the ``--endpoint`` before the command, and its value."""
    if arguments[:1] == ["--endpoint"] and len(arguments) > 1:
        return arguments[2:], arguments[1]
    if arguments and arguments[0].startswith("--endpoint="):
        return arguments[1:], arguments[0].partition("=")[2]
    return arguments, None


def _say(text: object, status: int) -> int:
    print(f"sockshare: {text}", file=sys.stderr)
    return status
