"""PredictionService over fake versions: answers, order of checks and the words of every error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from embedserve.config import AllVersions, ModelConfig
from embedserve.errors import Code, InferenceError
from embedserve.observer import Observer
from embedserve.servable import Array, ServableId, State, Tensors
from embedserve.signature import Signature
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
from tests.grpc.conftest import Start, failure, predict_request

C = grpc.StatusCode


def registry(*signatures: Signature, **options: Any) -> FakeRegistry:
    return FakeRegistry({"m": {1: FakeLoader(signatures=signatures or None)}}, **options)


def loader(model: Any, *signatures: Signature) -> FakeRegistry:
    return FakeRegistry({"m": {1: FakeLoader(model, signatures=signatures or None)}})


async def test_predict_answers_in_typed_fields_with_the_version_used(start: Start) -> None:
    client = await start(registry())
    response = await client.prediction.Predict(predict_request(x=[1, 2]))
    assert list(response.outputs) == ["y"]
    assert list(response.outputs["y"].float_val) == [11, 21]
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [2]
    assert not response.outputs["y"].tensor_content
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 1, "serving_default")
    assert spec.WhichOneof("version_choice") == "version"


async def test_the_blocking_stub_works_too(start: Start) -> None:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    client = await start(registry())

    def call() -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{client.server.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            return stub.Predict(predict_request(x=[3]), timeout=30)

    assert list((await asyncio.to_thread(call)).outputs["y"].float_val) == [31]


async def test_tensor_content_both_ways(start: Start) -> None:
    client = await start(registry(), tensor_content=True)
    request = predict_request(x=[])
    request.inputs["x"].Clear()
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=2)
    request.inputs["x"].tensor_content = np.array([1, 2], np.float32).tobytes()
    response = await client.prediction.Predict(request)
    assert np.frombuffer(response.outputs["y"].tensor_content, np.float32).tolist() == [11, 21]


@pytest.mark.parametrize("rows", [2_000_000, 100_000])
async def test_messages_far_over_grpcs_default_limit(start: Start, rows: int) -> None:
    client = await start(registry())
    values = np.arange(rows, dtype=np.float32)
    response = await client.prediction.Predict(predict_request(x=values))
    assert np.array_equal(np.array(response.outputs["y"].float_val, np.float32), values * 10 + 1)


async def test_compressed_requests_and_answers(start: Start) -> None:
    client = await start(registry(), compression="gzip")
    request = predict_request(x=np.zeros(1000, np.float32))
    response = await client.prediction.Predict(request, compression=grpc.Compression.Gzip)
    assert list(response.outputs["y"].float_val) == [1] * 1000


class BothAvailable(Observer):
    """Tells when versions 1 and 2 serve; entering a registry waits for one version of each model only."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._available: set[int] = set()

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        if state is State.AVAILABLE:
            self._available.add(id.version)
        if self._available == {1, 2}:
            self.event.set()


async def test_versions_and_labels_choose_the_version(start: Start) -> None:
    model = ModelConfig(name="m", base_path="/fake/m", version_policy=AllVersions())
    reg = FakeRegistry({"m": {1: FakeLoader(), 2: FakeLoader()}}, models=[model])
    both = BothAvailable()
    reg.observers.add(both)
    client = await start(reg)
    await both.event.wait()
    await reg.set_label("m", "stable", 1)

    async def version(**choice: Any) -> int:
        request = predict_request(x=[0])
        if "version" in choice:
            request.model_spec.version.value = choice["version"]
        elif "label" in choice:
            request.model_spec.version_label = choice["label"]
        response = await client.prediction.Predict(request)
        assert response.model_spec.version_label == ""
        assert list(response.outputs["y"].float_val) == [response.model_spec.version.value]
        return int(response.model_spec.version.value)

    assert await version() == 2
    assert await version(version=1) == 1
    assert await version(label="stable") == 1


TWO = fake_signature(
    inputs={"a": ("float", (None,)), "b": ("float", (None,))},
    outputs={"y": ("float", (None,)), "y_2": ("float", (None,))},
)


def spec(**fields: Any) -> Any:
    request = predict_request(x=[1])
    for name, value in fields.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    return request


def broken(alias: str = "x") -> Any:
    request = predict_request("m", **{alias: [1]})
    request.inputs[alias].tensor_shape.dim[0].size = -1
    return request


def filtered(*names: str) -> Any:
    request = predict_request(x=[1])
    request.output_filter.extend(names)
    return request


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (predict_request(None, x=[1]), C.INVALID_ARGUMENT, "Missing ModelSpec"),
        (spec(name=""), C.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (spec(name="", version=1), C.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (spec(name="none"), C.NOT_FOUND, "Servable not found for request: Latest(none)"),
        (spec(version=7), C.NOT_FOUND, "Servable not found for request: Specific(m, 7)"),
        (spec(version=0), C.NOT_FOUND, "Servable not found for request: Specific(m, 0)"),
        (spec(version=-1), C.NOT_FOUND, "Servable not found for request: Specific(m, -1)"),
        (spec(version_label="l"), C.INVALID_ARGUMENT, "Unrecognized servable version label: l"),
        (spec(version_label=""), C.INVALID_ARGUMENT, "Unrecognized servable version label: "),
        (spec(name="none", version_label="l"), C.INVALID_ARGUMENT, "Unrecognized servable version label: l"),
        (spec(signature_name="s"), C.FAILED_PRECONDITION, 'Serving signature key "s" not found.'),
        (
            predict_request(z=[1], x=[1]),
            C.INVALID_ARGUMENT,
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
            "Missing but required: {}.",
        ),
        (
            predict_request(),
            C.INVALID_ARGUMENT,
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        ),
        (
            predict_request(z=[1]),
            C.INVALID_ARGUMENT,
            "Signature input alias: x(feed name: x:0) not found in request and no default value provided. "
            "Inputs expected to be in the request {z}, or default input alias set: . Sent extra: {z}. "
            "Missing but required: {x}.",
        ),
        (broken(), C.INVALID_ARGUMENT, "tensor parsing error: x"),
        (
            filtered("y", "z"),
            C.INVALID_ARGUMENT,
            "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
        ),
        (filtered("y", "y"), C.INVALID_ARGUMENT, "duplicate output tensor alias: y"),
        (
            predict_request(x=np.array([1], np.int64)),
            C.INVALID_ARGUMENT,
            "Expects arg[0] to be float but int64 is provided",
        ),
        (predict_request(x=[[1]]), C.INVALID_ARGUMENT, "input 'x' of signature 'serving_default' has shape [1,1]"),
        # Which error wins: the model, then the signature, then names, then tensors, then the filter.
        (broken("z"), C.INVALID_ARGUMENT, "Signature input alias: x"),
    ],
)
async def test_predict_errors(start: Start, request_: Any, code: grpc.StatusCode, message: str) -> None:
    client = await start(registry())
    given, details = await failure(client.prediction.Predict(request_))
    assert given is code
    assert details.startswith(message)


async def test_model_resolution_comes_before_the_signature_and_the_signature_before_inputs(start: Start) -> None:
    client = await start(registry())
    request = broken()
    request.model_spec.signature_name = "s"
    assert (await failure(client.prediction.Predict(request)))[0] is C.FAILED_PRECONDITION
    request.model_spec.version.value = 9
    assert (await failure(client.prediction.Predict(request)))[0] is C.NOT_FOUND


async def test_large_requests_fail_in_the_same_words(start: Start) -> None:
    client = await start(registry())
    values = np.zeros(200_000, np.float32)
    request = predict_request(z=values)
    assert (await failure(client.prediction.Predict(request)))[1].startswith("Signature input alias: x")
    request = predict_request(x=values)
    request.inputs["x"].tensor_shape.dim[0].size = -1
    code, message = await failure(client.prediction.Predict(request))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("tensor parsing error: x")


async def test_defaults_fill_what_a_request_leaves_out(start: Start) -> None:
    given = Signature(
        name="serving_default", inputs=TWO.inputs, outputs=TWO.outputs, defaults={"b": np.array([5], np.float32)}
    )
    client = await start(registry(given))
    response = await client.prediction.Predict(predict_request(a=[1]))
    assert list(response.outputs["y_2"].float_val) == [51]
    code, message = await failure(client.prediction.Predict(predict_request(a=[1], c=[1])))
    assert code is C.INVALID_ARGUMENT
    assert message == (
        "Inputs contains invalid name. Used request inputs: a, request input: a,c. Sent extra: {c}. "
        "Missing but required: {}."
    )
    code, message = await failure(client.prediction.Predict(predict_request(b=[1])))
    assert message.endswith("or default input alias set: b. Sent extra: {}. Missing but required: {a}.")


async def test_only_filtered_outputs_are_answered(start: Start) -> None:
    client = await start(registry(TWO))
    request = predict_request(a=[1], b=[2])
    request.output_filter.append("y_2")
    response = await client.prediction.Predict(request)
    assert list(response.outputs) == ["y_2"]


async def test_method_names_are_checked_when_asked(start: Start) -> None:
    odd = fake_signature(method_name="my/own")
    message = (
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: my/own"
    )
    client = await start(registry(odd))
    await client.prediction.Predict(predict_request(x=[1]))
    client = await start(registry(odd, enable_signature_method_name_check=True))
    assert await failure(client.prediction.Predict(predict_request(x=[1]))) == (C.INTERNAL, message)


async def test_tensorflows_errors_keep_their_code_and_text(start: Start) -> None:
    def model(version: int, inputs: Tensors) -> dict[str, Array]:
        raise InferenceError("assertion failed\n\t [[{{node Assert}}]]", code=Code.OUT_OF_RANGE)

    client = await start(loader(model))
    assert await failure(client.prediction.Predict(predict_request(x=[1]))) == (
        C.OUT_OF_RANGE,
        "assertion failed\n\t [[{{node Assert}}]]",
    )


async def test_a_bug_shows_nothing_of_itself(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeRegistry):
        def acquire_now(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError("/secret")

    client = await start(Broken({"m": {1: FakeLoader()}}))
    assert await failure(client.prediction.Predict(predict_request(x=[1]))) == (C.INTERNAL, "internal error")
    assert "/secret" in caplog.text


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"])
@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\xff", b"\x0a\x03\x0a\x01\xff"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(start: Start, method: str, body: bytes) -> None:
    client = await start(registry())
    code, _ = await failure(client.raw(f"/tensorflow.serving.PredictionService/{method}", body))
    assert code is C.INVALID_ARGUMENT


async def test_unknown_methods_are_unimplemented(start: Start) -> None:
    client = await start(registry())
    code, _ = await failure(client.raw("/tensorflow.serving.PredictionService/PredictStreamed"))
    assert code is C.UNIMPLEMENTED


class Seen(Observer):
    """Remembers the calls that metrics are made from."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, str, str, Code]] = []
        self.examples: list[tuple[str, int]] = []

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        assert seconds > 0
        self.finished.append((model_name, api, entrypoint, code))

    def examples_counted(self, model_name: str, examples: int) -> None:
        self.examples.append((model_name, examples))


CLASSIFIER = fake_signature(
    "c", {"inputs": ("string", (None,))}, {"classes": ("string", (None, None)), "scores": ("float", (None, None))}
)
REGRESSOR = fake_signature("r", {"inputs": ("string", (None,))}, {"outputs": ("float", (None,))})


def lengths(version: int, inputs: Tensors) -> dict[str, Array]:
    examples = inputs["inputs"]
    sizes = np.array([len(example) for example in examples], np.float32)
    labels = np.empty((len(examples), 1), object)
    labels[:, 0] = [b"\xff" if example == b"" else b"label" for example in examples]
    return {"classes": labels, "scores": sizes[:, None], "outputs": sizes}


def with_examples(request: Any, signature_name: str, *values: float) -> Any:
    request.model_spec.name = "m"
    request.model_spec.signature_name = signature_name
    for value in values:
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)
    return request


async def test_classify_and_regress(start: Start) -> None:
    client = await start(loader(lengths, CLASSIFIER, REGRESSOR))
    request = with_examples(classification_pb2.ClassificationRequest(), "c", 1)
    size = float(len(request.input.example_list.examples[0].SerializeToString()))
    request.input.example_list.examples.add()
    response = await client.prediction.Classify(request)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 1, "c")
    first, second = response.result.classifications
    assert [(c.label, c.score) for c in first.classes] == [("label", size)]
    # A label that is not UTF-8 still gives an answer that every client can read.
    assert [(c.label, c.score) for c in second.classes] == [("\ufffd", 0)]
    answer = await client.prediction.Regress(with_examples(regression_pb2.RegressionRequest(), "r", 1, 2))
    assert [regression.value for regression in answer.result.regressions] == [size, size]
    assert answer.model_spec.signature_name == "r"


async def test_the_context_is_merged_under_each_example(start: Start) -> None:
    client = await start(loader(lengths, REGRESSOR))
    request = with_examples(regression_pb2.RegressionRequest(), "r")
    listed = request.input.example_list_with_context
    listed.context.features.feature["c"].int64_list.value.append(1)
    listed.examples.add()
    listed.examples.add().features.feature["x"].int64_list.value.append(1)
    shared, own = listed.context.ByteSize(), listed.examples[1].ByteSize()
    response = await client.prediction.Regress(request)
    assert [regression.value for regression in response.result.regressions] == [shared, shared + own]


async def test_many_examples_leave_the_loop(start: Start) -> None:
    client = await start(loader(lengths, CLASSIFIER, REGRESSOR))
    values = [1.0] * 20_000
    response = await client.prediction.Classify(with_examples(classification_pb2.ClassificationRequest(), "c", *values))
    assert len(response.result.classifications) == 20_000
    answer = await client.prediction.Regress(with_examples(regression_pb2.RegressionRequest(), "r", *values))
    assert len(answer.result.regressions) == 20_000


def tasks(*named: tuple[str, str, str], examples: int = 1) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for model, signature_name, method in named:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = model
        task.model_spec.signature_name = signature_name
    for _ in range(examples):
        request.input.example_list.examples.add()
    return request


async def test_multi_inference(start: Start) -> None:
    seen = Seen()
    reg = loader(lengths, CLASSIFIER, REGRESSOR)
    reg.observers.add(seen)
    client = await start(reg)
    response = await client.prediction.MultiInference(tasks(("m", "r", "regress"), ("m", "c", "classify"), examples=2))
    regressed, classified = response.results
    assert regressed.WhichOneof("result") == "regression_result"
    assert [value.value for value in regressed.regression_result.regressions] == [0, 0]
    assert classified.WhichOneof("result") == "classification_result"
    assert len(classified.classification_result.classifications) == 2
    for result, name in ((regressed, "r"), (classified, "c")):
        spec = result.model_spec
        assert (spec.name, spec.signature_name, spec.version.value) == ("m", name, 1)
    assert seen.examples == [("m", 2)]
    assert seen.finished == []


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (inference_pb2.MultiInferenceRequest(), C.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (tasks(("none", "c", "classify")), C.NOT_FOUND, "Servable not found for request: Latest(none)"),
        (
            tasks(("m", "c", "classify"), ("", "r", "regress")),
            C.INVALID_ARGUMENT,
            "Found ModelSpec with an empty model name.",
        ),
        (
            tasks(("m", "c", "classify"), ("n", "r", "regress")),
            C.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            tasks(("m", "c", "classify"), ("m", "c", "regress")),
            C.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: c",
        ),
        (
            tasks(("m", "", "classify")),
            C.INVALID_ARGUMENT,
            "Requested signature not found in model graph: serving_default",
        ),
        (
            tasks(("m", "c", "predict")),
            C.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (tasks(("m", "c", "classify"), examples=0), C.INVALID_ARGUMENT, "Input is empty."),
    ],
)
async def test_multi_inference_errors(start: Start, request_: Any, code: grpc.StatusCode, message: str) -> None:
    client = await start(loader(lengths, CLASSIFIER, REGRESSOR))
    given, details = await failure(client.prediction.MultiInference(request_))
    assert given is code
    assert details.startswith(message)


@pytest.mark.parametrize("method", ["Classify", "Regress"])
async def test_classify_and_regress_errors(start: Start, method: str) -> None:
    client = await start(loader(lengths, CLASSIFIER, REGRESSOR))
    call = getattr(client.prediction, method)
    empty = {"Classify": classification_pb2.ClassificationRequest, "Regress": regression_pb2.RegressionRequest}[method]
    right = {"Classify": "c", "Regress": "r"}[method]
    assert await failure(call(empty())) == (C.INVALID_ARGUMENT, "Missing ModelSpec")
    unknown = with_examples(empty(), "s", 1)
    assert await failure(call(unknown)) == (C.INVALID_ARGUMENT, "No signature was found with the name: s")
    assert await failure(call(with_examples(empty(), right))) == (C.INVALID_ARGUMENT, "Input is empty.")
    contextual = with_examples(empty(), right)
    contextual.input.example_list_with_context.context.SetInParent()
    assert await failure(call(contextual)) == (C.INVALID_ARGUMENT, "Input is empty.")


async def test_observers_hear_of_predict_classify_and_regress_only(start: Start) -> None:
    seen = Seen()
    reg = FakeRegistry({"m": {1: FakeLoader()}}, observers=[seen])
    client = await start(reg)
    await client.prediction.Predict(predict_request(x=[1]))
    await failure(client.prediction.Predict(predict_request("none", x=[1])))
    await failure(client.prediction.Classify(with_examples(classification_pb2.ClassificationRequest(), "c", 1)))
    await failure(client.prediction.Regress(with_examples(regression_pb2.RegressionRequest(), "r", 1)))
    await failure(client.prediction.GetModelMetadata(get_model_metadata_pb2.GetModelMetadataRequest()))
    assert seen.finished == [
        ("m", "Predict", "GRPC", Code.OK),
        ("none", "Predict", "GRPC", Code.NOT_FOUND),
        ("m", "Classify", "GRPC", Code.INVALID_ARGUMENT),
        ("m", "Regress", "GRPC", Code.INVALID_ARGUMENT),
    ]


@pytest.mark.parametrize(
    ("name", "fields", "code", "message"),
    [
        (None, ["signature_def"], C.INVALID_ARGUMENT, "Missing ModelSpec"),
        (
            "m",
            [],
            C.INVALID_ARGUMENT,
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        ("none", ["signature_def", "x"], C.INVALID_ARGUMENT, "Metadata field x is not supported"),
        ("none", ["signature_def"], C.NOT_FOUND, "Servable not found for request: Latest(none)"),
    ],
)
async def test_metadata_errors(
    start: Start, name: str | None, fields: list[str], code: grpc.StatusCode, message: str
) -> None:
    client = await start(registry())
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    if name is not None:
        request.model_spec.name = name
    given, details = await failure(client.prediction.GetModelMetadata(request))
    assert given is code
    assert details.startswith(message)


async def test_what_a_newer_client_sends_is_ignored(start: Start) -> None:
    client = await start(registry())
    request = predict_request(x=[1])
    request.client_id = b"me"
    request.predict_streamed_options.return_single_response = True
    later = predict_pb2.PredictRequest.FromString(request.SerializeToString() + b"\xf8\x3f\x01")
    assert list((await client.prediction.Predict(later)).outputs["y"].float_val) == [11]


def test_the_fakes_give_what_their_signatures_say() -> None:
    outputs: Mapping[str, Array] = lengths(1, {"inputs": np.array([b"a"], object)})
    assert set(outputs) == {*CLASSIFIER.outputs, *REGRESSOR.outputs}
