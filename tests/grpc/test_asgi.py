"""One call on the ASGI application: how it is read, answered and refused; each kind of gRPC on the bare interface."""

from __future__ import annotations

import asyncio
import base64
import gzip
import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2

from embedserve.errors import Code
from embedserve.grpc import GrpcApp
from embedserve.grpc.transports import asgi
from embedserve.grpc.transports.frames import frame
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import gated, predict_request, registry
from tests.grpc.fabricated import (
    CHECK,
    GRPC,
    KINDS,
    TEXT,
    WEB,
    Answer,
    Connection,
    predict_body,
)

each_kind = pytest.mark.parametrize("content_type", KINDS, ids=lambda kind: kind.decode().partition("/")[2])


@pytest.fixture
async def reg() -> AsyncIterator[FakeRegistry]:
    async with registry() as reg:
        yield reg
        assert reg.inflight.reserved == 0


@pytest.fixture
def app(reg: FakeRegistry) -> GrpcApp:
    return GrpcApp(reg)


def connect(app: Any, *body: bytes, content_type: bytes = GRPC, **options: Any) -> Connection:
    """The body as it is, or in base64 where the content type wants it."""
    pieces = [base64.b64encode(piece) for piece in body] if content_type.lower().startswith(TEXT) else list(body)
    return Connection(app, *pieces, content_type=content_type, **options)


def value(answer: Answer) -> float:
    """The one number of a Predict's answer, which must be a success."""
    assert (answer.status, answer.code, answer.text) == (200, Code.OK, "")
    ((flags, message),) = answer.messages
    response = predict_pb2.PredictResponse.FromString(gzip.decompress(message) if flags else message)
    (number,) = response.outputs["y"].float_val
    return float(number)


def refused(answer: Answer) -> tuple[Code | None, str]:
    """Code and message of an error, which has no messages and is never an HTTP error."""
    assert (answer.status, answer.messages) == (200, [])
    return answer.code, answer.text


# Reading.


@each_kind
@pytest.mark.parametrize("size", [None, 1, 2, 7])
async def test_a_message_in_any_pieces(size: int | None, content_type: bytes, app: GrpcApp) -> None:
    body = predict_body(4)
    pieces = [body] if size is None else [body[at : at + size] for at in range(0, len(body), size)]
    assert value(await connect(app, *pieces, content_type=content_type).answer()) == 41


@each_kind
@pytest.mark.parametrize("where", ["before", "inside", "after"])
async def test_empty_pieces(where: str, content_type: bytes, app: GrpcApp) -> None:
    body = predict_body(4)
    pieces = {"before": [b"", body], "inside": [body[:9], b"", body[9:]], "after": [body, b"", b""]}[where]
    assert value(await connect(app, *pieces, content_type=content_type).answer()) == 41


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/grpc",
        b"application/grpc+proto",
        b"application/grpc; charset=utf-8",
        b"application/GRPC+Proto",
        b"aPPLICATION/grpc-web ; x=y",
        b"application/grpc-web+proto",
        b"application/grpc-web-text;a=b",
        b"APPLICATION/GRPC-WEB-TEXT+PROTO",
    ],
)
async def test_every_content_type_of_its_kinds(content_type: bytes, app: GrpcApp) -> None:
    answer = await connect(app, predict_body(4), content_type=content_type).answer()
    assert value(answer) == 41
    kind = content_type.lower().partition(b";")[0].strip().removesuffix(b"+proto")
    assert answer.headers[b"content-type"].removesuffix(b"+proto") == kind


@pytest.mark.parametrize(
    "content_type",
    [None, b"", b"application/json", b"application/grpc+json", b"application/grpcx", b"application/grpc-web+thrift"],
)
async def test_other_content_types_are_415(content_type: bytes | None, app: GrpcApp) -> None:
    answer = await Connection(app, predict_body(), content_type=content_type).answer()
    assert answer.status == 415
    assert b"application/grpc-web" in answer.messages[0][1]


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS"])
async def test_other_methods_are_405(method: str, app: GrpcApp) -> None:
    answer = await Connection(app, method=method).answer()
    assert (answer.status, answer.headers[b"allow"]) == (405, b"POST")


@each_kind
@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", Code.UNIMPLEMENTED, "takes one message, none came"),
        (predict_body() * 2, Code.UNIMPLEMENTED, "takes one message, more than one came"),
        (b"\0\0\0", Code.INVALID_ARGUMENT, "3 of 5 bytes came"),
        (predict_body()[:-1], Code.INVALID_ARGUMENT, "ended inside a message"),
        (frame(b"abc", 2), Code.INVALID_ARGUMENT, "byte 2 came"),
        (frame(b"abc", 1), Code.INTERNAL, "grpc-encoding does not say how"),
        (frame(b"\xff"), Code.INVALID_ARGUMENT, "not a tensorflow.serving.PredictRequest message"),
    ],
)
async def test_bad_bodies(body: bytes, code: Code, words: str, content_type: bytes, app: GrpcApp) -> None:
    found, text = refused(await connect(app, body, content_type=content_type).answer())
    assert found is code
    assert words in text


@each_kind
@pytest.mark.parametrize("body", [frame(b""), b""])
async def test_a_message_of_no_bytes_is_a_message(body: bytes, content_type: bytes, app: GrpcApp) -> None:
    answer = await connect(app, body, path=CHECK, content_type=content_type).answer()
    assert answer.code is (Code.OK if body else Code.UNIMPLEMENTED)


@each_kind
async def test_an_unknown_method_is_unimplemented(content_type: bytes, app: GrpcApp) -> None:
    for path in ("/tensorflow.serving.PredictionService/Foresee", "/other.Service/Do", "/", ""):
        answer = await connect(app, predict_body(), path=path, content_type=content_type).answer()
        assert refused(answer) == (Code.UNIMPLEMENTED, "Method not found!")


# Compression.


@each_kind
async def test_compressed_requests(content_type: bytes, app: GrpcApp) -> None:
    body = frame(gzip.compress(predict_body(4)[5:]), 1)
    gzipped = [(b"grpc-encoding", b"gzip")]
    assert value(await connect(app, body, content_type=content_type, headers=gzipped).answer()) == 41
    code, _ = refused(await connect(app, body[:-3], content_type=content_type, headers=gzipped).answer())
    assert code is Code.INVALID_ARGUMENT
    corrupt = frame(b"not gzip", 1)
    code, text = refused(await connect(app, corrupt, content_type=content_type, headers=gzipped).answer())
    assert code is Code.INVALID_ARGUMENT
    assert "not whole gzip" in text


@each_kind
async def test_an_unknown_compression_names_the_known_ones(content_type: bytes, app: GrpcApp) -> None:
    zstd = [(b"grpc-encoding", b"zstd")]
    answer = await connect(app, frame(b"x", 1), content_type=content_type, headers=zstd).answer()
    assert refused(answer) == (Code.UNIMPLEMENTED, "grpc-encoding 'zstd' is none of identity, gzip")
    assert answer.headers[b"grpc-accept-encoding"] == b"identity, gzip"


@each_kind
@pytest.mark.parametrize("values", [1000, 200_000])
async def test_answers_are_compressed_for_clients_that_take_it(
    values: int, content_type: bytes, reg: FakeRegistry
) -> None:
    app = GrpcApp(reg, compression="gzip")
    body = frame(predict_request(x=np.ones(values, np.float32)).SerializeToString())
    accepts = [(b"grpc-accept-encoding", b"identity, deflate, gzip")]
    zipped = await connect(app, body, content_type=content_type, headers=accepts).answer()
    assert zipped.headers[b"grpc-encoding"] == b"gzip"
    ((flags, message),) = zipped.messages
    assert flags == 1
    for others in ([], [(b"grpc-accept-encoding", b"identity, deflate")]):
        plain = await connect(app, body, content_type=content_type, headers=others).answer()
        assert b"grpc-encoding" not in plain.headers
        assert plain.messages == [(0, gzip.decompress(message))]


async def test_what_would_grow_is_not_compressed(reg: FakeRegistry) -> None:
    accepts = [(b"grpc-accept-encoding", b"gzip")]
    ((flags, message),) = (
        await connect(GrpcApp(reg, compression="gzip"), predict_body(), headers=accepts).answer()
    ).messages
    assert flags == 0
    assert predict_pb2.PredictResponse.FromString(message).outputs["y"].float_val == [11]


@each_kind
async def test_large_answers_come_in_pieces(content_type: bytes, app: GrpcApp) -> None:
    numbers = np.arange(1_000_000, dtype=np.float32)
    body = frame(predict_request(x=numbers).SerializeToString())
    connection = connect(app, body, content_type=content_type)
    answer = await connection.answer()
    assert answer.code is Code.OK
    found = predict_pb2.PredictResponse.FromString(answer.messages[0][1]).outputs["y"].float_val
    np.testing.assert_array_equal(np.array(found, np.float32), numbers * 10 + 1)
    assert sum(event["type"] == "http.response.body" for event in connection.sent) > 1
    assert (b"content-length" in answer.headers) is (content_type != GRPC)


async def test_errors_of_a_compressing_server_are_plain(reg: FakeRegistry) -> None:
    accepts = [(b"grpc-accept-encoding", b"gzip")]
    answer = await connect(GrpcApp(reg, compression="gzip"), frame(b"\xff"), headers=accepts).answer()
    assert refused(answer)[0] is Code.INVALID_ARGUMENT
    assert b"grpc-encoding" not in answer.headers


# Limits.


@each_kind
async def test_a_length_over_the_limit_is_refused_before_it_comes(content_type: bytes, reg: FakeRegistry) -> None:
    app = GrpcApp(reg, max_message_bytes=1000)
    connection = connect(app, b"\0" + (1001).to_bytes(4, "big"), bytes(400), content_type=content_type)
    code, text = refused(await connection.answer())
    assert (code, text) == (Code.RESOURCE_EXHAUSTED, "Received message larger than max (1001 vs. 1000)")


async def test_an_answer_over_the_limit_is_refused(reg: FakeRegistry) -> None:
    body = frame(predict_request(x=np.ones(200, np.float32)).SerializeToString())
    app = GrpcApp(reg, max_message_bytes=len(body) - 5)
    code, text = refused(await connect(app, body).answer())
    assert code is Code.RESOURCE_EXHAUSTED
    assert text.startswith("Sent message larger than max (")


async def test_what_is_left_of_a_refused_body_is_read_up_to_a_bound(app: GrpcApp) -> None:
    """Servers lose the connection over what comes after the answer; a client that goes on for ever is not awaited."""
    pieces = [bytes(65536)] * 100
    connection = connect(app, *pieces, path="/other.Service/Do", ends=False)
    assert refused(await connection.answer())[0] is Code.UNIMPLEMENTED
    assert 16 <= connection.received <= 17


async def test_a_refused_client_that_stalls_is_answered_all_the_same(
    app: GrpcApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "GRACE", 0.05)
    connection = connect(app, b"\0\0", path="/other.Service/Do", ends=False)
    assert refused(await connection.answer())[0] is Code.UNIMPLEMENTED


async def test_bytes_in_flight_count_while_they_come() -> None:
    async with registry(max_inflight_bytes=10_000) as reg:
        app = GrpcApp(reg)
        body = frame(bytes(9000))
        first = connect(app, body[:8000], ends=False)
        task = asyncio.create_task(first.answer())
        while reg.inflight.reserved < 8000:
            await asyncio.sleep(0.001)
        code, text = refused(await connect(app, body[:4000], body[4000:]).answer())
        assert code is Code.RESOURCE_EXHAUSTED
        assert "max_inflight_bytes" in text
        assert reg.inflight.reserved == 8000
        first.go()
        with pytest.raises(ValueError, match="unpack"):  # Nothing was sent to a client that has gone.
            await task
        assert reg.inflight.reserved == 0


async def test_calls_over_their_number_are_refused() -> None:
    reg, _, gate = gated()
    async with reg:
        app = GrpcApp(reg, max_concurrent_calls=2)
        gate.close()
        tasks = [asyncio.create_task(connect(app, predict_body()).answer()) for _ in range(2)]
        while gate.waiting < 2:
            await asyncio.sleep(0.001)
        assert repr(app).endswith("2 calls>")
        answer = await connect(app, predict_body()).answer()
        assert refused(answer) == (Code.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
        gate.open()
        assert [value(await task) for task in tasks] == [11, 11]
        assert value(await connect(app, predict_body()).answer()) == 11
        assert repr(app).endswith("0 calls>")


# Errors.


async def test_a_bug_is_internal_and_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    def broken(version: int, inputs: Any) -> Any:
        raise KeyError("secret")

    async with FakeRegistry({"m": {1: FakeLoader(broken)}}, batching=False) as reg:
        with caplog.at_level(logging.ERROR, "embedserve"):
            for kind in KINDS:
                answer = await connect(GrpcApp(reg), predict_body(), content_type=kind).answer()
                assert refused(answer) == (Code.INTERNAL, "internal error")
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3


@each_kind
async def test_messages_of_errors_are_percent_encoded(content_type: bytes, app: GrpcApp) -> None:
    request = predict_request("é\n☃%", x=[1])
    connection = connect(app, frame(request.SerializeToString()), content_type=content_type)
    code, text = refused(await connection.answer())
    assert code is Code.NOT_FOUND
    assert text.startswith("Servable not found for request: Latest(é\n☃%)")


@each_kind
@pytest.mark.parametrize("timeout", [b"1", b"1s", b"-1S", b"123456789S"])
async def test_a_bad_timeout_is_refused(timeout: bytes, content_type: bytes, app: GrpcApp) -> None:
    headers = [(b"grpc-timeout", timeout)]
    code, text = refused(await connect(app, predict_body(), content_type=content_type, headers=headers).answer())
    assert code is Code.INVALID_ARGUMENT
    assert text.startswith(f"grpc-timeout {timeout.decode()!r} is not 1 to 8 digits")


@each_kind
async def test_a_registry_that_was_not_entered(content_type: bytes) -> None:
    code, text = refused(await connect(GrpcApp(registry()), predict_body(), content_type=content_type).answer())
    assert code is Code.UNAVAILABLE
    assert "lifespan=registry.lifespan" in text


@each_kind
@pytest.mark.may_block
async def test_calls_are_carried_to_a_registry_of_another_loop(content_type: bytes) -> None:
    with registry() as reg:
        app = GrpcApp(reg)
        body = predict_body()
        assert value(await connect(app, body, content_type=content_type).answer()) == 11
        pieces = (body[:9], body[9:])
        assert (await connect(app, *pieces, content_type=content_type).answer()).code is Code.OK
        code, _ = refused(await connect(app, b"", content_type=content_type).answer())
        assert code is not Code.OK
        while reg.statistics().reserved_bytes:
            await asyncio.sleep(0.001)


# What the server can do.


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ({"extensions": {}}, "http.response.trailers. `uvicorn --http embedserve.http:HttpProtocol`"),
        ({"extensions": None}, "gRPC-Web works here, and `embedserve.grpc.serve` answers gRPC"),
        ({"http_version": "1.1"}, "gRPC needs HTTP/2"),
        ({"te": None}, "`te: trailers` is missing"),
        ({"te": b"deflate"}, "`te: trailers` is missing"),
    ],
)
async def test_without_trailers_the_headers_say_why(scope: dict[str, Any], words: str, app: GrpcApp) -> None:
    connection = connect(app, predict_body(), **scope)
    answer = await connection.answer()
    assert answer.code is Code.UNIMPLEMENTED
    assert answer.headers[b"grpc-status"] == b"12"
    assert words in answer.text
    assert [event["type"] for event in connection.sent] == ["http.response.start", "http.response.body"]
    for kind in (WEB, TEXT):
        assert value(await connect(app, predict_body(4), content_type=kind, **scope).answer()) == 41


async def test_a_scope_may_lack_what_is_optional(app: GrpcApp) -> None:
    connection = connect(app, predict_body(4), content_type=WEB)
    for name in ("extensions", "root_path"):
        del connection.scope[name]
    assert value(await connection.answer()) == 41


async def test_trailers_are_promised_only_where_they_come(app: GrpcApp) -> None:
    for kind in KINDS:
        connection = connect(app, predict_body(), content_type=kind)
        await connection.answer()
        assert connection.sent[0].get("trailers", False) is (kind == GRPC)
        assert (connection.sent[-1]["type"] == "http.response.trailers") is (kind == GRPC)


async def test_a_web_socket_is_closed(app: GrpcApp) -> None:
    connection = Connection(app, type="websocket")
    await connection.run()
    assert [event["type"] for event in connection.sent] == ["websocket.close"]


async def test_the_answers_of_other_pages_carry_cors_headers(reg: FakeRegistry) -> None:
    app = GrpcApp(reg, cors="https://app.example")
    here = [(b"origin", b"https://app.example")]
    for body in (predict_body(), b""):
        answer = await connect(app, body, content_type=WEB, headers=here).answer()
        assert answer.headers[b"access-control-allow-origin"] == b"https://app.example"
    asks = [*here, (b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"tenant")]
    preflight = await Connection(app, method="OPTIONS", content_type=None, headers=asks).answer()
    assert (preflight.status, preflight.headers[b"access-control-allow-headers"]) == (204, b"tenant")
    assert b"content-length" not in preflight.headers
