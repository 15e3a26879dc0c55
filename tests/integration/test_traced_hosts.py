"""A host with OpenTelemetry's own instrumentation: the spans of a call nest below the span of the host's request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from embedserve import Tracing
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.test_tracing import Spans, attributes, id_of, parent_of


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def instrumented(spans: Spans, gate: Gate | None = None) -> tuple[FastAPI, FakeRegistry]:
    """A service that predicts in the process at `/score/N`, and has the REST API below `/ml`."""
    options: dict[str, Any] = {"batching": True, "num_batch_threads": 1, "loop_run_limit": 0, "warmup": "none"}
    registry = FakeRegistry({"m": {3: FakeLoader(gate=gate)}}, observers=[Tracing(spans.provider)], **options)
    app = FastAPI()

    @app.get("/score/{number}")
    async def score(number: int) -> list[int]:
        outputs = await registry.predict("m", {"x": [number]})
        scores: list[int] = outputs["y"].tolist()
        return scores

    app.mount("/ml", create_app(registry))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=spans.provider)
    return app, registry


async def test_three_requests_of_an_instrumented_fastapi_share_a_run(spans: Spans) -> None:
    gate = Gate()
    app, registry = instrumented(spans, gate)
    async with registry, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://h") as client:
        spans.exporter.clear()
        first = asyncio.ensure_future(client.get("/score/0"))
        async with asyncio.timeout(60):
            while not gate.waiting:
                await asyncio.sleep(0.005)
        rest = [asyncio.ensure_future(client.get(f"/score/{number}")) for number in (1, 2, 3)]
        async with asyncio.timeout(60):
            while registry.statistics().queues["m", 3].waiting < 3:
                await asyncio.sleep(0.005)
        gate.open()
        answers = await asyncio.gather(first, *rest)
    assert [answer.json() for answer in answers] == [[3], [13], [23], [33]]
    hosts = {id_of(span): span for span in spans.named("GET /score/{number}")}
    calls = spans.named("predict m")
    assert len(calls) == len(hosts) == 4
    assert {parent_of(call) for call in calls} == set(hosts)
    for call in calls:
        assert call.context is not None
        host = hosts[parent_of(call) or 0]
        assert host.context is not None
        assert call.context.trace_id == host.context.trace_id
    (run,) = [run for run in spans.named("run") if attributes(run)["embedserve.batch.rows"] == 3]
    together = [call for call in calls if attributes(call)["embedserve.batch.rows"] == 3]
    assert {link.context.span_id for link in run.links} == {id_of(call) for call in together}


async def test_a_mounted_api_nests_below_the_host_and_ignores_its_own_parent(spans: Spans) -> None:
    app, registry = instrumented(spans)
    async with registry, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://h") as client:
        spans.exporter.clear()
        headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        answer = await client.post("/ml/v1/models/m:predict", json={"instances": [1]}, headers=headers)
        assert answer.status_code == 200
    call = spans.one("predict m")
    (host,) = [span for span in spans.all() if id_of(span) == parent_of(call)]
    assert host.parent is not None
    assert f"{host.parent.span_id:016x}" == "b7ad6b7169203331"
    assert attributes(call)["http.response.status_code"] == 200


async def test_a_request_that_the_host_did_not_sample_has_no_spans() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans()
    spans.provider = provider
    app, registry = instrumented(spans)
    async with registry, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://h") as client:
        assert (await client.get("/score/1")).status_code == 200
    assert not exporter.get_finished_spans()
