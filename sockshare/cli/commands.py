"""The commands as click sees them: options, and what they are for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module

import click

import sockshare
from sockshare.core.errors import ExitStatus

from .connection import Endpoint

_Work = Callable[[], int]


def run_command(arguments: list[str], endpoint: Endpoint = None) -> int:
    """Run the command line *arguments*, against *endpoint* if they name none, and return its exit status."""
    try:
        # click only reads the line, and each command says what to do: click's own way to end a command at Ctrl-C, or
        # at a reader who left, is not ours.
        work = commands.main(arguments, prog_name="sockshare", standalone_mode=False, obj=endpoint)
    except click.Abort:  # as click calls Ctrl-C
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return work() if callable(work) else int(work or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.option("--endpoint", metavar="DIR", help="The broker's runtime directory; found by itself when there is one.")
@click.version_option(sockshare.__version__, prog_name="sockshare")
@click.pass_context
def commands(context: click.Context, endpoint: str | None) -> None:
    """Shared sockets and zero-downtime reloads for programs under circus or supervisord."""
    context.obj = endpoint or context.obj


_endpoint = click.option("--endpoint", metavar="DIR", help="The broker's runtime directory.")
_json = click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")


@commands.command(
    name="exec",
    short_help="Become a command that has its sockets at descriptors 3, 4, ...",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def exec_command(endpoint: Endpoint, arguments: tuple[str, ...]) -> _Work:
    """Become a command that has its sockets at descriptors 3, 4, ..."""
    # Listed here for --help; `main` goes to it without click.
    from .exec import run

    return partial(run, arguments, endpoint if isinstance(endpoint, str) else None)


@commands.command()
@_json
@_endpoint
@click.pass_obj
def status(above: Endpoint, as_json: bool, endpoint: str | None) -> _Work:
    """Show the sockets, who holds them, and the last reloads.

    Exits 3 when a socket that a program names has no ready process.
    """
    from .status import run

    return partial(run, endpoint or above, as_json=as_json)


@commands.command()
@_json
@_endpoint
@click.pass_obj
def doctor(above: Endpoint, as_json: bool, endpoint: str | None) -> _Work:
    """Check the broker, its manager, the programs and this kernel, and say what to do, a line for each finding.

    Exits 3 when there is a problem, 2 when the configuration was refused.
    """
    from .doctor import run

    return partial(run, endpoint or above, as_json=as_json)


@commands.command()
@click.argument("programs", nargs=-1, metavar="PROGRAM...")
@click.option("--all", "every", is_flag=True, help="Every program that shares a socket, and runs.")
@_json
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Undo it after S seconds; exit 6."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
@_endpoint
@click.pass_obj
def reload(
    above: Endpoint,
    programs: tuple[str, ...],
    every: bool,
    as_json: bool,
    timeout: float | None,
    dry_run: bool,
    endpoint: str | None,
) -> _Work:
    """Replace the processes of PROGRAM, one by one, by new ones that serve.

    PROGRAM may also be one of its processes, which stands for all of them, or GROUP:*. Several programs are reloaded
    one after the other; the exit status is that of the first that was not.

    Ctrl-C undoes it, as long as the new process has not taken over. Exits 5 when the new one failed and the old one
    serves.
    """
    if every == bool(programs):
        raise click.UsageError("--all goes without PROGRAM" if every else "Missing argument 'PROGRAM...'.")
    from .reload import run

    return partial(run, endpoint or above, programs, every=every, as_json=as_json, timeout=timeout, dry_run=dry_run)


@commands.group(no_args_is_help=True)
def registration() -> None:
    """Who holds the event registration of a socket (`sockshare status` shows it)."""


@registration.command()
@click.argument("socket")
@click.argument("process")
@_endpoint
@click.pass_obj
def move(above: Endpoint, socket: str, process: str, endpoint: str | None) -> _Work:
    """Hand the registration of SOCKET to PROCESS, as `sockshare status` names it: web:2."""
    from .registration import move

    return partial(move, endpoint or above, socket, process)


@commands.command()
@click.argument("process")
@_endpoint
@click.pass_obj
def quiesce(above: Endpoint, process: str, endpoint: str | None) -> _Work:
    """Have PROCESS get nothing new until `sockshare wake PROCESS`; what it has, it goes on with."""
    from .registration import quiesce

    return partial(quiesce, endpoint or above, process)


@commands.command()
@click.argument("process")
@_endpoint
@click.pass_obj
def wake(above: Endpoint, process: str, endpoint: str | None) -> _Work:
    """Have a quiesced PROCESS take part again."""
    from .registration import wake

    return partial(wake, endpoint or above, process)


@commands.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> _Work:
    """See it: a circusd of its own, under load, reloaded to good and to bad versions."""
    return partial(_demo, list(arguments))


def _demo(arguments: list[str]) -> int:
    try:
        run: Callable[[list[str]], int] = import_module("sockshare.cli.demo").main
    except ImportError as error:
        print(f"sockshare: can't run the demo: {error.name} is missing; install sockshare[demo]", file=sys.stderr)
        return ExitStatus.INTERNAL
    return run(arguments)
