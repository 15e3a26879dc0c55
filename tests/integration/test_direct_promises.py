"""The direct way of `HttpProtocol` is taken for the own applications only, and keeps the promises of the ASGI way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from embedserve.errors import Code
from embedserve.grpc import GrpcApp
from embedserve.grpc.transports.frames import frame
from embedserve.http import frames
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.grpc.conftest import predict_request, until_running
from tests.http.http2_peer import block, data, headers
from tests.integration.both_ways import (
    GRPC_HEAD,
    JSON,
    PREDICT,
    REST,
    WHOLE,
    Answered,
    Finished,
    Http2Client,
    InFront,
    both,
    http1_answer,
    http1_request,
    http2_answers,
    served,
)


@pytest.fixture
def finished() -> Finished:
    return Finished()


@pytest.fixture
async def registry(finished: Finished) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry({"m": {1: FakeLoader()}}, observers=[finished]) as registry:
        yield registry
        assert registry.inflight.reserved == 0


# The decision.


async def test_middleware_of_a_host_sees_every_request(registry: FakeRegistry) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    class Refusing(type(create_app(registry))):  # type: ignore[misc]
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    class Proxy:
        """As `wrapt.ObjectProxy`, which hands every attribute on."""

        def __init__(self, app: Any) -> None:
            self.app = app
            self.seen = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.app, name)

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self.seen += 1
            await self.app(scope, receive, send)

    request = http1_request("POST", REST, JSON)
    for outer in (InFront(create_app(registry)), Proxy(create_app(registry))):
        async with served(outer) as way:
            assert b" 200 " in await http1_answer(way, request)
            assert (outer.seen, way.asgi) == (1, 1)
    refusing = create_app(registry)
    refusing.__class__ = Refusing
    async with served(refusing) as way:
        assert b" 401 " in await http1_answer(way, request)
    async with served(Starlette(routes=[Mount("/", create_app(registry))])) as way:
        assert b" 200 " in await http1_answer(way, request)
        assert way.asgi == 1


async def test_the_proxy_headers_of_uvicorn_stand_in_no_direct_way(registry: FakeRegistry) -> None:
    async with served(create_app(registry), proxy_headers=True, forwarded_allow_ips="*") as way:
        await http1_answer(way, http1_request("POST", REST, JSON, "X-Forwarded-For: 1.2.3.4"))
        assert way.asgi == 0


async def test_a_root_path_takes_the_asgi_way(registry: FakeRegistry) -> None:
    async with served(create_app(registry), root_path="/ml") as way:
        assert b" 200 " in await http1_answer(way, http1_request("POST", REST, JSON))
        assert way.asgi == 1


async def test_a_registry_on_another_loop_takes_the_asgi_way() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    with registry:  # On the private thread.
        async with served(create_app(registry, grpc=True)) as way:
            assert b" 200 " in await http1_answer(way, http1_request("POST", REST, JSON))
            [answer] = await http2_answers(way, (PREDICT, WHOLE))
            assert answer.trailers == {b"grpc-status": b"0"}
            assert way.asgi == 2


async def test_a_registry_entered_later_is_served_by_equal_heads() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    request = http1_request("POST", REST, JSON)
    async with served(create_app(registry)) as way:
        assert b" 503 " in await http1_answer(way, request)
        async with registry:
            assert b" 200 " in await http1_answer(way, request)
        assert way.asgi == 1


async def test_servers_of_a_process_do_not_share_their_heads(registry: FakeRegistry) -> None:
    other = FakeRegistry({"m": {1: FakeLoader(lambda version, inputs: {"y": inputs["x"] * 0})}})
    request = http1_request("POST", REST, JSON)
    async with other, served(create_app(registry)) as one, served(create_app(other)) as two:
        assert (await http1_answer(one, request)).endswith(b"[11.0,21.0]}")
        assert (await http1_answer(two, request)).endswith(b"[0.0,0.0]}")


async def test_limit_concurrency_counts_direct_requests() -> None:
    gate = Gate()
    registry = FakeRegistry({"m": {1: FakeLoader(gate=gate)}})
    async with registry, served(create_app(registry), limit_concurrency=3) as way:
        client = Http2Client(*await way.connect())
        fields = (b"te", b""), (b"content-type", b"application/json")
        streams = [client.call(REST, JSON, *fields) for _ in range(3)]
        await until_running(gate)
        refused = await client.answer(client.call(REST, JSON, *fields))
        assert refused.head[b":status"] == b"503"
        gate.open()
        assert (await client.answer(streams[-1])).head[b":status"] == b"200"
        client.close()


# Bodies in pieces.


async def test_a_body_that_waits_goes_the_asgi_way(registry: FakeRegistry) -> None:
    async with served(create_app(registry)) as way:
        reader, writer = await way.connect()
        request = http1_request("POST", REST, JSON)
        writer.write(request[:-5])
        while not way.asgi:
            await asyncio.sleep(0.001)
        writer.write(request[-5:])
        assert b" 200 " in await reader.read()
        writer.close()


@pytest.mark.parametrize("pieces", [2, 30, 1_000])
async def test_bodies_in_pieces_take_the_direct_way(pieces: int) -> None:
    values = frame(predict_request(x=np.arange(2_000, dtype=np.float32)).SerializeToString())
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry, both(create_app(registry, grpc=True)) as ways:
        one, other = [await http2_answers(way, (PREDICT, values), pieces=pieces) for way in ways]
        assert one == other
        assert one[0].trailers == {b"grpc-status": b"0"}
        assert ways[0].asgi == 0


async def test_a_large_body_goes_the_asgi_way() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        body = frame(predict_request(x=np.arange(40_000, dtype=np.float32)).SerializeToString())
        async with both(create_app(registry, grpc=True)) as (direct, asgi):
            for length in ((), ((b"content-length", b"%d" % len(body)),)):
                one, other = [await http2_answers(way, (PREDICT, body, *length), pieces=5) for way in (direct, asgi)]
                assert one == other
                assert one[0].trailers == {b"grpc-status": b"0"}
            assert direct.asgi == 2


async def test_a_body_held_back_is_asked_for(registry: FakeRegistry) -> None:
    async with served(create_app(registry)) as way:
        reader, writer = await way.connect()
        request = http1_request("POST", REST, JSON, "Expect: 100-continue")
        writer.write(request[: -len(JSON)])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(JSON)
        assert b" 200 " in await reader.read()
        writer.close()


async def test_chunked_bodies_get_the_same_bytes(registry: FakeRegistry) -> None:
    chunks = b"%x\r\n%s\r\n0\r\nx-sum: 1\r\n\r\n" % (len(JSON), JSON)
    request = http1_request("POST", REST, None, "Transfer-Encoding: chunked") + chunks
    async with both(create_app(registry)) as (direct, asgi):
        one, other = await http1_answer(direct, request), await http1_answer(asgi, request)
        assert one == other
        assert one.startswith(b"HTTP/1.1 200")
        assert direct.asgi == 0


# Ends.


@pytest.fixture
async def gated(finished: Finished) -> AsyncIterator[tuple[FakeRegistry, FakeLoader, Gate]]:
    gate = Gate()
    loader = FakeLoader(gate=gate)
    async with FakeRegistry({"m": {1: loader}}, batching=False, observers=[finished]) as registry:
        yield registry, loader, gate
        gate.open()
        assert registry.inflight.reserved == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


Gated = tuple[FakeRegistry, FakeLoader, Gate]


@pytest.mark.parametrize("kind", ["reset", "HTTP/2 lost", "HTTP/1 lost"])
async def test_a_client_that_goes_stops_its_run(gated: Gated, finished: Finished, kind: str) -> None:
    registry, _, gate = gated
    async with served(create_app(registry, grpc=True)) as way:
        reader, writer = await way.connect()
        if kind == "HTTP/1 lost":
            writer.write(http1_request("POST", REST, JSON))
        else:
            client = Http2Client(reader, writer)
            stream = client.call(PREDICT, WHOLE)
        await until_running(gate)
        assert way.asgi == 0
        if kind == "reset":
            client.send(frames.frame(frames.RST_STREAM, 0, stream, bytes([0, 0, 0, 8])))
        else:
            writer.transport.abort()
        await until(lambda: not gate.waiting and not registry.inflight.reserved)
        await until(lambda: bool(finished.seen))
        assert [code for *_, code in finished.seen] == [Code.CANCELLED]
        assert not way.server.server_state.tasks
        writer.close()


async def test_a_call_that_is_reset_before_its_task_begins_leaves_nothing(registry: FakeRegistry) -> None:
    async with served(create_app(registry, grpc=True)) as way:
        client = Http2Client(*await way.connect())
        # One write, so that one read of the server brings the call and its end.
        fields = {**dict(GRPC_HEAD), b":path": PREDICT.encode()}
        client.stream += 2
        client.send(
            headers(client.stream, block(list(fields.items())), frames.END_HEADERS),
            data(client.stream, WHOLE, frames.END_STREAM),
            frames.rst_stream(client.stream, frames.ErrorCode.CANCEL),
        )
        answered = await client.answer(client.call(PREDICT, WHOLE))
        assert answered.trailers == {b"grpc-status": b"0"}
        client.close()
        async with asyncio.timeout(20):
            while way.server.server_state.connections:
                await asyncio.sleep(0)
        assert way.asgi == 0
        assert not way.server.server_state.tasks


async def test_a_client_that_goes_inside_its_body_is_counted_alike(registry: FakeRegistry, finished: Finished) -> None:
    async with both(create_app(registry)) as ways:
        for way in ways:
            _, writer = await way.connect()
            writer.write(http1_request("POST", REST, JSON)[:-5])
            await until(lambda way=way: bool(way.server.server_state.connections))  # type: ignore[misc]
            writer.transport.abort()
            await until(lambda way=way: not way.server.server_state.connections)  # type: ignore[misc]
        await until(lambda: len(finished.seen) == 2)
    assert finished.seen[0] == finished.seen[1]
    assert finished.seen[0][-1] is Code.CANCELLED


async def test_a_deadline_that_passes_ends_a_call(gated: Gated) -> None:
    registry, _, gate = gated
    async with both(GrpcApp(registry)) as ways:
        call = (PREDICT, WHOLE, (b"grpc-timeout", b"50m"))
        answers = [await http2_answers(way, call) for way in ways]
    for [answer] in answers:
        assert answer.trailers[b"grpc-status"] == b"%d" % Code.DEADLINE_EXCEEDED
        # The queue and the watch over the call have timers for the same moment.
        assert answer.trailers[b"grpc-message"] in (b"Deadline Exceeded", b"Timed out waiting for notification")
    assert ways[0].asgi == 0
    await until(lambda: not gate.waiting)


async def test_overload_gets_the_same_frames(gated: Gated) -> None:
    registry, _, gate = gated
    app = GrpcApp(registry, max_concurrent_calls=1)
    async with both(app) as ways:
        refusals: list[Answered] = []
        for way in ways:
            client = Http2Client(*await way.connect())
            gate.close()
            first = client.call(PREDICT, WHOLE)
            await until_running(gate)
            refusals.append(await client.answer(client.call(PREDICT, WHOLE)))
            gate.open()
            assert (await client.answer(first)).trailers == {b"grpc-status": b"0"}
            assert (await client.answer(client.call(PREDICT, WHOLE))).trailers == {b"grpc-status": b"0"}
            client.close()
    assert refusals[0] == refusals[1]
    assert refusals[0].trailers[b"grpc-status"] == b"%d" % Code.RESOURCE_EXHAUSTED
    assert ways[0].asgi == 0


async def test_bytes_in_flight_are_refused_alike() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}}, max_inflight_bytes=5_000)
    call = PREDICT, frame(predict_request(x=np.zeros(600, np.float32)).SerializeToString())
    request = http1_request("POST", REST, b'{"instances": [' + b"1," * 1_000 + b"1]}")
    async with registry, both(create_app(registry, grpc=True)) as (direct, asgi):
        [one], [other] = await http2_answers(direct, call), await http2_answers(asgi, call)
        assert one == other
        assert one.trailers[b"grpc-status"] == b"%d" % Code.RESOURCE_EXHAUSTED
        answer = await http1_answer(direct, request)
        assert answer == await http1_answer(asgi, request)
        assert answer.startswith(b"HTTP/1.1 429")
        assert direct.asgi == 0
        assert registry.inflight.reserved == 0


async def test_the_end_of_a_drain_refuses_alike(gated: Gated) -> None:
    registry, _, _ = gated
    async with both(create_app(registry, grpc=True)) as ways:
        clients = [Http2Client(*await way.connect()) for way in ways]
        streams = [client.call(PREDICT, WHOLE) for client in clients]
        await until(lambda: all(len(way.server.server_state.tasks) == 1 for way in ways))
        registry.give_up()
        under_way = [await client.answer(stream) for client, stream in zip(clients, streams, strict=True)]
        later = [await client.answer(client.call(PREDICT, WHOLE)) for client in clients]
        requests = [await http1_answer(way, http1_request("POST", REST, JSON)) for way in ways]
        for client in clients:
            client.close()
    assert under_way[0] == under_way[1]
    assert later[0] == later[1]
    assert under_way[0].trailers[b"grpc-status"] == later[0].trailers[b"grpc-status"] == b"%d" % Code.UNAVAILABLE
    assert requests[0] == requests[1]
    assert requests[0].startswith(b"HTTP/1.1 503")
    assert ways[0].asgi == 0


async def test_a_drain_out_of_time_answers_503(gated: Gated, finished: Finished) -> None:
    registry, _, gate = gated
    app = create_app(registry)
    answers = []
    async with both(app) as ways:
        for way in ways:
            reader, writer = await way.connect()
            writer.write(http1_request("POST", REST, JSON))
            await until_running(gate)
            app.ending = True
            [task] = way.server.server_state.tasks
            task.cancel("as uvicorn does")
            answers.append(await reader.read())
            app.ending = False
            writer.close()
            await until(lambda: not gate.waiting)
    assert answers[0] == answers[1]
    assert answers[0].startswith(b"HTTP/1.1 503")
    assert [code for *_, code in finished.seen] == [Code.UNAVAILABLE] * 2


async def test_a_cancelled_call_is_broken_off(gated: Gated) -> None:
    registry, _, gate = gated
    broken = []
    async with both(GrpcApp(registry)) as ways:
        for way in ways:
            client = Http2Client(*await way.connect())
            stream = client.call(PREDICT, WHOLE)
            await until_running(gate)
            [task] = way.server.server_state.tasks
            task.cancel("as uvicorn does")
            broken.append(await client.answer(stream))
            client.close()
            await until(lambda: not gate.waiting)
    assert broken[0] == broken[1]


async def test_an_answer_holds_its_bytes_until_the_client_takes_them() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry, served(GrpcApp(registry)) as way:
        client = Http2Client(*await way.connect())
        body = frame(predict_request(x=np.zeros(15_000, np.float32)).SerializeToString())
        first = client.call(PREDICT, body)
        assert (await client.answer(first)).trailers == {b"grpc-status": b"0"}
        second = client.call(PREDICT, body)  # The connection's window of 65,535 bytes is nearly used up.
        await until(lambda: way.protocol.answered == 2)
        assert registry.inflight.reserved > 50_000
        client.send(frames.window_update(0, 1 << 20))
        assert (await client.answer(second)).trailers == {b"grpc-status": b"0"}
        await until(lambda: not registry.inflight.reserved)
        assert way.asgi == 0
        client.close()


async def test_a_fault_of_the_application_is_logged_and_500(
    registry: FakeRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(registry)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug below")

    monkeypatch.setattr(type(app), "_with_cors", broken)
    async with both(app) as (direct, asgi):
        request = http1_request("GET", "/v1/models/m")
        one, other = await http1_answer(direct, request), await http1_answer(asgi, request)
    assert one == other
    assert one.startswith(b"HTTP/1.1 500")
    assert [record.message for record in caplog.records].count("Exception in ASGI application\n") == 2


async def test_the_access_log_has_direct_requests(registry: FakeRegistry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.access")
    async with both(create_app(registry, grpc=True)) as ways:
        for way in ways:
            await http1_answer(way, http1_request("POST", REST, JSON))
            await http2_answers(way, (PREDICT, WHOLE))
    lines = [record.message.partition(" - ")[2] for record in caplog.records if record.name == "uvicorn.access"]
    assert lines == [f'"POST {REST} HTTP/1.1" 200', f'"POST {PREDICT} HTTP/2" 200'] * 2
    assert ways[0].asgi == 0
