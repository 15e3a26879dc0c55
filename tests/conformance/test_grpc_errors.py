"""Every error message of TensorFlow Serving's gRPC services and of what is behind them, provoked once over the wire.

The words there are a prefix of ours, the code is equal. What no request can provoke, or what works here, is listed with
its reason. The batcher's messages are in test_batching_errors.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import pytest_asyncio
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    regression_pb2,
)

from embedserve.config import RetryPolicy
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import by_name, by_numpy
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature
from tests.conformance.conftest import serving
from tests.grpc.conftest import Client, failure, predict_request

C = grpc.StatusCode
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def specs(**dtypes: str) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, by_name(dtypes[name]), None, f"{name}:0") for name in sorted(dtypes)}


def answering(*inputs: str, **outputs: Any) -> FakeLoader:
    """A model over serialized Examples that gives these outputs whatever it is asked."""
    arrays: dict[str, Array] = {
        name: np.array(value, object if np.asarray(value).dtype.kind == "S" else np.float32)
        for name, value in outputs.items()
    }

    def model(version: int, given: Tensors) -> dict[str, Array]:
        return arrays

    taken = specs(**dict.fromkeys(inputs or ("inputs",), "string"))
    given = specs(**{name: by_numpy(array.dtype).name for name, array in arrays.items()})
    return FakeLoader(model, signatures=[Signature("serving_default", taken, given)])


def models() -> dict[str, dict[int, FakeLoader]]:
    two = fake_signature(
        inputs={"a": ("float", (None,)), "b": ("float", (None,))},
        outputs={"y": ("float", (None,)), "y_2": ("float", (None,))},
    )
    defaulted = Signature("serving_default", two.inputs, two.outputs, defaults={"b": np.ones(1, np.float32)})
    one, scores = [1.0], [[1.0]]
    loaders = {
        "m": FakeLoader(),
        "defaulted": FakeLoader(signatures=[defaulted]),
        "odd_method": FakeLoader(signatures=[fake_signature(method_name="odd")]),
        "endless": FakeLoader(gate=Gate()),
        # What is wrong with the signature.
        "two_inputs": answering("inputs", "more", scores=scores),
        "misnamed_input": answering("x", scores=scores),
        "three_outputs": answering(classes=[[b"a"]], scores=scores, more=one),
        "misnamed_output": answering(y=one),
        "two_outputs": answering(outputs=one, more=one),
        # What is wrong with the result for one Example.
        "scorer": answering(scores=scores),
        "vector_scores": answering(scores=one),
        "float_classes": answering(classes=scores),
        "string_scores": answering(scores=[[b"a"]]),
        "more_classes": answering(classes=[[b"a"], [b"b"]]),
        "more_scores": answering(scores=[[1.0], [2.0]]),
        "unequal": answering(classes=[[b"a"]], scores=[[1.0, 2.0]]),
        "regressor": answering(outputs=one),
        "matrix": answering(outputs=[[1.0, 2.0]]),
        "more_values": answering(outputs=[1.0, 2.0]),
        "string_values": answering(outputs=[b"a"]),
    }
    return {name: {1: loader} for name, loader in loaders.items()}


@pytest.fixture(scope="module", params=["embedserve", "asgi", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(transport: str) -> AsyncIterator[Client]:
    async with serving(FakeRegistry(models(), batching=False), transport) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def checking(transport: str) -> AsyncIterator[Client]:
    """A server that checks method names."""
    registry = FakeRegistry(models(), batching=False, enable_signature_method_name_check=True)
    async with serving(registry, transport) as client:
        yield client


class Row(NamedTuple):
    """One message, and the call that provokes it."""

    message: str
    method: str
    request: Any
    code: grpc.StatusCode = C.INVALID_ARGUMENT
    checks_method_names: bool = False


def predict(message: str, request: Any, code: grpc.StatusCode = C.INVALID_ARGUMENT, checks: bool = False) -> Row:
    return Row(message, "Predict", request, code, checks)


def spec(request: Any = None, **fields: Any) -> Any:
    request = predict_request(x=[1]) if request is None else request
    for name, value in fields.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    return request


def broken() -> Any:
    request = predict_request(x=[1])
    request.inputs["x"].tensor_shape.dim[0].size = -1
    return request


def filtered(*names: str) -> Any:
    request = predict_request(x=[1])
    request.output_filter.extend(names)
    return request


def examples(kind: Any, name: str | None, signature_name: str = "", count: int = 1) -> Any:
    request = kind()
    if name is not None:
        request.model_spec.name, request.model_spec.signature_name = name, signature_name
    for _ in range(count):
        request.input.example_list.examples.add()
    return request


def classify(message: str, name: str | None, signature_name: str = "", count: int = 1, checks: bool = False) -> Row:
    request = examples(classification_pb2.ClassificationRequest, name, signature_name, count)
    return Row(message, "Classify", request, checks_method_names=checks)


def regress(message: str, name: str | None, signature_name: str = "", count: int = 1, checks: bool = False) -> Row:
    request = examples(regression_pb2.RegressionRequest, name, signature_name, count)
    return Row(message, "Regress", request, checks_method_names=checks)


def infer(message: str, *tasks: Sequence[str], count: int = 1, code: grpc.StatusCode = C.INVALID_ARGUMENT) -> Row:
    """Tasks of model name, signature name and method."""
    request = inference_pb2.MultiInferenceRequest()
    for name, signature_name, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = name, signature_name
    for _ in range(count):
        request.input.example_list.examples.add()
    return Row(message, "MultiInference", request, code)


def metadata(message: str, *fields: str, name: str | None = "m") -> Row:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    if name is not None:
        request.model_spec.name = name
    return Row(message, "GetModelMetadata", request)


def status(message: str, code: grpc.StatusCode, **fields: Any) -> Row:
    request = get_model_status_pb2.GetModelStatusRequest()
    return Row(message, "GetModelStatus", spec(request, **fields), code)


def reload(message: str, *listed: dict[str, Any], code: grpc.StatusCode = C.INVALID_ARGUMENT) -> Row:
    request = model_management_pb2.ReloadConfigRequest()
    for fields in listed:
        model = {"base_path": "/fake", "model_platform": "tensorflow"} | fields
        request.config.model_config_list.config.add(**model)
    return Row(message, "HandleReloadConfigRequest", request, code)


BOTH_PLATFORM = "ModelServerConfig::model_type (deprecated) {} ModelServerConfig::model_platform, model name is a"

PROVOKED = [
    predict("Missing ModelSpec", predict_request(None, x=[1])),
    classify("Missing ModelSpec", None),
    regress("Missing ModelSpec", None),
    metadata("Missing ModelSpec", "signature_def", name=None),
    status("Missing ModelSpec", C.INVALID_ARGUMENT),
    predict("ModelSpec has no name specified.", spec(name="")),
    classify("ModelSpec has no name specified.", ""),
    regress("ModelSpec has no name specified.", ""),
    infer("ModelSpec has no name specified."),
    metadata("ModelSpec has no name specified.", "signature_def", name=""),
    predict("Unrecognized servable version label: l", spec(version_label="l")),
    predict("Servable not found for request: Latest(none)", spec(name="none"), C.NOT_FOUND),
    predict("Servable not found for request: Specific(m, 7)", spec(version=7), C.NOT_FOUND),
    # Predict.
    predict('Serving signature key "s" not found.', spec(signature_name="s"), C.FAILED_PRECONDITION),
    predict(
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: odd",
        spec(name="odd_method"),
        C.INTERNAL,
        checks=True,
    ),
    predict(
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: {}.",
        predict_request(x=[1], z=[1]),
    ),
    predict(
        "Signature input alias: x(feed name: x:0) not found in request and no default value provided. Inputs expected "
        "to be in the request {z}, or default input alias set: ",
        predict_request(z=[1]),
    ),
    predict(
        "Inputs contains invalid name. Used request inputs: a, request input: a,z",
        predict_request("defaulted", a=[1], z=[1]),
    ),
    predict("tensor parsing error: x", broken()),
    predict("output tensor alias not found in signature: z Outputs expected to be in the set {y}.", filtered("y", "z")),
    predict("duplicate output tensor alias: y", filtered("y", "y")),
    predict("Expects arg[0] to be float but int32 is provided", predict_request(x=np.ones(1, np.int32))),
    # Classify, Regress and MultiInference.
    classify("No signature was found with the name: s", "m", "s"),
    regress("No signature was found with the name: s", "m", "s"),
    classify("Input is empty.", "scorer", count=0),
    regress("Input is empty.", "regressor", count=0),
    infer("Input is empty.", ("scorer", "", CLASSIFY), count=0),
    classify(
        "Expected classification signature method_name to be tensorflow/serving/classify. Was: "
        "tensorflow/serving/predict",
        "scorer",
        checks=True,
    ),
    regress(
        "Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict",
        "regressor",
        checks=True,
    ),
    classify("Expected one input Tensor.", "two_inputs"),
    regress("Expected one input Tensor.", "two_inputs"),
    classify("No classification inputs found in SignatureDef: ", "misnamed_input"),
    regress("No regression inputs found in SignatureDef: ", "misnamed_input"),
    classify("Expected one or two output Tensors, found 3", "three_outputs"),
    classify(
        'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: ',
        "misnamed_output",
    ),
    regress("Expected one output Tensor.", "two_outputs"),
    regress("No regression outputs found in SignatureDef: ", "misnamed_output"),
    classify("Expected Tensor shape: [batch_size num_classes] but got [1]", "vector_scores"),
    classify("Expected classes Tensor of DT_STRING. Got: DT_FLOAT", "float_classes"),
    classify("Expected scores Tensor of DT_FLOAT. Got: DT_STRING", "string_scores"),
    classify("Expected classes output batch size of 1. Got: 2", "more_classes"),
    classify("Expected scores output batch size of 1. Got: 2", "more_scores"),
    classify("Tensors class and score should match in dim_size(1). Got 1 vs. 2", "unequal"),
    regress("Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]", "matrix"),
    regress("Input batch size did not match output batch size: 1 vs. 2", "more_values"),
    regress("Expected output Tensor of DT_FLOAT.  Got: DT_STRING", "string_values"),
    infer("Found ModelSpec with an empty model name.", ("scorer", "", CLASSIFY), ("", "r", REGRESS)),
    infer(
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ("scorer", "", CLASSIFY),
        ("regressor", "", REGRESS),
    ),
    infer(
        "Duplicate evaluation of signature: serving_default",
        ("scorer", "", CLASSIFY),
        ("scorer", "serving_default", REGRESS),
    ),
    infer("Requested signature not found in model graph: s", ("scorer", "s", CLASSIFY)),
    infer("Unsupported signature method_name: odd", ("scorer", "", "odd"), code=C.UNIMPLEMENTED),
    # Metadata, status and reload.
    metadata("GetModelMetadataRequest must specify at least one metadata_field"),
    metadata("Metadata field f is not supported", "signature_def", "f"),
    status("Could not find version 7 of model m", C.NOT_FOUND, name="m", version=7),
    status("Could not find any versions of model none", C.NOT_FOUND, name="none"),
    reload(
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
    ),
    reload("Illegal to list model a multiple times in config list", {"name": "a"}, {"name": "a"}),
    reload(
        "Expected model a to have an absolute path or URI; got base_path()=b",
        {"name": "a", "base_path": "b"},
    ),
    reload("Illegal setting neither " + BOTH_PLATFORM.format("nor"), {"name": "a", "model_platform": ""}),
    reload("Illegal setting both " + BOTH_PLATFORM.format("and"), {"name": "a", "model_type": 1}),
    reload(
        "ModelServerConfig::model_type choice 2 not supported.", {"name": "a", "model_platform": "", "model_type": 2}
    ),
    reload("Model a requests unsupported platform p", {"name": "a", "model_platform": "p"}),
    reload(
        "Request to assign label to version 7 of model m, which is not currently available for inference",
        {"name": "m", "version_labels": {"l": 7}},
        code=C.FAILED_PRECONDITION,
    ),
]

TENSORFLOW_DOES = "TensorFlow answers every output that was fetched, or fails"
NO_FLAG = "there is no flag for it, here nor there"
KEPT_APART = "requests that do not fit together never share a batch"
RUN_ALONE = "works here: it runs by itself"
UNREACHABLE = {
    "ModelSpec has 'version_label' set, but it is not currently allowed by the server.": NO_FLAG,
    "Model labels does not init yet.": "the port opens when the first configuration has been applied",
    "Servable type doesn't match the asked for type.": "there is one platform",
    "Predict internal error": TENSORFLOW_DOES,
    "Expected <n> output tensor(s).  Got: <m>": TENSORFLOW_DOES,
    "Expected output_tensors and output_tensor_names to have the same size.": TENSORFLOW_DOES,
    "Could not find output tensor '<name>'": TENSORFLOW_DOES,
    "Expected output batch size to be <n>.  Got: <m>": "follows from the checks before it",
    "Illegal to change a model's platform.": "needs a --platform_config_file with two: tests/tfs/test_config.py",
    "Cannot transition to requested config.": "only a config file can ask for it: tests/tfs/test_config.py",
    "No request-logger-creator provided.": "requests can be logged here",
    "Batching Run() must have at least one input tensor": RUN_ALONE,
    "Batching Run() input tensors must have at least one dimension": RUN_ALONE,
    "Tensors with name '<tensor>' from different tasks have different shapes and padding is turned off.": KEPT_APART,
    "Tensor concat operation failed: <inner>": KEPT_APART,
    "Only tensors with rank from 1 to 6 can be padded.": KEPT_APART,
    "Got empty tensor in batch of non-empty tensors.": KEPT_APART,
    "One or more tasks does not conform to batch signature": KEPT_APART,
    "Wrong number of batched output tensors": TENSORFLOW_DOES,
    "Tensor split operation failed: <inner>": "views of an array that is long enough, which is checked before",
    "Run() timeout exceeded while waiting in batching queue": "DEADLINE_EXCEEDED, and on time",
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", PROVOKED, ids=[f"{row.method}-{row.message[:50]}" for row in PROVOKED])
async def test_a_message_of_the_grpc_services(row: Row, client: Client, checking: Client) -> None:
    asked = checking if row.checks_method_names else client
    stub = asked.model if row.method in ("GetModelStatus", "HandleReloadConfigRequest") else asked.prediction
    code, message = await failure(getattr(stub, row.method)(row.request, timeout=30))
    assert message.startswith(row.message)
    assert code is row.code


def test_the_table_is_whole() -> None:
    """The table's, a deadline, a failed reload and the batcher's six; and those that nothing can provoke."""
    provoked = {row.message for row in PROVOKED}
    print(f"{len(provoked) + 8} messages provoked, {len(UNREACHABLE)} unreachable")
    assert (len(PROVOKED), len(provoked), len(UNREACHABLE)) == (63, 51, 21)
    assert not provoked & set(UNREACHABLE)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_deadline_is_the_clients(client: Client) -> None:
    code, _ = await failure(client.prediction.Predict(predict_request("endless", x=[1]), timeout=0.2))
    assert code is C.DEADLINE_EXCEEDED


@pytest.mark.asyncio(loop_scope="module")
async def test_a_reload_whose_model_does_not_load(transport: str) -> None:
    found = {"good": {1: FakeLoader()}, "bad": {3: FakeLoader(failures=-1)}}
    async with serving(FakeRegistry(found, models=[], retry=RetryPolicy(max_retries=0)), transport) as client:
        row = reload("", {"name": "good"}, {"name": "bad"})
        code, message = await failure(client.model.HandleReloadConfigRequest(row.request))
        assert code is C.UNKNOWN
        assert message == (
            "1 model(s) did not become available: {{name: bad version: 3} due to error: DATA_LOSS: the fake loader was "
            "told to fail}, }"
        )
        await client.prediction.Predict(predict_request("good", x=[1]))
