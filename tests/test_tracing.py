"""Spans of calls, batches and versions: nested where the host's span is, linked where requests share a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from embedserve import ConfigError, InvalidInputError, ServableNotFoundError, Tracing
from embedserve.call_record import CallHeaders
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Spans:
    """An SDK in memory, not the process's own."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("host")

    def all(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def inside(self, name: str) -> AbstractContextManager[trace.Span]:
        return self.tracer.start_as_current_span(name)


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def registry_with(spans: Spans, gate: Gate | None = None, **options: Any) -> FakeRegistry:
    loader = FakeLoader(gate=gate)
    return FakeRegistry({"m": {3: loader}}, observers=[Tracing(spans.provider)], warmup="none", **options)


async def test_a_call_in_the_process_nests_below_the_host_s_span(spans: Spans) -> None:
    async with registry_with(spans) as registry:
        spans.exporter.clear()
        with spans.inside("host") as host:
            await registry.predict("m", {"x": [1, 2]})
    call, queue, run = spans.one("predict m"), spans.one("queue"), spans.one("run")
    assert parent_of(call) == host.get_span_context().span_id
    assert parent_of(queue) == parent_of(run) == id_of(call)
    assert call.kind is trace.SpanKind.INTERNAL
    assert attributes(call) == {
        "embedserve.model.name": "m",
        "embedserve.model.version": 3,
        "embedserve.model.signature": "serving_default",
        "embedserve.rows": 2,
        "embedserve.batch.rows": 2,
        "embedserve.batch.padding_rows": 0,
        "embedserve.outcome": "OK",
    }
    assert not spans.named("encode")


async def test_the_spans_are_in_the_order_of_the_call(spans: Spans) -> None:
    before = time.time_ns()
    async with registry_with(spans) as registry:
        spans.exporter.clear()
        await registry.predict("m", {"x": [1]})
    after = time.time_ns()
    call, queue, run = spans.one("predict m"), spans.one("queue"), spans.one("run")
    times = [call.start_time, queue.start_time, queue.end_time, run.end_time, call.end_time]
    assert all(isinstance(at, int) for at in times)
    assert sorted(times, key=lambda at: at or 0) == times
    assert queue.end_time == run.start_time
    assert before <= (call.start_time or 0)
    assert (call.end_time or 0) <= after + 1_000_000


async def test_a_run_belongs_to_its_batch_and_links_to_every_request_in_it(spans: Spans) -> None:
    gate = Gate()
    async with registry_with(spans, gate, batching=True, num_batch_threads=1, loop_run_limit=0) as registry:
        spans.exporter.clear()
        first = asyncio.ensure_future(registry.predict("m", {"x": [0]}))
        async with asyncio.timeout(60):
            while registry.statistics().busy_threads == 0:
                await asyncio.sleep(0.005)
        rest = [asyncio.ensure_future(registry.predict("m", {"x": [i]})) for i in (1, 2, 3)]
        async with asyncio.timeout(60):
            while registry.statistics().queues["m", 3].waiting < 3:
                await asyncio.sleep(0.005)
        gate.open()
        await asyncio.gather(first, *rest)
    runs = {attributes(run)["embedserve.batch.requests"]: run for run in spans.named("run")}
    assert sorted(runs) == [1, 3]
    shared = runs[3]
    calls = [span for span in spans.named("predict m") if attributes(span)["embedserve.batch.rows"] == 3]
    assert {link.context.span_id for link in shared.links} == {id_of(call) for call in calls}
    assert len(calls) == len({call.context.trace_id for call in calls if call.context}) == 3
    assert parent_of(shared) in {id_of(call) for call in calls}
    assert attributes(shared)["embedserve.batch.rows"] == 3
    queues = [span for span in spans.named("queue") if parent_of(span) in {id_of(call) for call in calls}]
    assert [[link.context.span_id for link in queue.links] for queue in queues] == [[id_of(shared)]] * 3


async def test_a_refused_call_says_why(spans: Spans) -> None:
    async with registry_with(spans) as registry:
        spans.exporter.clear()
        with pytest.raises(InvalidInputError):
            await registry.predict("m", {"wrong": [1]})
        with pytest.raises(ServableNotFoundError):
            await registry.predict("absent", {"x": [1]})
    bad, absent = spans.one("predict m"), spans.one("predict absent")
    assert attributes(bad)["error.type"] == attributes(bad)["embedserve.outcome"] == "INVALID_ARGUMENT"
    assert attributes(absent)["error.type"] == "NOT_FOUND"
    assert bad.status.status_code is trace.StatusCode.ERROR
    assert not spans.named("run")


async def test_a_failed_run_is_an_error_of_the_run_and_the_call(spans: Spans) -> None:
    def fails(version: int, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        raise ValueError("secret contents")

    async with FakeRegistry(
        {"m": {1: FakeLoader(fails)}}, observers=[Tracing(spans.provider)], warmup="none"
    ) as registry:
        spans.exporter.clear()
        with pytest.raises(Exception, match="secret"):
            await registry.predict("m", {"x": [1]})
    run = spans.one("run")
    assert run.status.status_code is trace.StatusCode.ERROR
    assert "secret" not in str([span.to_json() for span in spans.all()])


async def test_a_call_that_leaves_before_its_run_has_spans(spans: Spans) -> None:
    gate = Gate()
    async with registry_with(spans, gate) as registry:
        spans.exporter.clear()
        call = asyncio.ensure_future(registry.predict("m", {"x": [0]}))
        async with asyncio.timeout(60):
            while registry.statistics().busy_threads == 0:
                await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gate.open()
    assert attributes(spans.one("predict m"))["embedserve.outcome"] == "CANCELLED"
    assert attributes(spans.one("run"))["embedserve.outcome"] == "left"


# The decision.


async def test_a_call_in_an_unsampled_span_has_no_spans() -> None:
    off = Spans(sampler=ALWAYS_OFF)
    on = Spans()
    registry = FakeRegistry({"m": {3: FakeLoader()}}, observers=[Tracing(on.provider)], warmup="none")
    async with registry:
        on.exporter.clear()
        with off.inside("host"):
            await registry.predict("m", {"x": [1]})
    assert not on.named("predict m")


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("fe", False), ("ff", True)]
)
def test_the_caller_s_flag_decides(spans: Spans, flags: str, sampled: bool) -> None:
    headers = CallHeaders([(b"traceparent", f"00-{TRACE}-{PARENT}-{flags}".encode())])
    span = Tracing(spans.provider, sampling=0.0).wants("REST", headers)
    assert (span is not None) == sampled


@pytest.mark.parametrize("value", [b"", b"nonsense", b"00-xx-yy-zz", f"00-{TRACE}-{PARENT}-".encode(), b"\xff" * 60])
def test_a_malformed_traceparent_decides_nothing(spans: Spans, value: bytes) -> None:
    headers = CallHeaders([(b"traceparent", value)])
    assert Tracing(spans.provider, sampling=0.0).wants("REST", headers) is None
    root = Tracing(spans.provider).wants("REST", headers)
    assert root is not None
    assert getattr(root, "parent", None) is None


def test_a_share_of_the_calls_without_a_parent_is_sampled(spans: Spans) -> None:
    tracing = Tracing(spans.provider, sampling=0.25)
    taken = sum(tracing.wants("", CallHeaders()) is not None for _ in range(2000))
    assert 350 < taken < 650  # Eight standard deviations.


def test_the_sdk_s_own_sampler_has_the_last_word() -> None:
    assert Tracing(Spans(sampler=ALWAYS_OFF).provider).wants("", CallHeaders()) is None


def test_without_an_sdk_nothing_is_built() -> None:
    tracing = Tracing(trace.NoOpTracerProvider())
    assert tracing.wants("REST", CallHeaders()) is None
    assert "without an SDK" in repr(tracing)


@pytest.mark.parametrize("sampling", [-1.0, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(spans: Spans, sampling: float) -> None:
    with pytest.raises(ConfigError, match="expected a share"):
        Tracing(spans.provider, sampling=sampling)


# Over the wire.


async def test_rest_continues_the_caller_s_trace(spans: Spans) -> None:
    async with registry_with(spans) as registry:
        spans.exporter.clear()
        transport = httpx.ASGITransport(create_app(registry), client=("203.0.113.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            answer = await client.post("/v1/models/m:predict", json={"instances": [1, 2]}, headers=headers)
            assert answer.status_code == 200
            missing = await client.post("/v1/models/absent:predict", json={"instances": [1]}, headers=headers)
            assert missing.status_code == 404
    good, bad = spans.named("POST /v1/models/{model}:predict")
    assert good.kind is trace.SpanKind.SERVER
    assert good.parent is not None
    assert f"{good.parent.trace_id:032x}" == TRACE
    assert f"{good.parent.span_id:016x}" == PARENT
    assert attributes(good) | {"embedserve.rows": 2} == attributes(good)
    assert attributes(good)["http.request.method"] == "POST"
    assert attributes(good)["http.route"] == "/v1/models/{model}:predict"
    assert attributes(good)["url.path"] == "/v1/models/m:predict"
    assert attributes(good)["http.response.status_code"] == 200
    assert attributes(good)["client.address"] == "203.0.113.9"
    assert attributes(bad)["http.response.status_code"] == 404
    assert attributes(bad)["embedserve.model.name"] == "absent"
    assert bad.status.status_code is trace.StatusCode.UNSET  # A client's fault is no error of the server.
    encode = spans.one("encode")
    assert parent_of(encode) == id_of(good)
    assert encode.start_time is not None
    assert encode.start_time >= (spans.one("run").end_time or 0)


# Versions.


async def test_a_version_s_way_up_and_down_has_spans(spans: Spans) -> None:
    loader = FakeLoader()
    loader.warmup_records = 4
    async with FakeRegistry({"m": {3: loader}}, observers=[Tracing(spans.provider)]):
        pass
    up = spans.one("bring up m")
    assert attributes(up) == {"embedserve.model.name": "m", "embedserve.model.version": 3}
    assert {span.name for span in spans.all() if parent_of(span) == id_of(up)} == {"load", "warm-up", "publish"}
    recorded = [span for span in spans.named("warm-up") if "embedserve.warmup.records" in attributes(span)]
    assert [attributes(span)["embedserve.warmup.records"] for span in recorded] == [4]
    assert spans.one("load").end_time == spans.one("publish").start_time
    assert attributes(spans.one("unload m"))["embedserve.model.version"] == 3


async def test_failed_loads_are_errors_of_one_way_up(spans: Spans) -> None:
    from embedserve import RetryPolicy, StartError

    registry = FakeRegistry(
        {"m": {3: FakeLoader(failures=-1)}},
        observers=[Tracing(spans.provider)],
        retry=RetryPolicy(max_retries=1, initial=0.01, maximum=0.01),
    )
    with pytest.raises(StartError):
        await registry.start()
    up = spans.one("bring up m")
    assert [parent_of(load) for load in spans.named("load")] == [id_of(up)] * 2
    assert up.status.status_code is trace.StatusCode.ERROR
    assert not spans.named("publish")
