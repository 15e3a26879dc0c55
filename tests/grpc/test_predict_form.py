"""A request of a known form is read without being parsed, and says what the parser says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from embedserve.grpc.predict_form import Forms
from embedserve.tensors import proto
from embedserve.tensors.dtypes import by_numpy
from tests.grpc.conftest import Start, predict_request, registry

DTYPES = [np.float32, np.float64, np.int32, np.int64, np.uint8, np.int8, np.uint16, np.complex64]


def request_of(array: Any, alias: str = "x", content: bool = False, **spec: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", "m")
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    request.model_spec.signature_name = spec.get("signature_name", "")
    proto.encode_into(request.inputs[alias], array, by_numpy(array.dtype), as_content=content)
    return request


def learned(*requests: Any) -> Forms:
    forms = Forms()
    for request in requests:
        for _ in range(2):
            forms.learn(request.SerializeToString(), request)
    return forms


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 5), max_size=4),
    alias=st.text(max_size=200),
    name=st.text(min_size=1, max_size=20),
    choice=st.none() | st.integers(0, 2**62) | st.text(max_size=20),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_second_of_its_form_reads_as_the_parser_reads_it(
    dtype: Any, shape: list[int], alias: str, name: str, choice: int | str | None, seed: int
) -> None:
    version, label = (None, choice) if isinstance(choice, str) else (choice, None)
    spec: dict[str, Any] = {"name": name} | ({} if version is None else {"version": version})
    spec |= {} if label is None else {"label": label}
    rng = np.random.default_rng(seed)
    arrays = [
        np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape) for _ in "ab"
    ]
    content = np.dtype(dtype) not in (np.float32, np.float64) or bool(seed % 2)
    forms = learned(request_of(arrays[0], alias, content, **spec))
    assert len(forms) == 1
    body = request_of(arrays[1], alias, content, **spec).SerializeToString()
    found = forms.find(body)
    assert found is not None
    parsed = predict_pb2.PredictRequest.FromString(body)
    assert found.model_spec == (name, version, label, parsed.model_spec.signature_name)
    [(read, array)] = found.decode().items()
    expected = proto.decode(parsed.inputs[alias], alias)
    assert read == alias
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.tobytes() == expected.tobytes()
    assert array.flags.aligned


def test_a_form_is_kept_when_it_is_seen_again() -> None:
    forms = Forms()
    request = request_of(np.zeros(3, np.float32))
    body = request.SerializeToString()
    forms.learn(body, request)
    assert forms.find(body) is None
    forms.learn(body, request)
    assert forms.find(body) is not None


def no_forms() -> list[Any]:
    two = request_of(np.zeros(3, np.float32))
    proto.encode_into(two.inputs["y"], np.zeros(3, np.float32), by_numpy(np.dtype(np.float32)))
    filtered = request_of(np.zeros(3, np.float32))
    filtered.output_filter.append("y")
    short = request_of(np.zeros(3, np.float32))
    short.inputs["x"].tensor_shape.dim[0].size = 4
    varints = request_of(np.arange(3, dtype=np.int64))
    strings = request_of(np.array([b"a", b"b"], object))
    flags = request_of(np.array([True, False]), content=True)
    empty = request_of(np.zeros((0, 2), np.float32))
    both = request_of(np.zeros(3, np.float32))
    both.inputs["x"].int_val.append(1)
    named = request_of(np.zeros(3, np.float32), "x" * 2000)
    nameless = request_of(np.zeros(3, np.float32))
    nameless.ClearField("model_spec")
    return [two, filtered, short, varints, strings, flags, empty, both, named, nameless]


@pytest.mark.parametrize("request_", no_forms())
def test_what_does_not_end_with_one_arrays_memory_is_always_parsed(request_: Any) -> None:
    forms = learned(request_)
    assert len(forms) == 0
    assert forms.find(request_.SerializeToString()) is None


@pytest.mark.parametrize("cut", range(1, 12))
def test_bytes_that_only_start_like_a_form_are_parsed(cut: int) -> None:
    request = request_of(np.zeros(3, np.float32))
    forms = learned(request)
    body = request.SerializeToString()
    assert forms.find(body[:-cut]) is None
    assert forms.find(body + b"\0" * cut) is None
    assert forms.find(bytes(cut) + body[cut:]) is None


def test_a_message_of_many_fields_is_not_walked_to_its_end() -> None:
    request = request_of(np.zeros(3, np.float32))
    request.output_filter.extend(["y"] * 200_000)
    body = request.SerializeToString()
    forms = Forms()
    for _ in range(50):
        forms.learn(body, request)
    assert len(forms) == 0


def test_the_number_of_forms_is_bounded() -> None:
    forms = learned(*(request_of(np.zeros(rows, np.float32)) for rows in range(1, 400)))
    assert 0 < len(forms) <= 256
    many = learned(
        *(
            request_of(np.zeros(50 - len(alias), np.uint8), alias, content=True)
            for alias in ("a" * n for n in range(1, 40))
        )
    )
    assert len(many) <= 40


async def test_requests_of_one_form_are_answered_each_with_its_own_values(start: Start) -> None:
    client = await start(registry())
    for value in range(10):
        response = await client.prediction.Predict(predict_request(x=[value, value + 1]))
        assert list(response.outputs["y"].float_val) == [value * 10 + 1, value * 10 + 11]


async def test_a_known_form_follows_the_versions_and_fails_as_a_parsed_request_does(start: Start) -> None:
    from tests.grpc.conftest import failure

    client = await start(reg := registry())
    for _ in range(3):
        await client.prediction.Predict(predict_request(x=[1, 2]))
    await reg.remove("m", 1)
    code, message = await failure(client.prediction.Predict(predict_request(x=[1, 2])))
    assert code.name == "NOT_FOUND"
    assert "Servable not found for request: Latest(m)" in message
