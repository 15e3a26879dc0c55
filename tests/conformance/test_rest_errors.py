"""Every error message of TensorFlow Serving's REST handler, provoked once over HTTP.

The words there are a prefix of ours, and so are code and status. What no request can provoke is listed with its reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytest_asyncio

from embedserve.rest import create_app
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import by_name
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature
from tests.rest.conftest import Server, _serve

PREDICT, CLASSIFY, REGRESS = (f"/v1/models/{{}}:{verb}" for verb in ("predict", "classify", "regress"))
ROW = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: "


def one_input(dtype: str) -> FakeLoader:
    return FakeLoader(signatures=[fake_signature(inputs={"x": (dtype, None)}, outputs={"y": (dtype, None)})])


def answering(**outputs: Any) -> FakeLoader:
    """A model that gives these outputs whatever it is asked."""
    arrays: dict[str, Array] = {name: np.asarray(value) for name, value in outputs.items()}

    def model(version: int, inputs: Tensors) -> dict[str, Array]:
        return arrays

    specs = {
        name: TensorSpec(name, by_name("complex64" if a.dtype == np.complex64 else "float"), None)
        for name, a in arrays.items()
    }
    signature = Signature("serving_default", {"x": TensorSpec("x", by_name("float"), None)}, specs)
    return FakeLoader(model, signatures=[signature])


def models() -> dict[str, dict[int, FakeLoader]]:
    two = {"x": ("int32", None), "y": ("int32", None)}
    loaders = {
        "m": FakeLoader(),
        "int32": one_input("int32"),
        "string": one_input("string"),
        "half": one_input("half"),
        "two": FakeLoader(signatures=[fake_signature(inputs=two, outputs={"y": ("int32", None)})]),
        "inputless": FakeLoader(signatures=[Signature("serving_default", {}, {})]),
        "silent": answering(),
        "scalar": answering(y=1.0),
        "uneven": answering(a=[1.0, 2.0], b=[1.0]),
        "complex_out": answering(y=np.zeros(1, np.complex64)),
        "endless": FakeLoader(gate=Gate()),
    }
    return {name: {1: loader} for name, loader in loaders.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(FakeRegistry(models(), batching=False))
        yield await stack.enter_async_context(_serve(create_app(registry, timeout=0.2)))


class Row(NamedTuple):
    """One message, and the request that provokes it: GET without a body."""

    message: str
    target: str
    body: str | None = None
    status: int = 400


def predict(message: str, body: str, model: str = "m", status: int = 400) -> Row:
    return Row(message, PREDICT.format(model), body, status)


def examples(message: str, body: str, target: str = CLASSIFY) -> Row:
    return Row(message, target.format("m"), body)


PROVOKED = [
    Row("Malformed request: POST /v1/models/m", "/v1/models/m", "{}"),
    Row("Malformed request: GET /v1/models/m:predict", "/v1/models/m:predict"),
    Row("Missing model name in request.", "/v1/models/labels/x"),
    predict("JSON Parse error: Invalid value. at offset: 16", '{"instances": [nan]}'),
    predict("JSON Value: [1] Is not object", "[1]"),
    predict(
        "JSON Value: {\n    \"signature_name\": null\n} not formatted correctly. 'signature_name' key must be a string "
        "value.",
        '{"signature_name": null}',
    ),
    predict('Serving signature name: "s" not found in signature def', '{"signature_name": "s", "instances": [1]}'),
    predict("Failed to get input map for signature: DEFAULT", '{"instances": [1]}', "inputless"),
    predict("Missing 'inputs' or 'instances' key", "{}"),
    predict(
        'JSON Value: {\n    "instances": [1],\n    "inputs": [1]\n} Not formatted correctly expecting only one of '
        "'inputs' or 'instances' keys to exist ",
        '{"instances": [1], "inputs": [1]}',
    ),
    predict("JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array", '{"instances": 1}'),
    predict("JSON Value: {\n    \"instances\": []\n} No values in 'instances' array", '{"instances": []}'),
    predict(
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map",
        '{"instances": [1]}',
        "two",
    ),
    predict(
        "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
        "tensorinfo_map",
        '{"inputs": [1]}',
        "two",
    ),
    predict("Missing named input: y in 'inputs' object.", '{"inputs": {"x": 1}}', "two"),
    predict(
        "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have "
        "named input: z",
        '{"instances": [{"z": 1}]}',
    ),
    predict(
        "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"x\": 1\n} keys must be equal to: x,y",
        '{"instances": [{"x": 1}]}',
        "two",
    ),
    predict("Expecting object but got list at item 1 of input list", '{"instances": [{"x": 1}, 2]}'),
    predict("Expecting value/list but got object at item 1 of input list", '{"instances": [1, {"x": 2}]}'),
    predict(ROW.format(1) + "Expecting tensor size: 2 but got: 3", '{"instances": [[1, 2], [1, 2, 3]]}', "int32"),
    predict(ROW.format(1) + "Expecting shape [2] but got: [1,2]", '{"instances": [[1, 2], [[1, 2]]]}', "int32"),
    predict(
        ROW.format(0) + "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        '{"instances": [[[1], 2]]}',
        "int32",
    ),
    predict(ROW.format(0) + "Encountered list at unexpected level: 1 expected < 1", '{"instances": [[1, [2]]]}'),
    predict("Encountered list at unexpected size: 2 at level: 1 expected size: 1", '{"inputs": [[1], [2, 3]]}'),
    predict(ROW.format(0) + "JSON Value: true Type: True is not of expected type: float", '{"instances": [true]}'),
    predict(
        'JSON Value: {\n    "b64": 5\n} not formatted correctly for base64 data',
        '{"inputs": {"x": {"b64": 5}}}',
        "string",
    ),
    predict(ROW.format(0) + "Unable to base64 decode", '{"instances": [{"b64": "*"}]}', "string"),
    predict("Conversion of JSON Value: 1 to type: half", '{"inputs": [1]}', "half", 501),
    predict("Cannot convert empty tensor map to JSON", '{"inputs": [1]}', "silent"),
    predict("Tensor name: y has no shape information ", '{"instances": [1]}', "scalar"),
    predict("Tensor name: b has inconsistent batch size: 1 expecting: 2", '{"instances": [1]}', "uneven"),
    predict("Failed to write JSON value for tensor type: complex64", '{"inputs": [1]}', "complex_out"),
    examples("JSON Value: {} When method is classify, key 'examples' is expected and was not found", "{}"),
    examples("JSON Value: {} When method is classify, key 'examples' is expected and was not found", "{}", REGRESS),
    examples("JSON Value: {\n    \"examples\": 1\n} Expecting 'examples' value to be an list/array", '{"examples": 1}'),
    examples("JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array", '{"examples": []}'),
    examples("Example must be JSON object but got JSON Array", '{"context": [1], "examples": [1]}'),
    examples("Feature: x has element with unexpected JSON type: Null", '{"examples": [{"x": null}]}'),
    examples("Unexpected element type in feature: x expecting type: int64", '{"examples": [{"x": [1, 2.0]}]}'),
    examples(
        "Feature: x has uint64_t element. Only int64_t is supported.", '{"examples": [{"x": 9223372036854775808}]}'
    ),
    # The shared back end: one of each kind.
    predict("Servable not found for request: Latest(missing)", '{"instances": [1]}', "missing", 404),
    Row("Servable not found for request: Specific(m, 7)", "/v1/models/m/versions/7:predict", '{"instances": [1]}', 404),
    Row("Unrecognized servable version label: l", "/v1/models/m/labels/l:predict", '{"instances": [1]}'),
    Row("Could not find any versions of model missing", "/v1/models/missing", status=404),
    Row("Could not find version 7 of model m", "/v1/models/m/versions/7", status=404),
    examples("No signature was found with the name: s", '{"signature_name": "s", "examples": [{"x": 1}]}'),
    examples("No classification inputs found in SignatureDef: ", '{"examples": [{"x": 1}]}'),
    predict("Timed out waiting for notification", '{"instances": [1]}', "endless", 504),
]

NO_PROTO_FAILS = "our documents are written from messages that we made ourselves: there is nothing in them to fail"
UNREACHABLE = {
    "Failed to find 'signature_def' key in the GetModelMetadataResponse metadata map.": NO_PROTO_FAILS,
    "Failed to unpack 'Any' object to 'SignatureDefMap'.": NO_PROTO_FAILS,
    "Failed to convert proto to json. Error: ": NO_PROTO_FAILS,
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", PROVOKED, ids=[row.message[:60] for row in PROVOKED])
async def test_a_message_of_the_rest_handler(row: Row, server: Server) -> None:
    response = await server.client.request("GET" if row.body is None else "POST", row.target, content=row.body)
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    assert document["error"].startswith(row.message)
    assert response.status_code == row.status


def test_the_table_is_whole() -> None:
    """38 messages of the handler's own, two of them in two ways; 8 from behind it; 3 that nothing can provoke."""
    provoked = {row.message for row in PROVOKED}
    print(f"{len(provoked)} messages provoked, {len(UNREACHABLE)} unreachable")
    assert (len(PROVOKED), len(provoked), len(UNREACHABLE)) == (48, 47, 3)
    assert not provoked & set(UNREACHABLE)
