"""The decisions of a fleet as tables: who loads next, who may serve, how long a restart waits, who hangs."""

from __future__ import annotations

import pytest

from embedserve.server.workers.messages import Key
from embedserve.server.workers.plan import (
    LONGEST_DELAY,
    WorkerView,
    catching_up,
    may_serve,
    next_to_load,
    next_to_replace,
    restart_delay,
    silent,
)

OLD, NEW = Key("m", 1, 1), Key("m", 2, 2)


def worker(index: int, state: str, *, told: bool = False, loaded: bool = False, full: bool = False) -> WorkerView:
    """A worker that is `down`, `up` or `serving`, has been told to load NEW, has loaded it, or has no free thread."""
    return WorkerView(
        index,
        up=state != "down",
        serving=state == "serving",
        told=frozenset({NEW} if told or loaded else ()),
        loaded=frozenset({NEW} if loaded else ()),
        full=full,
    )


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        # While nobody serves, all load at once, and all must have.
        ([worker(0, "up"), worker(1, "up")], (0, 1)),
        ([worker(0, "up"), worker(1, "down")], (0,)),
        ([worker(0, "up", told=True), worker(1, "up")], (1,)),
        ([worker(0, "up", loaded=True), worker(1, "up", told=True)], ()),
        ([worker(0, "up", loaded=True), worker(1, "down")], ()),
        ([worker(0, "up", loaded=True), worker(1, "up", loaded=True)], None),
        # While some serve, one of them is first; who does not serve is not waited for.
        ([worker(0, "serving"), worker(1, "serving")], (0,)),
        ([worker(0, "serving", told=True), worker(1, "serving")], ()),
        ([worker(0, "serving", loaded=True), worker(1, "serving"), worker(2, "serving")], (1, 2)),
        ([worker(0, "serving", loaded=True), worker(1, "serving", told=True), worker(2, "serving")], (2,)),
        ([worker(0, "serving", loaded=True), worker(1, "up")], None),
        ([worker(0, "down"), worker(1, "serving")], (1,)),
        ([worker(0, "up", told=True), worker(1, "serving", loaded=True)], None),
        # One that has begun to serve meanwhile is asked as well.
        ([worker(0, "serving", loaded=True), worker(1, "serving")], (1,)),
        # A worker whose load threads are all at work is asked later.
        ([worker(0, "up", full=True), worker(1, "up")], (1,)),
        ([worker(0, "up", full=True), worker(1, "up", loaded=True)], ()),
        ([worker(0, "serving", full=True), worker(1, "serving")], (1,)),
        ([worker(0, "serving", loaded=True), worker(1, "serving", full=True), worker(2, "serving")], (2,)),
        ([worker(0, "serving", full=True), worker(1, "serving", full=True)], ()),
    ],
)
def test_who_is_next_to_load(workers: list[WorkerView], expected: tuple[int, ...] | None) -> None:
    assert next_to_load(NEW, workers) == expected


def test_a_worker_that_comes_up_serves_once_it_has_all_that_the_others_have() -> None:
    ready = [OLD, NEW]
    assert catching_up(WorkerView(0, up=False), ready) == []
    assert catching_up(WorkerView(0), ready) == [OLD, NEW]
    assert catching_up(WorkerView(0, told=frozenset({OLD})), ready) == [NEW]
    assert catching_up(WorkerView(0, serving=True), ready) == []
    newer = Key("m", 1, 3)
    assert catching_up(WorkerView(0), [newer, OLD]) == [newer], "one generation of each version"
    assert not may_serve(WorkerView(0, told=frozenset({newer}), loaded=frozenset({newer})), [newer, OLD])
    assert not may_serve(WorkerView(0, up=False), [])
    assert may_serve(WorkerView(0), [])
    assert not may_serve(WorkerView(0, told=frozenset(ready), loaded=frozenset({OLD})), ready)
    assert may_serve(WorkerView(0, told=frozenset(ready), loaded=frozenset(ready)), ready)


def test_restarts_come_at_once_and_then_later_and_later() -> None:
    assert [restart_delay(n) for n in range(5)] == [0, 1, 2, 4, 8]
    assert restart_delay(100) == LONGEST_DELAY


@pytest.mark.parametrize(
    ("now", "looked_before", "heard", "expected"),
    [
        (100, 99, 98, False),
        (100, 99, 69, True),
        (100, 99, 70, False),
        (100, 40, 39, False),  # The supervisor itself had no time to listen.
    ],
)
def test_who_is_silent(now: float, looked_before: float, heard: float, expected: bool) -> None:
    assert silent(now, looked_before, heard, 30) is expected


def troubled(index: int, *, serving: bool = True, draining: bool = False, in_trouble: bool = True) -> WorkerView:
    return WorkerView(index, serving=serving, draining=draining, in_trouble=in_trouble)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([troubled(0)], 0),
        ([troubled(0, in_trouble=False), troubled(1)], 1),
        ([troubled(0), troubled(1)], 0),  # One after the other.
        ([troubled(0, draining=True), troubled(1)], None),
        ([troubled(0, serving=False, in_trouble=False), troubled(1)], None),  # The new process has to serve first.
        ([troubled(0, in_trouble=False)], None),
    ],
)
def test_workers_whose_threads_are_stuck_are_replaced_one_after_the_other(
    workers: list[WorkerView], expected: int | None
) -> None:
    assert next_to_replace(workers) == expected
