"""What a new process takes over from the one whose place it is to have: log files, and what other plugins put there."""

from __future__ import annotations

from typing import Any

from supervisor.options import Automatic
from supervisor.process import Subprocess


def copy_foreign(old: Any, new: Any) -> None:
    """Other plugins put attributes on supervisord's objects, and expect them there."""
    own = {*vars(new), *dir(Subprocess), "fcgi_sock"}
    for name, value in vars(old).items():
        if name not in own and not name.startswith("sockshare_"):
            setattr(new, name, value)


def keep_automatic_logs(current: Any, config: Any) -> None:
    """A log that supervisord names itself keeps its name: it makes one for each configuration that it reads."""
    for key in ("stdout_logfile", "stderr_logfile"):
        if getattr(config, key) is Automatic:
            setattr(config, key, getattr(current, key))


def share_logs(old: Any, new: Any) -> None:
    """One writer a file: two rotating ones would rename it under each other, and lose lines."""
    writers = {
        dispatcher.channel: dispatcher for dispatcher in old.dispatchers.values() if hasattr(dispatcher, "normallog")
    }
    for dispatcher in new.dispatchers.values():
        writer = writers.get(getattr(dispatcher, "channel", ""))
        if writer is None or not hasattr(dispatcher, "normallog") or not _same_log(old, new, dispatcher.channel):
            continue
        own = dispatcher.normallog
        dispatcher.normallog = dispatcher.childlog = writer.normallog
        if own is not None and own is not writer.normallog:
            own.close()


def _same_log(old: Any, new: Any, channel: str) -> bool:
    keys = [f"{channel}_{key}" for key in ("logfile", "logfile_maxbytes", "logfile_backups", "syslog")]
    return all(getattr(old.config, key) == getattr(new.config, key) for key in keys)
