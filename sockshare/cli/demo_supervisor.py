"""``sockshare demo supervisor``: the same acts under a supervisord."""

from __future__ import annotations

import time

from .acts import LOAD, SECONDS, Act, Demo, worst
from .measured import Load
from .stage import Stage, free_port
from .supervisor_stage import SupervisorStage

CONF = """\
[rpcinterface:sockshare]
supervisor.rpcinterface_factory = supervisor_sockshare:make_rpcinterface
runtime_dir = {runtime}

[ctlplugin:sockshare]
supervisor.ctl_factory = supervisor_sockshare:make_ctlplugin

[sockshare:web]
socket = tcp://127.0.0.1:{port}

[program:web]
command = {sockshare} exec -- {uvicorn} app:app --fd {{fd:web}} --no-access-log --log-level warning
process_name = web-%(process_num)s
numprocs = 2
stderr_logfile = {directory}/web.err
sockshare_sockets = web
sockshare_ready_timeout = 3
sockshare_ready_hold = 0.5
"""

STOCK_CONF = """\
[program:web]
command = {uvicorn} app:app --port {port} --no-access-log --log-level warning
"""


class SupervisorDemo(Demo):
    """The acts, with a supervisord for the circusd."""

    stage_type = SupervisorStage
    logs = ("output", "supervisord.log", "web.err")

    def _play(self, stock: Stage) -> None:
        conf = self._ini(CONF, self.stage, self.port)
        self._deploy(self.stage)
        self.say("supervisord.conf:", "bold")
        self.say("\n".join(f"    {line}" for line in conf.splitlines()))
        self.say(f"\nstarting supervisord, its programs on 127.0.0.1:{self.port}, and load: {', '.join(LOAD)} a second")
        self.stage.start()
        self.stage.wait_for_answer(self.port)
        self._wait_for_all()
        self._deploys()
        if self.compare:
            port = free_port()
            self._ini(STOCK_CONF, stock, port)
            self._deploy(stock)
            stock.start()
            stock.wait_for_answer(port)
            self._stock(stock, port)

    def _stock(self, stock: Stage, port: int) -> None:
        assert isinstance(stock, SupervisorStage)
        name = "for comparison: supervisorctl restart, supervisord alone"
        self.say(f"\n{name}", "bold")
        with Load(port, *LOAD) as load:
            time.sleep(SECONDS)
            self._deploy(stock)
            self.say("    $ supervisorctl restart web")
            stock.ctl("restart", "web")
            time.sleep(1.5)  # the new one's import
            result = load.stop()
        self.acts.append(Act(name, result, "", stock=True))
        self.say(f"    {len(result)} requests, {len(result.failures)} failed, worst {worst(result):.0f} ms", "yellow")
