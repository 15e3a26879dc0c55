"""A real server's logs and traces: JSON lines on stderr, and spans at a collector."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.clients import publish
from tests.e2e.conftest import Start
from tests.support.programs import fetch, free_port, wait_until

pytestmark = pytest.mark.timeout(180)


class Collector(ThreadingHTTPServer):
    """Takes spans over OTLP's HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Take)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def names(self) -> set[str]:
        return {span.name for span in list(self.spans)}


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            self.server.services.update(names)
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(30)


def test_lines_are_json_and_calls_reach_the_collector(
    start: Start, saved: Path, tmp_path: Path, collector: Collector
) -> None:
    publish(saved / "two", tmp_path / "models" / "two" / "7")
    port, rest = free_port(), free_port()
    flags = ["models/", f"--port={port}", f"--rest_api_port={rest}", "--log_format=json", "--access_log"]
    server = start(*flags, f"--otel_endpoint={collector.url}", OTEL_BSP_SCHEDULE_DELAY="100")
    server.wait_until_serving()
    assert fetch(f"http://localhost:{rest}/v1/models/two:predict", {"instances": [1.0, 2.0]})[0] == 200
    assert fetch(f"http://localhost:{rest}/v1/models/nothing:predict", {"instances": [1.0]})[0] == 404
    server.terminate()

    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    assert all({"timestamp", "severity_text", "logger", "body"} <= line.keys() for line in lines)
    good, missing = [line for line in lines if line["logger"] == "embedserve.access"]
    assert good["url.path"] == "/v1/models/two:predict"
    assert (good["http.response.status_code"], good["embedserve.model.version"]) == (200, 7)
    assert good["embedserve.worker"] == 0
    assert missing["error.type"] == "NOT_FOUND"
    events = {line["event_name"] for line in lines if line["logger"] == "embedserve.events"}
    assert {"embedserve.load", "embedserve.publish"} <= events

    wait_until(lambda: "POST /v1/models/{model}:predict" in collector.names())
    assert {"queue", "run", "encode", "bring up two", "load", "publish"} <= collector.names()
    traces = {span.trace_id.hex() for span in collector.spans if span.name.startswith("POST")}
    assert traces == {good["trace_id"], missing["trace_id"]}
    assert collector.services == {"embedserve"}


def test_a_missing_sdk_is_told_at_the_start(start: Start, tmp_path: Path) -> None:
    hide = tmp_path / "hide" / "opentelemetry"
    hide.mkdir(parents=True)
    (hide / "__init__.py").write_text("")
    (tmp_path / "models").mkdir()
    code = "import sys; sys.path.insert(0, 'hide'); from embedserve.__main__ import main; sys.exit(main())"
    (tmp_path / "without_sdk.py").write_text(code)
    server = start("models/", "--otel_endpoint=http://localhost:4318", module="without_sdk")
    assert server.ended() == 255
    assert "pip install 'embedserve[otlp]'" in server.out
