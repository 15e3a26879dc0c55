"""What is learnt from runs: a fixed part and a part per row, whatever a busy machine does to single ones."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.batching.run_times import HALF_LIFE, RunTimes


def learnt(*runs: tuple[int, float]) -> RunTimes:
    times = RunTimes()
    for rows, seconds in runs:
        times.observe(rows, seconds)
    return times


@given(
    fixed=st.floats(1e-6, 1.0),
    per_row=st.floats(1e-7, 0.1),
    sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=30, unique=True).filter(lambda s: max(s) >= 2 * min(s)),
)
def test_a_line_is_found(fixed: float, per_row: float, sizes: list[int]) -> None:
    times = learnt(*((rows, fixed + per_row * rows) for rows in sizes * 3))
    for rows in sizes:
        assert times.seconds(rows) == pytest.approx(fixed + per_row * rows, rel=0.05)


def test_outliers_and_noise_do_not_move_it() -> None:
    dice = random.Random(1)
    runs = []
    for _ in range(400):
        rows = dice.choice([1, 3, 8, 20, 50])
        seconds = (0.002 + 0.0005 * rows) * dice.gauss(1, 0.1)
        runs.append((rows, seconds * (50 if dice.random() < 0.1 else 1)))
    times = learnt(*runs)
    assert times.fixed == pytest.approx(0.002, rel=0.2)
    assert times.per_row == pytest.approx(0.0005, rel=0.1)
    assert times.error > 0.05


def test_it_follows_when_runs_become_slower() -> None:
    runs = [(rows, 0.001 * rows) for rows in (1, 10)] * 100
    times = learnt(*runs, *((rows, 2 * seconds) for rows, seconds in runs[:20]))
    assert times.seconds(10) == pytest.approx(0.02, rel=0.05)


def test_sizes_of_long_ago_count_little() -> None:
    times = learnt(*[(4, 1.0)] * 9, *[(1, 0.01), (2, 0.011)] * 4 * HALF_LIFE)
    assert times.seconds(4) == pytest.approx(0.013, rel=0.1)


def test_nothing_is_known_at_first_and_no_price_per_row_from_one_size() -> None:
    assert (RunTimes().seconds(5), RunTimes().rows_within(0.1)) == (0.0, math.inf)
    times = learnt((4, 0.2))
    assert times.fixed == pytest.approx(0.2)
    assert times.per_row == 0.0
    assert (times.rows_within(0.21), times.rows_within(0.1)) == (math.inf, 0.0)


def test_neither_part_is_negative() -> None:
    falling = learnt((1, 0.2), (10, 0.1))
    assert (falling.per_row, falling.fixed > 0) == (0.0, True)
    steep = learnt((1, 0.001), (10, 0.1))
    assert (steep.fixed, steep.per_row > 0) == (0.0, True)


def test_rows_within_is_the_inverse() -> None:
    times = learnt((1, 0.011), (10, 0.02), (1, 0.011), (10, 0.02))
    assert times.rows_within(times.seconds(7)) == pytest.approx(7)
    assert times.rows_within(0.001) < 1
    assert "10 ms + 1 ms per row" in repr(times)
