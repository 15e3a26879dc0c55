"""When a run thread should come free."""

from __future__ import annotations

import pytest

from embedserve.batching.adaptive import Forecast


def test_a_free_thread_is_free_now_and_else_the_run_that_ends_first_frees_one() -> None:
    forecast = Forecast(2)
    forecast.started(10.0, 0.5, False)
    assert forecast.next_slot(10.0) == 0.0
    forecast.started(10.1, 0.1, False)
    assert forecast.next_slot(10.1) == pytest.approx(0.1)
    assert forecast.next_slot(11.0) == 0.0  # Overdue: any moment.
    forecast.ended(False)
    assert forecast.next_slot(10.2) == 0.0


def test_the_end_of_a_run_whose_start_was_not_told_is_harmless() -> None:
    forecast = Forecast(1)
    forecast.ended(True)
    assert forecast.next_slot(0.0) == 0.0


@pytest.mark.parametrize("interval", [0.5, 1.0, 3.0])
def test_the_pace_of_a_backlog_is_learnt_and_forgotten_without_one(interval: float) -> None:
    forecast = Forecast(2)
    for i in range(60):
        forecast.started(i * interval, 1.0, True)
        forecast.ended(True)
    assert forecast.pace == pytest.approx(interval, rel=0.02)
    for _ in range(60):
        forecast.ended(False)
    assert forecast.pace == pytest.approx(0.5, rel=0.02)


def test_one_long_gap_says_little() -> None:
    forecast = Forecast(1)
    forecast.started(0.0, 0.001, True)
    forecast.started(100.0, 0.001, True)
    assert forecast.pace <= 2.0
