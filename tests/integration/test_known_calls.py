"""Predict requests of a known template take no coroutine, and keep every promise of the longer ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.concurrency.inflight import Reservation
from embedserve.errors import Code, InferenceError
from embedserve.grpc import GrpcApp
from embedserve.grpc.known_predict import KnownPredict
from embedserve.grpc.transports.frames import frame
from embedserve.http import frames
from embedserve.observer import Observer
from embedserve.servable import Array, ServableId, State, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature
from tests.grpc.conftest import predict_request, until_running
from tests.integration.both_ways import (
    PREDICT,
    WHOLE,
    Answered,
    Finished,
    Http2Client,
    Way,
    both,
    http2_answers,
    served,
)
from tests.integration.test_direct_promises import until

OK = {b"grpc-status": b"0"}


class Runs(Observer):
    """What a tracing observer hears of the runs of requests."""

    def __init__(self) -> None:
        self.errors: list[Code | None] = []

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        self.errors.append(None if error is None else getattr(error, "code", Code.UNKNOWN))


@pytest.fixture
def finished() -> Finished:
    return Finished()


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request had a known template."""
    found: list[bool] = []
    submit, answer_whole = KnownPredict.submit, GrpcApp._answer_whole

    def known(self: KnownPredict, *args: Any) -> None:
        found.append(True)
        submit(self, *args)

    def unknown(self: GrpcApp, *args: Any) -> Any:
        found.append(False)
        return answer_whole(self, *args)

    monkeypatch.setattr(KnownPredict, "submit", known)
    monkeypatch.setattr(GrpcApp, "_answer_whole", unknown)
    return found


async def learn(way: Way, body: bytes = WHOLE) -> None:
    """Make the template of `body` known."""
    for answer in await http2_answers(way, (PREDICT, body), (PREDICT, body)):
        assert answer.trailers == OK


@asynccontextmanager
async def gated(*observers: Observer, **options: Any) -> AsyncIterator[tuple[FakeRegistry, Gate]]:
    """A registry whose runs wait for a gate, open at first; nothing is left at the end."""
    gate = Gate(opened=True)
    async with FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, observers=observers, **options) as registry:
        yield registry, gate
        gate.open()
        assert registry.inflight.reserved == 0
        assert registry.statistics().in_flight == {("m", 1): 0}


def reset(client: Http2Client, stream: int) -> None:
    client.send(frames.rst_stream(stream, frames.ErrorCode.CANCEL))


async def test_answers_equal_the_asgi_way_with_and_without_a_template(known: list[bool], finished: Finished) -> None:
    async with gated(finished) as (registry, _), both(GrpcApp(registry)) as ways:
        calls: list[tuple[Any, ...]] = [
            (PREDICT, frame(predict_request(x=[float(i), -1.0]).SerializeToString())) for i in range(6)
        ]
        calls += [(PREDICT, calls[0][1], (b"grpc-timeout", b"20S"), (b"x-embedserve-priority", b"low"))]
        one, other = [await http2_answers(way, *calls) for way in ways]
        assert one == other
        assert ways[0].asgi == 0
    assert known == [False, False, True, True, True, True, True]
    assert finished.seen == [("m", "Predict", "GRPC", Code.OK)] * 14


@pytest.mark.parametrize(
    "fields",
    [
        ((b"grpc-timeout", b"soon"),),
        ((b"grpc-timeout", b"0n"),),
        ((b"x-embedserve-priority", b"first"),),
    ],
)
async def test_faults_of_a_head_are_refused_alike(fields: tuple[Any, ...], finished: Finished, runs: Runs) -> None:
    async with gated(finished, runs) as (registry, _), both(GrpcApp(registry)) as ways:
        for way in ways:
            await learn(way)
        one, other = [await http2_answers(way, (PREDICT, WHOLE, *fields)) for way in ways]
        assert one == other
        assert one[0].trailers[b"grpc-status"] != b"0"
    assert finished.seen[-2] == finished.seen[-1]


@pytest.mark.parametrize("change", ["model", "signature"])
async def test_requests_that_no_longer_fit_are_refused_alike(known: list[bool], change: str) -> None:
    loader = FakeLoader()
    async with FakeRegistry({"m": {1: loader}}) as registry, both(GrpcApp(registry)) as ways:
        for way in ways:
            await learn(way)
        if change == "model":
            await registry.remove("m", 1)
            await until(lambda: [each.state for each in registry.status("m")["m"]] == [State.END])
        else:
            [signature] = registry.acquire_now("m").signatures.values()
            object.__setattr__(signature, "_checks", [("z", *signature._checks[0][1:])])
        known.clear()
        one, other = [await http2_answers(way, (PREDICT, WHOLE)) for way in ways]
        assert known == [True]
        assert one == other
        assert one[0].trailers[b"grpc-status"] != b"0"
        assert registry.inflight.reserved == 0


async def test_a_deadline_ends_a_run_under_way(known: list[bool], finished: Finished, runs: Runs) -> None:
    async with gated(finished, runs, batching=False) as (registry, gate), served(GrpcApp(registry)) as way:
        await learn(way)
        gate.close()
        [answer] = await http2_answers(way, (PREDICT, WHOLE, (b"grpc-timeout", b"50m")))
        assert answer.trailers[b"grpc-status"] == b"%d" % Code.DEADLINE_EXCEEDED
        await until(lambda: not gate.waiting)
        assert not way.server.server_state.tasks
    assert known[-1]
    assert finished.seen[-1][-1] is Code.DEADLINE_EXCEEDED
    assert runs.errors == [None, None, Code.DEADLINE_EXCEEDED]


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("kind", ["reset", "lost"])
async def test_a_client_that_goes_stops_its_run(
    known: list[bool], finished: Finished, runs: Runs, kind: str, batching: bool
) -> None:
    async with gated(finished, runs, batching=batching) as (registry, gate), served(GrpcApp(registry)) as way:
        await learn(way)
        client = Http2Client(*await way.connect())
        gate.close()
        stream = client.call(PREDICT, WHOLE)
        await until_running(gate)
        assert known[-1]
        if kind == "reset":
            reset(client, stream)
        else:
            client.writer.transport.abort()
        await until(lambda: not gate.waiting and not registry.inflight.reserved)
        assert not way.server.server_state.tasks
        client.close()
    assert [code for *_, code in finished.seen] == [Code.OK, Code.OK, Code.CANCELLED]
    assert runs.errors == [None, None, Code.CANCELLED]


async def test_a_reset_beside_batch_mates_takes_no_answer_from_them(known: list[bool]) -> None:
    async with gated(batching=True, num_batch_threads=1) as (registry, gate), served(GrpcApp(registry)) as way:
        await learn(way)
        client = Http2Client(*await way.connect())
        gate.close()
        first = client.call(PREDICT, WHOLE)
        await until_running(gate)
        mates = [client.call(PREDICT, WHOLE) for _ in range(3)]
        await until(lambda: len(known) == 6)
        reset(client, mates[1])
        await until(lambda: len(way.server.server_state.tasks) == 3)
        gate.open()
        for stream in (first, mates[0], mates[2]):
            assert (await client.answer(stream)).trailers == OK
        client.close()


async def test_the_guilty_row_of_a_batch_fails_alone(known: list[bool], finished: Finished) -> None:
    def model(_: int, inputs: Tensors) -> dict[str, Array]:
        if np.any(inputs["x"] < 0):
            raise InferenceError("a negative value", code=Code.INVALID_ARGUMENT)
        return {"y": inputs["x"] * 10}

    gate = Gate(opened=True)
    loader = FakeLoader(model, gate=gate)
    async with FakeRegistry({"m": {1: loader}}, observers=[finished], batching=True, num_batch_threads=1) as registry:
        async with served(GrpcApp(registry)) as way:
            await learn(way)
            client = Http2Client(*await way.connect())
            gate.close()
            first = client.call(PREDICT, WHOLE)
            await until_running(gate)
            bodies = [frame(predict_request(x=[value, 1.0]).SerializeToString()) for value in (1.0, -1.0, 2.0)]
            streams = [client.call(PREDICT, body) for body in bodies]
            await until(lambda: len(known) == 6)
            gate.open()
            found = [(await client.answer(stream)).trailers[b"grpc-status"] for stream in (first, *streams)]
            client.close()
        assert found == [b"0", b"0", b"%d" % Code.INVALID_ARGUMENT, b"0"]
        assert all(known[2:])
        assert registry.inflight.reserved == 0


async def test_the_end_of_a_drain_refuses_with_unavailable(known: list[bool], finished: Finished, runs: Runs) -> None:
    async with gated(finished, runs, batching=False) as (registry, gate), served(GrpcApp(registry)) as way:
        await learn(way)
        client = Http2Client(*await way.connect())
        gate.close()
        stream = client.call(PREDICT, WHOLE)
        await until_running(gate)
        registry.give_up()
        answer = await client.answer(stream)
        assert answer.trailers[b"grpc-status"] == b"%d" % Code.UNAVAILABLE
        await until(lambda: not gate.waiting)
        client.close()
    assert known[-1]
    assert runs.errors == [None, None, Code.UNAVAILABLE]


@pytest.mark.parametrize("cut", [True, False])
async def test_a_server_that_cancels_gets_the_answers_of_the_asgi_way(known: list[bool], cut: bool) -> None:
    async with gated(batching=False) as (registry, gate):
        app = GrpcApp(registry)
        found: list[Answered] = []
        async with both(app) as ways:
            for way in ways:
                gate.open()
                await learn(way)
                client = Http2Client(*await way.connect())
                gate.close()
                stream = client.call(PREDICT, WHOLE)
                await until_running(gate)
                if cut:
                    app.cut()
                for task in way.server.server_state.tasks:
                    task.cancel("as uvicorn does")
                found.append(await client.answer(stream))
                await until(lambda: not gate.waiting)
                assert not way.server.server_state.tasks
                client.close()
        assert found[0] == found[1]
        assert known[2:] == [True]


async def test_a_request_log_gets_each_exchange(known: list[bool], tmp_path: Path) -> None:
    logged: list[Any] = []

    class Log:
        def add(self, exchange: Any) -> None:
            logged.append(exchange)

    async with gated() as (registry, _), served(GrpcApp(registry)) as way:
        await learn(way)
        with pytest.MonkeyPatch.context() as patch:
            handle = registry.acquire_now("m")
            handle.release()
            patch.setattr(type(handle), "request_log", lambda self: Log())
            answers = await http2_answers(way, (PREDICT, WHOLE), (PREDICT, WHOLE))
    assert known[2:] == [True, True]
    for exchange, answer in zip(logged, answers, strict=True):
        assert (exchange.request, exchange.response) == (WHOLE[5:], answer.body[5:])


async def test_limits_are_those_of_the_asgi_way(known: list[bool]) -> None:
    async with gated() as (registry, _), both(GrpcApp(registry, max_send_bytes=60)) as ways:
        body = frame(predict_request(x=[1.0]).SerializeToString())
        for way in ways:
            await learn(way, body)
        wide = frame(predict_request(x=np.zeros(12, np.float32)).SerializeToString())
        calls = [(PREDICT, wide)] * 3
        one, other = [await http2_answers(way, *calls) for way in ways]
        assert one == other
        assert one[-1].trailers[b"grpc-status"] == b"%d" % Code.RESOURCE_EXHAUSTED
        assert known[-1]


async def test_an_account_without_room_for_the_answer_refuses_alike(
    known: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gated() as (registry, _), both(GrpcApp(registry)) as ways:
        for way in ways:
            await learn(way)
        add = Reservation.add

        def full(self: Reservation, size: int, what: str = "") -> None:
            limit = registry.inflight.limit
            registry.inflight.limit = 0 if what == "the answer" else limit
            try:
                add(self, size, what)
            finally:
                registry.inflight.limit = limit

        monkeypatch.setattr(Reservation, "add", full)
        one, other = [await http2_answers(way, (PREDICT, WHOLE)) for way in ways]
        assert one == other
        assert one[0].trailers[b"grpc-status"] == b"%d" % Code.RESOURCE_EXHAUSTED
        assert known[-1]
        assert registry.inflight.reserved == 0


async def test_large_outputs_are_encoded_in_a_thread(known: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def model(_: int, inputs: Tensors) -> dict[str, Array]:
        return {"y": np.full((len(inputs["x"]), (1 << 20) + 1), 7.0, np.float32)}

    threads: list[Any] = []
    run_in_thread = FakeRegistry.run_in_thread

    async def counted(self: FakeRegistry, call: Any, *args: Any) -> Any:
        threads.append(call)
        return await run_in_thread(self, call, *args)

    monkeypatch.setattr(FakeRegistry, "run_in_thread", counted)
    loader = FakeLoader(model, signatures=[fake_signature(outputs={"y": ("float", (None, None))})])
    async with FakeRegistry({"m": {1: loader}}) as registry, both(GrpcApp(registry)) as ways:
        call = PREDICT, frame(predict_request(x=[1.0]).SerializeToString())
        one, other = [await http2_answers(way, call, call, call) for way in ways]
        assert [each.body for each in one] == [each.body for each in other]
        assert one[-1].trailers == OK
        assert known == [False, False, True]
        assert len(threads) == 6
        await until(lambda: not registry.inflight.reserved)


async def test_a_slow_client_holds_the_bytes_of_its_answer(known: list[bool]) -> None:
    async with gated() as (registry, _), served(GrpcApp(registry)) as way:
        body = frame(predict_request(x=np.zeros(15_000, np.float32)).SerializeToString())
        await learn(way, body)
        client = Http2Client(*await way.connect())
        assert (await client.answer(client.call(PREDICT, body))).trailers == OK
        second = client.call(PREDICT, body)  # The connection's window of 65,535 bytes is nearly used up.
        await until(lambda: registry.inflight.reserved > 50_000)
        client.send(frames.window_update(0, 1 << 20))
        assert (await client.answer(second)).trailers == OK
        await until(lambda: not registry.inflight.reserved)
        assert known[-2:] == [True, True]
        client.close()


async def test_models_unload_after_their_last_known_call(known: list[bool]) -> None:
    gate = Gate(opened=True)
    loader = FakeLoader(gate=gate)
    async with FakeRegistry({"m": {1: loader}}, batching=False) as registry, served(GrpcApp(registry)) as way:
        await learn(way)
        client = Http2Client(*await way.connect())
        gate.close()
        stream = client.call(PREDICT, WHOLE)
        await until_running(gate)
        await registry.remove("m", 1)
        await asyncio.sleep(0)
        assert not loader.unloads
        gate.open()
        assert (await client.answer(stream)).trailers == OK
        await until(lambda: loader.unloads == 1)
        assert known[-1]
        client.close()
