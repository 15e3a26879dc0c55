"""The REST API inside other applications, under any prefix, with the registry where it should be and where not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import litestar
import pytest
from fastapi import FastAPI
from litestar.types import Receive as LitestarReceive
from litestar.types import Scope as LitestarScope
from litestar.types import Send as LitestarSend
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, NoMatchFound, Route, Router

from embedserve import StartError
from embedserve.asgi.sending import PIECE
from embedserve.errors import RegistryStateError
from embedserve.metrics import Metrics
from embedserve.registry import ModelRegistry
from embedserve.rest import create_app, routes
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.rest.conftest import Serve

NAME = "a/b c"
QUOTED = "a%2Fb%20c"
BODY = b'{"instances": [1, 2]}'
ANSWER = {"predictions": [11.0, 21.0]}


async def own(request: Any) -> PlainTextResponse:
    return PlainTextResponse(f"own {request.url.path}")


def starlette_mount(registry: ModelRegistry) -> Any:
    own_routes = [Route("/own", own), Mount("/ml", create_app(registry)), Route("/ml2", own)]
    return Starlette(routes=own_routes, lifespan=registry.lifespan)


def starlette_nested(registry: ModelRegistry) -> Any:
    inner = Router(routes=[Mount("/deep", create_app(registry))])
    return Starlette(routes=[Route("/own", own), Mount("/very", inner)], lifespan=registry.lifespan)


def starlette_param(registry: ModelRegistry) -> Any:
    return Starlette(
        routes=[Mount("/{tenant}/ml", create_app(registry)), Route("/own", own)], lifespan=registry.lifespan
    )


def starlette_routes(registry: ModelRegistry) -> Any:
    return Starlette(routes=[*routes(registry), Route("/own", own)], lifespan=registry.lifespan)


def starlette_mounted_routes(registry: ModelRegistry) -> Any:
    mounted = Mount("/ml", routes=[Route("/own", own), *routes(registry)])
    return Starlette(routes=[mounted, Route("/own", own)], lifespan=registry.lifespan)


def fastapi_mount(registry: ModelRegistry) -> Any:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with registry.lifespan(app):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/ml", create_app(registry))
    app.add_api_route("/own", lambda: "own")
    return app


def fastapi_routes(registry: ModelRegistry) -> Any:
    app = FastAPI(lifespan=registry.lifespan)
    app.router.routes.extend(routes(registry))
    app.add_api_route("/own", lambda: "own")
    return app


def fastapi_behind_proxy(registry: ModelRegistry) -> Any:
    app = FastAPI(lifespan=registry.lifespan, root_path="/proxy")
    app.mount("/ml", create_app(registry))
    app.add_api_route("/own", lambda: "own")
    return app


class PassOn(BaseHTTPMiddleware):
    """Middleware of the kind that wraps receive and send."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


def with_middleware(registry: ModelRegistry) -> Any:
    return Starlette(
        routes=[Mount("/ml", create_app(registry)), Route("/own", own)],
        lifespan=registry.lifespan,
        middleware=[Middleware(PassOn)],
    )


def litestar_mount(registry: ModelRegistry) -> Any:
    rest = create_app(registry)

    @litestar.asgi("/ml", is_mount=True, copy_scope=True)
    async def mounted(scope: LitestarScope, receive: LitestarReceive, send: LitestarSend) -> None:
        await rest(scope, receive, send)

    @litestar.get("/own", sync_to_thread=False)
    def own_handler() -> str:
        return "own"

    return litestar.Litestar([mounted, own_handler], lifespan=[registry.lifespan])


def by_itself(registry: ModelRegistry) -> Any:
    return create_app(registry)


HOSTS: list[tuple[Callable[[ModelRegistry], Any], str]] = [
    (starlette_mount, "/ml"),
    (starlette_nested, "/very/deep"),
    (starlette_param, "/t%C3%A9n/ml"),
    (starlette_routes, ""),
    (starlette_mounted_routes, "/ml"),
    (fastapi_mount, "/ml"),
    (fastapi_routes, ""),
    (fastapi_behind_proxy, "/ml"),
    (fastapi_behind_proxy, "/proxy/ml"),
    (with_middleware, "/ml"),
    (litestar_mount, "/ml"),
    (by_itself, ""),
]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize(("host", "prefix"), HOSTS, ids=[f"{host.__name__} {prefix}" for host, prefix in HOSTS])
async def test_below_any_prefix(host: Callable[[ModelRegistry], Any], prefix: str, serve: Serve) -> None:
    registry = FakeRegistry({NAME: {1: FakeLoader()}})
    async with serve(host(registry), lifespan="on") as server:
        connection = await server.connect()
        answer = await connection.request("POST", f"{prefix}/v1/models/{QUOTED}:predict", BODY)
        assert (answer.status, json.loads(answer.body)) == (200, ANSWER)
        answer = await connection.request("GET", f"{prefix}/v1/models/{QUOTED}/versions/1")
        assert json.loads(answer.body)["model_version_status"][0]["state"] == "AVAILABLE"
        answer = await connection.request("POST", f"{prefix}/v1/models/{QUOTED}:predict?x=1", BODY)
        assert json.loads(answer.body)["error"] == f"Malformed request: POST /v1/models/{QUOTED}:predict?x=1"
        answer = await connection.request("GET", f"{prefix}/-/ready/{QUOTED}")
        assert answer.status == 200
        if host is not by_itself:
            assert (await server.client.get("/own")).status_code == 200
    assert not registry.started


async def test_behind_a_proxy_that_the_server_knows(serve: Serve) -> None:
    registry = FakeRegistry({NAME: {1: FakeLoader()}})
    async with serve(starlette_mount(registry), lifespan="on", root_path="/proxy") as server:
        answer = await (await server.connect()).request("POST", f"/ml/v1/models/{QUOTED}:predict", BODY)
        assert (answer.status, json.loads(answer.body)) == (200, ANSWER)


async def test_routes_take_only_what_is_theirs(serve: Serve) -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    app = Starlette(routes=[*routes(registry, health=False), Route("/{rest:path}", own)], lifespan=registry.lifespan)
    async with serve(app, lifespan="on") as server:
        for path in ["/", "/v1", "/v3/models/m", "/-/live", "/monitoring/prometheus/metrics"]:
            assert (await server.client.get(path)).text == f"own {path}"
        assert (await server.client.get("/v1/models/m")).status_code == 200
        assert (await server.client.get("/v1/nonsense")).json() == {"error": "Malformed request: GET /v1/nonsense"}


def test_routes_have_no_names() -> None:
    (route,) = routes(FakeRegistry({}))
    with pytest.raises(NoMatchFound):
        route.url_path_for("predict")
    assert "ModelRegistry" in repr(route)


async def test_mounted_without_the_lifespan_a_request_is_told_what_to_add(serve: Serve) -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    async with serve(Starlette(routes=[Mount("/ml", create_app(registry))]), lifespan="on") as server:
        for method, path in [("POST", "/v1/models/m:predict"), ("GET", "/v1/models/m"), ("GET", "/v1/x")]:
            response = await server.client.request(method, f"/ml{path}", content=BODY)
            assert response.status_code == 503
            assert response.headers["content-type"] == "application/json"
            assert "`lifespan=registry.lifespan`" in response.json()["error"]
        assert (await server.client.get("/ml/-/live")).status_code == 200
        response = await server.client.get("/ml/-/ready")
        assert response.status_code == 503
        assert "`lifespan=registry.lifespan`" in response.json()["reason"]


class OtherLoop:
    """A registry entered on a loop in another thread."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def __aenter__(self) -> None:
        self._leave = threading.Event()
        entered = asyncio.Event()
        loop = asyncio.get_running_loop()

        def serve() -> None:
            with self._registry:
                loop.call_soon_threadsafe(entered.set)
                self._leave.wait()

        self._thread = threading.Thread(target=serve)
        self._thread.start()
        await entered.wait()

    async def __aexit__(self, *_: object) -> None:
        self._leave.set()
        await asyncio.to_thread(self._thread.join)


async def test_calls_are_carried_to_a_registry_on_another_loop(serve: Serve) -> None:
    metrics = Metrics()
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    app = Starlette(routes=[Mount("/ml", create_app(registry, metrics=metrics))], lifespan=registry.lifespan)
    async with OtherLoop(registry), serve(app, lifespan="on") as server:
        assert registry.loop is not asyncio.get_running_loop()
        response = await server.client.post("/ml/v1/models/m:predict", content=BODY)
        assert response.json() == ANSWER
        assert (await server.client.get("/ml/v1/models/m")).status_code == 200
        assert (await server.client.post("/ml/v1/models/n:predict", content=BODY)).status_code == 404
        large = json.dumps({"instances": [float(number) for number in range(500_000)]})
        answer = await server.client.post("/ml/v1/models/m:predict", content=large)
        assert len(answer.content) > PIECE
        assert answer.json()["predictions"][-1] == 499_999 * 10 + 1
        assert (await server.client.get("/ml/-/ready")).json()["models"] == {"m": "ready"}
        page = (await server.client.get("/ml/monitoring/prometheus/metrics")).text
        assert ':tensorflow:serving:request_count{model_name="m",status="OK"}' in page
        while registry.inflight.reserved:
            await asyncio.sleep(0.001)
        assert registry.started
    assert not registry.started


async def test_a_client_that_leaves_ends_a_call_that_was_carried_over(serve: Serve) -> None:
    gate = Gate()
    registry = FakeRegistry({"m": {1: FakeLoader(gate=gate)}})
    async with OtherLoop(registry), serve(create_app(registry)) as server:
        connection = await server.connect()
        head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        connection.send(head + BODY)
        while not registry.statistics().in_flight.get(("m", 1)):
            await asyncio.sleep(0.001)
        connection.close()
        while registry.statistics().in_flight[("m", 1)] or registry.statistics().reserved_bytes:
            await asyncio.sleep(0.001)
        gate.open()


async def test_a_registry_whose_loop_has_ended_is_refused_with_the_remedy(serve: Serve) -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    loop = asyncio.new_event_loop()
    await asyncio.to_thread(loop.run_until_complete, registry.start())
    async with serve(create_app(registry)) as server:
        response = await server.client.post("/v1/models/m:predict", content=BODY)
        assert response.status_code == 503
        assert "the event loop that entered the registry is not running" in response.json()["error"]
    await asyncio.to_thread(loop.run_until_complete, registry.aclose())
    loop.close()


async def lifespan_of(app: Any) -> list[Any]:
    """What an application says to a host that starts and stops it, and what it raises at the end."""
    sent: list[Any] = []
    messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

    async def receive() -> Any:
        return messages.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app({"type": "lifespan"}, receive, send)
    except Exception as error:
        sent.append(error)
    return sent


async def test_by_itself_it_enters_and_leaves_the_registry() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    sent = await lifespan_of(create_app(registry))
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert not registry.started


async def test_a_registry_that_is_entered_already_is_left_to_whoever_did() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        sent = await lifespan_of(create_app(registry))
        assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert registry.started


@pytest.mark.parametrize("host", [create_app, lambda registry: Starlette(lifespan=registry.lifespan)])
async def test_a_registry_that_another_loop_has_entered_is_left_to_whoever_did(
    host: Callable[[ModelRegistry], Any],
) -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    async with OtherLoop(registry):
        sent = await lifespan_of(host(registry))
        assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert registry.started


async def test_a_model_that_cannot_load_fails_the_start_with_the_reason() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader(failures=-1)}}, retry={"max_retries": 0})
    message, error = await lifespan_of(create_app(registry))
    assert isinstance(error, StartError)
    assert message["type"] == "lifespan.startup.failed"
    assert "the fake loader was told to fail" in message["message"]
    with pytest.raises(StartError):
        async with registry:
            pass


@pytest.mark.may_block
@pytest.mark.filterwarnings("ignore:Using `httpx` with")
def test_starlettes_test_client() -> None:
    from starlette.testclient import TestClient

    registry = FakeRegistry({NAME: {1: FakeLoader()}})
    with TestClient(starlette_mount(registry)) as client:
        assert client.post(f"/ml/v1/models/{QUOTED}:predict", content=BODY).json() == ANSWER
        assert client.get("/ml/nowhere").status_code == 404


async def test_httpx_asgi_transport() -> None:
    registry = FakeRegistry({NAME: {1: FakeLoader()}})
    app = starlette_mount(registry)
    async with registry, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        assert (await client.post(f"/ml/v1/models/{QUOTED}:predict", content=BODY)).json() == ANSWER


async def test_a_registry_that_has_been_left_is_not_ready(serve: Serve) -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    async with serve(create_app(registry)) as server:
        async with registry:
            assert (await server.client.post("/v1/models/m:predict", content=BODY)).json() == ANSWER
        assert (await server.client.post("/v1/models/m:predict", content=BODY)).status_code == 503
        async with registry:
            assert (await server.client.post("/v1/models/m:predict", content=BODY)).json() == ANSWER


def test_errors_of_a_misplaced_registry_are_the_servers_fault() -> None:
    from embedserve.rest.errors import error_response

    assert error_response(RegistryStateError("left")).status == 503
