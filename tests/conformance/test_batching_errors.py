"""The batcher's error messages, over the wire and in TensorFlow Serving's words; the rest is in test_grpc_errors.py."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from embedserve.config import BatchingOptions
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature
from tests.conformance.conftest import serving
from tests.grpc.conftest import Client, failure, predict_request

C = grpc.StatusCode


@pytest.fixture(params=["embedserve", "asgi"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batching(loader: FakeLoader, **options: Any) -> FakeRegistry:
    return FakeRegistry(
        {"m": {1: loader}},
        batching=True,
        num_batch_threads=1,
        warmup="none",
        batching_options=BatchingOptions(**{"oversize": "reject"} | options),
    )


async def waiting(client: Client, requests: int) -> None:
    """Return when so many requests are in the queue."""
    while sum(queue.waiting for queue in client.registry.statistics().queues.values()) < requests:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("splits", [False, True])
async def test_a_task_over_the_limit_is_refused(splits: bool, transport: str) -> None:
    options = {"enable_large_batch_splitting": splits, "max_execution_batch_size": 1 if splits else None}
    async with serving(batching(FakeLoader(), max_batch_size=2, **options), transport) as client:
        assert await failure(client.prediction.Predict(predict_request(x=[1, 2, 3]))) == (
            C.INVALID_ARGUMENT,
            "Task size 3 is larger than maximum input batch size 2",
        )


async def test_inputs_of_different_rows_are_refused(transport: str) -> None:
    two = fake_signature(inputs={"a": ("float", (None,)), "b": ("float", (None,))})
    async with serving(batching(FakeLoader(signatures=[two])), transport) as client:
        code, message = await failure(client.prediction.Predict(predict_request(a=[1], b=[1, 2])))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("Batching Run() input tensors must have equal 0th-dimension size")


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (False, "currently 1 batches enqueued and max_enqueued_batches is 1"),
        (
            True,
            "task size is 1 but scheduling capacity is only 0 (num_enqueued_batches=1, max_enqueued_batches=1, "
            "open_batch_size=1, max_execution_batch_size=1)",
        ),
    ],
    ids=["whole", "split"],
)
async def test_a_full_queue_refuses_at_once(splits: bool, words: str, transport: str) -> None:
    gate = Gate()
    options = {"enable_large_batch_splitting": splits, "max_execution_batch_size": 1 if splits else None}
    registry = batching(FakeLoader(gate=gate), max_batch_size=1, max_enqueued_batches=1, **options)
    async with serving(registry, transport) as client:
        running = client.prediction.Predict(predict_request(x=[1]))
        while not gate.waiting:
            await asyncio.sleep(0.005)
        queued = client.prediction.Predict(predict_request(x=[2]))
        await waiting(client, 1)
        code, message = await failure(client.prediction.Predict(predict_request(x=[3])))
        assert code is C.UNAVAILABLE
        assert message.startswith(f"The batch scheduling queue to which this task was submitted is full; {words}")
        gate.open()
        assert [list((await call).outputs["y"].float_val) for call in (running, queued)] == [[11], [21]]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.float32(1), "Batched output tensor has 0 dimensions"),
        (
            np.zeros(3, np.float32),
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        ),
    ],
    ids=["scalar", "rows"],
)
async def test_an_output_that_cannot_be_split(output: Any, words: str, transport: str) -> None:
    gate = Gate()
    any_rank = fake_signature(outputs={"y": ("float", None)})
    loader = FakeLoader(lambda version, inputs: {"y": np.asarray(output)}, signatures=[any_rank], gate=gate)
    async with serving(batching(loader), transport) as client:
        running = client.prediction.Predict(predict_request(x=[1]))
        while not gate.waiting:
            await asyncio.sleep(0.005)
        merged = [client.prediction.Predict(predict_request(x=[1])) for _ in range(2)]
        await waiting(client, 2)
        gate.open()
        await running
        for call in merged:
            code, message = await failure(call)
            assert code is C.FAILED_PRECONDITION
            assert message.startswith(words)
