"""Every way to read a `:predict` body must find the same tensors and the same error."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedserve.errors import ServingError
from embedserve.rest import payload
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors import json_numbers, json_parser
from embedserve.tensors.dtypes import by_name

DTYPES = ["float", "double", "int32", "uint8", "int64", "uint32", "uint64", "bool", "string", "half"]


def signature(**inputs: str) -> Signature:
    specs = {name: TensorSpec(name, by_name(dtype), None) for name, dtype in sorted(inputs.items())}
    return Signature("serving_default", specs, {})


def outcome(
    body: bytes,
    of: Signature,
    *,
    numbers_from: int = 10**9,
    longest_text: int = 0,
    short_list: int = 0,
    tolerant: bool = False,
    bytes_per_list: int = 256,
) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "_LONGEST_TEXT", longest_text)
        patch.setattr(json_numbers, "_SHORT_LIST", short_list)
        patch.setattr(payload, "_NUMBERS_FROM", numbers_from)
        patch.setattr(payload, "_MANY_QUOTES", 10**9)
        patch.setattr(json_numbers, "_SMALL_ROW", 0)
        patch.setattr(json_numbers, "_BYTES_PER_LIST", bytes_per_list)
        if tolerant:
            patch.setattr(payload, "loads", json_parser.parse)
        try:
            request = payload.parse_predict(body)
            inputs, row_format = request.decode(of)
        except ServingError as error:
            return error.code, error.message
    arrays = {
        name: (
            array.dtype.str,
            array.shape,
            array.tolist() if array.dtype.hasobject else array.tobytes(),
            array.flags.writeable,
        )
        for name, array in inputs.items()
    }
    return request.signature_name, arrays, row_format


def assert_all_ways_agree(body: bytes, of: Signature) -> None:
    slow = outcome(body, of, tolerant=True)
    assert outcome(body, of) == slow
    assert outcome(body, of, longest_text=10**9) == slow  # A single list in simdjson's buffer.
    assert outcome(body, of, longest_text=10**9, short_list=10**9) == slow  # A single list of Python numbers.
    assert outcome(body, of, numbers_from=1, bytes_per_list=1) == slow  # Looks at every list.
    assert outcome(body, of, numbers_from=1, bytes_per_list=10**9) == slow  # Compares the text.


EDGES = [
    *("0", "-0", "-0.0", "1", "1.0", "1e2", "-1", "300", "1e39", "5e-400", "-5e-400", "1e308", "NaN", "Infinity"),
    *("-Infinity", "2147483648", "4294967296", "9223372036854775808", "-9223372036854775809", "18446744073709551615"),
    "18446744073709551616",
]
NUMBERS = st.one_of(
    st.sampled_from(EDGES),
    st.integers(-(2**65), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
ODD = st.sampled_from(
    [
        '"a"',
        '"]"',
        '"\\""',
        '"\\u00e9"',
        "true",
        "false",
        "null",
        '{"b64": "YQ=="}',
        '{"b64": 1}',
        "{}",
        "1e400",
        "-NaN",
        "Inf",
        "01",
    ]
)


@st.composite
def values(draw: st.DrawFn) -> str:
    """A regular or nearly regular nested list."""
    leaf = draw(
        st.sampled_from([NUMBERS, st.integers(0, 9).map(str), st.sampled_from(["1.5", "2"]), NUMBERS | ODD, ODD])
    )
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    ragged = draw(st.booleans())
    space = draw(st.sampled_from(["", " ", "\n\t"]))

    def nest(level: int) -> str:
        if level == len(shape):
            return draw(leaf)
        size, depth = shape[level], level + 1
        if ragged and draw(st.integers(0, 5)) == 0:
            size, depth = draw(st.integers(0, 3)), draw(st.integers(level + 1, len(shape)))
        return f"[{space}{f',{space}'.join(nest(depth) for _ in range(size))}{space}]"

    return nest(0)


NAMES = st.sampled_from(["x", "y", "instances", "b64", 'q"', "signature_name", "é"])


@st.composite
def objects(draw: st.DrawFn) -> str:
    members = draw(st.lists(st.tuples(NAMES, values()), min_size=1, max_size=3))
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in members) + "}"


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    value = draw(
        st.one_of(
            values(), objects(), st.lists(objects(), min_size=1, max_size=3).map(lambda rows: f"[{','.join(rows)}]")
        )
    )
    members = [(draw(st.sampled_from(["instances", "inputs"])), value)]
    members += draw(
        st.lists(
            st.tuples(
                st.sampled_from(["signature_name", "z", "instances", "inputs"]),
                st.sampled_from(['"s"', '"[1,2]"', '""', "null", "1", "[1]", '{"a": [1]}', "[[]]"]),
            ),
            max_size=2,
        )
    )
    members = draw(st.permutations(members))
    text = "{" + ",".join(f'"{name}" : {text}' for name, text in members) + "}"
    prefix, suffix = draw(
        st.sampled_from([("", ""), ("", ""), (" ", "\n"), ("\ufeff", ""), ("", " x"), ("", "}"), ("", "\0")])
    )
    return (prefix + text + suffix).encode()


SIGNATURES = st.one_of(
    st.sampled_from(DTYPES).map(lambda dtype: signature(x=dtype)),
    st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)).map(lambda pair: signature(x=pair[0], y=pair[1])),
    st.sampled_from([signature(b64="string"), signature(instances="float"), signature(é="float")]),
)


@pytest.mark.slow
@given(body=bodies(), of=SIGNATURES)
@settings(max_examples=300, deadline=None)
@example(b'{"instances": [[1,2],[3],[4,5,6]]}', signature(x="float"))
@example(b'{"inputs": [[1,2],[3],[4,5,6]]}', signature(x="int32"))
@example(b'{"inputs": [1,[2],[3,4]]}', signature(x="float"))
@example(b'{"inputs": [[[1],[2]],[[3]],[[4]]]}', signature(x="float"))
@example(b'{"inputs": {"x": [[1,2]], "y": [[3],[4]]}}', signature(x="float", y="float"))
@example(b'{"inputs": {"x": [[1],[2,3]], "y": [[4,5],[6]]}}', signature(x="float", y="float"))
@example(b'{"instances": [], "instances": [1]}', signature(x="float"))
@example(b'{"instances": [1], "signature_name": "a", "signature_name": 1}', signature(x="float"))
@example(b'{"instances": [{"x": [1, 2]}, {"x": [3]}]}', signature(x="float"))
@example(b'{"instances": [{"x": [1], "x": [2]}]}', signature(x="float"))
@example(b'{"instances": [[[1,2],3]]}', signature(x="float"))
def test_every_way_to_read_a_body_agrees(body: bytes, of: Signature) -> None:
    assert_all_ways_agree(body, of)


@pytest.mark.slow
@given(body=bodies(), of=SIGNATURES, seed=st.integers(0, 2**32), count=st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_every_way_to_read_a_damaged_body_agrees(body: bytes, of: Signature, seed: int, count: int) -> None:
    chance = random.Random(seed)
    damaged = bytearray(body)
    for _ in range(count):
        at = chance.randrange(len(damaged) + 1)
        damaged[at : at + chance.choice([0, 0, 1, 2])] = chance.choice(
            [
                b"",
                b"[",
                b"]",
                b",",
                b"{",
                b"}",
                b'"',
                b"\\",
                b"1",
                b"-",
                b".",
                b"e",
                b" ",
                b"\xff",
                b"\0",
                b"N",
                b"NaN",
                b":",
            ]
        )
    assert_all_ways_agree(bytes(damaged), of)


@given(data=st.binary(max_size=30), of=SIGNATURES)
@settings(max_examples=300, deadline=None)
def test_every_way_to_read_noise_agrees(data: bytes, of: Signature) -> None:
    assert_all_ways_agree(data, of)


def large_bodies() -> Iterator[tuple[str, bytes, Signature, dict[str, tuple[int, ...]]]]:
    random_values = np.random.default_rng(0)
    image = random_values.random((1, 32, 32, 3)).astype(np.float32)
    labels = random_values.integers(0, 1000, (200, 10))
    one, two = signature(x="float"), signature(x="float", y="int32")
    yield "rows", json.dumps({"instances": image.tolist()}).encode(), one, {"x": (1, 32, 32, 3)}
    yield "column", json.dumps({"inputs": image.tolist(), "signature_name": "s"}).encode(), one, {"x": (1, 32, 32, 3)}
    columns = {"inputs": {"y": labels.tolist(), "x": image.tolist()}}
    yield "columns", json.dumps(columns).encode(), two, {"x": (1, 32, 32, 3), "y": (200, 10)}
    named = {"instances": [{"x": image[0].tolist(), "y": i} for i in range(3)]}
    yield "named rows", json.dumps(named).encode(), two, {"x": (3, 32, 32, 3), "y": (3,)}


@pytest.mark.parametrize(("name", "body", "of", "shapes"), list(large_bodies()), ids=lambda value: str(value)[:12])
def test_large_bodies_of_numbers_take_the_fast_path(
    name: str, body: bytes, of: Signature, shapes: dict[str, tuple[int, ...]]
) -> None:
    document = json_numbers.parse(body)
    assert document is not None
    dtypes = {alias: spec.dtype for alias, spec in of.inputs.items()}
    found = document.read(dtypes)
    assert found is not None
    assert {alias: array.shape for alias, array in found[0].items()} == shapes
    assert_all_ways_agree(body, of)


@pytest.mark.parametrize(
    ("body", "shape", "rows", "signature_name"),
    [
        (b'{"instances": [1.5, 2]}', (2,), True, ""),
        (b'{"inputs":[[1.5,2]]}', (1, 2), False, ""),
        (b' {\n"instances" : [ [ [1.5 , 2] ] ] }\n', (1, 1, 2), True, ""),
        (b'{"signature_name": "a.b", "inputs": [1.5, 2]}', (2,), False, "a.b"),
        (b'{"signature_name": "", "instances": [{"x": [1.5, 2]}]}', (1, 2), True, ""),
        (b'{"instances": [{"x": [[1.5, 2]]}]}', (1, 1, 2), True, ""),
        (b'{"inputs": {"x": [[1.5, 2]]}}', (1, 2), False, ""),
    ],
)
def test_a_single_list_of_numbers_is_known_by_the_text_before(
    body: bytes, shape: tuple[int, ...], rows: bool, signature_name: str
) -> None:
    nest = json_numbers.parse_nest(body)
    assert nest is not None
    assert nest.signature_name == signature_name
    found = nest.read({"x": by_name("float")})
    assert found is not None
    assert found[1] is rows
    assert found[0]["x"].shape == shape
    assert found[0]["x"].ravel().tolist() == [1.5, 2.0]
    assert_all_ways_agree(body, signature(x="float"))


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[1, 2], 3]}',
        b'{"instances": [[[1, 2], 3]]}',
        b'{"instances": [[1, 2], [3, 4]]}',
        b'{"instances": [1, {}]}',
        b'{"instances": [1, null]}',
        b'{"instances": [1, NaN]}',
        b'{"instances": [1, 2], "instances": [3]}',
        b'{"instances": [1, 2], "signature_name": "s"}',
        b'{"instances": [{"x": [1]}, {"x": [2]}]}',
        b'{"instances": [{"x": [1]}, 2]}',
        b'{"instances": [{"y": [1, 2]}]}',
        b'{"inputs": {"y": [1, 2]}}',
        b'{"inputs": {"b64": [1, 2]}}',
        b'{"inputs": {"x": [1, 2]}, "a": 1}',
        b'{"inputs": [1, 2]} {}',
        b'{"inputs": [1, 2}',
        b'{"inputs": []}',
        b'{"inputs": [[]]}',
        b'{"inputs": [1e400]}',
        b'{"inputs": ' + b"[" * 65 + b"1" + b"]" * 65 + b"}",
        b'{"inputs": ' + b"[" * 64 + b"1" + b"]" * 64 + b"}",
        b'{"instances": [{"x": ' + b"[" * 64 + b"1" + b"]" * 64 + b"}]}",
    ],
)
@pytest.mark.parametrize(
    "of", [signature(x="float"), signature(x="uint8"), signature(b64="float"), signature(x="bool")]
)
def test_a_text_that_looks_like_a_single_list_and_is_none_is_read_as_by_the_slow_way(
    body: bytes, of: Signature
) -> None:
    assert_all_ways_agree(body, of)


@pytest.mark.parametrize("size", [1, 784])
def test_a_single_list_of_any_size_is_read_without_the_rest(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr(payload, "loads", never)
    monkeypatch.setattr(json_numbers.Document, "read", never)
    body = json.dumps({"instances": np.arange(size, dtype=np.float32).reshape(1, size).tolist()}).encode()
    inputs, rows = payload.parse_predict(body).decode(signature(x="float"))
    assert rows
    np.testing.assert_array_equal(inputs["x"], np.arange(size, dtype=np.float32).reshape(1, size))


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[1.5, 2.5], [3.5, 4.5]]}',
        b'{"inputs": {"x": [[1.5, 2.5], [3.5]]}}',
        b'{"inputs": [[1.5, "a"], [{}, [3.5]]], "signature_name": "s"}',
        b'{"inputs": 1.5, "instances": [[2.5]]}',
        b'{"instances": [{"x": [1.5, 2.5]}, {"x": [3.5, null]}]}',
        b'{"instances": [1.5, 2.5], "other": {"a": [[]]}}',
        b'{"instances": [1.5, 2.5',
    ],
)
def test_a_parser_is_used_again_and_what_it_read_before_stays(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_numbers, "_idle_parsers", deque(maxlen=2))
    monkeypatch.setattr(json_numbers, "_BYTES_PER_LIST", 1)
    monkeypatch.setattr(json_numbers, "_SHORT_LIST", 0)
    dtypes = {"x": by_name("double")}
    before = json_numbers.parse(b'{"instances": [0.5, 0.25]}')
    assert before is not None
    arrays = before.read(dtypes)
    assert arrays is not None
    (parser,) = json_numbers._idle_parsers
    for _ in range(2):
        document = json_numbers.parse(body)
        if document is not None:
            document.get("signature_name", "")
            document.read(dtypes)
            del document
        nest = json_numbers.parse_nest(body)
        if nest is not None:
            nest.read(dtypes)
            del nest
        assert list(json_numbers._idle_parsers) == [parser]
    assert arrays[0]["x"].tolist() == [0.5, 0.25]


def test_the_parser_of_a_huge_document_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_numbers, "_idle_parsers", deque(maxlen=2))
    monkeypatch.setattr(json_numbers, "_KEPT_BYTES", 20)
    document = json_numbers.parse(b'{"instances": [0.5, 0.25]}')
    assert document is not None
    assert document.read({"x": by_name("float")}) is not None
    assert not json_numbers._idle_parsers


def test_a_large_body_with_bare_tokens_is_read_by_the_slow_way() -> None:
    values = [0.5] * 5_000
    body = json.dumps({"instances": [*values, float("nan"), float("-inf")]}).encode()
    assert json_numbers.parse(body) is None
    inputs, _ = payload.parse_predict(body).decode(signature(x="float"))
    assert np.isnan(inputs["x"][5_000])
    assert inputs["x"][5_001] == -np.inf
