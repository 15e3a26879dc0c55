"""Adaptive batching against the default over a sweep of simulated loads: never worse, and much better where it matters.

Everything is simulated (benchmarks/queue_simulation.py): machine and clock are the same for both, so a difference is no
noise of the test, though runs vary and stall as real ones do.
"""

from __future__ import annotations

import pytest

from benchmarks.queue_simulation import ClosedLoop, Load, Machine, OpenLoop, Outcome, simulate
from embedserve.config import BatchingOptions

pytestmark = pytest.mark.slow

# Seconds of a run, and of each of its rows.
MODELS = {"both": (0.001, 0.001), "fixed": (0.010, 0.0001), "rows": (0.001, 0.006), "quick": (0.0001, 0.00001)}
REQUESTS = 6000

machines = pytest.mark.parametrize(
    "machine",
    [
        pytest.param(
            Machine(*costs, slots=slots, contention=contention, noise=0.1, stall=0.02), id=f"{name} {slots} slots"
        )
        for name, costs in MODELS.items()
        for slots, contention in ((1, 0.0), (2, 0.5))
    ],
)


def both(machine: Machine, load: Load, rate: float) -> tuple[Outcome, Outcome]:
    seconds = min(max(REQUESTS / rate, 0.06), 20.0)
    default, adaptive = (simulate(machine, load, seconds, adaptive=adaptive) for adaptive in (False, True))
    return default, adaptive


@machines
def test_it_is_never_worse_than_the_default_over_a_sweep_of_loads(machine: Machine) -> None:
    capacity = machine.capacity(64)
    sweep: list[tuple[Load, float]] = [
        *((ClosedLoop(callers, pause=0.001), capacity) for callers in (1, 8, 64)),
        *((OpenLoop(share * capacity), share * capacity) for share in (0.2, 0.5, 0.8)),
        *((OpenLoop(share * capacity, burst=30), share * capacity) for share in (0.3, 0.6)),
    ]
    for load, rate in sweep:
        default, adaptive = both(machine, load, rate)
        assert adaptive.throughput >= 0.94 * default.throughput, load
        assert adaptive.mean <= 1.06 * default.mean, load
        assert adaptive.quantile(0.99) <= 1.3 * default.quantile(0.99), load
        assert not adaptive.failures, load


@machines
def test_under_deadlines_it_answers_no_fewer_in_time_and_under_overload_most_of_what_fits(machine: Machine) -> None:
    capacity = machine.capacity(64)
    timeout = 10 * (machine.fixed + 8 * machine.per_row)
    for share in (0.7, 1.5, 3.0):
        default, adaptive = both(machine, OpenLoop(share * capacity, timeout), share * capacity)
        assert adaptive.throughput >= 0.97 * default.throughput, share
        # A second run beside a short one would gain nothing on a real machine, so those leave a slot alone.
        assert adaptive.throughput >= 0.6 * min(share, 1.0) * capacity, share
        assert adaptive.late <= 0.25 * len(adaptive.latencies), share
        if share == 3.0:
            assert adaptive.failures["OverloadedError"] > adaptive.failures["TimeoutError"], share


@pytest.mark.parametrize("slots", [1, 2])
def test_callers_that_come_back_are_answered_together_where_a_run_costs_much_by_itself(slots: int) -> None:
    machine = Machine(*MODELS["fixed"], slots=slots, contention=0.5)
    default, adaptive = both(machine, ClosedLoop(8, pause=0.003), machine.capacity(8))
    assert adaptive.throughput >= 1.2 * default.throughput
    assert adaptive.mean <= 0.85 * default.mean


def test_bursts_are_answered_sooner_where_rows_cost_much() -> None:
    machine = Machine(*MODELS["rows"], noise=0.1)
    load = OpenLoop(0.6 * machine.capacity(64), burst=30)
    default, adaptive = both(machine, load, load.rate)
    assert adaptive.mean <= 0.85 * default.mean


def test_under_overload_a_high_priority_is_answered_and_the_others_are_shed() -> None:
    machine = Machine(*MODELS["both"], slots=2, contention=0.5, noise=0.1)
    load = OpenLoop(1.5 * machine.capacity(64), timeout=0.1, high=0.25)
    _, adaptive = both(machine, load, load.rate)
    asked = load.rate * adaptive.seconds
    high = adaptive.high["answered"] / adaptive.high["asked"]
    others = (len(adaptive.latencies) - adaptive.high["answered"]) / (asked - adaptive.high["asked"])
    assert high >= 0.92
    assert others <= 0.6
    assert adaptive.throughput >= 0.75 * machine.capacity(64)


def test_allowed_sizes_are_kept_to() -> None:
    machine = Machine(*MODELS["rows"])
    options = BatchingOptions(max_batch_size=32, allowed_batch_sizes=(4, 8, 32))
    load = OpenLoop(0.6 * machine.capacity(8), timeout=0.3)
    default, adaptive = (simulate(machine, load, 10, options, adaptive=adaptive) for adaptive in (False, True))
    assert adaptive.throughput >= 0.97 * default.throughput
    assert adaptive.mean <= 1.06 * default.mean
