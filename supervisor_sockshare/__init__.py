"""The supervisord host: ``[rpcinterface:sockshare]``, ``[ctlplugin:sockshare]`` and ``[sockshare:NAME]`` sections.

supervisord imports this module while it reads its configuration, as root and before it looks at any program, and
supervisorctl imports it too. Neither ever gets zmq by it.
"""

from __future__ import annotations

from typing import Any

from .hooks import install

__all__ = ["make_ctlplugin", "make_rpcinterface"]

install()


def make_rpcinterface(supervisord: Any, **config: str) -> Any:
    """What ``supervisor.rpcinterface_factory`` names: the XML-RPC methods ``sockshare.*``; *config* is the section."""
    from .hooks import plugin
    from .rpcinterface import RPCInterface

    return RPCInterface(supervisord, plugin())


def make_ctlplugin(controller: Any, **config: str) -> Any:
    """What ``supervisor.ctl_factory`` names: the command ``sockshare`` of supervisorctl."""
    from .ctlplugin import ControllerPlugin

    return ControllerPlugin(controller)
