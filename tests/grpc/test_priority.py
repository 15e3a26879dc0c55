"""The metadata key by which a gRPC client says how urgent its request is."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    regression_pb2,
    session_service_pb2,
)

from embedserve.config import Access
from tests.grpc.conftest import Start, failure, predict_request
from tests.support.recorder import Recorder

KEY = "x-embedserve-priority"


async def test_requests_run_in_the_order_of_their_priority_metadata(start: Start) -> None:
    recorder = Recorder()
    client = await start(recorder.registry)
    asks: list[Any] = []
    for number, priority in enumerate(("normal", "low", None, "HIGH")):
        metadata = () if priority is None else ((KEY, priority),)
        asks.append(asyncio.ensure_future(client.prediction.Predict(predict_request(x=[number]), metadata=metadata)))
        await (recorder.waiting(number) if number else recorder.running())
    recorder.gate.open()
    answers = await asyncio.gather(*asks)
    assert [list(answer.outputs["y"].float_val) for answer in answers] == [[0], [1], [2], [3]]
    assert recorder.ran == [0, 3, 2, 1]


def requests() -> dict[str, Any]:
    """For every RPC that runs a model a request for model `m`, by path."""
    made: dict[str, Any] = {
        "PredictionService/Predict": predict_request(x=[1]),
        "PredictionService/Classify": classification_pb2.ClassificationRequest(),
        "PredictionService/Regress": regression_pb2.RegressionRequest(),
        "PredictionService/MultiInference": inference_pb2.MultiInferenceRequest(),
        "SessionService/SessionRun": session_service_pb2.SessionRunRequest(),
    }
    made["PredictionService/MultiInference"].tasks.add().model_spec.name = "m"
    for name in ("PredictionService/Classify", "PredictionService/Regress", "SessionService/SessionRun"):
        made[name].model_spec.name = "m"
    return made


@pytest.mark.parametrize("path", requests())
async def test_metadata_that_names_no_priority_is_an_invalid_argument(start: Start, path: str) -> None:
    client = await start(Recorder().registry, access=Access(session_run="local"))
    call = client.channel.unary_unary(f"/tensorflow.serving.{path}")
    code, message = await failure(call(requests()[path].SerializeToString(), metadata=((KEY, "urgent"),)))
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "x-embedserve-priority: priority 'urgent' is none of high, normal, low",
    )
