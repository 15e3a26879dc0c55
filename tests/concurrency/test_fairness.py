"""Models take turns: none holds the last slot while another, which has none, waits, and nobody waits for ever."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.concurrency.fairness import LEND_AFTER, LoopBudget, lend_at, next_in_turn


@pytest.mark.parametrize(
    ("claims", "held", "served", "index"),
    [
        ("a", {}, {}, 0),
        ("ab", {}, {}, 0),  # The oldest, where all else is equal.
        ("ab", {"a": 1}, {"a": 1}, 1),  # The last slot of two is for the model that has none.
        ("ab", {"a": 1, "b": 1}, {"b": 1, "a": 2}, 1),  # As many slots each: the last turn is longer ago.
        ("ab", {}, {"a": 7, "b": 3}, 1),  # One slot: alternately.
        ("ab", {}, {"a": 7}, 1),  # A model that was never served.
        ("aaab", {}, {"a": 1}, 3),  # Many signatures of a model share its turns.
        ("aaab", {"b": 2}, {"a": 9, "b": 1}, 0),
        ("abc", {"a": 2, "b": 1, "c": 1}, {"a": 1, "b": 5, "c": 4}, 2),
    ],
)
def test_whose_turn_it_is(claims: str, held: Mapping[str, int], served: Mapping[str, int], index: int) -> None:
    assert next_in_turn([*claims], held, served) == index


@pytest.mark.parametrize(
    ("claims", "running", "at"),
    [
        ("b", [("a", 1.0), ("a", 3.0)], 3.0 + LEND_AFTER),
        ("ab", [("a", 1.0)], 1.0 + LEND_AFTER),
        ("a", [("a", 1.0), ("a", 3.0)], None),  # Nobody else waits.
        ("b", [("a", 1.0), ("c", 3.0)], None),  # The slots are shared already.
        ("b", [("a", 1.0), ("b", 3.0)], None),
        ("b", [], None),  # Every thread is gone.
    ],
)
def test_when_a_thread_is_lent(claims: str, running: list[tuple[str, float]], at: float | None) -> None:
    assert lend_at(claims, running) == at


@settings(max_examples=300, deadline=None)
@given(
    slots=st.integers(1, 4),
    models=st.lists(
        st.tuples(st.integers(1, 4), st.lists(st.integers(1, 50), min_size=1, max_size=5)), min_size=1, max_size=6
    ),
)
def test_a_model_without_a_slot_waits_for_at_most_one_run_of_each_other_to_begin(
    slots: int, models: list[tuple[int, list[int]]]
) -> None:
    """Every model claims again at once, with as many clients as it has, and its runs take what its list says in turn.

    Long runs against short ones, many signatures against one, more models than slots and fewer.
    """
    names = [f"m{i}" for i in range(len(models))]
    claims = [name for name, (clients, _) in zip(names, models, strict=True) for _ in range(clients)]
    runs = {name: list(times) for name, (_, times) in zip(names, models, strict=True)}
    held: Counter[str] = Counter()
    served: dict[str, int] = {}
    running: list[tuple[int, int, str]] = []
    begun_since = Counter(dict.fromkeys(names, 0))  # Runs of others since the model has had no slot.
    now = 0
    for turn in range(1, 300):
        while len(running) >= slots or not claims:
            now, _, model = heapq.heappop(running)
            held[model] -= 1
            claims.append(model)
            if not held[model]:
                begun_since[model] = 0
        model = claims.pop(next_in_turn(claims, held, served))
        held[model] += 1
        served[model] = turn
        times = runs[model]
        heapq.heappush(running, (now + times[turn % len(times)], turn, model))
        for other in names:
            if not held[other] and other in claims:
                begun_since[other] += 1
                assert begun_since[other] <= len(names) - 1, (other, begun_since)
        # One model never holds every slot while another waits.
        if len(running) == slots > 1 and len(names) > 1:
            assert len({name for _, _, name in running}) > 1


def test_the_budget_gives_back_half_of_the_time() -> None:
    budget = LoopBudget(0.002)
    assert not budget.admits(0.0021, 0.0)
    assert budget.admits(0.002, 0.0)
    budget.spend(0.002)
    assert not budget.admits(0.001, 0.0019)
    assert budget.admits(0.001, 0.0021)
    budget.spend(0.101)  # Much longer than expected: the time is made up for.
    assert not budget.admits(0.0005, 0.15)
    assert budget.admits(0.0005, 0.21)
    assert not LoopBudget(0.0).admits(0.0001, 0.0)
