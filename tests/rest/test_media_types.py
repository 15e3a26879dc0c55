"""`:predict` takes and gives other forms than JSON, with the same answers and errors."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from embedserve.rest import create_app
from embedserve.servable import Array, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
from tests.rest.conftest import Server, _serve

NPY, NPZ = "application/x-npy", "application/x-npz"
RAW, CSV = "application/octet-stream", "text/csv"
DTYPES = ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
OTHERS = ("bool", "complex64", "complex128")


def same(version: int, inputs: Tensors) -> dict[str, Array]:
    return {"y": inputs["x"]}


def both(version: int, inputs: Tensors) -> dict[str, Array]:
    return {"total": inputs["a"] + inputs["b"][:, 0].astype(np.float32), "b": inputs["b"]}


def loader(inputs: Any, outputs: Any, model: Any = same) -> Mapping[int, FakeLoader]:
    other = fake_signature("other", {"x": ("float", (None, 3))}, {"y": ("float", (None, 3))})
    return {1: FakeLoader(signatures=[fake_signature("serving_default", inputs, outputs), other], model=model)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    of_dtypes = {
        f"same_{name}": loader({"x": (name, None)}, {"y": (name, None)})
        for name in (*DTYPES, *OTHERS, "bfloat16", "int4")
    }
    models = {
        "rows": loader({"x": ("float", (None, 3))}, {"y": ("float", (None, 3))}),
        "list": loader({"x": ("float", (None,))}, {"y": ("float", (None,))}),
        "flags": loader({"x": ("bool", (None, 2))}, {"y": ("bool", (None, 2))}),
        "images": loader({"x": ("float", (None, 2, 2, 1))}, {"y": ("float", (None, 2, 2, 1))}),
        "open": loader({"x": ("float", (None, None))}, {"y": ("float", (None, None))}),
        "text": loader({"x": ("string", (None,))}, {"y": ("string", (None,))}),
        "both": loader(
            {"a": ("float", (None,)), "b": ("int64", (None, 1))},
            {"total": ("float", (None,)), "b": ("int64", (None, 1))},
            both,
        ),
        **of_dtypes,
    }
    options: Any = {"max_request_bytes": 2**20, "max_inflight_bytes": 2**22}
    registry = FakeRegistry(models, **options)
    async with registry, _serve(create_app(registry)) as server:
        yield server
        assert registry.inflight.reserved == 0


pytestmark = pytest.mark.asyncio(loop_scope="module")


def f32(values: Any) -> Array:
    return np.array(values, np.float32)


def i64(values: Any) -> Array:
    return np.array(values, np.int64)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


async def post(
    server: Server, model: str, body: bytes, content: str, accept: str = "", **headers: str
) -> httpx.Response:
    given = {"content-type": content, **({"accept": accept} if accept else {}), **headers}
    model, _, query = model.partition("?")
    target = f"/v1/models/{model}:predict" + (f"?{query}" if query else "")
    return await server.client.post(target, content=body, headers=given)


def loaded(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content), allow_pickle=False)


def error(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    message = response.json()["error"]
    assert isinstance(message, str)
    return message


# numpy's files.


@pytest.mark.parametrize("dtype", [*DTYPES, *OTHERS])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
async def test_an_npy_file_comes_back_as_it_was(dtype: str, shape: tuple[int, ...], server: Server) -> None:
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    for given in (array, np.array(array, order="F"), array.astype(array.dtype.newbyteorder(">"))):
        answer = loaded(await post(server, f"same_{dtype}", npy(given), NPY))
        assert answer.dtype == array.dtype
        assert answer.shape == shape
        assert np.array_equal(answer, array)


async def test_dtypes_that_numpys_files_do_not_name_are_read_and_widened(server: Server) -> None:
    import ml_dtypes

    array = np.array([1.5, -2.25, np.inf], ml_dtypes.bfloat16)
    answer = loaded(await post(server, "same_bfloat16", npy(array), NPY))
    assert answer.dtype == np.float32
    assert answer.tolist() == [1.5, -2.25, np.inf]
    narrow = loaded(await post(server, "same_int4", npy(np.array([-8, 7], np.int8)), NPY))
    assert (narrow.dtype, narrow.tolist()) == (np.int32, [-8, 7])


async def test_strings_travel_in_npy_files(server: Server) -> None:
    for given in (np.array(["é", "b"]), np.array(["é".encode(), b"b"])):
        assert loaded(await post(server, "text", npy(given), NPY)).tolist() == ["é".encode(), b"b"]
    zero = json.dumps({"instances": [{"b64": "YQA="}]}).encode()
    assert "zero byte" in error(await post(server, "text", zero, "application/json", NPY))


async def test_the_content_type_may_have_parameters_and_any_case(server: Server) -> None:
    answer = await post(server, "rows", npy(np.ones((2, 3), np.float32)), "Application/X-NPY; charset=binary")
    assert loaded(answer).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert answer.headers["content-type"] == NPY


async def test_an_npz_file_has_an_array_for_each_input(server: Server) -> None:
    a, b = f32([1, 2]), i64([[3], [4]])
    for body in (npz(a=a, b=b), zipped(zipfile.ZIP_DEFLATED, a=a, b=b)):
        answer = loaded(await post(server, "both", body, NPZ))
        assert {name: answer[name].tolist() for name in answer} == {"total": [4, 6], "b": [[3], [4]]}
    alone = await post(server, "rows", npz_of_one(np.ones((1, 3), np.float32)), NPZ)
    assert loaded(alone)["y"].tolist() == [[1, 1, 1]]


def zipped(method: int, **arrays: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
    return file.getvalue()


def npz_of_one(array: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


async def test_an_answer_of_several_outputs_is_an_npz_file_unless_one_is_chosen(server: Server) -> None:
    body = npz(a=f32([1]), b=i64([[3]]))
    assert sorted(loaded(await post(server, "both", body, NPZ))) == ["b", "total"]
    chosen = await post(server, "both?output_filter=total", body, NPZ, NPY)
    assert loaded(chosen).tolist() == [4]
    assert "carries one output" in error(await post(server, "both", body, NPZ, NPY))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no .npy file"),
        (b"\x93NUMPY", "no .npy file"),
        (b'{"instances": [1]}', "no .npy file"),
        (npy(np.ones((1, 3), np.float32))[:-1], "has 11 bytes after its header; float32 [1, 3] has 12"),
        (npy(np.array([None, 1]), allow_pickle=True), "object"),
        (npy(np.zeros(2, [("a", "f4"), ("b", "f4")])), "an array of numbers, bools or strings is expected"),
        (npy(np.ones((1, 3))), None),
        (npy(np.ones((1, 4), np.float32)), "has shape [1,4], expected [?,3]"),
        (npy(np.ones((1, 3), np.complex64)), "to be float but complex64 is provided"),
    ],
)
async def test_a_bad_npy_file_is_named(body: bytes, says: str | None, server: Server) -> None:
    response = await post(server, "rows", body, NPY)
    if says is None:  # A double is cast, as arrays in process are.
        assert loaded(response).tolist() == [[1, 1, 1]]
    else:
        assert says in error(response)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }", "shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", "bytes after its header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)*3, }", "no .npy file"),
        ("{'descr': __import__('os'), 'fortran_order': False, 'shape': (), }", "no .npy file"),
        ("[" * 5000, "no .npy file"),
    ],
)
async def test_a_lying_header_makes_nothing(header: str, says: str, server: Server) -> None:
    data = header.encode() + b"\n"
    body = b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data + b"\0" * 12
    assert says in error(await post(server, "rows", body, NPY))


def corrupted(body: bytes) -> bytes:
    return body[:90] + bytes([body[90] ^ 255]) + body[91:]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"PK", "no .npz file"),
        (npz(a=f32([1])), "Missing but required: {b}"),
        (npz(a=f32([1]), b=i64([[1]]), c=np.ones(1)), "Sent extra: {c}"),
        (corrupted(npz(a=f32([1]), b=i64([[1]]))), "cannot be read"),
    ],
)
async def test_a_bad_npz_file_is_named(body: bytes, says: str, server: Server) -> None:
    assert says in error(await post(server, "both", body, NPZ))


async def test_an_archive_that_unpacks_to_more_than_a_request_may_take_is_refused(server: Server) -> None:
    body = zipped(zipfile.ZIP_DEFLATED, a=np.zeros(2**24, np.float32), b=i64([[1]]))
    assert len(body) < 2**17
    assert "in flight" in error(await post(server, "both", body, NPZ), 429)


async def test_two_inputs_in_one_array_are_asked_for_as_an_archive(server: Server) -> None:
    assert "Send a .npz file" in error(await post(server, "both", npy(f32([1])), NPY))


# Raw numbers.


async def test_raw_numbers_take_dtype_and_shape_from_headers_query_or_signature(server: Server) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    by_header = {"x-tensor-dtype": "float32", "x-tensor-shape": "2,2,2,1"}
    for model, headers in (
        ("images", by_header),
        ("images?dtype=float&shape=-1,2,2,1", {}),
        ("images?dtype=float32", {}),
        ("images?shape=2,2,2,1", {}),
    ):
        answer = await post(server, model, array.tobytes(), RAW, **headers)
        assert answer.status_code == 200, answer.text
        told = {key: answer.headers[f"x-tensor-{key}"] for key in ("name", "dtype", "shape")}
        assert told == {"name": "y", "dtype": "float", "shape": "2,2,2,1"}
        assert answer.content == array.tobytes()


@pytest.mark.parametrize(
    ("query", "body", "says"),
    [
        ("dtype=float32", b"123", "no multiple of 4"),
        ("dtype=float33", b"1234", "unknown dtype 'float33'"),
        ("dtype=string", b"1234", "numbers and bools only"),
        ("shape=2,x", b"1234", "no list of sizes"),
        ("shape=-1,-1", b"1234", "a single size may be -1"),
        ("shape=-2", b"1234", "a single size may be -1"),
        ("shape=3,0,-1", b"1234", "no tensor of shape"),
        ("shape=5,3", b"1234", "no tensor of shape [5, 3]"),
        ("shape=1,3&name=z", b"1" * 12, "no input 'z'; its inputs are x"),
        ("shape=1,3&colour=red", b"1" * 12, "unknown parameter 'colour'"),
        ("dtype=float32&signature_name=none", b"1" * 12, 'Serving signature name: "none" not found'),
        ("dtype=int32", b"1" * 12, "to be float but int32 is provided"),
    ],
)
async def test_bad_raw_numbers_are_named(query: str, body: bytes, says: str, server: Server) -> None:
    response = await post(server, f"rows?{query}", body, RAW)
    if query == "dtype=int32":  # An integer fits a float, as in process.
        assert response.status_code == 200
    else:
        assert says in error(response)


async def test_an_open_shape_must_be_sent(server: Server) -> None:
    assert "the shape of raw bytes must be sent" in error(await post(server, "open?dtype=float", b"1234", RAW))


async def test_json_under_the_type_of_bytes_is_still_json(server: Server) -> None:
    answer = await post(server, "rows", b'{"instances": [[1, 2, 3]]}', RAW)
    assert answer.json() == {"predictions": [[1.0, 2.0, 3.0]]}


async def test_another_signature_is_chosen_by_query_or_header(server: Server) -> None:
    body = npy(f32([[1, 2, 3]]))
    for model, headers in (("list?signature_name=other", {}), ("list", {"x-signature-name": "other"})):
        assert loaded(await post(server, model, body, NPY, **headers)).tolist() == [[1, 2, 3]]


# Text.


@pytest.mark.parametrize(
    ("model", "body", "answer"),
    [
        ("rows", "1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]]),
        ("rows", "1, 2, 3", [[1, 2, 3]]),
        ("rows", "1,2,3\r\n\r\n4,5e0,nan\r\n", [[1, 2, 3], [4, 5, "NaN"]]),
        ("list", "1\n2\n", [1, 2]),
        ("images", "1,2,3,4", [[[[1], [2]], [[3], [4]]]]),
        ("flags", "true,0\nFalse,1", [[True, False], [False, True]]),
        ("text", '"a, b"\nc', ["a, b", "c"]),
        ("both", "a,b\n1,3\n2,4\n", [{"total": 4, "b": [3]}, {"total": 6, "b": [4]}]),
        ("both", "b,a\n3,1\n", [{"total": 4, "b": [3]}]),
    ],
)
async def test_csv_is_rows(model: str, body: str, answer: Any, server: Server) -> None:
    response = await post(server, model, body.encode(), CSV)
    assert response.status_code == 200, response.text
    assert json.loads(response.text.replace("NaN", '"NaN"')) == {"predictions": answer}


@pytest.mark.parametrize(
    ("model", "body", "says"),
    [
        ("rows", b"\n", "no rows"),
        ("rows", b"1,2\n3,4,5", "no table of float"),
        ("rows", b"1,2,x", "no table of float"),
        ("rows", b"1,2", "has shape [1,2], expected [?,3]"),
        ("rows", b"\xff", "not UTF-8"),
        ("flags", b"1,2", "a value that is no bool"),
        ("both", b"1,2", "takes 2"),
        ("both", b"a\n1", "Missing but required: {b}"),
        ("both", b"a,b\n1", "line 2 has 1 values, the first line has 2"),
        ("both", b"a,b\n1,x", "a value that is no int64"),
    ],
)
async def test_bad_csv_is_named(model: str, body: bytes, says: str, server: Server) -> None:
    assert says in error(await post(server, model, body, CSV))


@pytest.mark.parametrize("content", ["application/jsonlines", "application/jsonl", "application/x-ndjson"])
async def test_json_lines_are_rows(content: str, server: Server) -> None:
    answer = await post(server, "rows", b"[1, 2, 3]\n\n[4, 5, 6]\n", content, "application/jsonlines")
    assert answer.json() == {"predictions": [[1, 2, 3], [4, 5, 6]]}
    assert b"\n" not in answer.content
    named = await post(server, "both", b'{"a": 1, "b": [2]}\n{"a": 3, "b": [4]}', content)
    assert named.json() == {"predictions": [{"total": 3, "b": [2]}, {"total": 7, "b": [4]}]}
    whole = await post(server, "rows", b'{"inputs": [[1, 2, 3]]}', content)
    assert whole.json() == {"outputs": [[1, 2, 3]]}
    assert "no lines" in error(await post(server, "rows", b"\n \n", content))
    assert "JSON Parse error" in error(await post(server, "rows", b"[1\n2]x", content))


# Answers.

ROW = b'{"instances": [[1, 2, 3.5]]}'


@pytest.mark.parametrize(
    ("accept", "content"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        (NPY, NPY),
        (f"{NPZ}, application/json;q=0.5", NPZ),
        (f"{NPZ};q=0.5, {NPY};q=0.9, */*;q=0.1", NPY),
        (f"{NPY};q=0", "application/json"),
        (f"{NPY};q=x, {CSV}", CSV),
        ("application/*", "application/json"),
        (RAW, RAW),
        (CSV, CSV),
    ],
)
async def test_the_answer_has_the_form_that_is_accepted(accept: str, content: str, server: Server) -> None:
    answer = await post(server, "rows", ROW, "application/json", accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == content
    if content == CSV:
        assert answer.text == "1.0,2.0,3.5\n"


async def test_csv_answers_have_a_column_for_each_output(server: Server) -> None:
    body = b'{"inputs": {"a": [1, 2], "b": [[3], [4]]}}'
    answer = await post(server, "both", body, "application/json", CSV)
    lines = answer.text.splitlines()
    assert lines[0].split(",") in (["total", "b"], ["b", "total"])
    assert sorted(lines[1].split(",")) == ["3", "4.0"]
    assert len(lines) == 3
    strings = await post(server, "text", b'{"instances": ["a,b", "c"]}', "application/json", CSV)
    assert strings.text == '"a,b"\nc\n'
    images = await post(server, "images", b'{"instances": [[[[1], [2]], [[3], [4]]]]}', "application/json", CSV)
    assert "no table" in error(images)


async def test_a_json_request_has_no_query_as_before(server: Server) -> None:
    for query in ("a=1", "dtype=float32"):
        message = error(await post(server, f"rows?{query}", ROW, "application/json"))
        assert message == f"Malformed request: POST /v1/models/rows:predict?{query}"
    other = await server.client.post("/v1/models/rows:classify?a=1", content=ROW, headers={"content-type": NPY})
    assert error(other) == "Malformed request: POST /v1/models/rows:classify?a=1"


async def test_errors_are_those_of_json_requests(server: Server) -> None:
    body = npy(np.ones((1, 3), np.float32))
    assert "not found" in error(await post(server, "none", body, NPY), 404).lower()
    assert "max_request_bytes" in error(await post(server, "rows", b"1" * (2**20 + 1), NPY), 429)
