"""Where the ASGI application lives: before a host, below a prefix, with REST, by itself; on real servers."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from tensorflow_serving.apis import predict_pb2

from embedserve.errors import Code
from embedserve.grpc import GrpcApp, GrpcMiddleware
from embedserve.metrics import Metrics
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import UNLIMITED, AsgiServer, Client, answers, failure, predict_request, registry
from tests.grpc.fabricated import CHECK, KINDS, PREDICT, WATCH, WEB, Connection, predict_body
from tests.grpc.framing import framed, web_answer
from tests.rest.conftest import _serve

SERVICE = "/tensorflow.serving.PredictionService"
ANSWER = b"the host's own"


async def own(request: Any) -> PlainTextResponse:
    return PlainTextResponse(ANSWER)


def host(reg: FakeRegistry) -> Starlette:
    """An application with a gRPC service of its own, which enters the registry."""
    routes = [Route("/own", own), Route("/own.Service/Do", own, methods=["POST"]), Route("/v1/{rest:path}", own)]
    return Starlette(routes=routes, lifespan=reg.lifespan)


@pytest.fixture
async def reg() -> AsyncIterator[FakeRegistry]:
    async with registry() as reg:
        yield reg
        assert reg.inflight.reserved == 0


async def is_the_hosts(app: Any, *body: bytes, **scope: Any) -> bool:
    """Whether the host answers, be it with an error."""
    answer = await Connection(app, *body, **scope).answer()
    return answer.code is None


# Which calls are whose.


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_of_our_services_are_ours(kind: bytes, reg: FakeRegistry) -> None:
    app = GrpcMiddleware(host(reg), reg)
    body = predict_body() if kind != KINDS[-1] else base64.b64encode(predict_body())
    answer = await Connection(app, body, content_type=kind).answer()
    assert answer.code is Code.OK
    answer = await Connection(app, body, content_type=kind, path=f"{SERVICE}/Foresee").answer()
    assert (answer.code, answer.text) == (Code.UNIMPLEMENTED, "Method not found!")


@pytest.mark.parametrize(
    "scope",
    [
        {"path": "/own", "method": "GET", "content_type": None},
        {"path": "/own.Service/Do"},
        {"path": "/own.Service/Other"},
        {"path": PREDICT, "method": "GET", "content_type": None},
        {"path": PREDICT, "content_type": b"application/json"},
        {"path": PREDICT, "content_type": None},
        {"path": SERVICE},
        {"path": f"/more{PREDICT}"},
        {"path": "/"},
        {"path": PREDICT, "method": "OPTIONS", "content_type": None},
    ],
    ids=str,
)
async def test_everything_else_is_the_hosts(scope: dict[str, Any], reg: FakeRegistry) -> None:
    app = GrpcMiddleware(host(reg), reg)
    assert await is_the_hosts(app, predict_body(), **scope)


async def test_the_hosts_own_service_is_untouched(reg: FakeRegistry) -> None:
    answer = await Connection(GrpcMiddleware(host(reg), reg), path="/own.Service/Do").answer()
    assert answer.messages == [(0, ANSWER)]


async def test_all_calls_can_be_taken_for_a_host_without_its_own(reg: FakeRegistry) -> None:
    app = GrpcMiddleware(host(reg), reg, all_calls=True)
    answer = await Connection(app, predict_body(), path="/own.Service/Do").answer()
    assert (answer.code, answer.text) == (Code.UNIMPLEMENTED, "Method not found!")
    assert await is_the_hosts(app, path="/own.Service/Do", content_type=b"text/plain")


async def test_preflights_of_our_services_are_ours_where_pages_may_call(reg: FakeRegistry) -> None:
    asks = [(b"origin", b"https://a.example"), (b"access-control-request-method", b"POST")]
    app = GrpcMiddleware(host(reg), reg, cors=True)
    for path in (PREDICT, f"{SERVICE}/Foresee"):
        answer = await Connection(app, path=path, method="OPTIONS", content_type=None, headers=asks).answer()
        assert answer.status == 204
        assert answer.headers[b"access-control-allow-origin"] == b"*"
    for path in ("/own", "/own.Service/Do", "/v1/models/m:predict"):
        assert await is_the_hosts(app, path=path, method="OPTIONS", content_type=None, headers=asks)


async def test_other_kinds_of_connections_are_the_hosts() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    middleware = GrpcMiddleware(app, registry())
    for kind in ("lifespan", "websocket", "something.new"):
        await Connection(middleware, type=kind).run()
    assert seen == ["lifespan", "websocket", "something.new"]
    assert "GrpcApp" in repr(middleware)


@pytest.mark.parametrize(
    ("path", "root_path"),
    [(PREDICT, ""), (f"/ml{PREDICT}", "/ml"), (f"/ml{PREDICT}", "/ml/"), (PREDICT, "/ml"), (f"/a/b{PREDICT}", "/a/b")],
)
async def test_a_prefix_that_the_server_or_the_host_knows_of(path: str, root_path: str, reg: FakeRegistry) -> None:
    for app in (GrpcApp(reg), GrpcMiddleware(host(reg), reg)):
        answer = await Connection(app, predict_body(), path=path, root_path=root_path, content_type=WEB).answer()
        assert answer.code is Code.OK


async def test_below_a_mount_that_ends_every_path_with_a_slash(reg: FakeRegistry) -> None:
    """As Litestar does; a slash that a client has sent names no method."""
    for sent, code in ((PREDICT, Code.OK), (f"{PREDICT}/", Code.UNIMPLEMENTED)):
        scope: dict[str, Any] = {"path": f"{PREDICT}/", "raw_path": f"/ml{sent}".encode(), "content_type": WEB}
        assert (await Connection(GrpcApp(reg), predict_body(), **scope).answer()).code is code


# On real servers.


@asynccontextmanager
async def hypercorn(app: Any) -> AsyncIterator[int]:
    """The port of an application on hypercorn, lifespan included."""
    server = AsgiServer(app)
    await server.start()
    try:
        yield server.port
    finally:
        await server.aclose()


@asynccontextmanager
async def channel(port: int) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
        yield Client(None, channel, None)  # type: ignore[arg-type]


async def web_predict(client: httpx.AsyncClient, prefix: str = "", *, text: bool = False) -> list[float]:
    body = framed(predict_request(x=[1, 2]).SerializeToString())
    content_type = "application/grpc-web-text" if text else "application/grpc-web+proto"
    response = await client.post(
        f"{prefix}{PREDICT}",
        content=base64.b64encode(body) if text else body,
        headers={"content-type": content_type},
    )
    assert response.status_code == 200
    code, message, messages = web_answer(response.content, text=text)
    assert (code, message) == (Code.OK, "")
    ((_, found),) = messages
    return list(predict_pb2.PredictResponse.FromString(found).outputs["y"].float_val)


async def test_rest_grpc_web_metrics_and_health_are_one_application_on_one_port() -> None:
    metrics = Metrics()
    reg = FakeRegistry({"m": {1: FakeLoader()}}, observers=[metrics])
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(hypercorn(create_app(reg, grpc=True, metrics=metrics, cors=True)))
        client = await stack.enter_async_context(channel(port))
        assert await answers(client)
        check = await client.raw(CHECK)
        assert health_pb2.HealthCheckResponse.FromString(check).status == health_pb2.HealthCheckResponse.SERVING
        assert (await failure(client.raw("/other.Service/Do")))[0] is grpc.StatusCode.UNIMPLEMENTED
        for version in (1, 2):
            options: dict[str, Any] = {"http1": version == 1, "http2": version == 2}
            web = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, **options)
            await stack.enter_async_context(web)
            response = await web.post("/v1/models/m:predict", json={"instances": [1, 2]})
            assert (response.http_version, response.json()) == (
                "HTTP/1.1" if version == 1 else "HTTP/2",
                {"predictions": [11.0, 21.0]},
            )
            assert await web_predict(web) == [11, 21]
            assert await web_predict(web, text=True) == [11, 21]
            assert (await web.get("/-/ready")).status_code == 200
            assert (await web.get("/elsewhere")).status_code == 404
            page = (await web.get("/monitoring/prometheus/metrics")).text
            assert ':tensorflow:serving:request_count{model_name="m",status="OK"}' in page
            refused = await web.post(PREDICT, headers={"content-type": "application/grpc"}, content=predict_body())
            assert refused.headers["grpc-status"] == "12"
            assert ("over HTTP/2" if version == 1 else "te: trailers") in refused.headers["grpc-message"]
    assert not reg.started


async def test_a_grpc_application_by_itself_enters_the_registry() -> None:
    reg = registry()
    async with hypercorn(GrpcApp(reg)) as port, channel(port) as client:
        assert await answers(client)
        assert reg.started
    assert not reg.started


async def test_before_a_host_that_enters_the_registry_in_its_lifespan() -> None:
    reg = registry()
    async with hypercorn(GrpcMiddleware(host(reg), reg)) as port, channel(port) as client:
        assert await answers(client)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as web:
            assert (await web.get("/own")).content == ANSWER
    assert not reg.started


async def test_before_a_host_that_does_not_enter_it_the_calls_say_what_to_add() -> None:
    reg = registry()
    async with hypercorn(GrpcMiddleware(Starlette(routes=[Route("/own", own)]), reg)) as port, channel(port) as client:
        code, message = await failure(client.prediction.Predict(predict_request(x=[1])))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "lifespan=registry.lifespan" in message


async def test_on_uvicorns_own_protocols_grpc_web_works_and_grpc_cannot_connect() -> None:
    """Over HTTP/1.1, below a prefix too. Its port speaks no HTTP/2, so a gRPC client does not get as far as us."""
    reg = registry()
    app = GrpcMiddleware(Starlette(routes=[Mount("/ml", GrpcApp(reg))], lifespan=reg.lifespan), reg, cors=True)
    async with _serve(app, lifespan="on") as server:
        for text in (False, True):
            for prefix in ("", "/ml"):
                assert await web_predict(server.client, prefix, text=text) == [11, 21]
        async with channel(server.port) as client:
            code, message = await failure(client.prediction.Predict(predict_request(x=[1]), timeout=30))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "http.response.trailers" not in message
        refused = await server.client.post(PREDICT, headers={"content-type": "application/grpc"})
        assert "`uvicorn --http embedserve.http:HttpProtocol`" in refused.headers["grpc-message"]
        asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
        assert (await server.client.options(PREDICT, headers=asks)).status_code == 204
        assert await web_predict(server.client) == [11, 21]


async def test_on_uvicorn_a_client_that_leaves_ends_its_watch(reg: FakeRegistry) -> None:
    app = GrpcApp(reg)
    headers = {"content-type": "application/grpc-web"}
    async with _serve(app) as server:
        async with server.client.stream("POST", WATCH, headers=headers, content=framed(b"")) as response:
            assert await anext(response.aiter_raw()) == framed(b"\x08\x01")
            assert repr(app).endswith(" 1 calls>")
        while not repr(app).endswith(" 0 calls>"):
            await asyncio.sleep(0.001)


async def test_on_hypercorn_a_refused_message_does_not_end_its_connection(reg: FakeRegistry) -> None:
    async with hypercorn(GrpcApp(reg, max_message_bytes=10_000)) as port, channel(port) as client:
        for size in (3000, 200_000):
            large = client.prediction.Predict(predict_request(x=np.zeros(size, np.float32)))
            waiting = client.prediction.Predict(predict_request(x=[1]))
            code, message = await failure(large)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert message.startswith("Received message larger than max (")
            assert list((await waiting).outputs["y"].float_val) == [11]
