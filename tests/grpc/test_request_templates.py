"""A request of a known template is read without being parsed, and says what the parser says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from embedserve.concurrency.inflight import InflightBytes, Reservation
from embedserve.grpc.errors import StatusError
from embedserve.grpc.request_templates import RequestTemplates
from embedserve.grpc.services import prediction_service
from embedserve.tensors import proto
from embedserve.tensors.dtypes import by_numpy
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
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


def learned(*requests: Any) -> RequestTemplates:
    templates = RequestTemplates()
    for request in requests:
        for _ in range(2):
            templates.learn(request.SerializeToString(), request)
    return templates


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
    templates = learned(request_of(arrays[0], alias, content, **spec))
    assert len(templates) == 1
    body = request_of(arrays[1], alias, content, **spec).SerializeToString()
    found = templates.find(body)
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
    templates = RequestTemplates()
    request = request_of(np.zeros(3, np.float32))
    body = request.SerializeToString()
    templates.learn(body, request)
    assert templates.find(body) is None
    templates.learn(body, request)
    assert templates.find(body) is not None


def without_template() -> list[Any]:
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


@pytest.mark.parametrize("request_", without_template())
def test_what_does_not_end_with_one_arrays_memory_is_always_parsed(request_: Any) -> None:
    templates = learned(request_)
    assert len(templates) == 0
    assert templates.find(request_.SerializeToString()) is None


@pytest.mark.parametrize("cut", range(1, 12))
def test_bytes_that_only_start_like_a_template_are_parsed(cut: int) -> None:
    request = request_of(np.zeros(3, np.float32))
    templates = learned(request)
    body = request.SerializeToString()
    assert templates.find(body[:-cut]) is None
    assert templates.find(body + b"\0" * cut) is None
    assert templates.find(bytes(cut) + body[cut:]) is None


def test_a_message_of_many_fields_is_not_walked_to_its_end() -> None:
    request = request_of(np.zeros(3, np.float32))
    request.output_filter.extend(["y"] * 200_000)
    body = request.SerializeToString()
    templates = RequestTemplates()
    for _ in range(50):
        templates.learn(body, request)
    assert len(templates) == 0


def test_the_number_of_forms_is_bounded() -> None:
    templates = learned(*(request_of(np.zeros(rows, np.float32)) for rows in range(1, 400)))
    assert 0 < len(templates) <= 256
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


async def test_an_output_filter_behind_the_input_is_seen_whatever_was_sent_before(start: Start) -> None:
    client = await start(two_signatures())
    call = client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    short, filtered, long = (request_of(np.ones(n, np.uint8), content=True, signature_name="other") for n in (3, 3, 6))
    filtered.output_filter.append("y")
    body = filtered.SerializeToString()
    assert len(body) == len(long.SerializeToString())
    for request in (short, short, short, long, long, long):
        await call(request.SerializeToString())
    response = predict_pb2.PredictResponse.FromString(await call(body))
    assert list(response.outputs["y"].int_val) == [11] * 3


# Differential: the method with what it has learnt, and the method that never learns, answer the same bytes alike.


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


UNKNOWN = [_field(100, b"abc"), b"\xa0\x06\x07", b"\xad\x06abcd", _field(3, b"y"), _field(3, b"none"), b""]


@st.composite
def bodies(draw: Any) -> bytes:
    """Predict requests from few building blocks, so that heads and lengths are often the same and often nearly so."""
    dtype = draw(st.sampled_from([np.float32, np.uint8, np.uint8, np.int32, np.float64]))
    rows = draw(st.integers(0, 3)) * (3 if dtype is np.uint8 else 1)
    array = np.frombuffer(draw(st.binary(min_size=24, max_size=24)), dtype)[:rows]
    tensor = proto.encode(array, by_numpy(array.dtype), as_content=dtype is np.uint8 or draw(st.booleans()))
    if draw(st.integers(0, 5)) == 0:
        tensor.tensor_shape.dim[0].size += draw(st.integers(-2, 2))
    value = tensor.SerializeToString() + draw(st.sampled_from([b""] * 8 + UNKNOWN))
    alias, value = _field(1, draw(st.sampled_from([b"x"] * 6 + [b"y", b"\xff"]))), _field(2, value)
    entry = draw(st.sampled_from([alias + value] * 6 + [value + alias, alias + value * 2]))
    spec = request_of(array, name=draw(st.sampled_from("mmmmmn"))).model_spec
    if choice := draw(st.sampled_from([None] * 4 + [1, 2, "stable"])):
        if isinstance(choice, int):
            spec.version.value = choice
        else:
            spec.version_label = choice
    spec.signature_name = "other" if (dtype is np.uint8) != (draw(st.integers(0, 9)) == 0) else ""
    parts = [_field(1, spec.SerializeToString()), *[_field(2, entry)] * draw(st.sampled_from([1, 1, 1, 1, 1, 2]))]
    parts.append(draw(st.sampled_from([b"", b"", *UNKNOWN])))
    return b"".join(draw(st.permutations(parts)) if draw(st.integers(0, 5)) == 0 else parts)


# An output filter makes the first as long as the second, and their heads are the same but for lengths.
TWINS = [
    request_of(np.ones(size, np.uint8), content=True, signature_name="other").SerializeToString() for size in (3, 6)
]


@st.composite
def sequences(draw: Any) -> list[bytes]:
    """Requests as clients send them, some of them again and again, some with a byte or their end changed."""
    known = draw(st.lists(bodies(), min_size=1, max_size=4)) + TWINS
    sent = [body for body in known for _ in range(3)]
    for _ in range(draw(st.integers(3, 12))):
        body = bytearray(draw(st.sampled_from(known)))
        match draw(st.sampled_from(["same", "same", "byte", "cut", "more", "values"])):
            case "byte" if body:
                body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
            case "cut":
                del body[draw(st.integers(0, len(body))) :]
            case "more":
                body += draw(st.sampled_from(UNKNOWN))
            case "values":
                body[-4:] = draw(st.binary(min_size=4, max_size=4))
        sent.append(bytes(body))
    return sent


class _NoContext:
    def __init__(self, inflight: InflightBytes) -> None:
        self.held = Reservation(inflight)

    def time_remaining(self) -> None:
        return None

    def metadata_value(self, key: str) -> None:
        return None


def two_signatures() -> FakeRegistry:
    loader = FakeLoader(
        signatures=[fake_signature(), fake_signature("other", {"x": ("uint8", (None,))}, {"y": ("uint8", (None,))})]
    )
    return FakeRegistry({"m": {1: loader}}, warmup="none")


@pytest.mark.slow
def test_what_is_learnt_never_changes_an_answer() -> None:
    path = f"/{prediction_service.SERVICE}/Predict"
    answers: dict[str, int] = {}

    account = InflightBytes(None, 1 << 30)

    async def answer(methods: Any, body: bytes) -> object:
        try:
            context = _NoContext(account)
            found: bytes = await methods[path].answer(body, context)
            context.held.release()
        except StatusError as error:
            answers[error.code.name] = answers.get(error.code.name, 0) + 1
            return error.code, error.message
        answers["OK"] = answers.get("OK", 0) + 1
        return found

    with asyncio.Runner() as runner:
        registry = two_signatures()
        run: Callable[..., Any] = runner.run
        run(registry.__aenter__())

        @settings(max_examples=400, deadline=None)
        @given(sequences())
        def compare(sent: list[bytes]) -> None:
            async def both() -> None:
                learning = prediction_service.methods(registry)
                for body in sent:
                    learnt = await answer(learning, body)
                    assert learnt == await answer(prediction_service.methods(registry), body), body

            run(both())

        try:
            compare()
        finally:
            run(registry.__aexit__(None, None, None))
    assert answers["OK"] > 100, "too few requests were answered to say anything"
    assert "INTERNAL" not in answers
