"""What REST tells and records of a call: times, the request's name, the caller's trace; on either way to the API."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from embedserve import AccessLog, CallRecord, Tracing
from embedserve.errors import Code
from embedserve.http import HttpProtocol
from embedserve.observer import CallObserver
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry
from tests.rest.conftest import Serve

BODY = {"instances": [1, 2]}
PATH = "/v1/models/m:predict"
TIMING = {"x-embedserve-timing": "1"}


class Records(CallObserver):
    """Keeps the record of every call."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []

    def wants(self, transport: str, headers: object) -> bool:
        return True

    def call_finished(self, record: CallRecord) -> None:
        self.calls.append(record)


@pytest.fixture(params=["direct", "asgi"])
def http(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The own protocol, whose known requests take the direct way, and uvicorn's."""
    return {"http": HttpProtocol} if request.param == "direct" else {}


def fake(**options: Any) -> FakeRegistry:
    return FakeRegistry({"m": {3: FakeLoader()}}, warmup="none", **options)


def parts(header: str) -> dict[str, float]:
    """Durations of a `Server-Timing` header in milliseconds, and its descriptions as numbers."""
    found = re.findall(r'(\w+);(?:dur=([0-9.]+)|desc="([0-9]+)")', header)
    assert header == ", ".join(f"{name};dur={dur}" if dur else f'{name};desc="{desc}"' for name, dur, desc in found)
    return {name: float(dur or desc) for name, dur, desc in found}


async def test_a_client_asks_for_the_times_of_a_call(serve: Serve, http: dict[str, Any]) -> None:
    async with fake() as registry, serve(create_app(registry), **http) as server:
        plain = await server.client.post(PATH, json=BODY)
        assert "server-timing" not in plain.headers
        for _ in range(2):  # The second finds a known head.
            timed = await server.client.post(PATH, json=BODY, headers=TIMING)
            assert timed.json() == plain.json()
            told = parts(timed.headers["server-timing"])
            assert told.keys() == {"queue", "run", "total", "rows", "batch", "padding", "version"}
            assert (told["rows"], told["batch"], told["padding"], told["version"]) == (2, 2, 0, 3)
            assert 0 < told["run"] <= told["total"]
            assert told["queue"] + told["run"] <= told["total"] + 0.002  # Each is rounded.
        off = await server.client.post(PATH, json=BODY, headers={"x-embedserve-timing": "0"})
        assert "server-timing" not in off.headers


async def test_the_option_tells_the_times_of_each_call(serve: Serve, http: dict[str, Any]) -> None:
    async with fake(timing_headers=True) as registry, serve(create_app(registry), **http) as server:
        assert "server-timing" in (await server.client.post(PATH, json=BODY)).headers
        failed = await server.client.post("/v1/models/absent:predict", json=BODY)
        assert failed.status_code == 404
        assert parts(failed.headers["server-timing"]).keys() == {"queue", "run", "total", "rows", "batch", "padding"}
        assert "x-request-id" not in failed.headers


async def test_a_record_holds_what_came_and_what_went(serve: Serve, http: dict[str, Any]) -> None:
    records = Records()
    async with (
        fake(observers=[records]) as registry,
        serve(create_app(registry), proxy_headers=False, **http) as server,
    ):
        good = await server.client.post(PATH, json=BODY, headers={"x-forwarded-for": "203.0.113.9"})
        await server.client.post("/v1/models/m/versions/9:predict?x=1", json=BODY)
        await server.client.post(PATH, content=b"{nonsense")
        await server.client.get("/v1/models/m")
    first, missing, malformed, status = records.calls
    assert (first.transport, first.api, first.method, first.target) == ("REST", "predict", "POST", PATH)
    assert (first.model, first.version, first.signature, first.rows) == ("m", 3, "serving_default", 2)
    assert (first.code, first.status) == (Code.OK, 200)
    assert (first.received, first.sent) == (len(good.request.content), len(good.content))
    assert first.peer == first.client == "127.0.0.1"  # No known proxy has sent the header.
    assert first.began < first.steps[0].entered <= first.runs[0].began < first.runs[0].ended
    assert first.runs[0].ended <= first.answered <= first.ended
    assert (missing.code, missing.status, missing.model, missing.version) == (Code.INVALID_ARGUMENT, 400, "m", None)
    assert missing.target == "/v1/models/m/versions/9:predict"
    assert (malformed.code, malformed.status, malformed.steps) == (Code.INVALID_ARGUMENT, 400, [])
    assert (status.api, status.method, status.code) == ("status", "GET", Code.OK)


async def test_a_known_proxy_names_the_client(serve: Serve, http: dict[str, Any]) -> None:
    records = Records()
    registry = fake(observers=[records], trusted_proxies=["127.0.0.0/8"])
    async with registry, serve(create_app(registry), proxy_headers=False, **http) as server:
        await server.client.post(PATH, json=BODY, headers={"x-forwarded-for": "1.1.1.1, 203.0.113.9"})
    assert (records.calls[0].peer, records.calls[0].client) == ("127.0.0.1", "203.0.113.9")


async def test_a_request_id_is_taken_or_made_and_given_back(
    serve: Serve, http: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    log = AccessLog()
    with caplog.at_level(logging.INFO, "embedserve.access"):
        async with fake(observers=[log]) as registry, serve(create_app(registry), **http) as server:
            taken = await server.client.post(PATH, json=BODY, headers={"x-request-id": "abc-1"})
            made = await server.client.post(PATH, json=BODY)
        assert log.flush()
    assert taken.headers["x-request-id"] == "abc-1"
    assert len(made.headers["x-request-id"]) == 36
    logged = [vars(record) for record in caplog.records if record.name == "embedserve.access"]
    assert [line["embedserve.request.id"] for line in logged] == ["abc-1", made.headers["x-request-id"]]
    assert all("instances" not in str(line) for line in logged)  # Never contents.


async def test_the_caller_s_trace_goes_on_over_a_real_connection(serve: Serve, http: dict[str, Any]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    registry = fake(observers=[Tracing(provider, sampling=0.0)])
    async with registry, serve(create_app(registry), **http) as server:
        for flags in ("00", "01", "01"):
            headers = {"traceparent": f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"}
            assert (await server.client.post(PATH, json=BODY, headers=headers)).status_code == 200
        await server.client.post(PATH, json=BODY)
    traces = [
        span.context.trace_id for span in exporter.get_finished_spans() if span.context and ":predict" in span.name
    ]
    assert traces == [0x0AF7651916CD43DD8448EB211C80319C] * 2


async def test_a_record_changes_no_answer(serve: Serve, http: dict[str, Any]) -> None:
    answers: list[list[tuple[int, bytes, str]]] = []
    makers: list[Callable[[], list[CallObserver]]] = [list, lambda: [Records()], lambda: [AccessLog()]]
    for make in makers:
        async with fake(observers=make()) as registry, serve(create_app(registry), **http) as server:
            got = [
                await server.client.post(PATH, json=BODY),
                await server.client.post(PATH, json={"inputs": {"x": [1]}}),
                await server.client.post(PATH, content=b"[]"),
                await server.client.post("/v1/models/absent:predict", json=BODY),
                await server.client.get("/v1/models/m/metadata"),
                await server.client.get("/v1/models/absent"),
            ]
            answers.append([(each.status_code, each.content, each.headers["content-type"]) for each in got])
    assert answers[0] == answers[1] == answers[2]


async def test_big_rows_are_counted_of_the_request_and_of_the_batch(serve: Serve, http: dict[str, Any]) -> None:
    records = Records()
    async with fake(observers=[records]) as registry, serve(create_app(registry), **http) as server:
        await server.client.post(PATH, json={"instances": np.arange(20_000).tolist()})
    (call,) = records.calls
    assert call.rows == 20_000
    assert call.received > 65_536  # Over the bound of the direct way.


async def test_calls_of_the_open_inference_protocol_are_calls_too(serve: Serve, http: dict[str, Any]) -> None:
    records = Records()
    infer = {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}
    async with fake(observers=[records]) as registry, serve(create_app(registry), **http) as server:
        timed = await server.client.post("/v2/models/m/infer", json=infer, headers=TIMING)
        assert timed.status_code == 200
        assert parts(timed.headers["server-timing"])["rows"] == 2
        assert (await server.client.get("/v2/health/live")).status_code == 200
        assert (await server.client.post("/v2/models/absent/infer", json=infer)).status_code == 404
    good, missing = records.calls  # Probes of health are no calls.
    assert (good.api, good.target, good.model, good.version) == ("infer", "/v2/models/m/infer", "m", 3)
    assert (good.received, good.sent) == (len(timed.request.content), len(timed.content))
    assert (missing.code, missing.model) == (Code.NOT_FOUND, "absent")
