from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import InvalidInputError
from embedserve.tensors import json_parser
from embedserve.tensors.json_dump import dump, type_name
from embedserve.tensors.json_parser import Repeated, loads, parse

ERRORS = [
    ("", "The document is empty."),
    ("  ", "The document is empty. at offset: 2"),
    (" ]", "The document is empty. at offset: 1"),
    ("}", "The document is empty. at offset: 0"),
    (",", "The document is empty. at offset: 0"),
    (":", "The document is empty. at offset: 0"),
    ("x", "Invalid value. at offset: 0"),
    ("\ufeff{x", "Missing a name for object member. at offset: 4"),
    ('{"instances": [1,]}', "Invalid value. at offset: 17"),
    ('{"instances": [1', "Missing a comma or ']' after an array element. at offset: 16"),
    ('{"instances" [1]}', "Missing a colon after a name of object member. at offset: 13"),
    ("{'instances': [1]}", "Missing a name for object member. at offset: 1"),
    ('{"instances": [tru]}', "Invalid value. at offset: 18"),
    ('{"instances": [nan]}', "Invalid value. at offset: 16"),
    ('{"instances": ["\\x"]}', "Invalid escape character in string. at offset: 16"),
    ('{"instances": ["\\ud800"]}', "The surrogate pair in string is invalid. at offset: 16"),
    ('["\\ud800\\u0041"]', "The surrogate pair in string is invalid. at offset: 2"),
    ('["\\u12g4"]', "Incorrect hex digit after \\u escape in string. at offset: 2"),
    ('["\n"]', "Invalid escape character in string. at offset: 2"),
    ('{"instances": [1.]}', "Miss fraction part in number. at offset: 17"),
    ("[1e]", "Miss exponent in number. at offset: 3"),
    ("[1e+]", "Miss exponent in number. at offset: 4"),
    ("[1e400]", "Number too big to be stored in double. at offset: 1"),
    ("[1,2,3,1e400,4]", "Number too big to be stored in double. at offset: 7"),
    ("[01]", "Missing a comma or ']' after an array element. at offset: 2"),
    ("[1 2]", "Missing a comma or ']' after an array element. at offset: 3"),
    ('{"a":1 "b":2}', "Missing a comma or '}' after an object member. at offset: 7"),
    ('{"a":1', "Missing a comma or '}' after an object member. at offset: 6"),
    ('{"a":1,', "Missing a name for object member. at offset: 7"),
    ('{"a":1,}', "Missing a name for object member. at offset: 7"),
    ("{1:2}", "Missing a name for object member. at offset: 1"),
    ('{"a":}', "Invalid value. at offset: 5"),
    ("{", "Missing a name for object member. at offset: 1"),
    ("[", "Invalid value. at offset: 1"),
    ('{"a":[1,2}', "Missing a comma or ']' after an array element. at offset: 9"),
    ('["a', "Missing a closing quotation mark in string. at offset: 3"),
    ("[-]", "Invalid value. at offset: 2"),
    ("[+1]", "Invalid value. at offset: 1"),
    ("[.5]", "Invalid value. at offset: 1"),
    ("[Infinit]", "Invalid value. at offset: 8"),
    ("// comment\n{}", "Invalid value. at offset: 0"),
    ("0e", "Miss exponent in number. at offset: 2"),
]


@pytest.mark.parametrize(("body", "message"), ERRORS)
def test_errors_and_their_offsets(body: str, message: str) -> None:
    for read in (loads, parse):
        with pytest.raises(InvalidInputError) as caught:
            read(body.encode())
        assert caught.value.message == f"JSON Parse error: {message}"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ('{"a": 1} garbage', {"a": 1}),
        ('{"a": 1}\0', {"a": 1}),
        ("\ufeff{}", {}),
        ('{"a": 1, "a": 2}', {"a": 1}),
        ('{"\\"": 1, "b": {"a": "\\\\", "a": 2}}', {'"': 1, "b": {"a": "\\"}}),
        ("[Inf, -Inf, Infinity, -Infinity]", [math.inf, -math.inf, math.inf, -math.inf]),
        ("[5e-400, -0, 1e2, 18446744073709551616]", [0.0, 0, 100.0, 2.0**64]),
        ("[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
        ('["\\ud83d\\ude00\\/\\u0000"]', ["\U0001f600/\0"]),
        ('["\\udc00"]', ["\udced\udcb0\udc80"]),
    ],
)
def test_what_a_strict_parser_would_not_read(body: str, value: Any) -> None:
    for read in (loads, parse):
        assert read(body.encode()) == value
        assert repr(read(body.encode())) == repr(value)


def test_bytes_that_are_no_utf8_are_kept() -> None:
    for read in (loads, parse):
        (text,) = read(b'["\xff\xc3"]')
        assert text.encode("utf-8", "surrogateescape") == b"\xff\xc3"


def test_repeated_keys_are_all_remembered() -> None:
    value = loads(b'{"a": {"x": 1, "y": 2, "x": 3}, "b": "x"}')["a"]
    assert isinstance(value, Repeated)
    assert value["x"] == 1
    assert value.pairs == (("x", 1), ("y", 2), ("x", 3))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@given(value=JSON, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
@settings(max_examples=300, deadline=None)
def test_all_readers_find_the_same_tree(value: Any, ascii_only: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert repr(loads(body)) == repr(parse(body))


@pytest.mark.parametrize(
    ("body", "repeats"),
    [
        ('{"a": {"b": [{"c": 1}, {"c": 1}]}, "b": "a"}', False),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', True),
        ('{"a\\"": "\\\\", "b": "\\\\\\""}', False),
        ('{"a\\"": 1, "a\\u0022": 2}', True),
        ('[["a", ["b", {"c": "d"}]], 1]', False),
        ('{"a": "b", "a": 1}', True),
    ],
)
def test_repeated_keys_are_found_at_any_depth(body: str, repeats: bool) -> None:
    assert json_parser._repeats_a_key(body.encode(), json.loads(body)) is repeats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (0.1, "0.1"),
        (1e30, "1e30"),
        (1.5e30, "1.5e30"),
        (1e-7, "1e-7"),
        (1e-6, "0.000001"),
        (0.00012, "0.00012"),
        (1e20, "100000000000000000000.0"),
        (-123.456, "-123.456"),
        (-0.0, "-0.0"),
        (18446744073709551615, "18446744073709551615"),
        (True, "true"),
        (None, "null"),
        ([1, 2], "[1, 2]"),
        ([], "[]"),
        ({}, "{}"),
        ({"b64": 5}, '{\n    "b64": 5\n}'),
        (
            {"a": [{"b": 1}, {"c": []}]},
            '{\n    "a": [{\n            "b": 1\n        }, {\n            "c": []\n        }]\n}',
        ),
        ('"\\\n\x01é/', '"\\"\\\\\\n\\u0001é/"'),
        (Repeated([("a", 1), ("a", 2)]), '{\n    "a": 1,\n    "a": 2\n}'),
        ([1, math.nan, 2], "[1, "),
    ],
)
def test_values_are_dumped_as_tensorflow_serving_does(value: Any, text: str) -> None:
    assert dump(value) == text


def test_a_dump_ends_after_256_bytes_but_not_inside_a_token() -> None:
    assert dump(["x" * 600, 2]) == '["' + "x" * 600 + '"'
    assert dump([1] * 1000) == "[" + "1, " * 85 + "1"
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert dump(nested) == "[" * 256


def test_names_of_types() -> None:
    values: list[Any] = [None, True, False, 1, 1.5, "a", [], {}, Repeated([("a", 1)])]
    assert [type_name(v) for v in values] == (
        ["Null", "True", "False", "Number", "Number", "String", "Array", "Object", "Object"]
    )
