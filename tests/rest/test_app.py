"""The REST API over real sockets: which request gets which answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from embedserve import AllVersions, ModelConfig
from embedserve.errors import Code, InferenceError, QueueFullError
from embedserve.observer import Observer
from embedserve.rest import create_app
from embedserve.rest.errors import HTTP_STATUS, error_response, html_page
from embedserve.servable import Array, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature, times_ten
from tests.rest.conftest import Connection, Serve, Server

NOT_FOUND_PAGE = b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
BODY = b'{"instances": [1, 2]}'


def failing(version: int, inputs: Tensors) -> dict[str, Array]:
    """A model that fails as its first input says."""
    value = int(inputs["x"].flat[0])
    if value == -1:
        raise RuntimeError("a bug with /secret/paths")
    if value < 0:
        raise InferenceError("no", code=Code(-value))
    return times_ten(version, inputs)


class Requests(Observer):
    """Notes what adapters say of their requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, Code]] = []

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        assert seconds >= 0
        self.seen.append((model_name, api, entrypoint, code))


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
async def registry(requests: Requests) -> AsyncIterator[FakeRegistry]:
    names = ["m", "a/b:c", "café", "failing"]
    models = [
        ModelConfig(name=name, base_path=f"/fake/{i}", version_policy=AllVersions()) for i, name in enumerate(names)
    ]
    found = {name: {1: FakeLoader()} for name in names[1:3]}
    two = fake_signature("two", {"a": ("float", (None,)), "b": ("float", (None,))})
    found["m"] = {n: FakeLoader(signatures=[fake_signature(), two]) for n in (1, 3)}
    found["failing"] = {1: FakeLoader(failing, signatures=[fake_signature(batchable=False)])}
    registry = FakeRegistry(found, models=models, observers=[requests])
    async with registry:
        await registry.set_label("m", "stable", 1)
        yield registry


@pytest.fixture
async def server(registry: FakeRegistry, serve: Serve) -> AsyncIterator[Server]:
    async with serve(create_app(registry)) as server:
        yield server


@pytest.fixture
async def connection(server: Server) -> Connection:
    return await server.connect()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v1/models/m:predict", [13.0, 23.0]),
        ("/v1/models/m/versions/1:predict", [11.0, 21.0]),
        ("/v1/models/m/versions/003:predict", [13.0, 23.0]),
        ("/v1/models/m/labels/stable:predict", [11.0, 21.0]),
        ("/V1/Models/m:predict", [13.0, 23.0]),
        ("/v1/models/a%2Fb%3Ac:predict", [11.0, 21.0]),
        ("/v1/models/caf%C3%A9:predict", [11.0, 21.0]),
    ],
)
async def test_predict(target: str, expected: list[float], connection: Connection) -> None:
    answer = await connection.request("POST", target, BODY)
    assert (answer.status, json.loads(answer.body)) == (200, {"predictions": expected})
    assert answer.headers["content-type"] == "application/json"
    answer = await connection.request("POST", target, b'{"inputs": [1, 2]}', content_type="text/plain")
    assert (answer.status, json.loads(answer.body)) == (200, {"outputs": expected})


ERRORS: list[tuple[str, str, bytes, int, str]] = [
    ("POST", "/v1/models/m", BODY, 400, "Malformed request: POST /v1/models/m"),
    ("POST", "/v1/models/m:predict?x=1", BODY, 400, "Malformed request: POST /v1/models/m:predict?x=1"),
    ("POST", "/v1/models/m:PREDICT", BODY, 400, "Malformed request: POST /v1/models/m:PREDICT"),
    ("POST", "/v1/models/m/versions/x:predict", BODY, 400, "Malformed request: POST /v1/models/m/versions/x:predict"),
    (
        "GET",
        "/v1/models/m:predict",
        b"",
        400,
        "Malformed request: GET /v1/models/m:predict; it takes POST, with the inputs in the body: "
        """curl -d '{"instances": [...]}' URL/v1/models/m:predict""",
    ),
    (
        "POST",
        "/v1/models/m",
        BODY,
        400,
        "Malformed request: POST /v1/models/m; it takes GET. Predictions are asked for by POST /v1/models/m:predict",
    ),
    ("PUT", "/v1/models/m:predict", BODY, 400, "Malformed request: PUT /v1/models/m:predict"),
    ("DELETE", "/v1/x", b"", 400, "Malformed request: DELETE /v1/x"),
    ("PATCH", "/v1/models/m", b"", 400, "Malformed request: PATCH /v1/models/m"),
    ("GET", "/v1/", b"", 400, "Malformed request: GET /v1/"),
    ("GET", "/v1/models/versions/1", b"", 400, "Missing model name in request."),
    ("GET", "/v1/models/m?x=1", b"", 404, "Could not find any versions of model m?x=1"),
    ("GET", "/v1/models/q", b"", 404, "Could not find any versions of model q"),
    ("GET", "/v1/models/metadata", b"", 404, "Could not find any versions of model metadata"),
    ("GET", "/v1/models/m/versions/9", b"", 404, "Could not find version 9 of model m"),
    ("GET", "/v1/models/q/metadata", b"", 404, "Servable not found for request: Latest(q)"),
    ("GET", "/v1/models/m/versions/9/metadata", b"", 404, "Servable not found for request: Specific(m, 9)"),
    ("GET", "/v1/models/m/labels/x/metadata", b"", 400, "Unrecognized servable version label: x"),
    ("POST", "/v1/models/q:predict", BODY, 404, "Servable not found for request: Latest(q)"),
    ("POST", "/v1/models/m/versions/9:predict", BODY, 404, "Servable not found for request: Specific(m, 9)"),
    ("POST", "/v1/models/m/labels/x:predict", BODY, 400, "Unrecognized servable version label: x"),
    (
        "GET",
        "/v1/models/m/versions/18446744073709551615",
        b"",
        400,
        "Failed to convert version: 18446744073709551615 to numeric.",
    ),
    ("POST", "/v1/models/q:predict", b"", 400, "JSON Parse error: The document is empty"),
    ("POST", "/v1/models/q:predict", b"{", 400, "JSON Parse error: "),
    ("POST", "/v1/models/q:classify", b"{", 400, "JSON Parse error: "),
    ("POST", "/v1/models/q:regress", b"", 400, "JSON Parse error: The document is empty"),
    (
        "POST",
        "/v1/models/m:predict",
        b'{"signature_name": "s", "instances": [1]}',
        400,
        'Serving signature name: "s" not found in signature def',
    ),
    ("POST", "/v1/models/m:predict", b"{}", 400, "Missing 'inputs' or 'instances' key"),
    (
        "POST",
        "/v1/models/m:predict",
        b'{"signature_name": "two", "instances": [1]}',
        400,
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    ("POST", "/v1/models/m:classify", b"{}", 400, "JSON Value: {} When method is classify, key 'examples' is expected"),
    ("POST", "/v1/models/m:regress", b"{}", 400, "JSON Value: {} When method is classify, key 'examples' is expected"),
    (
        "POST",
        "/v1/models/m:classify",
        b'{"signature_name": "s", "examples": [{}]}',
        400,
        "No signature was found with the name: s",
    ),
    ("POST", "/v1/models/m:predict", b'{"inputs": [[1]]}', 400, "input 'x' of signature 'serving_default' has shape"),
    ("POST", "/v1/models/failing:predict", b'{"inputs": [-1]}', 500, "internal error"),
]


@pytest.mark.parametrize(("method", "target", "body", "status", "message"), ERRORS)
async def test_errors(method: str, target: str, body: bytes, status: int, message: str, connection: Connection) -> None:
    answer = await connection.request(method, target, body)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    document = json.loads(answer.body)
    assert list(document) == ["error"]
    assert document["error"].startswith(message)


@pytest.mark.parametrize("code", [code for code in Code if code > 1])
async def test_each_canonical_code_has_its_status(code: Code, connection: Connection) -> None:
    body = b'{"inputs": [%d]}' % -code
    answer = await connection.request("POST", "/v1/models/failing:predict", body)
    assert answer.status == HTTP_STATUS[code]


def test_the_table_of_statuses() -> None:
    expected = "200 499 500 400 504 404 409 403 429 400 409 400 501 500 503 500 401"
    assert [HTTP_STATUS[code] for code in Code] == [int(status) for status in expected.split()]


def test_error_bodies_hold_the_message_and_nothing_else() -> None:
    response = error_response(QueueFullError('full: "é/\n'))
    assert response.status == 503
    assert "é/".encode() in response.body
    assert json.loads(response.body) == {"error": 'full: "é/\n'}


async def test_a_bug_is_logged_and_kept_from_the_client(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "embedserve"):
        answer = await connection.request("POST", "/v1/models/failing:predict", b'{"inputs": [-1]}')
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "a bug with /secret/paths" in caplog.text


async def test_the_models_and_their_versions_are_listed(connection: Connection) -> None:
    answer = await connection.request("GET", "/v1/models")
    assert answer.status == 200
    listed = {model["name"]: model["versions"] for model in json.loads(answer.body)["models"]}
    assert {"version": "1", "state": "AVAILABLE"} in listed["m"]


async def test_the_root_says_what_this_is(connection: Connection) -> None:
    answer = await connection.request("GET", "/")
    about = json.loads(answer.body)
    assert (answer.status, about["name"], about["paths"]["models"]) == (200, "embedserve", "v1/models")
    assert about["status"] == "alive", "KServe's V1 client reads it"
    assert (await connection.request("POST", "/")).status == 404


@pytest.mark.parametrize(
    ("target", "status"),
    [("/v1/models/m", 200), ("/v1/models", 200), ("/", 200), ("/v1/models/none", 404), ("/-/live", 200), ("/x", 404)],
)
async def test_head_has_no_body(target: str, status: int, connection: Connection) -> None:
    answer = await connection.request("HEAD", target)
    assert answer.status == status
    assert int(answer.headers["content-length"]) > 0
    if target == "/x":
        assert await connection.at_end()
    else:
        assert (await connection.request("GET", "/-/live")).status == 200


@pytest.mark.parametrize("target", ["/v1", "/v20/models/m", "/v11/models/m", "/monitoring/prometheus/metrics", "/-/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_outside_v1_there_is_an_html_page(method: str, target: str, connection: Connection) -> None:
    answer = await connection.request(method, target)
    assert (answer.status, answer.body) == (404, NOT_FOUND_PAGE)
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["connection"] == "close"
    assert await connection.at_end()


async def test_an_odd_method_is_not_implemented(connection: Connection) -> None:
    answer = await connection.request("TRACE", "/v1/models/m")
    assert (answer.status, answer.headers["content-type"]) == (501, "text/html")
    assert b"<TITLE>501 Not Implemented</TITLE>" in answer.body


@pytest.mark.parametrize("target", ["/v1/models/{m}", '/v1/models/"m"', "/v1/models/%zz", "/v1/models/m?{}"])
async def test_a_target_that_is_no_uri_is_a_bad_request(target: str, connection: Connection) -> None:
    answer = await connection.request("GET", target)
    assert (answer.status, answer.headers["content-type"]) == (400, "text/html")
    assert b"<TITLE>400 Bad Request</TITLE>" in answer.body


def test_only_http_1_has_a_connection_to_close() -> None:
    assert (b"connection", b"close") in html_page(404).headers
    assert (b"connection", b"close") not in html_page(404, close=False).headers


@pytest.mark.parametrize("origin", ["http://a.example", "https://a.example", None, "null", "file://"])
@pytest.mark.parametrize("cors", [True, False])
async def test_preflight(cors: bool, origin: str | None, registry: FakeRegistry, serve: Serve) -> None:
    async with serve(create_app(registry, cors=cors)) as server:
        headers = {} if origin is None else {"origin": origin}
        connection = await server.connect()
        answer = await connection.request("OPTIONS", "/v1/models/m:predict", b"", **headers)
        allowed = origin is not None and origin.startswith("http")
        assert answer.status == (200 if allowed else 400)
        if allowed:
            assert answer.body == b""
            assert answer.headers.get("content-type") != "application/json"
        else:
            assert json.loads(answer.body) == {"error": "Origin header is missing in CORS preflight"}
        assert answer.headers.get("access-control-allow-origin") == ("*" if cors else None)


async def test_cors_headers_are_on_every_answer_of_the_api_and_on_no_other(
    registry: FakeRegistry, serve: Serve
) -> None:
    async with serve(create_app(registry, cors=True)) as server:
        connection = await server.connect()
        for method, target in [("POST", "/v1/models/m:predict"), ("GET", "/v1/models/q"), ("GET", "/v1/models/m")]:
            headers = (await connection.request(method, target, BODY)).headers
            assert headers["access-control-allow-origin"] == "*"
            assert headers["access-control-allow-methods"] == "POST, GET"
            assert headers["access-control-allow-headers"] == "Content-Type"
        for target in ["/-/live", "/nowhere"]:
            assert "access-control-allow-origin" not in (await connection.request("GET", target)).headers


@pytest.mark.parametrize(
    ("method", "target", "body", "expected"),
    [
        ("POST", "/v1/models/m:predict", BODY, ("m", "predict", "REST", Code.OK)),
        ("POST", "/v1/models/q:predict", BODY, ("q", "predict", "REST", Code.NOT_FOUND)),
        ("POST", "/v1/models/m:predict", b"{", ("m", "predict", "REST", Code.INVALID_ARGUMENT)),
        ("POST", "/v1/models/failing:predict", b'{"inputs": [-1]}', ("failing", "predict", "REST", Code.INTERNAL)),
        ("POST", "/v1/models/m:classify", b"{}", ("m", "classify", "REST", Code.INVALID_ARGUMENT)),
        ("GET", "/v1/models/m", b"", ("m", "", "REST", Code.OK)),
        ("GET", "/v1/models/m/metadata", b"", ("m", "", "REST", Code.OK)),
        ("GET", "/v1/nonsense", b"", ("", "", "REST", Code.INVALID_ARGUMENT)),
        ("OPTIONS", "/v1/models/m", b"", ("", "", "REST", Code.INVALID_ARGUMENT)),
    ],
)
async def test_observers_see_every_request_of_the_api(
    method: str, target: str, body: bytes, expected: Any, connection: Connection, requests: Requests
) -> None:
    await connection.request("GET", "/-/ready")
    await connection.request(method, target, body)
    assert requests.seen == [expected]


async def test_large_bodies_and_answers_leave_the_loop(server: Server) -> None:
    values = np.arange(100_000).tolist()
    response = await server.client.post("/v1/models/m:predict", json={"instances": values})
    assert response.status_code == 200
    assert response.json()["predictions"] == [value * 10.0 + 3 for value in values]


async def test_a_batched_answer_is_that_of_its_own_request(server: Server) -> None:
    responses = await asyncio.gather(
        *(server.client.post("/v1/models/m:predict", json={"instances": [i, -i]}) for i in range(50))
    )
    assert [r.json()["predictions"] for r in responses] == [[i * 10.0 + 3, -i * 10.0 + 3] for i in range(50)]


async def test_with_health_off_there_are_no_health_paths(registry: FakeRegistry, serve: Serve) -> None:
    async with serve(create_app(registry, health=False)) as server:
        assert (await server.client.get("/-/live")).status_code == 404


async def test_a_websocket_is_closed(registry: FakeRegistry) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await create_app(registry)({"type": "websocket", "path": "/v1/"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1000}]


@pytest.mark.parametrize("check", [True, False])
async def test_method_names_are_checked_when_asked(check: bool, serve: Serve) -> None:
    signature = fake_signature("c", {"inputs": ("string", (None,))}, {"scores": ("float", (None, 1))})

    def score(version: int, inputs: Tensors) -> dict[str, Array]:
        return {"scores": np.ones((len(inputs["inputs"]), 1), np.float32)}

    found = {"m": {1: FakeLoader(score, signatures=[signature])}}
    registry = FakeRegistry(found, enable_signature_method_name_check=check)
    async with registry, serve(create_app(registry)) as server:
        request = {"signature_name": "c", "examples": [{"x": 1.0}]}
        response = await server.client.post("/v1/models/m:classify", json=request)
        assert response.status_code == (400 if check else 200)
        if check:
            assert response.json()["error"].startswith("Expected classification signature method_name to be")
        else:
            assert response.json() == {"results": [[["", 1.0]]]}
