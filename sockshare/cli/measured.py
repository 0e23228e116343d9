"""A load from the outside: start it, stop it, and see what its requests came to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

TIMEOUT = 5.0  # s from the moment a request was due


class Record(NamedTuple):
    """One request: when it was due, how long its answer took from then on (s), and what became of it."""

    kind: str
    due: float
    latency: float
    outcome: str  # ok, refused, reset, timed_out, bad_answer
    version: str
    pid: int
    attempts: int
    detail: str

    @property
    def done(self) -> float:
        """When the outcome was known."""
        return self.due + self.latency


class Result:
    """What the requests of one run, or of a part of it, came to."""

    def __init__(self, records: Iterable[Record], worst_lag: float = 0.0) -> None:
        self.records = sorted(records, key=lambda record: record.due)
        self.worst_lag = worst_lag

    def __len__(self) -> int:
        return len(self.records)

    def of(self, *kinds: str) -> Result:
        """Those of these kinds."""
        return Result((record for record in self.records if record.kind in kinds), self.worst_lag)

    def between(self, start: float, end: float = math.inf) -> Result:
        """Those due in ``[start, end)``."""
        return Result((record for record in self.records if start <= record.due < end), self.worst_lag)

    def count(self, outcome: str) -> int:
        """How many had this outcome."""
        return sum(record.outcome == outcome for record in self.records)

    @property
    def outcomes(self) -> Counter[str]:
        """How many had each outcome."""
        return Counter(record.outcome for record in self.records)

    @property
    def failures(self) -> list[Record]:
        """Those that were not answered as they should."""
        return [record for record in self.records if record.outcome != "ok"]

    @property
    def worst(self) -> float:
        """The longest latency, in seconds; 0.0 of none."""
        return max((record.latency for record in self.records), default=0.0)

    def quantile(self, share: float) -> float:
        """The latency, in seconds, that *share* (0 to 1) of the requests did not exceed; 0.0 of none."""
        latencies = sorted(record.latency for record in self.records)
        return latencies[min(len(latencies) - 1, math.ceil(share * len(latencies)) - 1)] if latencies else 0.0

    @property
    def answered_by(self) -> set[tuple[str, int]]:
        """The (version, pid) pairs that answered."""
        return {(record.version, record.pid) for record in self.records if record.outcome == "ok"}

    def summary(self) -> dict[str, Any]:
        """Counts and latencies (ms) for a table or a log."""
        return {
            "requests": len(self),
            "failed": len(self.failures),
            **{name: self.count(name) for name in ("refused", "reset", "timed_out", "bad_answer")},
            "retried": sum(record.attempts > 1 for record in self.records),
            "worst_ms": round(self.worst * 1000, 1),
            "p99_ms": round(self.quantile(0.99) * 1000, 1),
            "generator_lag_ms": round(self.worst_lag * 1000, 1),
        }


class Load:
    """A generator in a process of its own, from :meth:`start` to :meth:`stop`; a context manager ends it."""

    def __init__(self, port: int, *kinds: str, host: str = "127.0.0.1", timeout: float = TIMEOUT) -> None:
        command = [sys.executable, "-m", "sockshare.cli.load", host, str(port), *kinds, "--timeout", str(timeout)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.result: Result | None = None

    def start(self) -> float:
        """Return, once it sends, the moment it began."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"can't generate load: the generator ended (status {self.process.wait()})")
        return float(line)

    def stop(self) -> Result:
        """Send no more, wait for what is under way (its time-out at most), and tell what came of it all."""
        if self.result is None:
            output, _ = self.process.communicate()  # closes its stdin, which is how it is told
            if self.process.returncode != 0:
                raise RuntimeError(f"can't generate load: the generator ended (status {self.process.returncode})")
            document = json.loads(output)
            self.result = Result((Record(*record) for record in document["records"]), document["worst_lag"])
        return self.result

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
