"""Whether it pays to wait for callers that come back, in milliseconds: a run takes 10 and next to nothing per row."""

from __future__ import annotations

import pytest

from embedserve.batching.adaptive import ReturningCallers
from embedserve.batching.run_times import RunTimes


def times(fixed: float, per_row: float) -> RunTimes:
    made = RunTimes()
    made.fixed, made.per_row = fixed, per_row
    return made


FLAT = times(10.0, 0.01)


def cycles(
    rows: int, gap: float, first: float = 0.5, fixed: RunTimes = FLAT, count: int = 30
) -> tuple[ReturningCallers, float]:
    """After so many runs of `rows`, each followed by their callers' return; and when the last run ended."""
    returns, now = ReturningCallers(), 0.0
    for _ in range(count):
        returns.answered(rows, now, fixed)
        for i in range(rows):
            at = now + first + i * gap
            if at <= returns.until:
                returns.came(1, at)
        now += 100.0
    returns.answered(rows, now, fixed)
    return returns, now


def test_nothing_is_waited_for_before_anything_is_known() -> None:
    returns = ReturningCallers()
    assert returns.worth_waiting_until(1, FLAT) == 0.0
    returns.answered(8, 0.0, FLAT)
    assert returns.worth_waiting_until(1, FLAT) == 0.0


def test_one_that_could_leave_waits_for_the_many_that_always_come_back() -> None:
    returns, now = cycles(32, gap=0.05)
    assert now + 0.5 + 31 * 0.05 <= returns.worth_waiting_until(1, FLAT) <= now + 4


def test_the_wait_ends_with_the_last_one() -> None:
    returns, now = cycles(32, gap=0.05)
    for i in range(32):
        returns.came(1, now + 0.5 + 0.05 * i)
    assert returns.worth_waiting_until(33, FLAT) == 0.0


@pytest.mark.parametrize(
    ("why", "rows", "returning", "gap", "model"),
    [
        ("many would wait for few", 60, 4, 0.05, FLAT),
        ("they come too slowly", 1, 4, 3.0, FLAT),
        ("it is the rows that cost", 1, 32, 0.05, times(0.5, 6.0)),
    ],
)
def test_it_does_not_always_pay(why: str, rows: int, returning: int, gap: float, model: RunTimes) -> None:
    returns, _ = cycles(returning, gap, fixed=model)
    assert returns.worth_waiting_until(rows, model) == 0.0, why


def test_callers_that_stop_coming_back_are_forgotten() -> None:
    returns, now = cycles(32, gap=0.05)
    for _ in range(20):
        now += 100.0
        returns.answered(32, now, FLAT)
    assert returns.worth_waiting_until(1, FLAT) == 0.0
