"""``python -m benchmarks.serve``: a server on a socket of its own, on one of stock circus, and on a duplicate of ours.

The uvicorns take turns, each for a moment, over and over, so that what else the machine does meets all
of them alike. The client is a closed loop on a processor of its own: it asks as fast as it is answered.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from functools import partial

from benchmarks import figures
from benchmarks.client import CONNECTIONS, ask, closed_loop, latencies
from sockshare.cli.stage import free_port
from tests.support.circusd import APPS, PROGRAMS, circusd, wait_until

OWN = """
[watcher:own]
cmd = {command}
copy_env = True
"""


def report_rates(ports: dict[str, int], rounds: int, seconds: float) -> None:
    """Requests a second, and the ratio in each round of turns."""
    for keep in (False, True):
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(rounds):
            names = list(ports) if number % 2 else list(reversed(ports))
            for name in names:
                rates[name].append(closed_loop(ports[name], seconds, keep))
        own = rates["own socket"]
        rows: list[tuple[str, ...]] = [("", "requests/s", "ratio to own", "in half of the rounds")]
        for name, seen in rates.items():
            low, middle, high = statistics.quantiles([a / b for a, b in zip(seen, own, strict=True)], n=4)
            rows.append((name, f"{statistics.median(seen):,.0f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"))
        kind = "kept connections" if keep else "a connection for each request"
        figures.show(f"uvicorn, {CONNECTIONS} clients, {kind}, {rounds} rounds of {seconds:g} s", rows)


def report_latencies(ports: dict[str, int], requests: int) -> None:
    """Keep-alive latency of one client."""
    rows: list[tuple[str, ...]] = [("", "p50", "p99", "ratio to own")]
    seen = {name: sorted(latencies(port, requests)) for name, port in ports.items()}
    for name, sample in seen.items():
        middle = statistics.median(sample)
        last = sample[int(len(sample) * 0.99) - 1]
        ratio = middle / statistics.median(seen["own socket"])
        rows.append((name, figures.milliseconds(middle), figures.milliseconds(last), f"{ratio:.2f}"))
    figures.show(f"uvicorn, one client, one kept connection, {requests} requests", rows)


def stage_pid(port: int) -> int:
    """The process that answers."""
    answer = ask(port)
    assert answer is not None
    return answer.pid


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    own = free_port()
    command = f"{PROGRAMS['uvicorn']} --loop {options.loop}".replace("{python}", sys.executable)
    command = command.replace("{apps}", str(APPS))
    alone = OWN.format(command=command.replace("--fd {fd}", f"--port {own} --backlog 2048"))
    ours = f"{sys.executable} -m sockshare exec -- " + command.replace("{fd}", "{fd:web}")
    theirs = command.replace("{fd}", "$(circus.sockets.web)")
    # The stock socket needs a circusd without us: TCP_NODELAY is set on all that the plugin is given.
    with (
        circusd("uvicorn", watcher={"cmd": ours}, extra=alone) as stage,
        circusd("uvicorn", stock=True, watcher={"cmd": theirs}) as stock,
    ):
        ports = {"own socket": own, "sockshare's duplicate": stage.port, "stock circus socket": stock.port}
        everywhere = os.sched_getaffinity(0)
        wait_until(partial(ask, own), 20, f"port {own} answers")
        for port in ports.values():
            figures.pin(stage_pid(port), {max(everywhere)})
        figures.pin(0, {min(everywhere)})
        print(f"uvicorn on {options.loop}")
        report_latencies(ports, options.requests)
        del ports["stock circus socket"]
        report_rates(ports, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
