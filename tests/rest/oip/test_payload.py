"""Bodies ⇄ tensors: every datatype in JSON and as raw bytes, by the fast readers and without them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.oip.datatypes import DATATYPES, raw_parts
from embedserve.oip.requests import InferRequest
from embedserve.rest.oip import payload
from embedserve.rest.oip.payload import encode_infer, parse_infer
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import Array
from tests.oip.test_datatypes import arrays


def signature_of(array: Array, datatype: str) -> Signature:
    spec = TensorSpec("x", DATATYPES[datatype], (None,) * array.ndim)
    return Signature("s", {"x": spec}, {"x": spec})


def read_back(body: bytes, json_size: int | None, signature: Signature) -> Array:
    """The only output of an answer, read as the only input of a request."""
    document = json.loads(body if json_size is None else body[:json_size])
    request = json.dumps({"inputs": document["outputs"]}).encode()
    raw = b"" if json_size is None else body[json_size:]
    found = parse_infer(request + raw, None if json_size is None else len(request))
    found.declare(signature)
    return found.decode()["x"]


def same(left: Array, right: Array) -> bool:
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    if left.dtype.hasobject:
        return bool(left.tolist() == right.tolist())
    return np.array_equal(left.astype(np.float64), right.astype(np.float64), equal_nan=left.dtype.kind in "fV")


@given(arrays(), st.booleans())
def test_an_answer_reads_back_as_the_same_array(drawn: tuple[str, Array], binary: bool) -> None:
    datatype, array = drawn
    if datatype == "BYTES" and not binary:
        array = np.array([element.decode("latin-1").encode() for element in array.ravel()], object).reshape(array.shape)
    body, size = encode_infer("m", 1, InferRequest(binary=binary), {"x": array})
    assert (size is not None) is binary
    assert same(read_back(body, size, signature_of(array, datatype)), array)


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BYTES", "BOOL"}))
@pytest.mark.parametrize("nested", [True, False])
def test_large_documents_read_the_same_by_the_fast_path_and_without_it(
    datatype: str, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = (np.arange(6000) % 100).reshape(100, 3, 20).astype(DATATYPES[datatype].numpy)
    values: Any = array.astype(np.int64)
    tensor = {"name": "x", "datatype": datatype, "shape": [100, 3, 20], "data": values.ravel().tolist()}
    if nested:
        tensor["data"] = values.tolist()
    body = json.dumps({"id": "7", "inputs": [tensor], "parameters": {"timeout": 5, "list": [[1], [2]]}}).encode()
    assert payload._quick_head(body) is not None
    quick = parse_infer(body, None)
    monkeypatch.setattr(payload, "_NUMBERS_FROM", len(body) + 1)
    slow = parse_infer(body, None)
    assert quick.request == slow.request
    signature = signature_of(array, datatype)
    for found in (quick, slow):
        found.declare(signature)
        assert same(found.decode()["x"], array)


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[[1,2],[3],[4,5,6]]}]}',
        '{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,[4]]]}]}',
        '{"inputs":[{"name":"x","shape":[3],"datatype":"INT32","data":[1,2.5,3]}]}',
        '{"inputs":[{"name":"x","shape":[1],"datatype":"BOOL","data":[1]}]}',
        '{"inputs":[{"name":"x","name":"y","shape":[1],"datatype":"FP32","data":[1]}]}',
        '{"inputs":[]}',
        '{"inputs":{"name":"x"}}',
        "[1]",
    ],
)
def test_the_fast_path_declines_what_it_cannot_prove_regular(text: str) -> None:
    assert payload._quick_head(text.encode()) is None


def test_mixed_json_and_raw_inputs_take_their_bytes_in_order() -> None:
    specs = {name: TensorSpec(name, DATATYPES["INT32"], (None,)) for name in "abc"}
    head = json.dumps(
        {
            "inputs": [
                {"name": "c", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": 4}},
                {"name": "a", "shape": [2], "datatype": "INT32", "data": [8, 9]},
                {"name": "b", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
            ]
        }
    ).encode()
    found = parse_infer(head + np.array([1, 2, 3], np.int32).tobytes(), len(head))
    found.declare(Signature("s", specs, specs))
    assert {name: array.tolist() for name, array in found.decode().items()} == {"c": [1], "a": [8, 9], "b": [2, 3]}


def test_mixed_answers_have_raw_bytes_in_the_order_of_the_outputs() -> None:
    from embedserve.oip.requests import WantedOutput

    outputs = {"a%": np.array([1, 2], np.int32), "b": np.array([1.5, np.inf]), "c": np.array([b"x"], object)}
    wanted = (WantedOutput("a%", binary=True), WantedOutput("b"), WantedOutput("c", binary=True))
    body, size = encode_infer('m"%b', 3, InferRequest("i%d", outputs=wanted), outputs)
    document = json.loads(body[:size])
    assert (document["id"], document["model_name"], document["model_version"]) == ("i%d", 'm"%b', "3")
    assert [output.get("data") for output in document["outputs"]] == [None, [1.5, float("inf")], None]
    assert [output.get("parameters", {}).get("binary_data_size") for output in document["outputs"]] == [8, None, 5]
    assert body[size:] == b"".join(raw_parts(outputs["a%"])[1] + raw_parts(outputs["c"])[1])


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ('{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1, 2]}],"id":"a"}', True),
        ('{"inputs":[{"data":[],"name":"x","shape":[0],"datatype":"FP32"}]}', True),
        ('{"inputs":[{"name":"x","shape":[2],"datatype":"BYTES","data":["a]","b"]}]}', False),
        ('{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[[1],[2]]}]}', False),
        ('{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}],"parameters":{"data":[2]}}', False),
        ('{"id":"\\"data\\":[1]","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[7]}]}', True),
        ('{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[7]}],"id":"\\"data\\":[1]"}', True),
        ('{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":7}]}', False),
        ('{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[7]}', False),
        ('{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[7}]}', False),
    ],
)
def test_a_small_document_reads_the_same_by_its_known_form_and_without_it(text: str, known: bool) -> None:
    for _ in range(2):  # The second time by the kept form.
        head = payload._known_form(text.encode())
        assert (head is not None) is known
        if head is not None:
            assert head == payload._head_of(json.loads(text))
