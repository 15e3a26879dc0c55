"""How a call on the ASGI application ends early: deadlines, clients that go or stall, servers that stop; streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from embedserve.config import BatchingOptions
from embedserve.errors import Code
from embedserve.grpc import GrpcApp
from embedserve.grpc.calls import Context, streaming
from embedserve.grpc.transports import asgi
from embedserve.grpc.transports.frames import frame
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.grpc.conftest import gated, registry, until_idle, until_running
from tests.grpc.fabricated import GRPC, KINDS, PREDICT, REFLECTION, WATCH, WEB, Connection, predict_body

SOON = [(b"grpc-timeout", b"50m")]

Served = tuple[GrpcApp, FakeRegistry, Gate]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A model whose runs wait for the gate; at the end nothing is held any more."""
    reg, _, gate = gated()
    async with reg:
        app = GrpcApp(reg)
        yield app, reg, gate
        gate.open()
        await until_idle(gate)
        assert reg.inflight.reserved == 0
        assert repr(app).endswith(" 0 calls>")


@pytest.fixture
async def app() -> AsyncIterator[GrpcApp]:
    async with registry() as reg:
        yield GrpcApp(reg)
        assert reg.inflight.reserved == 0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits long for a client that does nothing more."""
    monkeypatch.setattr(asgi, "GRACE", 0.05)


# Deadlines.


async def test_a_deadline_ends_the_run(served: Served) -> None:
    app, _, gate = served
    gate.close()
    answer = await Connection(app, predict_body(), headers=SOON).answer()
    assert answer.code is Code.DEADLINE_EXCEEDED
    await until_idle(gate)


@pytest.mark.parametrize("timeout", [b"0S", b"1n"])
async def test_a_deadline_that_has_passed_is_exceeded_without_a_run(timeout: bytes, served: Served) -> None:
    app, _, gate = served
    gate.close()
    answer = await Connection(app, predict_body(), headers=[(b"grpc-timeout", timeout)]).answer()
    assert answer.code is Code.DEADLINE_EXCEEDED
    assert not gate.waiting


async def test_the_longest_deadline_is_none(served: Served) -> None:
    app, _, _ = served
    answer = await Connection(app, predict_body(), headers=[(b"grpc-timeout", b"99999999H")]).answer()
    assert answer.code is Code.OK


@pytest.mark.parametrize("body", [[], [b"\0\0"], [predict_body()[:-1]], [predict_body()]])
async def test_a_body_that_stalls_ends_at_the_deadline(body: list[bytes], app: GrpcApp) -> None:
    answer = await Connection(app, *body, ends=False, headers=SOON).answer()
    assert answer.code is Code.DEADLINE_EXCEEDED


async def test_an_answer_that_nobody_reads_ends_at_the_deadline(app: GrpcApp) -> None:
    connection = Connection(app, predict_body(), headers=SOON)
    connection.reads = False
    await asyncio.wait_for(connection.run(), 30)
    assert connection.sent == []


async def test_a_deadline_ends_a_stream_with_its_status(app: GrpcApp) -> None:
    for kind in (GRPC, WEB):
        answer = await Connection(app, frame(b""), path=WATCH, content_type=kind, headers=SOON).answer()
        assert len(answer.messages) == 1
        assert (answer.code, answer.text) == (Code.DEADLINE_EXCEEDED, "Deadline Exceeded")


# Clients that go.


@pytest.mark.parametrize("body", [[], [b""], [b"\0\0"], [predict_body()[:-1]]])
@pytest.mark.parametrize("path", [PREDICT, WATCH, REFLECTION])
async def test_a_client_that_goes_inside_its_body_gets_nothing(path: str, body: list[bytes], app: GrpcApp) -> None:
    connection = Connection(app, *body, ends=False, path=path)
    connection.go()
    await asyncio.wait_for(connection.run(), 30)
    # A stream has begun; it is broken off.
    assert not any(event["type"] == "http.response.trailers" for event in connection.sent)
    assert len(connection.sent) <= (path != PREDICT)


@pytest.mark.parametrize("repeats", [False, True], ids=["waits", "repeats"])
async def test_a_client_that_goes_reaches_the_run(repeats: bool, served: Served) -> None:
    app, _, gate = served
    gate.close()
    connection = Connection(app, predict_body(), repeats=repeats)
    task = asyncio.create_task(connection.run())
    await until_running(gate)
    connection.go()
    await asyncio.wait_for(task, 30)
    await until_idle(gate)
    assert connection.sent == []
    assert connection.received < 20


async def test_a_client_that_goes_while_its_request_waits_costs_no_run() -> None:
    gate, options = Gate(), BatchingOptions(max_batch_size=1)
    loader = FakeLoader(gate=gate)
    reg = FakeRegistry({"m": {1: loader}}, batching=True, num_batch_threads=1, batching_options=options, warmup="none")
    async with reg:
        app = GrpcApp(reg)
        first, second = (Connection(app, predict_body()) for _ in range(2))
        running = asyncio.create_task(first.answer())
        await until_running(gate)
        waiting = asyncio.create_task(second.run())
        while not sum(queue.waiting for queue in reg.statistics().queues.values()):
            await asyncio.sleep(0.001)
        second.go()
        await asyncio.wait_for(waiting, 30)
        gate.open()
        assert (await running).code is Code.OK
        assert loader.servable is not None
        assert loader.servable.runs == [1]


class Gone(OSError):
    """What a server may raise from `send` when the client has gone."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [PREDICT, WATCH, "/other.Service/Do"])
@pytest.mark.parametrize("after", [0, 1, 2])
async def test_sending_to_a_client_that_has_gone_ends_the_call(
    after: int, path: str, kind: bytes, app: GrpcApp, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0

    async def send(event: Any) -> None:
        nonlocal sent
        sent += 1
        if sent > after:
            raise Gone

    connection = Connection(app, frame(b""), path=path, content_type=kind, headers=SOON)
    await asyncio.wait_for(app(connection.scope, connection._receive, send), 30)
    assert not caplog.records


async def test_a_servers_own_error_in_sending_is_not_hidden(app: GrpcApp) -> None:
    async def send(event: Any) -> None:
        raise RuntimeError("the server's")

    for path in (PREDICT, WATCH, "/other.Service/Do"):
        connection = Connection(app, predict_body(), path=path)
        with pytest.raises(RuntimeError, match="the server's"):
            await app(connection.scope, connection._receive, send)


# Servers that stop.


async def cancelled(connection: Connection, ready: Any) -> None:
    """Cancel the application's task as a server does that stops; it must end as cancelled."""
    task = asyncio.create_task(connection.run())
    await asyncio.wait_for(ready, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)


async def test_a_cancelled_task_stays_cancelled(served: Served) -> None:
    app, reg, gate = served
    reading = Connection(app, predict_body()[:-1], ends=False)

    async def reserved() -> None:
        while not reg.inflight.reserved:
            await asyncio.sleep(0.001)

    await cancelled(reading, reserved())
    gate.close()
    await cancelled(Connection(app, predict_body()), until_running(gate))
    await until_idle(gate)
    stream = Connection(app, frame(b""), path=WATCH)
    await cancelled(stream, stream.until_sent(2))


# Streams.


def serving(message: bytes) -> str:
    status = health_pb2.HealthCheckResponse.FromString(message).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


@pytest.mark.parametrize("kind", KINDS)
async def test_draining_ends_a_watch_after_a_last_word(kind: bytes, served: Served) -> None:
    app, reg, _ = served
    body = frame(b"") if kind != KINDS[-1] else b"AAAAAAA="
    connection = Connection(app, body, path=WATCH, content_type=kind)
    task = asyncio.create_task(connection.answer())
    await connection.until_sent(2)
    reg.begin_drain()
    answer = await task
    assert [serving(message) for _, message in answer.messages] == ["SERVING", "NOT_SERVING"]
    assert answer.code is Code.OK


@pytest.mark.parametrize("repeats", [False, True], ids=["waits", "repeats"])
async def test_a_client_that_goes_ends_its_watch(repeats: bool, app: GrpcApp) -> None:
    connection = Connection(app, frame(b""), path=WATCH, repeats=repeats)
    task = asyncio.create_task(connection.run())
    await connection.until_sent(2)
    connection.go()
    await asyncio.wait_for(task, 30)
    assert [event["type"] for event in connection.sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", Code.UNIMPLEMENTED),
        (frame(b"") * 2, Code.UNIMPLEMENTED),
        (frame(b"\xff"), Code.INVALID_ARGUMENT),
        (frame(b"", 7), Code.INVALID_ARGUMENT),
        (b"\0\0", Code.INVALID_ARGUMENT),
    ],
)
async def test_a_bad_request_ends_a_stream_with_its_status(body: bytes, code: Code, app: GrpcApp) -> None:
    answer = await Connection(app, body, path=WATCH).answer()
    assert (answer.messages, answer.code) == ([], code)


async def test_messages_go_both_ways_at_the_same_time(app: GrpcApp) -> None:
    connection = Connection(app, path=REFLECTION, ends=False)
    task = asyncio.create_task(connection.answer())
    question = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    for asked in range(1, 4):
        connection.piece(frame(question), more=True)
        await connection.until_sent(1 + asked)  # Answered while the body is open.
    connection.piece(b"", more=False)
    answer = await task
    assert (len(answer.messages), answer.code) == (3, Code.OK)


class Streams:
    """A streaming method of the test's own in place of the services'."""

    path = "/test.Service/Stream"

    def __init__(self) -> None:
        self.closed = 0

    def on(self, app: GrpcApp) -> GrpcApp:
        app._methods = {self.path: streaming(self.stream)}
        return app

    async def stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes, None]:
        try:
            async for message in requests:
                if message == b"bug":
                    raise KeyError("secret")
                if message == b"enough":
                    return
                while True:
                    yield message
                    await asyncio.sleep(0)
        finally:
            self.closed += 1


async def test_a_stream_waits_for_a_client_that_does_not_read(app: GrpcApp) -> None:
    streams = Streams()
    connection = Connection(streams.on(app), frame(b"x"), path=Streams.path, headers=SOON)
    task = asyncio.create_task(connection.run())
    await connection.until_sent(3)
    connection.reads = False
    await asyncio.wait_for(task, 30)
    assert not connection.sent[-1]["type"].endswith("trailers")
    assert streams.closed == 1


async def test_a_stream_is_closed_when_its_client_goes_or_cannot_be_sent_to(app: GrpcApp) -> None:
    streams = Streams()
    connection = Connection(streams.on(app), frame(b"x"), path=Streams.path)
    task = asyncio.create_task(connection.run())
    await connection.until_sent(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert streams.closed == 1

    async def send(event: Any) -> None:
        if event["type"] == "http.response.body":
            raise Gone

    connection = Connection(app, frame(b"x"), path=Streams.path)
    await asyncio.wait_for(app(connection.scope, connection._receive, send), 30)
    assert streams.closed == 2


async def test_a_bug_in_a_stream_is_internal_and_a_stream_may_end_before_its_client(
    app: GrpcApp, caplog: pytest.LogCaptureFixture
) -> None:
    Streams().on(app)
    answer = await Connection(app, frame(b"bug"), path=Streams.path).answer()
    assert (answer.code, answer.text) == (Code.INTERNAL, "internal error")
    assert len(caplog.records) == 1
    answer = await Connection(app, frame(b"enough"), frame(b"more"), path=Streams.path, ends=False).answer()
    assert (answer.code, answer.messages) == (Code.OK, [])
