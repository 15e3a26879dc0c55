"""The REST API below WSGI hosts: the same answers as over ASGI, of any size, and nothing left of clients that leave."""

from __future__ import annotations

import gc
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.validate import validator

import pytest
from a2wsgi import ASGIMiddleware

from embedserve.asgi.sending import PIECE
from embedserve.metrics import Metrics
from embedserve.rest import WsgiApp, create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.support.programs import fetch, wait_until

NAME = "a/b ü"
QUOTED = "a%2Fb%20%C3%BC"
URI = f"/ml/v1/models/{QUOTED}"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry({NAME: {1: FakeLoader()}, "m": {1: FakeLoader()}}) as registry:
        yield registry
        wait_until(lambda: registry.statistics().reserved_bytes == 0, within=10)


def environ(method: str = "POST", path: str = "/v1/models/m:predict", body: bytes = b"", **more: Any) -> dict[str, Any]:
    """A request as a WSGI server has it, below `/ml`."""
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "/ml",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    } | more


def ask(app: Any, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Play the server, by the book."""
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> Callable[[bytes], object]:
        started.append((status, dict(headers)))
        return lambda _: None

    answer = app(request, start_response)
    try:
        body = b"".join(answer)
    finally:
        if hasattr(answer, "close"):
            answer.close()
    ((status, headers),) = started
    return int(status.split()[0]), headers, body


def instances(*values: float) -> bytes:
    return json.dumps({"instances": values}).encode()


# How servers say that the body ends where the client has ended it, as with chunks.
TERMINATED: dict[str, Any] = {"wsgi.input_terminated": True}


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (environ(body=instances(1, 2)), 200, b"11.0,21.0"),
        (environ("GET", "/v1/models/m"), 200, b"AVAILABLE"),
        (environ("HEAD", "/v1/models/m"), 200, b""),
        (environ(body=b"{"), 400, b"JSON Parse"),
        (environ(path="/v1/models/n:predict", body=instances(1)), 404, b"n"),
        (environ("GET", "/nowhere"), 404, b"Not Found"),
        (environ("GET", "/-/ready"), 200, b"ready"),
        (environ("GET", "/-/live"), 200, b"live"),
        (environ("GET", "/monitoring/prometheus/metrics"), 200, b":tensorflow:"),
        (environ(body=instances(1), CONTENT_LENGTH="", **TERMINATED), 200, b"11.0"),
        (environ(body=instances(1), CONTENT_LENGTH="400"), 499, b"disconnected"),
    ],
    ids=lambda value: (
        f"{value['REQUEST_METHOD']} {value['PATH_INFO']} {value['CONTENT_LENGTH']}" if isinstance(value, dict) else None
    ),
)
def test_answers_are_those_of_the_asgi_application(
    request_: dict[str, Any], status: int, words: bytes, registry: FakeRegistry
) -> None:
    app = WsgiApp(create_app(registry, metrics=Metrics()))
    request_["wsgi.input"].seek(0)
    found, headers, body = ask(app, request_)
    assert found == status, body
    assert words in body
    assert "connection" not in {name.lower() for name in headers}
    if request_["REQUEST_METHOD"] != "HEAD":
        assert int(headers["content-length"]) == len(body)


@pytest.mark.parametrize("kept", ["RAW_URI", "REQUEST_URI"])
def test_a_model_name_keeps_its_escapes_where_the_host_tells_them(kept: str, registry: FakeRegistry) -> None:
    path = f"/v1/models/{NAME}:predict".encode().decode("latin-1")
    request = environ(path=path, body=instances(1), **{kept: f"{URI}:predict"})
    status, _, body = ask(WsgiApp(create_app(registry)), request)
    assert (status, json.loads(body)) == (200, {"predictions": [11.0]})


def test_large_bodies_come_and_go_in_pieces(registry: FakeRegistry) -> None:
    values = [float(number) for number in range(500_000)]
    app = WsgiApp(create_app(registry))
    pieces = list(app(environ(body=instances(*values)), lambda *_: lambda _: None))
    assert len(pieces) > 2
    assert max(map(len, pieces)) == PIECE
    assert json.loads(b"".join(pieces))["predictions"] == [value * 10 + 1 for value in values]


@pytest.mark.parametrize("size", [2, 500_000])
def test_a_client_that_leaves_its_answer_leaves_nothing_behind(size: int, registry: FakeRegistry) -> None:
    """The server closes the iterator when it cannot write."""
    app = WsgiApp(create_app(registry))
    gc.disable()  # Nothing may wait for the collector.
    try:
        for _ in range(3):
            answer = app(environ(body=instances(*[0.0] * size)), lambda *_: lambda _: None)
            next(answer)
            answer.close()  # type: ignore[attr-defined]
        wait_until(lambda: registry.statistics().reserved_bytes == 0, within=10)
    finally:
        gc.enable()


def test_a_body_over_the_limit_is_not_read() -> None:
    with FakeRegistry({"m": {1: FakeLoader()}}, max_request_bytes=1000) as registry:
        request = environ(body=b" " * 3_000_000)
        status, _, body = ask(WsgiApp(create_app(registry)), request)
        assert (status, b"max_request_bytes" in body or b"larger" in body) == (429, True), body
        assert request["wsgi.input"].tell() == 0


def test_a_registry_that_nobody_entered_is_told_of() -> None:
    app = WsgiApp(create_app(FakeRegistry({"m": {1: FakeLoader()}})))
    status, _, body = ask(app, environ(body=instances(1)))
    assert status == 503
    assert b"has not been entered" in body
    assert ask(app, environ("GET", "/-/live"))[0] == 200
    assert ask(app, environ("GET", "/-/ready"))[0] == 503


class SlowBody(io.BytesIO):
    """What a client sends who takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.sent = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.asked.set()
        self.sent.wait(30)
        return b" " * (size or 0)


def test_a_registry_that_is_left_meanwhile_ends_its_requests() -> None:
    gate, slow = Gate(), SlowBody()
    registry = FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, drain_timeout=0)
    registry.ensure_started_sync()
    app = WsgiApp(create_app(registry))
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(ask, app, environ(body=instances(1)))
        sending = threads.submit(ask, app, environ(CONTENT_LENGTH=str(3 * PIECE)) | {"wsgi.input": slow})
        wait_until(lambda: registry.statistics().busy_threads == 1 and slow.asked.is_set())
        registry.close()
        slow.sent.set()
        status, _, body = running.result(30)
        gate.open()
        assert status == 503
        assert b"was left while" in body
        status, _, body = sending.result(30)
        assert (status, json.loads(body)) == (503, {"error": "the registry was left before this request was answered"})


@contextmanager
def wsgiref_server(app: Any) -> Iterator[str]:
    """The standard library's server, which validates what an application does."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with WSGIServer(("127.0.0.1", 0), Quiet) as server:
        server.set_app(validator(app))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_validating_server_has_nothing_to_say(registry: FakeRegistry) -> None:
    with wsgiref_server(WsgiApp(create_app(registry))) as url:
        assert fetch(f"{url}/v1/models/m:predict", {"instances": [1, 2]}) == (200, {"predictions": [11.0, 21.0]})
        assert fetch(f"{url}/v1/models/n")[0] == 404
        assert fetch(f"{url}/-/ready")[0] == 200


@pytest.mark.parametrize("own_loop", [False, True])
def test_a2wsgi_with_the_registrys_loop_and_with_its_own(own_loop: bool, registry: FakeRegistry) -> None:
    app = ASGIMiddleware(create_app(registry), loop=None if own_loop else registry.loop)
    try:
        for size in (2, 300_000):
            status, _, body = ask(app, environ(body=instances(*[1.0] * size)))
            assert status == 200
            assert json.loads(body)["predictions"] == [11.0] * size
    finally:
        if own_loop:
            app.loop.call_soon_threadsafe(app.loop.stop)
            wait_until(lambda: not app.loop.is_running())
            app.loop.close()
