"""The rule by which a setting is recommended, over results that never ran."""

from __future__ import annotations

import pytest

from embedserve.tuning.plan import ALONE, Setting
from embedserve.tuning.recommendation import Choice, recommend
from embedserve.tuning.sweep import Result
from tests.tuning.results import result

SIMPLE, BATCHED, THREADED = Setting(1, ALONE), Setting(1, 32), Setting(2, 32)


def chosen(results: list[Result], target: float | None = None) -> Choice:
    choice = recommend(results, target)
    assert choice is not None
    return choice


def test_a_target_takes_the_highest_throughput_that_holds_it() -> None:
    results = [
        result(SIMPLE, 1, 100, 0.005),
        result(SIMPLE, 16, 120, 0.050),
        result(BATCHED, 1, 100, 0.005),
        result(BATCHED, 16, 900, 0.018),
        result(THREADED, 1, 100, 0.005),
        result(THREADED, 16, 2000, 0.021),
    ]
    choice = chosen(results, 0.020)
    assert (choice.setting, choice.at, choice.holds_target) == (BATCHED, results[3], True)
    assert choice.reason == (
        "The highest throughput whose p99 holds 20 ms: 16 callers, 900 requests/s with a p99 of 18 ms."
    )


def test_a_target_that_nothing_holds_names_the_nearest() -> None:
    results = [result(SIMPLE, 1, 100, 0.008), result(BATCHED, 1, 200, 0.005)]
    choice = chosen(results, 0.001)
    assert (choice.setting, choice.holds_target) == (BATCHED, False)
    assert choice.reason.startswith("No cell holds a p99 of 1 ms; the nearest is 1 caller, 200 requests/s")


def test_without_a_target_the_best_throughput_for_its_p99_over_all_loads_wins() -> None:
    results = [
        # A little better with one caller, and much worse with many.
        result(SIMPLE, 1, 120, 0.008),
        result(SIMPLE, 16, 130, 0.120),
        result(BATCHED, 1, 100, 0.010),
        result(BATCHED, 16, 900, 0.020),
    ]
    choice = chosen(results)
    assert (choice.setting, choice.at) == (BATCHED, results[3])
    assert "the most callers that were measured, it may lie beyond" in choice.reason


def test_the_knee_is_where_more_callers_only_wait_longer() -> None:
    results = [
        result(SIMPLE, 1, 100, 0.010),
        result(SIMPLE, 4, 380, 0.011),
        result(SIMPLE, 64, 400, 0.160),
    ]
    choice = chosen(results)
    assert choice.at is results[1]
    assert choice.reason == (
        "The best throughput for its p99 at 1, 4, 64 callers. Its knee is at 4 callers, 380 requests/s with a p99 of "
        "11 ms."
    )


@pytest.mark.parametrize("target", [None, 0.1])
def test_ties_go_to_fewer_threads_and_then_to_the_smaller_batch(target: float | None) -> None:
    results = [
        result(Setting(2, ALONE), 8, 1030, 0.01),
        result(Setting(1, 128), 8, 1040, 0.01),
        result(Setting(1, 8), 8, 1000, 0.01),
        result(Setting(1, ALONE), 8, 700, 0.01),
    ]
    choice = chosen(results, target)
    assert choice.setting == Setting(1, 8)
    assert "the simplest of 3 settings within 10%" in choice.reason


@pytest.mark.parametrize("target", [None, 1.0])
def test_a_setting_that_failed_a_request_is_not_recommended(target: float | None) -> None:
    results = [
        result(BATCHED, 1, 900, 0.01, {"UNAVAILABLE: full": 1}),
        result(THREADED, 1, 0, 0, {"UNAVAILABLE: full": 9}),
        result(SIMPLE, 1, 100, 0.01),
    ]
    assert chosen(results, target).setting == SIMPLE
    assert recommend(results[:2], target) is None


def test_a_setting_that_was_not_measured_under_every_load_is_not_compared() -> None:
    results = [result(SIMPLE, 1, 100, 0.01), result(SIMPLE, 8, 100, 0.08), result(BATCHED, 1, 900, 0.001)]
    assert chosen(results).setting == SIMPLE


def test_nothing_measured_recommends_nothing() -> None:
    assert recommend([], None) is None
