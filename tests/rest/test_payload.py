from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensorflow.core.example.example_pb2 import Example

from embedserve.errors import Code, InvalidInputError, ServingError
from embedserve.rest.payload import (
    encode_classify,
    encode_error,
    encode_predict,
    encode_regress,
    parse_examples,
    parse_predict,
)
from embedserve.servable import Array
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import DTYPES, DType, by_name
from embedserve.tensors.json_text import to_json
from embedserve.testing import fake_signature


def signature(**inputs: str) -> Signature:
    specs = {name: TensorSpec(name, by_name(dtype), None) for name, dtype in sorted(inputs.items())}
    return Signature("serving_default", specs, {})


def decode(body: str | bytes, **inputs: str) -> dict[str, Array]:
    return parse_predict(body.encode() if isinstance(body, str) else body).decode(signature(**inputs))[0]


def f32(values: Any) -> Array:
    return np.array(values, np.float32)


def failure(call: Callable[[], object]) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()
    return caught.value


IN_ROW_0 = "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
IN_ROW_1 = "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
IN_ROW_2 = "Failed to process element: 2 of 'instances' list. Error: INVALID_ARGUMENT: "

# tfserving contract, golden vectors: dtype of x, body, shape, values.
ACCEPTED: list[tuple[str, str, list[int], Any]] = [
    ("float", '{"instances": [1.0, 2]}', [2], [1, 2]),
    ("uint8", '{"instances": [-1, 300]}', [2], [255, 44]),
    ("int32", '{"instances": [-0]}', [1], [0]),
    ("int32", '{"inputs": 5}', [], 5),
    ("string", '{"inputs": {"b64":"aGVsbG8="}}', [], b"hello"),
    ("string", '{"instances": [{"b64":"aGVsbG8"}]}', [1], [b"hello"]),
    ("int32", '{"instances": [[]]}', [1, 0], [[]]),
    ("int32", '{"inputs": []}', [0], []),
    ("int32", '{"inputs": {"x":[1],"zzz":4}}', [1], [1]),
    ("float", '{"instances": [1.0], "instances": [2.0]}', [1], [1]),
    ("float", '{"instances": [1.0]} trailing', [1], [1]),
    ("float", '\ufeff{"instances": [1.0]}', [1], [1]),
    ("float", '{"instances": [1e39, -1e39, 5e-400, 16777217]}', [4], [math.inf, -math.inf, 0, 16777216]),
    ("double", '{"instances": [123456789.123456789]}', [1], [123456789.123456789]),
    ("int64", '{"instances": [9223372036854775807]}', [1], [2**63 - 1]),
    ("uint64", '{"instances": [18446744073709551615]}', [1], [2**64 - 1]),
    ("uint32", '{"instances": [4294967295]}', [1], [2**32 - 1]),
    ("bool", '{"instances": [true, false]}', [2], [True, False]),
    ("string", '{"instances": ["a\\u0000b", {"b64": ""}, "\\u00e9"]}', [3], [b"a\0b", b"", b"\xc3\xa9"]),
    ("string", '{"instances": [[["a"], ["b"]]]}', [1, 2, 1], [[[b"a"], [b"b"]]]),
    ("string", '{"instances": [{"x": "a"}, {"x": {"b64": "Yg=="}}]}', [2], [b"a", b"b"]),
    ("string", '{"inputs": ["a", {"b64": " aGV sbG8=\\n"}]}', [2], [b"a", b"hello"]),
    ("float", '{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}', [2, 2], [[1, 2], [3, 4]]),
    ("float", '{"signature_name": "", "inputs": {"x": {"x": 1}, "x": 2}, "z": 1}', [], None),
    ("half", '{"inputs": []}', [0], []),
]

REFUSED: list[tuple[str, str, str]] = [
    ("int32", '{"instances": [1.0, 2]}', IN_ROW_0 + "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    (
        "int32",
        '{"instances": [2147483648]}',
        IN_ROW_0 + "JSON Value: 2147483648 Type: Number is not of expected type: int32, whose values are from "
        "-2147483648 to 2147483647",
    ),
    ("bool", '{"instances": [1]}', IN_ROW_0 + "JSON Value: 1 Type: Number is not of expected type: bool"),
    ("float", '{"instances": [true]}', IN_ROW_0 + "JSON Value: true Type: True is not of expected type: float"),
    ("float", '{"instances": [null]}', IN_ROW_0 + "JSON Value: null Type: Null is not of expected type: float"),
    ("float", '{"instances": [nan]}', "JSON Parse error: Invalid value. at offset: 16"),
    ("float", '{"instances": [1e400]}', "JSON Parse error: Number too big to be stored in double. at offset: 15"),
    (
        # TF Serving prints ...553000.0, which is not the nearest of the shortest forms.
        "uint64",
        '{"instances": [18446744073709551616]}',
        IN_ROW_0 + "JSON Value: 18446744073709552000.0 Type: Number is not of expected type: uint64",
    ),
    (
        "half",
        '{"instances": [1]}',
        "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: Conversion of JSON Value: 1 to type: "
        "half",
    ),
    ("string", '{"inputs": {"b64":5}}', "Missing named input: x in 'inputs' object. It takes x; sent: b64"),
    (
        "string",
        '{"inputs": {"x":{"b64":5}}}',
        'JSON Value: {\n    "b64": 5\n} not formatted correctly for base64 data',
    ),
    (
        "string",
        '{"instances": [{"b64":"aGVsbG8=","z":1}]}',
        "Failed to process element: 0 key: b64 of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not "
        "have named input: b64; the inputs of the signature are: x",
    ),
    (
        "float",
        '{"instances": [{"b64":"aGVsbG8="}]}',
        IN_ROW_0 + 'JSON Value: {\n    "b64": "aGVsbG8="\n} Type: Object is not of expected type: float',
    ),
    ("int32", '{"instances": []}', "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    ("int32", '{"instances": 1}', "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array"),
    ("int32", '{"inputs": null}', "JSON Value: null Type: Null is not of expected type: int32"),
    ("int32", "{}", "Missing 'inputs' or 'instances' key"),
    ("int32", "[1]", "JSON Value: [1] Is not object"),
    (
        "float",
        '{"instances": [1.0], "inputs": [2.0]}',
        'JSON Value: {\n    "instances": [1.0],\n    "inputs": [2.0]\n} Not formatted correctly expecting only one of '
        "'inputs' or 'instances' keys to exist ",
    ),
    ("int32", '{"instances": [[1,2],[3,4],[5,6,7]]}', IN_ROW_2 + "Expecting tensor size: 2 but got: 3"),
    ("int32", '{"instances": [[1,2],[3,4],[[5,6]]]}', IN_ROW_2 + "Expecting shape [2] but got: [1,2]"),
    ("int32", '{"instances": [1,[1]]}', IN_ROW_1 + "Expecting shape [] but got: [1]"),
    ("int32", '{"instances": [[1,[2]]]}', IN_ROW_0 + "Encountered list at unexpected level: 1 expected < 1"),
    (
        "int32",
        '{"instances": [[[1],2]]}',
        IN_ROW_0 + "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    ("int32", '{"inputs": [[1],[2,3]]}', "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
    ("int32", '{"instances": [{"x":1}, 2]}', "Expecting object but got list at item 1 of input list"),
    ("int32", '{"instances": [1, {"x":1}]}', "Expecting value/list but got object at item 1 of input list"),
    (
        "int32",
        '{"instances": [{}]}',
        "Failed to process element: 0 of 'instances' list. JSON object: {} keys must be equal to: x",
    ),
    (
        "float",
        '{"signature_name": null, "instances":[1]}',
        'JSON Value: {\n    "signature_name": null,\n    "instances": [1]\n} not formatted correctly. '
        "'signature_name' key must be a string value.",
    ),
    ("string", '{"instances": [{"b64": "-_-_"}]}', IN_ROW_0 + "Unable to base64 decode"),
    ("string", '{"instances": [{"b64": "aGVsbG8=="}]}', IN_ROW_0 + "Unable to base64 decode"),
    ("string", '{"instances": [{"b64": "aGVsb"}]}', IN_ROW_0 + "Unable to base64 decode"),
    (
        "uint32",
        '{"instances": [-1]}',
        IN_ROW_0 + "JSON Value: -1 Type: Number is not of expected type: uint32, whose values are from 0 to 4294967295",
    ),
    (
        "int64",
        '{"instances": [9223372036854775808]}',
        IN_ROW_0 + "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64, whose values are from "
        "-9223372036854775808 to 9223372036854775807",
    ),
    ("string", '{"instances": [1]}', IN_ROW_0 + "JSON Value: 1 Type: Number is not of expected type: string"),
    ("float", '{"instances": ["a"]}', IN_ROW_0 + 'JSON Value: "a" Type: String is not of expected type: float'),
]


@pytest.mark.parametrize(("dtype", "body", "shape", "values"), ACCEPTED)
def test_golden_vectors_that_are_accepted(dtype: str, body: str, shape: list[int], values: Any) -> None:
    if values is None:
        error = failure(lambda: decode(body, x=dtype))
        assert "Type: Object is not of expected type: float" in error.message
        return
    array = decode(body, x=dtype)["x"]
    assert array.dtype == by_name(dtype).numpy
    assert list(array.shape) == shape
    assert array.tolist() == values


def test_golden_vector_of_the_bare_tokens() -> None:
    array = decode('{"instances": [NaN, Infinity, -Infinity, -NaN, Inf, -Inf]}', x="float")["x"]
    assert np.isnan(array[[0, 3]]).all()
    assert array[[1, 2, 4, 5]].tolist() == [math.inf, -math.inf, math.inf, -math.inf]


@pytest.mark.parametrize(("dtype", "body", "message"), REFUSED)
def test_golden_vectors_that_are_refused(dtype: str, body: str, message: str) -> None:
    error = failure(lambda: decode(body, x=dtype))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


def test_dtypes_that_json_cannot_carry_are_unimplemented_in_columns() -> None:
    error = failure(lambda: decode('{"inputs": [1]}', x="half"))
    assert (error.code, error.message) == (Code.UNIMPLEMENTED, "Conversion of JSON Value: 1 to type: half")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            '{"instances": [{"x":1}]}',
            "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"x\": 1\n} keys must be equal "
            "to: x,y",
        ),
        (
            '{"instances": [1,2]}',
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        (
            '{"instances": [{"b64": "YQ=="}]}',
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        (
            '{"inputs": [1,2]}',
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        (
            '{"instances": [{"x": 1, "y": "a"}]}',
            "Failed to process element: 0 key: y of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "a" Type: String is not of expected type: int32',
        ),
        ('{"inputs": {"x": 1}}', "Missing named input: y in 'inputs' object. It takes x, y; sent: x"),
        (
            '{"instances": [{"x": 1, "x": 2, "y": 1}]}',
            "Failed to process element: 0 of 'instances' list. Error: repeated key",
        ),
    ],
)
def test_signatures_of_two_inputs(body: str, message: str) -> None:
    assert failure(lambda: decode(body, x="int32", y="int32")).message == message


def test_named_rows_and_columns_become_one_array_per_input() -> None:
    rows = decode('{"instances": [{"y": "a", "x": [1, 2]}, {"x": [3, 4], "y": "b"}]}', x="int32", y="string")
    columns = decode('{"inputs": {"x": [[1, 2], [3, 4]], "y": ["a", "b"]}}', x="int32", y="string")
    for arrays in (rows, columns):
        assert {name: array.tolist() for name, array in arrays.items()} == {"x": [[1, 2], [3, 4]], "y": [b"a", b"b"]}


def test_an_input_called_b64_can_be_named() -> None:
    body = '{"instances": [{"b64": "YQ==", "x": 1}]}'
    assert decode(body, b64="string", x="int32")["b64"].tolist() == [b"YQ=="]


def test_the_format_of_the_request_is_known_for_the_answer() -> None:
    assert parse_predict(b'{"instances": [1]}').decode(signature(x="float"))[1]
    assert not parse_predict(b'{"inputs": [1]}').decode(signature(x="float"))[1]


def test_signature_name_is_known_before_the_inputs_are_read() -> None:
    assert parse_predict(b'{"signature_name": "other", "instances": 1}').signature_name == "other"
    assert parse_predict(b'{"signature_name": ""}').signature_name == "serving_default"
    assert parse_predict(b"{}").signature_name == "serving_default"
    big = json.dumps({"instances": [0.5] * 10_000, "signature_name": "other"}).encode()
    assert parse_predict(big).signature_name == "other"
    bad = json.dumps({"instances": [0.5] * 10_000, "signature_name": 1}).encode()
    assert "'signature_name' key must be a string value" in failure(lambda: parse_predict(bad)).message


def test_signature_without_inputs() -> None:
    for body in ('{"inputs": 1}', '{"instances": []}', '{"instances": [{}, 1]}', '{"inputs": {}, "instances": [{}]}'):
        message = failure(lambda body=body: decode(body)).message  # type: ignore[misc]
        assert message.startswith("Failed to get input map for signature: DEFAULT: it has no inputs"), body
    for body, row_format in (('{"inputs": {}}', False), ('{"instances": [{}, {}]}', True)):
        assert parse_predict(body.encode()).decode(signature()) == ({}, row_format)


def with_default() -> Signature:
    plain = signature(x="float", y="int32")
    return dataclasses.replace(plain, defaults={"y": np.array([7], np.int32)})


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ('{"inputs": {"x": [1]}}', {"x": [1.0]}),
        ('{"inputs": {"x": [1], "y": [2]}}', {"x": [1.0], "y": [2]}),
        ('{"instances": [{"x": 1}, {"x": 2}]}', {"x": [1.0, 2.0]}),
        ('{"instances": [{"x": 1, "y": 2}]}', {"x": [1.0], "y": [2]}),
    ],
)
def test_inputs_with_a_default_may_be_left_out(body: str, given: Any) -> None:
    inputs, _ = parse_predict(body.encode()).decode(with_default())
    assert {name: array.tolist() for name, array in inputs.items()} == given


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"inputs": {"y": [1]}}', "Missing named input: x in 'inputs' object."),
        ('{"instances": [{"y": 1}]}', "keys must be equal to: x,y"),
        ('{"instances": [{"x": 1}, {"x": 1, "y": 2}]}', "It has y, which element 0 leaves to the signature's default"),
        ('{"instances": [{"x": 1, "y": 2}, {"x": 1}]}', "keys must be equal to: x,y"),
    ],
)
def test_an_input_is_left_out_of_all_rows_or_of_none(body: str, message: str) -> None:
    assert message in failure(lambda: parse_predict(body.encode()).decode(with_default())).message


@pytest.mark.parametrize("size", [1, 10_000])
def test_an_output_filter_is_a_name_or_a_list_of_names(size: int) -> None:
    instances = [0.5] * size
    for value, names in (("y", ["y"]), (["y", "z"], ["y", "z"]), ([], [])):
        body = json.dumps({"output_filter": value, "instances": instances}).encode()
        payload = parse_predict(body)
        assert payload.output_filter == names
        assert payload.decode(signature(x="float"))[0]["x"].tolist() == instances
    for bad in (None, 1, ["y", 1], {"y": 1}):
        body = json.dumps({"output_filter": bad, "instances": instances}).encode()
        message = failure(lambda body=body: parse_predict(body)).message  # type: ignore[misc]
        assert "'output_filter' key must be a string value or a list of strings" in message


@pytest.mark.parametrize("dtype", ["float", "string"])
@pytest.mark.parametrize("depth", [65, 1_000, 20_000])
def test_nesting_without_end_is_refused_without_recursion(dtype: str, depth: int) -> None:
    body = '{"instances": ' + "[" * depth + "1" + "]" * depth + "}"
    assert failure(lambda: decode(body, x=dtype)).code == Code.INVALID_ARGUMENT
    assert failure(lambda: decode(body.replace("instances", "inputs"), x=dtype)).code == Code.INVALID_ARGUMENT
    assert failure(lambda: decode('{"instances": ' + "[" * depth, x=dtype)).message.startswith("JSON Parse error: ")


@pytest.mark.parametrize(("depth", "read"), [(68, True), (69, False), (20_000, False)])
def test_nesting_counts_wherever_it_is(depth: int, read: bool) -> None:
    body = '{"ignored": ' + "[" * depth + "]" * depth + ', "inputs": 5}'
    if read:
        assert decode(body, x="int32")["x"] == 5
    else:
        assert failure(lambda: decode(body, x="int32")).message.startswith("JSON Parse error: More than 68 lists")


def test_bytes_that_are_no_utf8_come_through_unchanged() -> None:
    assert decode(b'{"instances": ["\xff\xfe", "a"]}', x="string")["x"].tolist() == [b"\xff\xfe", b"a"]
    assert json.loads(encode_error("caf\u00e9"))["error"] == "caf\u00e9"
    message = failure(lambda: decode(b'{"instances": ["\xff"]}', x="float")).message
    assert b'\\"\xff\\"' in encode_error(message)


def written(outputs: dict[str, Any], row_format: bool = True) -> bytes:
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    return encode_predict(arrays, signature(x="float"), row_format)


def strings(values: list[Any]) -> Array:
    return by_name("string").convert(values)


def test_one_output_is_written_without_its_name() -> None:
    assert json.loads(written({"y": f32([2.5, 3, 4.5])})) == {"predictions": [2.5, 3.0, 4.5]}
    assert json.loads(written({"y": f32([[2.5, 3]])}, False)) == {"outputs": [[2.5, 3.0]]}
    assert json.loads(written({"y": f32(2.5)}, False)) == {"outputs": 2.5}


def test_several_outputs_are_written_per_row_or_per_column() -> None:
    outputs = {"a": f32([[2.5, 3], [4.5, 0.1]]), "b": strings(["x", "y"]), "c": np.array([[[1]], [[2]]])}
    assert json.loads(written(outputs)) == {
        "predictions": [{"a": [2.5, 3.0], "b": "x", "c": [[1]]}, {"a": [4.5, 0.1], "b": "y", "c": [[2]]}]
    }
    assert json.loads(written(outputs, False)) == {
        "outputs": {"a": [[2.5, 3.0], [4.5, 0.1]], "b": ["x", "y"], "c": [[[1]], [[2]]]}
    }


def test_outputs_whose_name_ends_with_bytes_are_base64() -> None:
    outputs = {"b": strings(["x"]), "c_bytes": strings([["x", "y"]])}
    assert json.loads(written(outputs)) == {"predictions": [{"b": "x", "c_bytes": [{"b64": "eA=="}, {"b64": "eQ=="}]}]}
    assert json.loads(written({"c_bytes": strings([b"\xff"])})) == {"predictions": [{"b64": "/w=="}]}
    assert json.loads(written({"c_bytes": f32([1])})) == {"predictions": [1.0]}


def test_string_outputs_that_are_no_utf8_pass_as_they_are() -> None:
    assert written({"y": strings([b'\xff"\n', "é"])}) == b'{"predictions": ["\xff\\"\\n","\xc3\xa9"]}'
    assert b'"y": "\xff"' in written({"y": strings([b"\xff"]), "z": strings(["a"])})


def test_values_without_json_form_are_bare_tokens() -> None:
    values = f32([[1, math.nan], [math.inf, -math.inf]])
    assert written({"y": values}) == b'{"predictions": [[1.0,NaN],[Infinity,-Infinity]]}'
    assert written({"y": np.array(math.nan)}, False) == b'{"outputs": NaN}'
    rows = json.loads(written({"y": values, "z": np.array([math.nan, 2])}))["predictions"]
    assert rows[1] == {"y": [math.inf, -math.inf], "z": 2.0}


def test_float32_reads_back_as_the_same_float32() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([bits[np.isfinite(bits)], f32([0.1, 1 / 3, 9e6, 3e-5, -0.0, 3.4028235e38, 1e-45])])
    text = written({"y": values})
    read = json.loads(text)["predictions"]
    assert all(isinstance(value, float) for value in read)
    assert np.array(read, np.float32).tobytes() == values.tobytes()
    assert b"0.1," in text
    assert struct.unpack("f", struct.pack("f", read[0]))[0] == values[0]


@pytest.mark.parametrize("dtype", ["float", "double", "int32", "int16", "int8", "uint8", "int64", "uint32", "uint64"])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (2, 1, 2), (2, 0), (2, 0, 3), (2, 3, 0), (1, 1, 1, 1)])
def test_rows_of_numbers_of_any_shape(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=by_name(dtype).numpy).reshape(shape)
    assert json.loads(written({"y": array}))["predictions"] == array.tolist()
    rows = json.loads(written({"y": array, "%z": array[:, None]}))["predictions"]
    assert rows == [{"y": row, "%z": [row]} for row in array.tolist()]


NARROW = [row for row in DTYPES if row.json == "unsupported" and row.numpy.kind != "c" and not row.numpy.hasobject]


@pytest.mark.parametrize("dtype", NARROW, ids=[row.name for row in NARROW])
@pytest.mark.parametrize("shape", [(0,), (2,), (2, 1)])
def test_narrow_dtypes_are_written_as_wider_ones_of_the_same_value(dtype: DType, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.int8).astype(dtype.numpy[0]).view(dtype.numpy) if dtype.numpy.fields else None
    array = np.ones(shape).astype(dtype.numpy) if array is None else array
    assert json.loads(written({"y": array}))["predictions"] == np.ones(shape).tolist()
    rows = json.loads(written({"y": array, "z": array}))["predictions"]
    assert rows == [{"y": row, "z": row} for row in np.ones(shape).tolist()]


def test_a_half_reads_back_as_the_same_half() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    assert np.array(json.loads(written({"y": values}))["predictions"], np.float16).tobytes() == values.tobytes()
    assert written({"y": np.array([math.nan, -math.inf], np.float16)}) == b'{"predictions": [NaN,-Infinity]}'


def test_bools_are_written_as_words() -> None:
    assert written({"y": np.array([True, False])}) == b'{"predictions": [true,false]}'


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "Cannot convert empty tensor map to JSON"),
        ({"y": f32(1)}, "Tensor name: y has no shape information "),
        (
            {"a": f32([1, 2]), "b": f32([1])},
            "Tensor name: b has inconsistent batch size: 1 expecting: 2",
        ),
        ({"y": np.array([1], np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
        ({"y": np.array([1], np.complex128)}, "Failed to write JSON value for tensor type: complex128"),
    ],
)
def test_outputs_that_cannot_be_written(outputs: dict[str, Any], message: str) -> None:
    assert failure(lambda: written(outputs)).message.startswith(message)


def test_examples_become_tf_examples() -> None:
    body = {
        "signature_name": "s",
        "context": {"c": 1},
        "examples": [{"i": [1, True], "f": [1.5, 2.0], "s": ["a", {"b64": "Yg=="}], "none": []}, {}],
    }
    parsed = parse_examples(json.dumps(body).encode())
    assert parsed.signature_name == "s"
    assert parsed.context is not None
    assert list(Example.FromString(parsed.context).features.feature["c"].int64_list.value) == [1]
    first, second = map(Example.FromString, parsed.examples)
    features = first.features.feature
    assert list(features["i"].int64_list.value) == [1, 1]
    assert list(features["f"].float_list.value) == [1.5, 2.0]
    assert list(features["s"].bytes_list.value) == [b"a", b"b"]
    assert "none" in features
    assert features["none"].WhichOneof("kind") is None
    assert not second.features.feature


def test_example_features_of_odd_numbers() -> None:
    (example,) = parse_examples(b'{"examples": [{"x": 1, "x": [NaN, 1e39], "y": 18446744073709551616}]}').examples
    features = Example.FromString(example).features.feature
    assert math.isnan(features["x"].float_list.value[0])
    assert features["x"].float_list.value[1] == math.inf
    assert features["y"].float_list.value[0] == 2.0**64


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"examples":[{"x":[1,2.0]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples":[{"x":[1.0,2]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples":[{"x":["a",2]}]}', "Unexpected element type in feature: x expecting type: bytes"),
        ('{"context":[1],"examples":[{"x":1}]}', "Example must be JSON object but got JSON Array"),
        ('{"examples":[1]}', "Example must be JSON object but got JSON Number"),
        ("{}", "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ('{"examples": 1}', "JSON Value: {\n    \"examples\": 1\n} Expecting 'examples' value to be an list/array"),
        ('{"examples": []}', "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
        ('{"examples":[{"x":null}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples":[{"x":[[1]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples":[{"x":{"b64":1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        (
            '{"examples":[{"x":9223372036854775808}]}',
            "Feature: x has uint64_t element. Only int64_t is supported.",
        ),
        ('{"examples":[{"x":{"b64":"*"}}]}', "Unable to base64 decode"),
        ("[1]", "JSON Value: [1] Is not object"),
    ],
)
def test_what_is_no_example(body: str, message: str) -> None:
    error = failure(lambda: parse_examples(body.encode()))
    assert isinstance(error, InvalidInputError)
    assert error.message == message


def test_feature_names_that_are_no_utf8_are_refused() -> None:
    assert "not UTF-8" in failure(lambda: parse_examples(b'{"examples": [{"\xff": 1}]}')).message


def test_results_of_classify_and_regress() -> None:
    classes = [[(b"car", 0.2), (b"bike", 0.7)], [], [(b"", 3.0)]]
    assert encode_classify(classes) == b'{"results": [[["car", 0.2], ["bike", 0.7]], [], [["", 3.0]]]}'
    assert json.loads(encode_regress(f32([0.2, 3, 1e10]))) == {"results": [0.2, 3.0, 1e10]}
    assert "ClassificationResults" in failure(lambda: encode_classify([])).message
    assert "RegressionResults" in failure(lambda: encode_regress(f32([]))).message


def test_error_bodies_are_json() -> None:
    assert json.loads(encode_error('a "quoted"\n\x01 path/é')) == {"error": 'a "quoted"\n\x01 path/é'}


def test_to_json_writes_as_the_rest_api() -> None:
    outputs = {
        "scores": np.array([[0.1, np.nan], [np.inf, -1.5]], np.float32),
        "text": np.array([b"a\xc3\xa9", b'"'], object),
        "raw_bytes": np.array([b"\xff"], object),
        "half": np.array(0.25, np.float16),
        "none": np.zeros((0, 2), np.int64),
    }
    text = to_json(outputs)
    assert b'{"outputs": %b}' % text == encode_predict(outputs, fake_signature(), row_format=False)
    assert json.loads(text) == {
        "scores": [[0.1, pytest.approx(np.nan, nan_ok=True)], [np.inf, -1.5]],
        "text": ["aé", '"'],
        "raw_bytes": [{"b64": "/w=="}],
        "half": 0.25,
        "none": [],
    }
    assert to_json(np.arange(3)) == b"[0,1,2]"
    assert to_json({}) == b"{}"
    with pytest.raises(InvalidInputError, match="complex64"):
        to_json({"z": np.zeros(1, np.complex64)})
