"""What traces, times in answers and the access log cost: processor time of a tiny request over REST and gRPC.

python -m benchmarks.tracing [--rounds 300] [--requests 50] [--show]

Every configuration has a registry and a port of its own, all in one process; a client in another process asks one
after another, in turns. A figure is the processor time of the loop's thread in the fastest round of a configuration:
other work on the machine makes rounds slower and never faster. Runs of the model are in that thread too. `metrics` is
the standalone server's default, measured twice: the difference is the noise. Spans and lines go nowhere at the end.
`alone` is the work of the observers for a call, without any server, and finer than the noise of the other figures.
`--show` prints a trace instead: three requests of an instrumented FastAPI that share a run.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import logging
import math
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider

from embedserve import AccessLog, JsonFormatter, Metrics, ModelRegistry, Tracing
from embedserve.call_record import CallHeaders, CallRecord, RunRecord
from embedserve.observer import Observer, Observers

BODY = json.dumps({"instances": [[0.0, 1.0, 2.0, 3.0]]})
PATH = "/v1/models/tiny:predict"
PARENT = "00-{:032x}-{:016x}-{:02x}"
CALLER_DECIDES = "traces, the callers sample 1 %"


class Nowhere(SpanExporter):
    """Takes spans and drops them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Lines(logging.Handler):
    """Formats lines as JSON and drops them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


def sdk() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


CONFIGURATIONS: dict[str, tuple[Callable[[], list[Observer]], dict[str, Any]]] = {
    "metrics": (list, {}),
    "metrics, again": (list, {}),
    "traces, without an SDK": (lambda: [Tracing(NoOpTracerProvider())], {}),
    "traces, 1 % of the calls": (lambda: [Tracing(sdk(), sampling=0.01)], {}),
    CALLER_DECIDES: (lambda: [Tracing(sdk())], {}),
    "traces, all calls": (lambda: [Tracing(sdk())], {}),
    "times in each answer": (list, {"timing_headers": True}),
    "access log, 1 % without slow and failed": (lambda: [AccessLog(sampling=0.01, slow=None, failed=False)], {}),
    "access log, 1 % with slow and failed": (lambda: [AccessLog(sampling=0.01)], {}),
    "access log, all calls": (lambda: [AccessLog()], {}),
}


def headers(name: str) -> dict[str, str]:
    """A request's own headers; a caller with a trace of its own marks one call in a hundred."""
    if name != CALLER_DECIDES:
        return {}
    return {"traceparent": PARENT.format(random.getrandbits(128), random.getrandbits(64), random.random() < 0.01)}


def client(control: Connection) -> None:
    """Ask `(name, API, port, requests)` again and again, over a connection for each port."""
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    connections: dict[tuple[str, int], Any] = {}
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "tiny"
    message.inputs["x"].CopyFrom(_tensor())
    while (order := control.recv()) is not None:
        name, api, port, requests = order
        if (api, port) not in connections:
            address = f"127.0.0.1:{port}"
            connections[api, port] = (
                http.client.HTTPConnection(address)
                if api == "REST"
                else prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))
            )
        to = connections[api, port]
        for _ in range(requests):
            sent = headers(name)
            if api == "REST":
                to.request("POST", PATH, BODY, sent)
                answer = to.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
            else:
                to.Predict(message, metadata=tuple(sent.items()))
        control.send(None)


def _tensor() -> Any:
    from tensorflow.core.framework import tensor_pb2, types_pb2

    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.0, 1.0, 2.0, 3.0])
    for size in (1, 4):
        tensor.tensor_shape.dim.add(size=size)
    return tensor


async def measure(rounds: int, requests: int) -> dict[tuple[str, str], float]:
    """Microseconds of processor time per request, by configuration and API."""
    from benchmarks.models import Tiny, save
    from benchmarks.ports import free_port
    from embedserve.http.listener import HttpListener
    from embedserve.http.sockets import bound_sockets
    from embedserve.rest import create_app

    control, end = multiprocessing.get_context("spawn").Pipe()
    asking = multiprocessing.get_context("spawn").Process(target=client, args=(end,), daemon=True)
    asking.start()
    best: dict[tuple[str, str], float] = {}
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        save(Tiny(1), Path(directory, "tiny", "1"))
        ports: dict[str, int] = {}
        for name, (observers, options) in CONFIGURATIONS.items():
            still: dict[str, Any] = {
                "poll_interval": math.inf,
                "watch": False,
                "servable": "session",
                "loop_run_limit": 0.01,
            }
            registry = ModelRegistry(directory, observers=observers(), **still, **options)
            await stack.enter_async_context(registry)
            ports[name] = free_port()
            listener = HttpListener(
                create_app(registry, grpc=True, metrics=Metrics()), bound_sockets(["127.0.0.1"], ports[name])
            )
            await listener.open()
            stack.push_async_callback(listener.drain, 1.0)
        for _ in range(rounds):
            for name, port in ports.items():
                for api in ("REST", "GRPC"):
                    began = time.thread_time()
                    control.send((name, api, port, requests))
                    await asyncio.to_thread(control.recv)
                    spent = (time.thread_time() - began) / requests * 1e6
                    best[name, api] = min(spent, best.get((name, api), spent))
        control.send(None)
    await asyncio.to_thread(asking.join)
    return best


def alone(name: str) -> float:
    """Microseconds of processor time that the observers of a configuration take for a call."""
    observers, options = CONFIGURATIONS[name]
    told = Observers(observers(), always_timed=options.get("timing_headers", False))
    best = math.inf
    for _ in range(20):
        sent = [[(key.encode(), value.encode()) for key, value in headers(name).items()] for _ in range(2000)]
        calls = [CallHeaders(fields) for fields in sent]
        began = time.thread_time()
        for each in calls:
            record = told.begin_call("REST", each, "127.0.0.1") if told.may_record else None
            if record is not None:
                one_run(told, record)
        best = min(best, (time.thread_time() - began) / len(calls))
    return best * 1e6


def one_run(told: Observers, record: CallRecord) -> None:
    """A call that waits for a run and is answered."""
    record.method, record.target, record.model, record.version, record.status = "POST", PATH, "tiny", 1, 200
    with told.recorded(record):
        step = record.wait(1)
        step.run = run = RunRecord(time.perf_counter(), 1)
        run.marks.append(record.marks)
        run.end(None)
        record.answered = time.perf_counter()
    record.answer_headers()


def report(best: dict[tuple[str, str], float]) -> str:
    """A table of the figures, with the ratio to the first configuration."""
    titles = ["observed", "alone, µs", "of a REST request", "REST, µs", "ratio", "gRPC, µs", "ratio"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for name in CONFIGURATIONS:
        cells = [f"{best[name, api]:.0f} | {best[name, api] / best['metrics', api]:.2f}" for api in ("REST", "GRPC")]
        cost = alone(name)
        share = cost / best["metrics", "REST"]
        lines.append(f"| {name} | {cost:.2f} | {share:.2%} | {' | '.join(cells)} |")
    return "\n".join(lines)


# A trace as text.


async def show() -> str:
    """The trace of a request that shares a run with two others, below FastAPI's own instrumentation."""
    import httpx
    from fastapi import FastAPI
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    from embedserve.testing import FakeLoader, FakeRegistry, Gate

    exporter, gate = InMemorySpanExporter(), Gate()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    registry = FakeRegistry(
        {"digits": {3: FakeLoader(gate=gate)}},
        observers=[Tracing(provider)],
        batching=True,
        num_batch_threads=1,
        loop_run_limit=0,
    )
    app = FastAPI()

    @app.get("/score/{number}")
    async def score(number: int) -> list[int]:
        scores: list[int] = (await registry.predict("digits", {"x": [number]}))["y"].tolist()
        return scores

    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, exclude_spans=["send", "receive"])
    transport = httpx.ASGITransport(app)
    async with registry, httpx.AsyncClient(transport=transport, base_url="http://shop") as asking:
        exporter.clear()
        calls = [asyncio.ensure_future(asking.get("/score/0"))]
        while not gate.waiting:
            await asyncio.sleep(0.001)
        calls += [asyncio.ensure_future(asking.get(f"/score/{number}")) for number in (1, 2, 3)]
        while registry.statistics().queues["digits", 3].waiting < 3:
            await asyncio.sleep(0.001)
        gate.open()
        await asyncio.gather(*calls)
    spans = exporter.get_finished_spans()
    shared = next(span for span in spans if (span.attributes or {}).get("embedserve.batch.requests") == 3)
    assert shared.context is not None
    return as_text([span for span in spans if span.context and span.context.trace_id == shared.context.trace_id])


def as_text(spans: Sequence[ReadableSpan]) -> str:
    """The spans of a trace as an indented list, with times since the beginning and the attributes of embedserve."""
    began = min(span.start_time or 0 for span in spans)

    def lines(parent: int | None, depth: int) -> list[str]:
        found: list[str] = []
        known = {span.context.span_id for span in spans if span.context}
        for span in sorted(spans, key=lambda span: span.start_time or 0):
            above = span.parent.span_id if span.parent is not None and span.parent.span_id in known else None
            if above != parent or span.context is None:
                continue
            start, end = (((at or 0) - began) / 1e6 for at in (span.start_time, span.end_time))
            told = {
                key.removeprefix("embedserve."): value
                for key, value in (span.attributes or {}).items()
                if key.startswith("embedserve.")
            }
            links = f"  links to {len(span.links)}" if span.links else ""
            shown = ", ".join(f"{key}={value}" for key, value in told.items())
            found.append(f"{'  ' * depth}{span.name}  {start:.2f} to {end:.2f} ms{links}")
            if shown:
                found.append(f"{'  ' * depth}    {shown}")
            found += lines(span.context.span_id, depth + 1)
        return found

    return "\n".join(lines(None, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--show", action="store_true", help="print a trace instead")
    given = parser.parse_args()
    if given.show:
        print(asyncio.run(show()))
        return
    access = logging.getLogger("embedserve.access")
    access.addHandler(Lines())
    access.setLevel(logging.INFO)
    access.propagate = False
    print(report(asyncio.run(measure(given.rounds, given.requests))))


if __name__ == "__main__":
    main()
