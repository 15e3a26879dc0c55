"""Short runs stay on the event loop: only sizes measured in threads, never again after a run that lied."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import suppress
from dataclasses import replace
from time import thread_time

import numpy as np
import pytest

from embedserve.batching import loop_runs as module
from embedserve.batching.direct import DirectPredictor
from embedserve.batching.loop_runs import FAR_BEYOND, MOST_SIZES, PAUSE, TRUSTED, LoopRuns, loop_runs
from embedserve.config import BatchingOptions
from embedserve.errors import DeadlineExceededError, InferenceError
from embedserve.servable import Array, Tensors
from tests.batching.fakes import ID, FakeServable, Model, Rig, fails_on, rig, signature, times_ten

LIMIT = 0.01  # The longest that may be configured: a busy machine seldom holds up such a run.


def known(rows: int = 4, seconds: float = LIMIT / 2) -> LoopRuns:
    """A record that trusts runs of size `s` of up to `rows` rows."""
    record = LoopRuns(ID, "f", LIMIT)
    for _ in range(TRUSTED):
        record.ran_in_thread("s", rows, seconds)
    return record


def test_a_size_is_trusted_after_several_short_runs_in_threads() -> None:
    record = LoopRuns(ID, "f", LIMIT)
    for _ in range(TRUSTED):
        assert record.expected("s", 1, 0.0) == math.inf
        record.ran_in_thread("s", 1, LIMIT / 2)
    assert record.expected("s", 1, 0.0) == pytest.approx(LIMIT / 2)


def test_more_rows_than_measured_and_other_sizes_belong_in_threads() -> None:
    record = known(rows=4)
    assert record.expected("s", 4, 0.0) < math.inf
    assert record.expected("s", 5, 0.0) == math.inf
    assert record.expected("t", 1, 0.0) == math.inf


def test_runs_expected_to_be_longer_than_the_limit_belong_in_threads() -> None:
    record = known(rows=1, seconds=LIMIT / 2)
    for _ in range(TRUSTED):
        record.ran_in_thread("s", 64, LIMIT * 4)
    assert record.expected("s", 1, 0.0) < math.inf
    assert record.expected("s", 64, 0.0) == math.inf


def test_sizes_beyond_the_bound_are_not_kept() -> None:
    record = LoopRuns(ID, "f", LIMIT)
    for size in range(2 * MOST_SIZES):
        for _ in range(TRUSTED):
            record.ran_in_thread(size, 1, LIMIT / 2)
    assert record.expected(MOST_SIZES - 1, 1, 0.0) < math.inf
    assert record.expected(MOST_SIZES, 1, 0.0) == math.inf


def test_a_run_of_much_processor_time_bars_the_signature_for_good(caplog: pytest.LogCaptureFixture) -> None:
    record = known()
    far = FAR_BEYOND * LIMIT * 1.01
    record.held("s", 1, far, far, 0.0)
    assert record.expected("s", 1, 1e9) == math.inf
    assert record.barred == "a run of 1 rows took 50.5 ms on the event loop"
    assert f"signature 'f' runs in threads from now on: {record.barred}" in caplog.text


def test_a_run_that_the_machine_held_up_pauses_runs_on_the_loop() -> None:
    record = known()
    far = FAR_BEYOND * LIMIT * 1.01
    record.held("s", 1, far, 0.0, 1.0)
    assert record.expected("s", 1, 1.0 + PAUSE * far * 0.99) == math.inf
    assert record.expected("s", 1, 1.0 + PAUSE * far * 1.01) < math.inf


def test_times_on_the_loop_are_learnt_too() -> None:
    record = known()
    for _ in range(20 * module.LEARNT_SHARE):
        record.held("s", 4, 2 * LIMIT, 0.0, 0.0)
    assert record.expected("s", 4, 0.0) == math.inf


def inline(model: Model = times_ten, *, batchable: bool = True) -> FakeServable:
    """A servable with a bounded signature whose runs stay in the caller's thread."""
    servable = FakeServable(model, replace(signature(batchable=batchable), unbounded=""))
    servable.inline = frozenset(servable.signatures)
    return servable


@pytest.mark.parametrize(
    ("unbounded", "stateless", "stays", "limit"),
    [("While", True, True, LIMIT), ("", False, True, LIMIT), ("", True, False, LIMIT), ("", True, True, 0.0)],
)
def test_unbounded_stateful_pooled_and_switched_off_signatures_stay_in_threads(
    unbounded: str, stateless: bool, stays: bool, limit: float
) -> None:
    one = replace(signature(stateless=stateless), unbounded=unbounded)
    servable = FakeServable(times_ten, one)
    servable.inline = frozenset([one.name] if stays else [])
    assert loop_runs(ID, one, servable, limit) is None
    good = replace(signature(), unbounded="")
    servable.inline = frozenset([good.name])
    assert loop_runs(ID, good, servable, LIMIT) is not None


class Where:
    """A model that notes the thread of each run, and spins for the value 666."""

    def __init__(self) -> None:
        self.on_loop: list[bool] = []
        self.loop_thread = threading.get_ident()

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        self.on_loop.append(threading.get_ident() == self.loop_thread)
        if (inputs["x"] == 666).any():
            end = thread_time() + 1.2 * FAR_BEYOND * LIMIT
            while thread_time() < end:
                pass
        return times_ten(inputs)


async def settled(made: Rig, where: Where) -> None:
    """Ask until a run is on the loop."""
    async with asyncio.timeout(60):
        while not where.on_loop or not where.on_loop[-1]:
            assert list((await made.submit(1))["y"]) == [10]


@pytest.mark.parametrize("batchable", [True, False])
async def test_a_signature_that_lies_once_never_holds_the_loop_again(batchable: bool) -> None:
    where = Where()
    async with rig(inline(where, batchable=batchable), loop_run_limit=LIMIT) as made:
        await settled(made, where)
        assert made.predictor.statistics().loop_signatures == ("serving_default",)
        assert list((await made.submit(666))["y"]) == [6660]
        if not where.on_loop[-1]:  # The machine held up the run before, which pauses runs on the loop.
            await settled(made, where)
            await made.submit(666)
        seen = len(where.on_loop)
        for _ in range(20):
            await made.submit(1)
            await made.submit(666)
        assert not any(where.on_loop[seen:])
        assert made.predictor.statistics().loop_signatures == ()


async def test_answers_errors_and_reruns_are_the_same_on_the_loop() -> None:
    where = Where()

    def model(inputs: Tensors) -> dict[str, Array]:
        where(inputs)
        return fails_on(3)(inputs)

    async with rig(inline(model), loop_run_limit=LIMIT) as made:
        for _ in range(2 * TRUSTED):
            assert [list(one["y"]) for one in await asyncio.gather(made.submit(1), made.submit(2, 4))] == [
                [10],
                [20, 40],
            ]
        await settled(made, where)
        before = made.predictor.statistics().on_loop
        with pytest.raises(InferenceError, match="3 is guilty"):
            await made.submit(3)
        outcomes = await asyncio.gather(made.submit(1), made.submit(3), made.submit(4), return_exceptions=True)
        assert isinstance(outcomes[1], InferenceError)
        assert [list(one["y"]) for one in (outcomes[0], outcomes[2]) if isinstance(one, dict)] == [[10], [40]]
        assert made.predictor.statistics().on_loop > before
        assert made.predictor.statistics().running == 0


async def test_larger_batches_are_measured_in_a_thread_first() -> None:
    where = Where()
    async with rig(inline(where), loop_run_limit=LIMIT) as made:
        await settled(made, where)
        await made.submit(1, 2, 3)
        assert not where.on_loop[-1]


async def test_cancelled_and_expired_requests_never_run_on_the_loop() -> None:
    where = Where()
    async with rig(inline(where), loop_run_limit=LIMIT) as made:
        await settled(made, where)
        seen = len(where.on_loop)
        given_up, late = made.submit(1), made.submit(1, timeout=-1.0)
        given_up.cancel()
        with pytest.raises(DeadlineExceededError):
            await late
        with suppress(asyncio.CancelledError):
            await given_up
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(where.on_loop) == seen
        assert made.predictor.statistics().dropped == 2


async def test_a_run_on_the_loop_waits_for_no_thread_at_work() -> None:
    where = Where()
    async with rig(inline(where), threads=2, loop_run_limit=LIMIT) as made:
        await settled(made, where)
        gate = threading.Event()
        held = made.predictor.submit_call(lambda *, cancellation, timeout: gate.wait(60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert made.pool.busy == 1
        await made.submit(1)
        assert not where.on_loop[-1]
        gate.set()
        assert await held
        await settled(made, where)


async def test_padded_and_split_requests_count_the_rows_of_the_run() -> None:
    where = Where()
    options = BatchingOptions(
        max_batch_size=12, allowed_batch_sizes=(2, 4, 12), max_execution_batch_size=4, enable_large_batch_splitting=True
    )
    async with rig(inline(where), options, loop_run_limit=LIMIT) as made:
        for _ in range(4 * TRUSTED):
            assert list((await made.submit(*range(9)))["y"]) == [10 * i for i in range(9)]
        await settled(made, where)


async def test_a_direct_request_of_a_new_shape_runs_in_a_thread() -> None:
    where = Where()
    async with rig(inline(where, batchable=False), loop_run_limit=LIMIT) as made:
        assert isinstance(made.predictor, DirectPredictor)
        await settled(made, where)
        await made.submit(x=np.array([1, 2], np.int64))
        assert not where.on_loop[-1]
