"""Which way a request goes, what shares a run, and what becomes of a batch that fails."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest

from embedserve.batching.adaptive import AdaptivePolicy
from embedserve.batching.direct import DirectPredictor
from embedserve.batching.routing import BatchingPredictor
from embedserve.config import Batching, BatchingOptions
from embedserve.errors import (
    Code,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    QueueFullError,
)
from embedserve.observer import Observer
from embedserve.servable import Array, ServableId, Tensors
from embedserve.signature import Signature
from tests.batching.fakes import FakeServable, Model, Rig, Shape, fails_on, rig, signature, times_ten


async def held_back(r: Rig) -> asyncio.Future[dict[str, Array]]:
    """Occupy the only run thread, so that what comes now queues; `let(1)` frees it."""
    blocker = r.submit(0)
    await r.began()
    return blocker


def held(model: Model = times_ten, *signatures: Signature) -> FakeServable:
    return FakeServable(model, *signatures, held=True)


async def values(*answers: asyncio.Future[dict[str, Array]]) -> list[Any]:
    return [(await answer)["y"].tolist() for answer in answers]


# Which signatures are batched.


@pytest.mark.parametrize(
    ("judged", "inputs", "batching", "batched"),
    [
        (True, {"x": (None,)}, "auto", True),
        (False, {"x": (None,)}, "auto", False),
        (True, {"x": (None,)}, False, False),
        (False, {"x": (None,)}, True, True),
        (False, {"x": None}, True, True),
        (False, {"x": (3,), "z": (None, 2)}, True, True),
        (False, {"x": (None,), "z": ()}, True, False),
        (True, {"x": (None,)}, "adaptive", True),
        (False, {"x": (None,)}, "adaptive", False),
    ],
)
async def test_the_judgement_of_a_signature_can_be_overridden(
    judged: bool, inputs: dict[str, Shape], batching: Batching, batched: bool
) -> None:
    async with rig(FakeServable(times_ten, signature(inputs, batchable=judged)), batching=batching) as r:
        assert isinstance(r.predictor, BatchingPredictor if batched else DirectPredictor)


async def test_each_signature_goes_its_own_way() -> None:
    servable = held(times_ten, signature(name="a"), signature(name="b"), signature(name="direct", batchable=False))
    async with rig(servable) as r:
        blocker = r.submit(0, name="direct")
        await r.began()
        answers = [r.submit(i, name=name) for i, name in enumerate(("a", "b", "direct", "a", "b", "direct"))]
        servable.let(5)
        assert await values(blocker, *answers) == [[0], [0], [10], [20], [30], [40], [50]]
        assert sorted(r.servable.sizes) == [1, 1, 1, 2, 2]
        statistics = r.predictor.statistics()
        assert (statistics.runs, statistics.requests, statistics.rows) == (5, 7, 4)


# What shares a run.


async def test_requests_of_one_turn_share_a_run_and_each_gets_its_rows() -> None:
    async with rig() as r:
        answers = [r.submit(1), r.submit(2, 3), r.submit(4)]
        assert await values(*answers) == [[10], [20, 30], [40]]
        assert r.servable.sizes == [4]


async def test_everything_that_queued_meanwhile_shares_the_next_run() -> None:
    async with rig(held()) as r:
        blocker = await held_back(r)
        answers = []
        for i in range(5):
            answers.append(r.submit(i))
            await asyncio.sleep(0)
        r.servable.let(2)
        assert await values(blocker, *answers) == [[0], *([i * 10] for i in range(5))]
        assert r.servable.sizes == [1, 5]


async def test_a_lone_request_runs_on_its_own_arrays() -> None:
    async with rig() as r:
        x = np.array([1, 2])
        await r.submit(x=x)
        assert r.servable.runs[0]["x"] is x


async def test_what_one_caller_writes_into_its_answer_no_other_sees() -> None:
    async with rig() as r:
        first, second = await asyncio.gather(r.submit(1), r.submit(2))
        first["y"][:] = -1
        assert second["y"].tolist() == [20]


@pytest.mark.parametrize("shape", [(None, None), None])
async def test_other_trailing_shapes_and_other_filters_go_in_other_runs(shape: Shape) -> None:
    async with rig(held(times_ten, signature({"x": shape}))) as r:
        blocker = r.submit(x=[[0]])
        await r.began()
        narrow, wide = [[1]], [[1, 2]]
        answers = [
            r.submit(x=narrow),
            r.submit(x=wide),
            r.submit(x=narrow),
            r.submit(x=narrow, output_names=("y",)),
            r.submit(x=wide),
        ]
        r.servable.let(4)
        ten, twenty = [[10]], [[10, 20]]
        assert await values(blocker, *answers) == [[[0]], ten, twenty, ten, ten, twenty]
        assert [inputs["x"].shape for inputs in r.servable.runs] == [(1, 1), (2, 1), (2, 2), (1, 1)]
        assert r.servable.output_names == [None, None, None, ("y",)]


async def test_scalars_and_requests_without_rows_run_alone() -> None:
    async with rig(FakeServable(times_ten, signature(shape_free=True))) as r:
        answers = [r.submit(x=np.int64(3)), r.submit(), r.submit(1), r.submit(x=np.int64(4)), r.submit(2)]
        assert [(await answer)["y"].tolist() for answer in answers] == [30, [], [10], 40, [20]]
        assert sorted(inputs["x"].shape for inputs in r.servable.runs) == [(), (), (0,), (2,)]


async def test_inputs_must_agree_on_their_rows() -> None:
    words = "^Batching Run\\(\\) input tensors must have equal 0th-dimension size: x \\[2\\], z \\[1\\]$"
    for shape in ((None,), None):
        async with rig(FakeServable(times_ten, signature({"x": shape, "z": shape}))) as r:
            with pytest.raises(InvalidInputError, match=words):
                r.submit(x=[1, 2], z=[1])
            assert await values(r.submit(x=[1, 2], z=[1, 2])) == [[10, 20]]


async def test_string_tensors_are_merged_and_split_as_objects() -> None:
    def shout(inputs: Tensors) -> dict[str, Array]:
        return {"y": np.array([[word.upper()] for word in inputs["x"]], object)}

    async with rig(FakeServable(shout, signature(dtype="string"))) as r:
        words = [np.array([b"a\0", b"b"], object), np.array([b"c"], object)]
        answers = await asyncio.gather(*(r.submit(x=word) for word in words))
        assert [answer["y"].tolist() for answer in answers] == [[[b"A\0"], [b"B"]], [[b"C"]]]
        assert len(r.servable.runs) == 1


# When, and how much at once.


async def test_a_batch_waits_for_company_when_told_to() -> None:
    async with rig(options=BatchingOptions(max_batch_size=2, batch_timeout_micros=30_000_000)) as r:
        first = r.submit(1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not r.servable.runs
        assert await values(first, r.submit(2)) == [[10], [20]]
    async with rig(options=BatchingOptions(batch_timeout_micros=5_000)) as r:
        assert await values(r.submit(1)) == [[10]]


async def test_a_slow_run_does_not_keep_the_other_threads_idle() -> None:
    async with rig(held(), threads=2) as r:
        blocker = await held_back(r)
        other = r.submit(1)
        await r.began()
        r.servable.let(2)
        assert await values(blocker, other) == [[0], [10]]


async def test_the_queue_is_bounded_and_refuses_at_once() -> None:
    async with rig(held(), BatchingOptions(max_batch_size=2, max_enqueued_batches=2)) as r:
        blocker = await held_back(r)
        answers = [r.submit(i) for i in range(4)]
        with pytest.raises(QueueFullError, match="currently 2 batches enqueued and max_enqueued_batches is 2"):
            r.submit(4)
        answers[1].cancel()
        r.servable.let(3)
        assert await values(blocker, answers[0], *answers[2:]) == [[0], [0], [20], [30]]
        assert r.predictor.statistics().refused == 1


async def test_an_oversize_request_runs_alone_or_is_refused() -> None:
    async with rig(options=BatchingOptions(max_batch_size=2)) as r:
        assert await values(r.submit(1, 2, 3), r.submit(4)) == [[10, 20, 30], [40]]
        assert sorted(r.servable.sizes) == [1, 3]
    async with rig(options=BatchingOptions(max_batch_size=2, oversize="reject")) as r:
        with pytest.raises(InvalidInputError, match=r"^Task size 3 is larger than maximum input batch size 2$"):
            r.submit(1, 2, 3)


async def test_batches_are_padded_to_an_allowed_size_with_the_last_tasks_first_row() -> None:
    async with rig(options=BatchingOptions(max_batch_size=8, allowed_batch_sizes=(4, 8))) as r:
        assert await values(r.submit(1), r.submit(2, 3)) == [[10], [20, 30]]
        assert await values(r.submit(5)) == [[50]]
        assert [inputs["x"].tolist() for inputs in r.servable.runs] == [[1, 2, 3, 2], [5, 5, 5, 5]]
        assert r.predictor.statistics().padding_rows == 4


async def test_ragged_requests_are_padded_when_told_to() -> None:
    options = BatchingOptions(pad_variable_length_inputs=True)
    async with rig(FakeServable(times_ten, signature({"x": (None, None)})), options) as r:
        empty = np.zeros((1, 0), np.int64)
        answers = [r.submit(x=[[1]]), r.submit(x=[[2, 3], [4, 5]]), r.submit(x=empty)]
        assert await values(*answers) == [[[10, 10]], [[20, 30], [40, 50]], [[]]]
        assert sorted(r.servable.sizes) == [1, 3]


async def test_a_large_request_is_cut_and_its_results_are_in_order() -> None:
    options = BatchingOptions(max_batch_size=10, enable_large_batch_splitting=True, max_execution_batch_size=4)
    async with rig(options=options, threads=2) as r:
        answers = [r.submit(0, 1), r.submit(*range(10)), r.submit(7)]
        assert await values(*answers) == [[0, 10], [i * 10 for i in range(10)], [70]]
        assert max(r.servable.sizes) <= 4
        with pytest.raises(InvalidInputError, match=r"^Task size 11 is larger than maximum input batch size 10$"):
            r.submit(*range(11))


async def test_a_piece_that_fails_fails_its_request_and_the_rest_of_it_is_dropped() -> None:
    options = BatchingOptions(max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=2)
    async with rig(FakeServable(fails_on(3)), options) as r:
        request = r.submit(*range(8))
        with pytest.raises(InferenceError, match="3 is guilty"):
            await request
        assert await values(r.submit(4)) == [[40]]
        assert r.predictor.statistics().dropped > 0


async def test_pieces_that_do_not_fit_together_fail_their_request() -> None:
    def growing(inputs: Tensors) -> dict[str, Array]:
        return {"y": np.zeros((len(inputs["x"]), int(inputs["x"][0])))}

    options = BatchingOptions(max_batch_size=4, enable_large_batch_splitting=True, max_execution_batch_size=2)
    async with rig(FakeServable(growing), options) as r:
        with pytest.raises(InferenceError, match=r"^Tensor concat operation failed"):
            await r.submit(*range(4))


async def test_an_adaptive_batcher_refuses_at_once_what_it_could_not_answer_in_time() -> None:
    async with rig(held(), batching="adaptive") as r:
        assert isinstance(r.predictor, BatchingPredictor)
        queue = r.predictor._batchers["serving_default"]._queue
        policy = queue._policy
        assert isinstance(policy, AdaptivePolicy)
        for rows in (1, 2):
            policy.times.observe(rows, 10.0 * rows)
        policy.choose()
        queue.adopt(policy)
        blocker = await held_back(r)
        with pytest.raises(DeadlineExceededError, match=r"^a run of 1 rows takes about 10 s"):
            r.submit(1, timeout=5)
        answers = [r.submit(i) for i in range(4)]
        with pytest.raises(OverloadedError, match=r"^4 requests wait already"):
            r.submit(1, timeout=30)
        answers.append(r.submit(5, timeout=3600))
        r.servable.let(10)
        assert await values(blocker, *answers) == [[0], [0], [10], [20], [30], [50]]
        assert (r.predictor.statistics().shed, r.predictor.statistics().refused) == (2, 0)


# Failure.


async def test_only_the_guilty_request_of_a_failed_batch_fails() -> None:
    async with rig(FakeServable(fails_on(2))) as r:
        answers = await asyncio.gather(*(r.submit(i) for i in range(4)), return_exceptions=True)
        assert isinstance(answers[2], InferenceError)
        assert answers[2].code is Code.OUT_OF_RANGE
        assert [answers[i]["y"].tolist() for i in (0, 1, 3)] == [[0], [10], [30]]  # type: ignore[index]
        assert r.servable.sizes == [4, 1, 1, 1, 1]
        assert r.predictor.statistics().rerun == 4


async def test_a_signature_with_state_is_never_run_twice_for_one_request() -> None:
    async with rig(FakeServable(fails_on(2), signature(stateless=False))) as r:
        answers = await asyncio.gather(*(r.submit(i) for i in range(4)), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["2 is guilty"] * 4
        assert len({id(answer) for answer in answers}) == 4
        assert all(answer.code is Code.OUT_OF_RANGE for answer in answers)  # type: ignore[union-attr]
        assert r.servable.sizes == [4]


async def test_who_left_or_ran_out_of_time_is_not_run_again() -> None:
    async with rig(held(fails_on(2))) as r:
        blocker = await held_back(r)
        left, guilty, late, innocent = r.submit(1), r.submit(2), r.submit(3, timeout=0.05), r.submit(4)
        r.servable.let(1)
        await r.began()
        left.cancel()
        with pytest.raises(Exception, match="Timed out"):
            await late
        r.servable.let(3)
        with pytest.raises(InferenceError, match="2 is guilty"):
            await guilty
        assert await values(blocker, innocent) == [[0], [40]]
        assert r.servable.sizes == [1, 4, 1, 1]


async def test_a_batch_runs_on_while_one_of_its_callers_waits_and_stops_when_none_does() -> None:
    async with rig(held()) as r:
        blocker = await held_back(r)
        answers = [r.submit(i) for i in range(3)]
        r.servable.let(1)
        await r.began()
        for answer in answers[:2]:
            answer.cancel()
            await asyncio.sleep(0)
        assert r.servable.cancelled == 0
        answers[2].cancel()
        other = r.submit(5)
        await r.began()
        r.servable.let(1)
        assert await values(blocker, other) == [[0], [50]]
        assert r.servable.cancelled == 1
        assert r.servable.sizes == [1, 3, 1]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.int64(1), "Batched output tensor has 0 dimensions"),
        (np.zeros(3), "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes"),
    ],
)
async def test_an_output_that_cannot_be_split_fails_a_batch_but_not_a_lone_request(output: Any, words: str) -> None:
    def model(inputs: Tensors) -> dict[str, Array]:
        return {"y": np.asarray(output)}

    async with rig(FakeServable(model), batching=True) as r:
        assert (await r.submit(1))["y"].shape == np.shape(output)
        answers = await asyncio.gather(r.submit(1), r.submit(2), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, InferenceError)
            assert answer.code is Code.FAILED_PRECONDITION
            assert re.match(words, str(answer))
        assert len(r.servable.runs) == 2
    async with rig(FakeServable(model), BatchingOptions(max_batch_size=2, allowed_batch_sizes=(2,))) as r:
        with pytest.raises(InferenceError, match=words):
            await r.submit(1)


async def test_a_batch_takes_as_long_as_its_most_patient_task() -> None:
    async with rig(held()) as r:
        blocker = await held_back(r)
        answers = [r.submit(1, timeout=30), r.submit(2, timeout=60)]
        r.servable.let(1)
        await r.began()
        answers += [r.submit(3, timeout=30), r.submit(4)]
        r.servable.let(2)
        await values(blocker, *answers)
        assert [timeout and round(timeout, -1) for timeout in r.servable.timeouts] == [None, 60, None]


async def test_observers_are_told_of_requests_batches_and_waits() -> None:
    class Log(Observer):
        def __init__(self) -> None:
            self.lines: list[tuple[Any, ...]] = []

        def request_enqueued(self, id: ServableId, signature_name: str, rows: int, inputs: int) -> None:
            self.lines.append(("enqueued", rows, inputs))

        def batch_formed(
            self, id: ServableId, signature_name: str, rows: int, padded_rows: int, requests: int, reason: str
        ) -> None:
            self.lines.append(("batch", id.name, signature_name, rows, padded_rows, requests, reason))

        def queue_wait(self, id: ServableId, signature_name: str, seconds: float) -> None:
            self.lines.append(("wait", 0 <= seconds < 60))

    log = Log()
    async with rig(options=BatchingOptions(max_batch_size=4, allowed_batch_sizes=(4,)), observers=[log]) as r:
        await values(r.submit(1), r.submit(2, 3))
    assert log.lines == [
        ("enqueued", 1, 1),
        ("enqueued", 2, 1),
        ("batch", "m", "serving_default", 3, 4, 2, "slot"),
        ("wait", True),
        ("wait", True),
    ]


async def test_a_predictor_shows_its_state() -> None:
    async with rig(held()) as r:
        blocker = await held_back(r)
        answer = r.submit(1)
        assert "serving_default: 1 waiting, 1 running" in repr(r.predictor)
        assert (r.predictor.statistics().waiting, r.predictor.statistics().running) == (1, 1)
        r.servable.let(2)
        await values(blocker, answer)
