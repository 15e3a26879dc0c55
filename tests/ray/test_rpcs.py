"""Which RPCs there are, how a deployment answers them, and which model a request is for."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from tensorflow_serving.apis import (
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from embedserve.config import Access
from embedserve.errors import Code
from embedserve.grpc.calls import Unary
from embedserve.grpc.services.table import Services
from embedserve.ray import add_services_to_server
from embedserve.ray.rpcs import SERVICES, Metadata, RpcAnswer, RpcMethods, model_name
from embedserve.testing import FakeRegistry

PREDICT = "/tensorflow.serving.PredictionService/Predict"


def test_every_unary_rpc_of_the_models_passes_and_no_two_share_a_name() -> None:
    options: dict[str, Any] = {"tensor_content": False, "reload": None, "metric": None}
    services = Services(FakeRegistry({}), health=False, reflection=False, access=Access(), **options)
    # A proxy of Ray finds the model of a call in the message, and reads TensorFlow Serving's messages only.
    unary = {path for path, method in services.methods.items() if isinstance(method, Unary)}
    expected = {path for path in unary if not path.startswith("/inference.")}
    assert {f"/{service}/{name}" for service, names in SERVICES.items() for name in names} == expected
    names = [name for names in SERVICES.values() for name in names]
    assert len(names) == len(set(names))
    assert all(hasattr(RpcMethods, name) for name in names)


class Echo(RpcMethods):
    """Answers with what came, or with the error it was made for."""

    def __init__(self, code: Code = Code.OK) -> None:
        self.code = code

    async def answer_rpc(self, path: str, body: bytes, metadata: Metadata) -> RpcAnswer:
        assert metadata == [("k", "v")]
        failed = self.code != Code.OK
        return RpcAnswer(self.code, path if failed else "", b"" if failed else body, "r1")


class ServeContext:
    """What Ray Serve hands a method beside the request."""

    def __init__(self) -> None:
        self.set: dict[str, Any] = {}

    def invocation_metadata(self) -> Metadata:
        return [("k", "v")]

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.set.update({name.removeprefix("set_"): value})


@pytest.mark.parametrize("parsed", [False, True], ids=["bytes", "message"])
async def test_a_method_takes_bytes_and_messages_alike(parsed: bool) -> None:
    request = predict_pb2.PredictRequest(model_spec={"name": "m"})
    body, context = request.SerializeToString(), ServeContext()
    deployment: Any = Echo()
    answer = await deployment.Predict(request if parsed else body, grpc_context=context)
    assert answer.SerializeToString() == body
    assert context.set == {"trailing_metadata": [("embedserve-replica", "r1")]}


async def test_an_error_reaches_the_client_without_being_raised() -> None:
    deployment: Any = Echo(Code.NOT_FOUND)
    context = ServeContext()
    answer = await deployment.GetModelStatus(b"", grpc_context=context)
    assert answer.SerializeToString() == b""
    assert context.set["code"] is grpc.StatusCode.NOT_FOUND
    assert context.set["details"] == "/tensorflow.serving.ModelService/GetModelStatus"
    assert context.set["trailing_metadata"] == [("embedserve-replica", "r1")]


async def test_a_server_that_took_the_services_hands_the_request_on_unparsed() -> None:
    """As Serve's proxies do: they put methods of their own in place of the servicer's."""

    class Servicer:
        def __getattr__(self, name: str) -> Any:
            async def call(body: bytes, context: Any) -> bytes:
                assert isinstance(body, bytes)
                return body

            return call

    server = grpc.aio.server()
    add_services_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = await stub.Predict(predict_pb2.PredictRequest(model_spec={"name": "m"}))
    await server.stop(None)
    assert answer == predict_pb2.PredictResponse(outputs={}).FromString(
        predict_pb2.PredictRequest(model_spec={"name": "m"}).SerializeToString()
    )


def large_first() -> bytes:
    """A Predict request whose tensors stand before its model spec, as proto allows."""
    request = predict_pb2.PredictRequest()
    request.inputs["x"].float_val.extend([1.0] * 1000)
    return bytes(request.SerializeToString() + predict_pb2.PredictRequest(model_spec={"name": "m"}).SerializeToString())


@pytest.mark.parametrize(
    ("method", "request_", "name"),
    [
        ("Predict", predict_pb2.PredictRequest(model_spec={"name": "m"}), "m"),
        ("Predict", predict_pb2.PredictRequest(model_spec={"signature_name": "s", "name": "mödel"}), "mödel"),
        ("Predict", predict_pb2.PredictRequest(model_spec={"version": {"value": 3}, "name": "m"}), "m"),
        ("Predict", predict_pb2.PredictRequest(), ""),
        ("Predict", predict_pb2.PredictRequest(output_filter=["y"]), ""),
        ("Regress", regression_pb2.RegressionRequest(model_spec={"name": "m"}), "m"),
        ("GetModelStatus", get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "m"}), "m"),
        ("MultiInference", inference_pb2.MultiInferenceRequest(), ""),
        ("MultiInference", inference_pb2.MultiInferenceRequest(tasks=[{"model_spec": {"name": "m"}}, {}]), "m"),
        ("HandleReloadConfigRequest", model_management_pb2.ReloadConfigRequest(), ""),
    ],
)
def test_the_model_of_a_request_is_found_without_parsing_it(method: str, request_: Any, name: str) -> None:
    assert model_name(f"/tensorflow.serving.Service/{method}", request_.SerializeToString()) == name


def test_the_model_is_found_behind_the_tensors() -> None:
    assert model_name(PREDICT, large_first()) == "m"


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x05\x0a\x09m", b"\xff" * 20, b"\x0f\x01", b"\x0a\x03\x0a\x01\xff"])
def test_a_broken_request_names_no_model_and_raises_nothing(body: bytes) -> None:
    assert model_name(PREDICT, body) in ("", "�")


@pytest.mark.parametrize("cut", [1, 5, 10])
def test_a_cut_off_request_names_no_model(cut: int) -> None:
    body = large_first()
    assert model_name(PREDICT, body[: len(body) - cut]) == ""
