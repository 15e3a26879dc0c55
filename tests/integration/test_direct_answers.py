"""The direct way and the ASGI way of `HttpProtocol` give the same bytes; the direct way keeps the promises of ASGI."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    regression_pb2,
)

from embedserve.grpc.transports.frames import frame
from embedserve.registry import ModelRegistry
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import predict_request
from tests.integration.both_ways import (
    JSON,
    PREDICT,
    REST,
    SERVICE,
    WHOLE,
    Finished,
    both,
    http1_answer,
    http1_request,
    http2_answers,
    served,
)

STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


@pytest.fixture
def finished() -> Finished:
    return Finished()


@pytest.fixture
async def registry(finished: Finished) -> AsyncIterator[FakeRegistry]:
    options: dict[str, Any] = {"max_request_bytes": 20_000, "max_inflight_bytes": 100_000}
    async with FakeRegistry({"m": {1: FakeLoader(), 2: FakeLoader()}}, observers=[finished], **options) as registry:
        yield registry
        assert registry.inflight.reserved == 0


Calls = list[tuple[Any, ...]]


def message(kind: Any, **fields: Any) -> bytes:
    return frame(kind(**fields).SerializeToString())


def spec(name: str = "m", **fields: Any) -> dict[str, Any]:
    return {"model_spec": {"name": name, **fields}}


EXAMPLES = {
    "input": {"example_list": {"examples": [{"features": {"feature": {"x": {"float_list": {"value": [3.0]}}}}}]}}
}

GOOD_GRPC: dict[str, tuple[Any, ...]] = {
    "predict": (PREDICT, WHOLE),
    "predict with a deadline": (PREDICT, WHOLE, (b"grpc-timeout", b"20S")),
    "predict with a priority": (PREDICT, WHOLE, (b"embedserve-priority", b"high")),
    "predict, traced": (PREDICT, WHOLE, (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")),
    "predict, compressed": (PREDICT, frame(gzip.compress(WHOLE[5:]), 1), (b"grpc-encoding", b"gzip")),
    "predict, content type with a parameter": (PREDICT, WHOLE, (b"content-type", b"application/grpc; x=y")),
    "status": (STATUS, message(get_model_status_pb2.GetModelStatusRequest, **spec())),
    "metadata": (
        SERVICE + "GetModelMetadata",
        message(get_model_metadata_pb2.GetModelMetadataRequest, **spec(), metadata_field=["signature_def"]),
    ),
}
BAD_GRPC: dict[str, tuple[Any, ...]] = {
    "unknown model": (PREDICT, frame(predict_request("no", x=[1.0]).SerializeToString())),
    "unknown input": (PREDICT, frame(predict_request(z=[1.0]).SerializeToString())),
    "no message at all": (PREDICT, b""),
    "an empty message": (PREDICT, frame(b"")),
    "half of a prefix": (PREDICT, b"\0\0"),
    "a message cut off": (PREDICT, WHOLE[:-3]),
    "two messages": (PREDICT, WHOLE + WHOLE),
    "a byte too many": (PREDICT, WHOLE + b"\0"),
    "unknown flags": (PREDICT, b"\x07" + WHOLE[1:]),
    "no protobuf": (PREDICT, frame(b"\xff\xff\xff")),
    "over max_request_bytes": (PREDICT, frame(bytes(20_001))),
    "compressed by an unknown way": (PREDICT, frame(b"x", 1), (b"grpc-encoding", b"snappy")),
    "compressed, and no gzip": (PREDICT, frame(b"x", 1), (b"grpc-encoding", b"gzip")),
    "a malformed deadline": (PREDICT, WHOLE, (b"grpc-timeout", b"soon")),
    "a deadline that has passed": (PREDICT, WHOLE, (b"grpc-timeout", b"0n")),
    "an unknown priority": (PREDICT, WHOLE, (b"embedserve-priority", b"first")),
    "no te": (PREDICT, WHOLE, (b"te", b"")),
    "GET": (PREDICT, b"", (b":method", b"GET")),
    "an unknown method": (SERVICE + "Predicted", WHOLE),
    "an unknown service": ("/a.B/C", WHOLE),
    "a query": (PREDICT + "?a=b", WHOLE),
    "an escaped path": (PREDICT.replace("t", "%74"), WHOLE),
    "JSON": (PREDICT, WHOLE, (b"content-type", b"application/json")),
    "gRPC-Web": (PREDICT, WHOLE, (b"content-type", b"application/grpc-web")),
    "gRPC on a path of REST": (REST, WHOLE),
    "a status of no model": (STATUS, message(get_model_status_pb2.GetModelStatusRequest, **spec("no"))),
    "metadata of nothing": (
        SERVICE + "GetModelMetadata",
        message(get_model_metadata_pb2.GetModelMetadataRequest, **spec()),
    ),
    "classify without a signature": (
        SERVICE + "Classify",
        message(classification_pb2.ClassificationRequest, **spec(), **EXAMPLES),
    ),
    "inference without tasks": (SERVICE + "MultiInference", message(inference_pb2.MultiInferenceRequest, **EXAMPLES)),
}
REST_CASES: dict[str, tuple[Any, ...]] = {
    "predict": ("POST", REST, JSON),
    "predict in columns": ("POST", REST, b'{"inputs": {"x": [1, 2.5]}}'),
    "a version": ("POST", "/v1/models/m/versions/1:predict", JSON),
    "an escaped name": ("POST", "/v1/models/%6D:predict", JSON),
    "a priority": ("POST", REST, JSON, "Embedserve-Priority: low"),
    "traced": ("POST", REST, JSON, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    "gzip": ("POST", REST, gzip.compress(JSON), "Content-Encoding: gzip"),
    "an ignored upgrade": ("POST", REST, JSON, "Upgrade: h2c"),
    "status": ("GET", "/v1/models/m"),
    "status of a version": ("GET", "/v1/models/m/versions/2"),
    "the list": ("GET", "/v1/models"),
    "metadata": ("GET", "/v1/models/m/metadata"),
    "HEAD": ("HEAD", "/v1/models/m"),
    "GET with a body": ("GET", "/v1/models/m", JSON),
    "an unknown priority": ("POST", REST, JSON, "Embedserve-Priority: first"),
    "no JSON": ("POST", REST, b"{"),
    "no body": ("POST", REST, b""),
    "no length": ("POST", REST),
    "an unknown model": ("POST", "/v1/models/no:predict", JSON),
    "an unknown version": ("POST", "/v1/models/m/versions/9:predict", JSON),
    "an unknown label": ("POST", "/v1/models/m/labels/canary:predict", JSON),
    "an unknown signature": ("POST", REST, b'{"signature_name": "no", "instances": [1]}'),
    "a wrong type": ("POST", REST, b'{"instances": ["a"]}'),
    "ragged rows": ("POST", REST, b'{"instances": [[1], [1, 2]]}'),
    "over max_request_bytes": ("POST", REST, b'{"instances": [' + b"1," * 12_000 + b"1]}"),
    "classify without a signature": ("POST", "/v1/models/m:classify", b'{"examples": [{"x": 1}]}'),
    "GET on predict": ("GET", REST),
    "a malformed target": ("POST", "/v1/models/m:explain", JSON),
    "a query": ("POST", REST + "?a=b", JSON),
    "status of no model": ("GET", "/v1/models/no"),
    "OPTIONS": ("OPTIONS", REST, None, "Origin: http://a.example"),
    "PUT": ("PUT", REST, JSON),
    "no REST": ("GET", "/else"),
    "the page": ("GET", "/"),
    "health": ("GET", "/-/ready"),
    "gRPC over HTTP/1": ("POST", PREDICT, WHOLE, "Content-Type: application/grpc", "TE: trailers"),
    "gRPC on a path of REST": ("POST", REST, WHOLE, "Content-Type: application/grpc"),
}

cases = {f"gRPC: {name}": call for name, call in (GOOD_GRPC | BAD_GRPC).items()}


# The same answers.


@pytest.mark.parametrize("cors", [False, True], ids=["", "cors"])
async def test_calls_get_the_same_frames(registry: FakeRegistry, finished: Finished, cors: bool) -> None:
    calls = [(path, body, *more, (b"origin", b"http://a.example")) for path, body, *more in cases.values()]
    async with both(create_app(registry, grpc=True, cors=cors)) as (direct, asgi):
        by_direct = await http2_answers(direct, *calls)
        seen, finished.seen = finished.seen, []
        by_asgi = await http2_answers(asgi, *calls)
    for name, one, other in zip(cases, by_direct, by_asgi, strict=True):
        assert one == other, name
    assert seen == finished.seen
    assert asgi.asgi == len(cases)
    # Nothing but the requests without a direct way: wrong in their head, or gRPC-Web.
    assert direct.asgi == sum(name in _ASGI for name in BAD_GRPC)


_ASGI = {
    *("no te", "GET", "an unknown method", "an unknown service", "a query", "an escaped path", "JSON", "gRPC-Web"),
    "gRPC on a path of REST",
}


@pytest.mark.parametrize("name", REST_CASES)
async def test_requests_get_the_same_bytes(registry: FakeRegistry, finished: Finished, name: str) -> None:
    request = http1_request(*REST_CASES[name])
    async with both(create_app(registry, grpc=True, cors=True)) as (direct, asgi):
        by_direct = await http1_answer(direct, request)
        seen, finished.seen = finished.seen, []
        by_asgi = await http1_answer(asgi, request)
    assert by_direct == by_asgi
    assert by_direct.startswith(b"HTTP/1.1 ")
    assert seen == finished.seen


async def test_known_routes_take_the_direct_way(registry: FakeRegistry) -> None:
    known = ["predict", "a version", "status", "metadata", "HEAD", "an unknown model", "no JSON", "an ignored upgrade"]
    async with served(create_app(registry)) as way:
        for name in known:
            await http1_answer(way, http1_request(*REST_CASES[name]))
        assert way.asgi == 0


async def test_rest_over_http2_gets_the_same_frames(registry: FakeRegistry) -> None:
    def call(method: str, path: str, body: bytes = b"", *_: str) -> tuple[Any, ...]:
        return path, body, (b":method", method.encode()), (b"te", b""), (b"content-type", b"application/json")

    calls = [call(*case) for case in REST_CASES.values() if len(case) == 3]
    async with both(create_app(registry)) as (direct, asgi):
        assert await http2_answers(direct, *calls) == await http2_answers(asgi, *calls)
        assert direct.asgi < asgi.asgi


async def test_http_1_0_gets_the_same_bytes(registry: FakeRegistry) -> None:
    for keep in (b"", b"Connection: keep-alive\r\n"):
        request = b"POST %s HTTP/1.0\r\n%sContent-Length: %d\r\n\r\n" % (REST.encode(), keep, len(JSON)) + JSON
        last = b"GET /v1/models/m HTTP/1.0\r\n\r\n" if keep else b""
        async with both(create_app(registry)) as (direct, asgi):
            by_direct, by_asgi = [await http1_answer(way, request + last) for way in (direct, asgi)]
            assert by_direct == by_asgi
            assert by_direct.count(b"HTTP/1.1 200 OK") == 1 + bool(keep)
            assert direct.asgi == 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import saved_models

    root = tmp_path_factory.mktemp("models")
    saved_models.examples(root / "m" / "1")
    return root


async def test_a_saved_model_gives_the_same_answers(exported: Path) -> None:
    regress, classify = spec(signature_name="regress_x_to_y"), spec(signature_name="classify_labels")
    tasks = [
        {"model_spec": regress["model_spec"], "method_name": "tensorflow/serving/regress"},
        {
            "model_spec": {"name": "m", "signature_name": "classify_x_to_y"},
            "method_name": "tensorflow/serving/classify",
        },
    ]
    calls = [
        (PREDICT, frame(predict_request(x=np.array([[1.0]], np.float32)).SerializeToString())),
        (SERVICE + "Classify", message(classification_pb2.ClassificationRequest, **classify, **EXAMPLES)),
        (SERVICE + "Regress", message(regression_pb2.RegressionRequest, **regress, **EXAMPLES)),
        (SERVICE + "MultiInference", message(inference_pb2.MultiInferenceRequest, tasks=tasks, **EXAMPLES)),
        (
            SERVICE + "GetModelMetadata",
            message(get_model_metadata_pb2.GetModelMetadataRequest, **spec(), metadata_field=["signature_def"]),
        ),
    ]
    rest: list[tuple[Any, ...]] = [
        ("POST", REST, b'{"instances": [[1], [2]]}'),
        ("POST", "/v1/models/m:classify", b'{"signature_name": "classify_labels", "examples": [{"x": 1.5}]}'),
        ("POST", "/v1/models/m:regress", b'{"signature_name": "regress_x_to_y", "examples": [{"x": 1.5}]}'),
        ("GET", "/v1/models/m/metadata"),
    ]
    async with ModelRegistry(exported) as registry, both(create_app(registry, grpc=True)) as (direct, asgi):
        for _ in range(3):  # From its second sight on, a form of request is known.
            by_direct = await http2_answers(direct, *calls)
            assert by_direct == await http2_answers(asgi, *calls)
            assert [answer.trailers for answer in by_direct] == [{b"grpc-status": b"0"}] * len(calls)
        for case in rest:
            request = http1_request(*case)
            answers = [await http1_answer(way, request) for way in (direct, asgi)]
            assert answers[0] == answers[1]
            assert answers[0].startswith(b"HTTP/1.1 200 OK")
        assert direct.asgi == 0


bodies = st.one_of(
    st.just(WHOLE),
    st.binary(max_size=40),
    st.binary(max_size=40).map(frame),
    st.lists(st.floats(width=32), max_size=6).map(lambda x: frame(predict_request(x=x).SerializeToString())),
    st.builds(
        lambda body, at, byte: body[:at] + bytes([byte]) + body[at + 1 :],
        st.just(WHOLE),
        st.integers(0, len(WHOLE) - 1),
        st.integers(0, 255),
    ),
)
documents = st.one_of(
    st.just(JSON),
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "b64"]), inner, max_size=2),
        max_leaves=6,
    ).map(lambda value: json.dumps({"instances": value}).encode()),
)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Loop:
    """Both servers on a loop of their own, for tests that hypothesis repeats."""

    def __init__(self, app_of: Callable[[Any], Any]) -> None:
        self.runner = asyncio.Runner()
        self.registry = FakeRegistry({"m": {1: FakeLoader()}})
        self.runner.run(self.registry.__aenter__())
        self.serving = both(app_of(self.registry))
        self.ways = self.runner.run(self.serving.__aenter__())

    def close(self) -> None:
        self.runner.run(self.serving.__aexit__(None, None, None))
        assert self.registry.inflight.reserved == 0
        self.runner.run(self.registry.__aexit__(None, None, None))
        self.runner.close()


@pytest.fixture(scope="module")
def loop() -> Any:
    found = Loop(lambda registry: create_app(registry, grpc=True))
    yield found
    found.close()


@quick
@given(path=st.sampled_from([PREDICT, STATUS, SERVICE + "Classify"]), body=bodies, pieces=st.integers(1, 4))
def test_any_message_gets_the_same_frames(loop: Loop, path: str, body: bytes, pieces: int) -> None:
    one, other = [loop.runner.run(http2_answers(way, (path, body), pieces=pieces)) for way in loop.ways]
    assert one == other


@quick
@given(
    method=st.sampled_from(["POST", "GET"]),
    target=st.sampled_from([REST, "/v1/models/m", "/v1/models/m/labels/a:predict", "/v1/models/m:regress"]),
    body=documents,
)
def test_any_document_gets_the_same_bytes(loop: Loop, method: str, target: str, body: bytes) -> None:
    request = http1_request(method, target, body)
    one, other = [loop.runner.run(http1_answer(way, request)) for way in loop.ways]
    assert one == other
