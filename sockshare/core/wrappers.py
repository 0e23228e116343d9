"""Launchers that start their command as another process instead of becoming it.

``sockshare exec`` sets LISTEN_PID to its own pid, which the command has too as long as everything between them execs.
A launcher that forks breaks that, and silently: sd_listen_fds(3) then finds another pid and reports no descriptors.
What is not named here is taken for the server itself. (poetry, pipenv and dotenv exec, so they are looked through.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# They fork, and their child keeps the descriptors, so {fd:NAME} reaches the program. setsid(1) is one of them here:
# it forks when it leads its process group, and every process leads one that circusd or supervisord started.
_FORKS_KEEPING = frozenset(
    "catatonit dumb-init flock gmake ltrace make parallel pdm runuser script setsid strace su time timeout tini"
    " unbuffer uvx watch xargs".split()
)

# They fork, and their child does not keep them, or nobody has seen that it does.
_FORKS_CLOSING = frozenset(
    "bunx conda docker firejail foreman hatch honcho nodemon npx pm2 pnpm pnpx podman sudo watchexec watchmedo xvfb-run"
    " yarn".split()
)

# They fork for one of these subcommands; whether the child keeps the descriptors.
_FORKS_TO = {
    "bun": (frozenset({"run", "x"}), False),
    "npm": (frozenset({"exec", "x", "run", "run-script", "start", "test"}), False),
    "uv": (frozenset({"run", "tool"}), True),
}

# An option decides: these fork with it, or exec with it.
_FORKS_BY = {"unshare": ("f", "--fork")}
_EXECS_BY = {"flock": ("F", "--no-fork"), "strace": ("D", "--daemonize")}


class _Execs(NamedTuple):
    """How to find the command, or the subcommand, behind a launcher's own options."""

    short: str = ""  # its one-letter options that take an argument
    long: str = ""  # its long options that take the next word
    operands: int = 0  # its words between the options and the command


_EXECS = {
    "bun": _Execs("c", "--cwd --config"),
    "chpst": _Execs("uUb/nlLmdopfcre"),
    "chroot": _Execs("", "--userspec --groups", 1),
    "chrt": _Execs("TPD", "--sched-runtime --sched-period --sched-deadline", 1),
    "dotenv": _Execs("fqe", "--file --quote --export", 1),
    "env": _Execs("uCSa", "--unset --chdir --split-string --argv0"),
    "flock": _Execs("wEc", "--timeout --wait --conflict-exit-code --command", 1),
    "gosu": _Execs("", "", 1),
    "ionice": _Execs("cnpPu", "--class --classdata --pid --pgid --uid"),
    "nice": _Execs("n", "--adjustment"),
    "nohup": _Execs(),
    "npm": _Execs("wC", "--prefix --workspace --loglevel"),
    "numactl": _Execs("iNCmpPw", "--interleave --cpunodebind --physcpubind --membind --preferred"),
    "pipenv": _Execs("", "", 1),
    "poetry": _Execs("CP", "--directory --project", 1),
    "prlimit": _Execs("op", "--output --pid"),
    "setarch": _Execs("p", "", 1),
    "setpriv": _Execs(
        "",
        "--ambient-caps --inh-caps --bounding-set --ruid --euid --rgid --egid --reuid --regid --groups --securebits"
        " --pdeathsig --ptracer --selinux-label --apparmor-profile --landlock-access --landlock-rule --seccomp-filter",
    ),
    "setuidgid": _Execs("", "", 1),
    "s6-setuidgid": _Execs("", "", 1),
    "stdbuf": _Execs("ioe", "--input --output --error"),
    "strace": _Execs("abeEIoOpPsSuUX", "--output --trace --env --attach --string-limit --user"),
    "su-exec": _Execs("", "", 1),
    "taskset": _Execs("", "", 1),
    "unshare": _Execs(
        "SGRwl", "--root --wd --setuid --setgid --propagation --map-user --map-group --map-users --map-groups"
    ),
    "uv": _Execs("", "--directory --project --config-file --cache-dir --color"),
    "valgrind": _Execs(),
}

# These exec the only, or last, command of `-c`; dash (so `sh` on Debian) keeps running beside it.
_SHELLS_THAT_EXEC = frozenset({"bash", "ksh", "zsh"})
_SHELLS = _SHELLS_THAT_EXEC | {"sh", "dash", "ash"}

# Not compiled here: that takes 3 ms, which only a command that is a shell script is to pay.
_ASSIGNMENT = r"[A-Za-z_]\w*\+?="
# A word may have quotes, escapes and substitutions within it; what this can't read becomes operators, so the command
# is taken for a compound one.
_TOKEN = r"""(?P<blank> (?:[ \t]|\\\n)+ | (?<![^\s;&|()])\#[^\n]* )
      | (?P<redirection> (?:\d*(?:<<<|<<-?|<>|>>|>\||[<>]&?) | &>>?) [ \t]* )
      | (?P<operator> && | \|\|? | ;;? | [&\n()] )
      | (?P<word> (?: \\. | '[^']*' | "(?:\\.|[^"\\])*" | \$\([^()]*\) | \$\{[^}]*\} | `[^`]*` | [^\s;&|<>()'"\\`] )+
                | . )
    """
_QUOTES = r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)"""
_RESERVED = frozenset("! { if then elif else while until do".split())
_CLOSING = frozenset("} fi done esac".split())


def forks(argv: Sequence[str]) -> str | None:
    """Name the launcher in *argv* that forks, and what to write instead; None when there is none.

    *argv* is the command as the user wrote it, ``{fd:NAME}`` not yet replaced: a program that is told its descriptor
    so does not need LISTEN_PID, and a launcher whose child keeps the descriptors is right in front of it.

    Returns:
        The middle of a sentence, without a full stop: "'timeout' starts its command as another process, which
        LISTEN_PID does not name; put it before `sockshare exec`, or give the program {fd:NAME}".
    """
    found = _forking(list(argv))
    if found is None:
        return None
    what, advice, keeps = found
    if keeps and any("{fd:" in word for word in argv):
        return None
    other = ", or give the program {fd:NAME}" if keeps else ""
    return f"{what} starts its command as another process, which LISTEN_PID does not name; {advice}{other}"


def is_shell(command: str) -> bool:
    """Whether *command*, the first word of a command line, is a shell."""
    return command.rpartition("/")[2].lstrip("-") in _SHELLS


_Found = tuple[str, str, bool]  # what forks, what to do about it, whether its child keeps the descriptors


def _forking(argv: list[str]) -> _Found | None:
    while argv:
        name = argv[0].rpartition("/")[2]
        arguments = argv[1:]
        if name in _SHELLS:
            return _shell(name, arguments)
        if name == "busybox":
            argv = arguments
            continue
        behind = _behind(name, _EXECS.get(name, _Execs()), arguments)
        options = arguments[: len(arguments) - len(behind)]
        if name in _FORKS_TO:
            subcommands, keeps = _FORKS_TO[name]
            return _launcher(f"{name} {behind[0]}", keeps) if behind and behind[0] in subcommands else None
        if name in _FORKS_BY and _has(options, *_FORKS_BY[name]):
            return _launcher(f"{name} {_FORKS_BY[name][1]}", True)
        if name in _FORKS_CLOSING:
            return _launcher(name, False)
        if name in _FORKS_KEEPING and not (name in _EXECS_BY and _has(options, *_EXECS_BY[name])):
            return _launcher(name, True)
        if name not in _EXECS:
            return None
        argv = behind
    return None


def _launcher(what: str, keeps: bool) -> _Found:
    return f"'{what}'", "put it before `sockshare exec`", keeps


def _has(options: list[str], short: str, long: str) -> bool:
    return any(word == long or (word[:1] == "-" != word[1:2] and short in word) for word in options)


def _behind(name: str, execs: _Execs, words: list[str]) -> list[str]:
    """The command behind the launcher's own options and operands."""
    long = execs.long.split()
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        at += 1
        if word == "--":
            break
        if name == "env" and (split := re.fullmatch(r"-[iv0]*S(.*)|--split-string=?(.*)", word, re.DOTALL)):
            string = split[1] or split[2]
            if not string:
                string, at = " ".join(words[at : at + 1]), at + 1
            return _behind(name, execs, [*_unquoted(string.split()), *words[at:]])
        if word.startswith("--"):
            at += word in long
        else:
            # As getopt(3): the first letter that takes an argument has the rest of the word for it, else the next one.
            taking = [letter in execs.short for letter in word[1:]]
            at += any(taking) and taking.index(True) == len(taking) - 1
    if name == "env":
        while at < len(words) and "=" in words[at]:
            at += 1
    at += execs.operands
    return words[at:]


def _shell(name: str, arguments: list[str]) -> _Found | None:
    """Judge ``sh [options] -c SCRIPT [NAME ARGUMENT...]``; of a script in a file nothing is known."""
    at = 0
    command = False
    while at < len(arguments) and arguments[at][:1] in ("-", "+") and arguments[at] != "--":
        word = arguments[at]
        command = command or (word[0] == "-" and word[1:2] != "-" and "c" in word)
        at += 1 + (word in ("-o", "+o", "-O", "+O", "--rcfile", "--init-file"))
    if arguments[at : at + 1] == ["--"]:
        at += 1
    if not command or at >= len(arguments):
        return None
    commands, compound = _commands(arguments[at])
    positional = arguments[at + 2 :]
    execs = False
    for words in commands:
        words = _expanded(words, positional)
        if words[:1] == ["exec"]:
            behind = _behind("exec", _Execs("a"), words[1:])
            execs = execs or bool(behind)
            found = _forking(behind)
            if found:
                return found
    if execs:
        return None
    if not compound and name in _SHELLS_THAT_EXEC:
        return _forking(_expanded(commands[0], positional))
    return f"'{name} -c' without exec", "write `exec` before the last command of the script", True


def _commands(script: str) -> tuple[list[list[str]], bool]:
    """The script's simple commands, without reserved words, assignments and redirections.

    Those of a pipeline are left out, since each is a process of its own. Second: whether the script is more than one
    simple command without redirections (bash does not exec one that has some).
    """
    commands: list[list[str]] = []
    words: list[str] = []
    compound = piped = target = False

    def end(operator: str) -> None:
        nonlocal words, piped
        in_pipeline = piped or operator == "|"
        if in_pipeline or operator == "&":
            # A group there is a process of its own too, and what came before it in the script is no loss.
            if words and words[0] in _CLOSING:
                commands.clear()
        elif words:
            commands.append(words)
        # A blank line does not end a pipeline: `a |\n exec b`.
        piped = operator == "|" or (piped and not words)
        words = []

    depth = 0
    for token in re.finditer(_TOKEN, script, re.VERBOSE | re.DOTALL):
        text = token[0]
        if token.lastgroup == "operator":
            target = False
            # Of a subshell nothing counts: what it execs replaces the subshell alone.
            if text in "()":
                depth = max(0, depth + (1 if text == "(" else -1))
                compound, words = True, []
                continue
            compound = compound or (text not in (";", "\n"))
            end(text)
        elif token.lastgroup == "redirection":
            compound = target = True
        elif token.lastgroup == "word":
            if target:
                target = False
            elif depth == 0 and not (words == [] and (text in _RESERVED or re.match(_ASSIGNMENT, text))):
                words.append(text)
            else:
                compound = compound or text in _RESERVED
    end("")
    return commands, compound or len(commands) != 1


def _expanded(words: list[str], positional: list[str]) -> list[str]:
    expanded: list[str] = []
    for word in words:
        if word in ('"$@"', "$@", "$*"):
            expanded += positional
        else:
            expanded += _unquoted([word])
    return expanded


def _unquoted(words: list[str]) -> list[str]:
    def bare(quoted: re.Match[str]) -> str:
        return quoted[1] or quoted[2] or quoted[3] or ""

    return [re.sub(_QUOTES, bare, word, flags=re.DOTALL) for word in words]
