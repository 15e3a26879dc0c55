"""Whatever comes in whatever order, batched answers equal unbatched ones, nobody hangs, and only the guilty fail."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedserve.config import Batching, BatchingOptions
from embedserve.errors import DeadlineExceededError, InferenceError, InvalidInputError, OverloadedError, QueueFullError
from embedserve.priority import Priority
from embedserve.servable import Array, Tensors
from tests.batching.fakes import FakeServable, rig, signature

GUILTY = -1


def model(inputs: Tensors) -> dict[str, Array]:
    """Row by row, over every dtype of the signature; one guilty value anywhere fails the whole run."""
    x, words = inputs["x"], inputs["words"]
    if (x == GUILTY).any():
        raise InferenceError("guilty")
    return {"y": x * 3 + 1, "shout": np.array([word.upper() for word in words], object), "x": x}


@dataclass(frozen=True)
class Ask:
    """One request and what its caller does.

    Attributes:
        rows, width: Shape of `x`.
        guilty: The model fails on it.
        gives_up: Turns of the loop after which the caller cancels; None waits for the answer.
        timeout: Seconds; None for no deadline.
        pause: Turns of the loop before the next request comes.
        filtered: Asks for one output only.
        priority: May take the place of another where the queue is full.
    """

    rows: int
    width: int
    guilty: bool
    gives_up: int | None
    timeout: float | None
    pause: int
    filtered: bool
    priority: Priority

    def inputs(self, number: int) -> dict[str, Array]:
        x = np.full((self.rows, self.width), number * 100) + np.arange(self.width)
        if self.guilty and x.size:
            x[0, 0] = GUILTY
        words = np.empty(self.rows, object)
        words[:] = [b"word%d-%d\0" % (number, row) for row in range(self.rows)]
        return {"x": x, "words": words}


asks = st.lists(
    st.builds(
        Ask,
        rows=st.integers(0, 7),
        width=st.integers(0, 2),
        guilty=st.sampled_from([False] * 7 + [True]),
        gives_up=st.sampled_from([None] * 5 + [0, 1, 3]),
        timeout=st.sampled_from([None] * 4 + [-1.0, 0.0, 0.0005, 30.0]),
        pause=st.integers(0, 3),
        filtered=st.sampled_from([False, False, True]),
        priority=st.sampled_from([Priority.NORMAL, *Priority]),
    ),
    min_size=1,
    max_size=40,
)

options = st.builds(
    BatchingOptions,
    max_batch_size=st.just(6),
    batch_timeout_micros=st.sampled_from([0, 0, 500]),
    max_enqueued_batches=st.sampled_from([1, 2, 64]),
    allowed_batch_sizes=st.sampled_from([(), (2, 6), (6,)]),
    enable_large_batch_splitting=st.booleans(),
    max_execution_batch_size=st.sampled_from([None, 2, 4]),
)


async def play(asks: list[Ask], options: BatchingOptions, threads: int, batching: Batching) -> None:
    specs = signature({"x": (None, None), "words": (None,)})
    async with rig(FakeServable(model, specs), options, threads=threads, batching=batching) as r:
        outcomes: list[asyncio.Task[None]] = []

        async def one(number: int, ask: Ask) -> None:
            inputs = ask.inputs(number)
            deadline = None if ask.timeout is None else r.pool.loop.time() + ask.timeout
            try:
                future = r.predictor.submit(specs, inputs, ("y",) if ask.filtered else None, deadline, ask.priority)
            except OverloadedError:
                assert ask.timeout is not None
                assert ask.timeout < 1
                return
            except QueueFullError:
                assert options.max_enqueued_batches < 64
                return
            except DeadlineExceededError:  # Adaptive batching says so at once.
                assert ask.timeout is not None
                assert ask.timeout < 1
                return
            except InvalidInputError:
                assert options.enable_large_batch_splitting
                assert ask.rows > options.max_batch_size
                return
            if ask.gives_up is not None:
                for _ in range(ask.gives_up):
                    await asyncio.sleep(0)
                future.cancel()
            try:
                outputs = await future
            except asyncio.CancelledError:
                assert ask.gives_up is not None
            except DeadlineExceededError:
                assert ask.timeout is not None
                assert ask.timeout < 1
            except QueueFullError:
                assert ask.priority is not Priority.HIGH
                assert options.max_enqueued_batches < 64
            except InferenceError:
                assert ask.guilty
                assert inputs["x"].size
            else:
                expected = model(inputs)
                assert all(outputs[name].dtype == expected[name].dtype for name in expected)
                assert all(np.array_equal(outputs[name], expected[name]) for name in expected)

        for number, ask in enumerate(asks):
            outcomes.append(asyncio.create_task(one(number, ask)))
            for _ in range(ask.pause):
                await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*outcomes), 30)
        await asyncio.wait_for(r.predictor.aclose(), 30)
        while r.predictor.statistics().waiting:  # A request whose caller has left is dropped when its slot comes.
            await asyncio.sleep(0)
        statistics = r.predictor.statistics()
        assert (statistics.waiting, statistics.running) == (0, 0)
        assert r.pool.busy == 0


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asks=asks, options=options, threads=st.integers(1, 3), batching=st.sampled_from(["auto", "adaptive"]))
def test_batched_equals_unbatched(asks: list[Ask], options: BatchingOptions, threads: int, batching: Batching) -> None:
    asyncio.run(play(asks, options, threads, batching))
