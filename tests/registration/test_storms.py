"""Whoever dies or hangs, whenever: one holds the registration, soon again, and nothing that was queued is lost."""

from __future__ import annotations

import pytest

from tests.registration.scenes import START_WINDOW, staged
from tests.registration.storm import Mishap, run

SOAK = (pytest.mark.soak, pytest.mark.timeout(600))
#: Seconds without a holder: while the broker lives, and where it died together with the holder.
HAND_OVER, WITHOUT_BROKER = 0.5, 2.0
SHORT = [
    ("circus", "gated", "tcp"),
    ("circus", "taking-udp", "udp"),
    ("supervisord", "gated-udp", "udp"),
    ("supervisord", "taking", "tcp"),
]
LONG = [
    (manager, program, kind)
    for manager in ("circus", "supervisord")
    for program, kind in (("gated", "tcp"), ("gated-udp", "udp"), ("taking", "tcp"), ("taking-udp", "udp"))
]


@pytest.mark.parametrize(
    ("manager", "program", "kind", "kills", "stops", "brokers", "seed"),
    [
        *(pytest.param(*one, 10, 3, 2, 5, id=f"{one[0]}-{one[1]}") for one in SHORT),
        *(
            pytest.param(*one, 100, 20, 20, seed, id=f"{one[0]}-{one[1]}-soak{seed}", marks=SOAK)
            for one in LONG
            for seed in range(10)
        ),
    ],
)
def test_one_holds_and_nothing_queued_is_lost_in_a_storm(
    manager: str, program: str, kind: str, kills: int, stops: int, brokers: int, seed: int
) -> None:
    """SIGKILLs and SIGSTOPs of holders, SIGKILLs of brokers, under load: a gate is never open beside another, an
    unmodified program is beside another only in its start window; nobody waits longer than a hand-over takes; 0
    refused, 0 queued connections and 0 queued datagrams lost, none taken twice."""
    with staged(manager, program) as stage:
        verdict = run(stage, kind, kills=kills, stops=stops, brokers=brokers, seed=seed)
    print(f"\n{manager} {program}: {verdict}")  # the figures of docs/registration.md; shown by `pytest -s`
    assert len(verdict.happened) == kills + stops + brokers - brokers // 2
    assert verdict.watch.looks > 100
    several = verdict.watch.several(window=0.0 if program.startswith("gated") else START_WINDOW)
    assert not several, f"two at once: {several}\n{verdict}"
    assert max(verdict.gaps(Mishap.KILL, Mishap.STOP), default=0.0) < HAND_OVER, verdict
    assert max(verdict.gaps(Mishap.BROKER, Mishap.BOTH), default=0.0) < WITHOUT_BROKER, verdict
    assert verdict.refused == 0, verdict
    # What the kernel had no room for was not queued: it counts those.
    assert len(verdict.lost) <= verdict.doubtful + verdict.dropped, f"{verdict.lost}\n{verdict}"
    assert verdict.twice == 0, verdict
