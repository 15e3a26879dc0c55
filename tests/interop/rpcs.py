"""The RPCs of the table: a request to each, and what its answer must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
    session_service_pb2,
)

from embedserve.tensors import proto
from embedserve.tensors.dtypes import by_numpy

MODEL, ENDLESS, SESSION = "half_plus_two", "endless", "session"


class Rpc(NamedTuple):
    """One method, for the official stubs and for clients that make the bytes themselves."""

    service: str
    method: str
    response: Any
    stub: Any

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.method}"


class _SessionServiceStub:
    """As the generated stubs are; the API package has none of this service."""

    def __init__(self, channel: Any) -> None:
        self.SessionRun = channel.unary_unary(
            "/tensorflow.serving.SessionService/SessionRun",
            request_serializer=session_service_pb2.SessionRunRequest.SerializeToString,
            response_deserializer=session_service_pb2.SessionRunResponse.FromString,
        )


def _rpcs(service: str, stub: Any, **responses: Any) -> dict[str, Rpc]:
    return {method: Rpc(service, method, response, stub) for method, response in responses.items()}


RPCS = {
    **_rpcs(
        "tensorflow.serving.PredictionService",
        prediction_service_pb2_grpc.PredictionServiceStub,
        Predict=predict_pb2.PredictResponse,
        Classify=classification_pb2.ClassificationResponse,
        Regress=regression_pb2.RegressionResponse,
        MultiInference=inference_pb2.MultiInferenceResponse,
        GetModelMetadata=get_model_metadata_pb2.GetModelMetadataResponse,
    ),
    **_rpcs(
        "tensorflow.serving.ModelService",
        model_service_pb2_grpc.ModelServiceStub,
        GetModelStatus=get_model_status_pb2.GetModelStatusResponse,
        HandleReloadConfigRequest=model_management_pb2.ReloadConfigResponse,
    ),
    **_rpcs(
        "tensorflow.serving.SessionService",
        _SessionServiceStub,
        SessionRun=session_service_pb2.SessionRunResponse,
    ),
    **_rpcs(
        "grpc.health.v1.Health",
        health_pb2_grpc.HealthStub,
        Check=health_pb2.HealthCheckResponse,
        Watch=health_pb2.HealthCheckResponse,
    ),
    **_rpcs(
        "grpc.reflection.v1alpha.ServerReflection",
        reflection_pb2_grpc.ServerReflectionStub,
        ServerReflectionInfo=reflection_pb2.ServerReflectionResponse,
    ),
}


def predict(name: str = MODEL, **inputs: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for alias, array in inputs.items():
        proto.encode_into(request.inputs[alias], array, by_numpy(array.dtype), as_content=True)
    return request


def halves(count: int = 2) -> Any:
    """A Predict of so many numbers, from 0 on."""
    return predict(x=np.arange(count, dtype=np.float32)[:, None])


def steps(count: int) -> Any:
    """A Predict that runs for so many steps; 10^12 are days."""
    return predict(ENDLESS, steps=np.array([count], np.int64))


def predicted(response: Any, output: str = "y") -> np.ndarray[Any, Any]:
    return np.array(response.outputs[output].float_val, np.float32)


def _is_halves(response: Any) -> bool:
    return predicted(response).tolist() == [2.0, 2.5] and bool(response.model_spec.version.value == 1)


def _examples(kind: Any, signature_name: str) -> Any:
    request = kind()
    request.model_spec.name, request.model_spec.signature_name = MODEL, signature_name
    return _with_example(request)


def _with_example(request: Any) -> Any:
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(2.0)
    return request


def _multi_inference() -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for method in ("regress", "classify"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = MODEL, f"{method}_x_to_y"
    return _with_example(request)


def _metadata() -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = MODEL
    return request


def _status() -> Any:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = MODEL
    return request


def _session_run() -> Any:
    request = session_service_pb2.SessionRunRequest(fetch=["y:0"])
    request.model_spec.name = SESSION
    feed = request.feed.add(name="x:0")
    proto.encode_into(feed.tensor, np.ones((1, 2), np.float32), by_numpy(np.dtype(np.float32)))
    return request


def _reload(models: Path) -> Any:
    """The configuration that is in force already."""
    request = model_management_pb2.ReloadConfigRequest()
    for path in sorted(models.iterdir()):
        request.config.model_config_list.config.add(name=path.name, base_path=str(path), model_platform="tensorflow")
    return request


class Unary(NamedTuple):
    """A request by the models' directory, and whether an answer is right."""

    request: Callable[[Path], Any]
    is_right: Callable[[Any], bool]


UNARY = {
    "Predict": Unary(lambda models: halves(), _is_halves),
    "Classify": Unary(
        lambda models: _examples(classification_pb2.ClassificationRequest, "classify_x_to_y"),
        lambda response: [found.score for found in response.result.classifications[0].classes] == [3.0],
    ),
    "Regress": Unary(
        lambda models: _examples(regression_pb2.RegressionRequest, "regress_x_to_y"),
        lambda response: [found.value for found in response.result.regressions] == [3.0],
    ),
    "MultiInference": Unary(
        lambda models: _multi_inference(),
        lambda response: response.results[0].regression_result.regressions[0].value == 3.0,
    ),
    "GetModelMetadata": Unary(lambda models: _metadata(), lambda response: "signature_def" in response.metadata),
    "GetModelStatus": Unary(
        lambda models: _status(), lambda response: [each.state for each in response.model_version_status] == [30]
    ),
    "HandleReloadConfigRequest": Unary(_reload, lambda response: response.status.error_code == 0),
    "SessionRun": Unary(
        lambda models: _session_run(), lambda response: list(response.tensor[0].tensor.float_val) == [3.0, 4.0]
    ),
    "Check": Unary(lambda models: health_pb2.HealthCheckRequest(), lambda response: response.status == 1),
}
