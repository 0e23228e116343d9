"""The host: what is held for the broker, and what is answered to it (docs/protocol.md, the link).

It is embedded: in circus's plugin process, or in supervisord itself. So it blocks nowhere, raises nothing out of what a
loop calls, imports no zmq, and is dull: it thinks about nothing, that it may live as long as its manager.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import sockshare
from sockshare.core import versions
from sockshare.core.errors import ProtocolError
from sockshare.core.troubles import Troubles
from sockshare.kernel import closing, listeners
from sockshare.kernel.channel import Channel, Message
from sockshare.kernel.descriptors import are_gone, close_all, make_room
from sockshare.kernel.directory import Directory

from . import meeting
from .journal import Journal
from .loop import Loop, Timer, guarded
from .notify import NotifySockets
from .store import DescriptorStore
from .verbs import Answer, Configuration, Counting, Holding, Manager, Placing, Renewing, Verbs, Witness

log = logging.getLogger(__name__)

#: Seconds until a broker that can't be told something is started afresh; too many descriptors in flight pass by then.
_AFTER_FAILED_WRITE = 1.0
#: Bytes that may wait for a broker to read them; one that asks and does not read is of no use.
_MOST_UNSENT = 16 * 1024 * 1024
#: Messages that can't be understood, or done, until the broker that sends them has to go.
_MOST_FAILURES = 100
#: Seconds from the end of a link, when a process's descriptors are closed, to its broker's death.
_DIES_WITHIN = 0.5

#: Seconds between looks at whether a trouble is over.
_LOOK_AGAIN = 2.0
_NO_DESCRIPTOR = "can't open descriptors: {}; raise the limit of open files of {} (LimitNOFILE, ulimit -n, minfds)"

#: What the keys of reloads that run begin with, in the journal.
_RELOADS = ("reload:", "retirement:")
#: The verbs that only ask.
_QUERIES = frozenset({"whois", "processes", "report", "notify"})
#: What is said with `settle`, in this order.
_SETTLE = ("program", "retire", "known", "count", "kill", "patience")
_KINDS = {"broker": socket.SOCK_STREAM, "door": socket.SOCK_SEQPACKET}


class Host:
    """Everything that outlives a broker, and the link to the one that runs.

    Args:
        directory: The runtime directory, which exists (`meeting.create`).
        nonsense: Called when the broker breaks the protocol or its link: it has to go.
        begun: Called when a broker has read its hello, and begins to serve.

    Attributes:
        directory: The runtime directory, opened.

    Raises:
        OSError: It is not there any more, or somebody else could change it.
    """

    def __init__(
        self,
        loop: Loop,
        verbs: Verbs,
        manager: Manager,
        directory: str,
        *,
        nonsense: Callable[[], None] = lambda: None,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._verbs = verbs
        self._manager = manager
        self.directory = Directory(directory)
        self._nonsense = nonsense
        self._say_begun = begun
        self._begun = False
        self._known: set[str] = set()  # the programs that the broker was told of
        self._told: Message = {}  # what it was told last of the configuration
        self._given: list[tuple[dict[str, Any], socket.socket]] = []  # the sockets that it has
        self._withheld: list[tuple[int, Message]] = []  # answers of which the next broker may know more
        self._outdated = False  # the broker has other sockets than are configured
        self._postponed = False  # the next one has to wait for the end of a reload
        self._unreadable = ""  # why the broker says that it can't serve us
        self._passed_over: set[str] = set()
        self._listeners: dict[str, socket.socket] = {}
        self._places: dict[str, int] = {}  # their paths, with the inodes that these have
        self._configuration = Configuration([], [], [], [])
        self._link: Channel | None = None
        self._writing = False
        self._failures = 0
        self._draining = False
        self._questions = 0
        self._asked: dict[int, tuple[Callable[[Message], None], Timer]] = {}
        self._journal = Journal(os.path.join(directory, meeting.JOURNAL), manager.name, self.directory.fd)
        self._notify = NotifySockets(loop, os.path.join(directory, meeting.NOTIFY))
        self._store = DescriptorStore()
        self._troubles = Troubles()
        self._looking = False

    def open(self) -> None:
        """Make the listeners and bind the notify sockets of processes that live, before the first broker.

        Raises:
            OSError, ValueError: As `listeners.make`.
        """
        make_room()
        self._listen()
        self._notify.restore()
        self._save()

    def _listen(self) -> None:
        for name in meeting.LISTENERS:
            path = os.path.join(self.directory.path, name)
            self._listeners[name] = listeners.make(path, _KINDS[name], dir_fd=self.directory.fd)
            self._places[path] = os.stat(name, dir_fd=self.directory.fd, follow_symlinks=False).st_ino

    @property
    def reachable(self) -> bool:
        """Whether clients find the listeners where they were made."""
        try:
            return all(os.stat(path).st_ino == inode for path, inode in self._places.items())
        except OSError:
            return False

    @guarded(log)
    def reopen(self) -> None:
        """Make everything anew in the runtime directory, which was removed, and is there again."""
        log.error("host: %s was removed under us; making it anew", self.directory.path)
        self.directory.renew()
        old = list(self._listeners.values())
        self._listen()
        for sock in old:
            closing.close(sock)
        self._notify.renew()
        self._save(anew=True)
        self._nonsense()  # listeners come with the hello only

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The journal, by key; a copy."""
        return self._journal.records

    def descriptors(self) -> list[int]:
        """Every descriptor that is open here, for who closes those that nobody claims."""
        link = [] if self._link is None else [self._link.fileno()]
        sockets = [sock.fileno() for sock in (*self._listeners.values(), *self._notify.sockets.values())]
        return [self.directory.fd, *sockets, *self._store.kept.values(), *link]

    @guarded(log)
    def question(self, fields: Message, done: Callable[[Message], object], within: float = 5.0) -> None:
        """Ask the broker *fields*; *done* gets its answer, or a refusal (``"ok": False``) after *within* seconds."""
        self._questions += 1
        number = self._questions

        def give(message: Message) -> None:
            question = self._asked.pop(number, None)
            if question is not None:
                question[1].cancel()
                done(message)

        late = {"ok": False, "message": f"can't ask the broker: no answer within {within:g} s"}
        self._asked[number] = (give, self._loop.call_later(within, guarded(log)(lambda: give(late))))
        if self._link is None:
            give({"ok": False, "message": "can't ask the broker: there is none just now"})
        else:
            self._send(self._link, {"type": "question", "id": number, **fields})

    @property
    def connected(self) -> bool:
        """Whether there is a link to a broker."""
        return self._link is not None

    @guarded(log)
    def configure(self, configuration: Configuration) -> None:
        """Have *configuration* from now on; a broker that runs is told of what has changed."""
        self._configuration = configuration
        if self._link is None:
            return
        self._outdated = configuration.sockets != self._given
        if self._outdated:
            self._renew()
        else:
            self._tell(self._link)

    def _tell(self, link: Channel) -> None:
        """Tell the broker of the configuration what it was not told yet, and give the answers that waited for that."""
        message = self._message()
        if message != self._told:
            self._note_told(message)
            self._send(link, {"type": "programs", **message})
        withheld, self._withheld = self._withheld, []
        for number, fields in withheld:
            self._reply(link, {"type": "answer", "id": number, **fields})

    def _note_told(self, message: Message) -> None:
        self._told = message
        self._known = {program["name"] for program in message["programs"]}

    def outdate(self) -> None:
        """Let the broker have other sockets than it is about to be `configure`d with: the next one will have them."""
        self._outdated = self._link is not None

    def _renew(self) -> None:
        """Have the next broker, to which sockets come with the hello, once no reload runs that this would undo."""
        if any(key.startswith(_RELOADS) for key in self._journal.records):
            if not self._postponed:
                log.info("host: the sockets are others when the reload is over that runs")
            self._postponed = True
        else:
            self._nonsense()

    def _message(self) -> Message:
        """What a broker is told of the configuration, and of our own troubles."""
        message = self._configuration.message()
        return {**message, "warnings": [*message["warnings"], *self._troubles.sentences]}

    def _trouble(self, subject: str, sentence: str) -> None:
        """Let *sentence* be the trouble of *subject*; "": it has none (any more)."""
        if self._troubles.say(subject, sentence):
            log.log(logging.ERROR if sentence else logging.INFO, "%s: %s", subject, sentence or "all is well again")
            if self._link is not None and not self._draining and not self._outdated:
                self._tell(self._link)
        if self._troubles.sentences and not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_AGAIN, self._look_again)

    @guarded(log)
    def _look_again(self) -> None:
        """Whether the troubles are over: nothing else may come that would tell."""
        self._looking = False
        if not self._listeners:
            return  # closed
        self._save()
        self._trouble("store", self._store.trouble)
        for subject, path in (
            ("descriptors", os.devnull),
            ("notify", os.path.join(self.directory.path, meeting.NOTIFY)),
        ):
            try:
                # Of a directory a file without a name, which needs what a socket in it would (open(2), O_TMPFILE).
                flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_TMPFILE if subject == "notify" else 0)
                os.close(os.open(path, flags, 0o600))
            except OSError as error:
                log.debug("%s: %s", subject, error)
            else:
                self._trouble(subject, "")

    def _no_descriptor(self, error: OSError) -> None:
        self._trouble("descriptors", _NO_DESCRIPTOR.format(os.strerror(error.errno or 0), self._manager.kind))

    def _save(self, *, anew: bool = False) -> None:
        self._journal.save(anew=anew)
        self._trouble("journal", self._journal.trouble)

    @guarded(log)
    def held(self) -> None:
        """Tell the broker that the manager holds a process; one that is not there yet will ask by itself."""
        if self._link is not None:
            self._send(self._link, {"type": "held"})

    @guarded(log)
    def serve(self, sock: socket.socket) -> None:
        """Say hello to a new broker over *sock*, which becomes the host's, and answer it."""
        self.drain()
        self._link = link = Channel(sock)
        self._writing = self._begun = self._outdated = self._postponed = False
        self._given = self._configuration.sockets
        self._note_told(self._message())
        self._unreadable = ""
        self._failures = 0
        self._loop.add_reader(link.fileno(), self._readable)
        notify, kept = self._notify.sockets, self._store.kept
        hello = {
            "type": "hello",
            "version": versions.LINK,
            "package": sockshare.__version__,
            "manager": {
                "kind": self._manager.kind,
                "pid": self._manager.pid,
                "uid": self._manager.uid,
                "endpoint": self._manager.endpoint,
                "file": self._manager.file,
            },
            "directory": self.directory.path,
            "listeners": list(self._listeners),
            "sockets": [description for description, _ in self._configuration.sockets],
            "notify": list(notify),
            "kept": list(kept),
            **self._told,
            "journal": self._journal.records,
        }
        shared = [shared for _, shared in self._configuration.sockets]
        sockets = [sock.fileno() for sock in (*self._listeners.values(), *shared, *notify.values())]
        # They may not change before all of it is sent. None does: a broker speaks only after it has heard the hello.
        self._send(link, hello, [*sockets, *kept.values()])

    @guarded(log)
    def drain(self) -> None:
        """Do what a broker that has died still said, and drop its link: a journal line that was written counts."""
        self._draining = True
        try:
            while self._link is not None and self._receive():
                pass
        finally:
            self._draining = False
            self._save()
        self._drop()

    def ended(self) -> str | None:
        """As `drain`; why the broker that has died never began to serve, as far as it said, or None if it did."""
        self.drain()
        return None if self._begun else self._unreadable

    @guarded(log)
    def close(self) -> None:
        """Close everything. What a later host of the same manager needs (journal, notify paths) stays on disk."""
        self.drain()
        for name, sock in self._listeners.items():
            closing.close(sock)
            self.directory.unlink(name)
        self._listeners.clear()
        self._notify.close()
        self._store.close()
        self.directory.close()

    def _drop(self) -> None:
        link, self._link = self._link, None
        self._withheld.clear()
        if link is not None:
            self._loop.remove_reader(link.fileno())
            if self._writing:
                self._loop.remove_writer(link.fileno())
                self._writing = False
            link.close()
        for give, _ in list(self._asked.values()):
            give({"ok": False, "message": "can't ask the broker: it ended before it answered"})

    @guarded(log)
    def _readable(self) -> None:
        self._receive()

    def _receive(self) -> bool:
        """Do what has arrived; False when there was nothing, or nothing will come."""
        link = self._link
        if link is None:
            return False
        try:
            messages = link.receive()
        except EOFError:
            # It is dying, as a rule; one that only closed its link serves nobody either.
            self._drop()
            self._loop.call_later(_DIES_WITHIN, self._end_unlinked)
            return False
        except (OSError, ProtocolError) as error:
            self._give_up(link, error)
            return False
        for at, (message, fds) in enumerate(messages, 1):
            try:
                if message.get("type") == "keep":
                    self._keep(str(message.get("key")), message, fds)
                    continue
                close_all(fds)  # nothing else that a broker says needs one
                self._hear(link, message)
            except Exception as error:
                if isinstance(error, OSError) and are_gone(error):
                    self._no_descriptor(error)  # no fault of the broker's
                    continue
                first = not self._failures  # a traceback of each would take supervisord's log more time than it has
                log.error("link: can't do %r", message.get("verb", message.get("type")), exc_info=first)
                self._failures += 1
            if self._failures > _MOST_FAILURES:
                for _, rest in messages[at:]:
                    close_all(rest)
                self._give_up(link, "most of what it says can't be done")
                return False
        if not self._draining:  # then once, at its end
            self._save()
        return bool(messages) or link.more

    def _keep(self, key: str, message: Message, fds: list[int]) -> None:
        if message.get("fds") and not fds:
            self._no_descriptor(OSError(errno.EMFILE, ""))
        self._store.keep(key, fds)
        self._trouble("store", self._store.trouble)

    @guarded(log)
    def _end_unlinked(self) -> None:
        if self._link is None:
            self._nonsense()

    def _hear(self, link: Channel, message: Message) -> None:
        kind = message.get("type")
        if kind == "journal":
            key, record = str(message["key"]), message["record"]
            self._journal.put(key, record)
            if self._outdated and record is None and key.startswith(_RELOADS) and not self._draining:
                self._renew()
        elif kind == "forget":
            self._store.forget(str(message["key"]))
        elif kind == "unreadable":
            self._unreadable = str(message["message"])
        elif kind == "ask" and self._draining and message["verb"] in _QUERIES:
            pass  # nobody waits for the answer any more
        elif kind == "ask":
            if not self._begun:  # the first thing that one asks who has read its hello is what runs
                self._begun = True
                self._say_begun()
            number = message["id"]
            answer = Answer(partial(self._give, link, number))
            try:
                self._answer(link, number, message, answer)
            except Exception as error:
                answer.refuse(f"can't {message.get('verb')}: {error}")
                raise
        elif kind == "told":
            asked = self._asked.get(message["id"])
            if asked is not None:
                asked[0](message)
        elif str(kind) not in self._passed_over and len(self._passed_over) < _MOST_FAILURES:
            # A later broker's. Once for each kind, as it may say it often.
            self._passed_over.add(str(kind))
            log.warning("link: messages of type %r are passed over: this host does not know them", kind)

    def _answer(self, link: Channel, number: int, message: Message, answer: Answer) -> None:
        verb = message["verb"]
        if verb == "whois":
            self._verbs.whois(message["pid"], answer)
        elif verb == "processes":
            self._verbs.processes(answer)
        elif verb == "start" and message.get("configuration") is not None and isinstance(self._verbs, Placing):
            self._verbs.start_beside(message["program"], message["beside"], message["configuration"], answer)
        elif verb == "start":
            self._verbs.start(message["program"], answer)
        elif verb == "replace" and isinstance(self._verbs, Placing):
            self._verbs.replace(
                message["program"], message["retire"], message["known"], message["configuration"], answer
            )
        elif verb == "settle":
            self._settle(message, answer)
        elif verb == "report" and isinstance(self._verbs, Witness):
            self._verbs.report(message["pid"], answer)
        elif verb == "renew" and isinstance(self._verbs, Renewing):
            self._verbs.renew(message["socket"], message["inode"], answer)
        elif verb == "claim" and isinstance(self._verbs, Holding):
            self._verbs.claim(message["program"], message["pid"], answer)
        elif verb == "release" and isinstance(self._verbs, Holding):
            self._verbs.release(
                message["program"],
                message["pid"],
                message["keep"],
                message["kill"],
                message["patience"],
                answer,
                message.get("stop_signal"),
            )
        elif verb == "notify":
            self._give_notify(link, number, message["pid"], answer)
        else:
            answer.refuse(f"can't {verb}: this host has no such verb (its link is of version {versions.LINK})")

    def _settle(self, message: Message, answer: Answer) -> None:
        program, retire, known, count, kill, patience = (message[field] for field in _SETTLE)
        stop_signal = message.get("stop_signal")
        if isinstance(self._verbs, Counting) and "size" in message:
            size, proven = message["size"], message["proven"]
            self._verbs.settle_counted(program, retire, known, count, kill, patience, size, proven, answer, stop_signal)
        else:
            self._verbs.settle(program, retire, known, count, kill, patience, answer, stop_signal)

    def _give_notify(self, link: Channel, number: int, pid: int, answer: Answer) -> None:
        try:
            sock = self._notify.open(pid)
        except ProcessLookupError:
            answer.refuse(f"can't make a notify socket for pid {pid}: no such process")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            answer.refuse(f"can't make a notify socket for pid {pid}: {reason}")
            if isinstance(error, OSError) and are_gone(error):
                self._no_descriptor(error)
            else:
                self._trouble("notify", f"can't make notify sockets: {reason}")
        else:
            self._trouble("notify", "")
            found = {"type": "answer", "id": number, "ok": True, "path": self._notify.path(pid)}
            self._send(link, found, [sock.fileno()])

    def _give(self, link: Channel, number: int, fields: Message) -> None:
        process = fields.get("process")
        is_unknown = isinstance(process, dict) and process.get("program") not in self._known
        if self._outdated and is_unknown and link is self._link:
            # It is of a program that this broker does not know: who waits asks the next one, if there is to be one.
            self._withheld.append((number, fields))
            return
        self._reply(link, {"type": "answer", "id": number, **fields})

    @guarded(log)
    def _reply(self, link: Channel, message: Message) -> None:
        # The one who asked may have died since; its successor asks its own questions.
        if link is self._link:
            self._send(link, message)

    def _send(self, link: Channel, message: Message, fds: Sequence[int] = ()) -> None:
        try:
            link.send(message, fds)
        except OSError as error:
            self._unwritable(error)
            return
        if link.wants_write and not self._writing:
            self._loop.add_writer(link.fileno(), self._writable)
            self._writing = True
        if link.wants_write and link.unsent > _MOST_UNSENT:
            self._give_up(link, "it does not read what it is told")

    def _give_up(self, link: Channel, why: object) -> None:
        log.error("link: the broker has to go: %s", why)
        if link is self._link:
            self._drop()
            self._nonsense()

    def _unwritable(self, error: OSError) -> None:
        # A broker that has died, or is about to, is no surprise, and what it said is read when its end is seen.
        if not isinstance(error, ConnectionError):
            log.error("link: can't write: %s; the broker has to go", error)
            self._loop.call_later(_AFTER_FAILED_WRITE, self._nonsense)

    @guarded(log)
    def _writable(self) -> None:
        link = self._link
        if link is None:
            return
        try:
            link.flush()
        except OSError as error:
            self._loop.remove_writer(link.fileno())
            self._writing = False
            self._unwritable(error)
            return
        if not link.wants_write:
            self._loop.remove_writer(link.fileno())
            self._writing = False
