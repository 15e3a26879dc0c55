"""The REST API as an ASGI application, run alone or mounted below any prefix of a host application.

The module decides the kind of each HTTP request (section 1.2 of TF Serving's contract) and writes the answer.
`handlers` holds the work of each route, and the registry holds the models. The application is a plain ASGI callable:
a framework's request and response objects would cost more than the rest of a small request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from embedserve.asgi.calls import Calls, ClientDisconnected, Receive, Scope, Send
from embedserve.asgi.carrying import carry_over, is_elsewhere
from embedserve.asgi.hosting import check_usable, run_lifespan
from embedserve.asgi.listening import RegistryListening
from embedserve.asgi.sending import PIECE, send_body
from embedserve.call_record import MAX_TARGET, CallHeaders, CallRecord, current_call
from embedserve.concurrency.inflight import Reservation
from embedserve.config import Access
from embedserve.errors import CUT_SHORT, Code, InvalidInputError, ServingError
from embedserve.http.asgi_request import scope_of
from embedserve.http.direct import Answer, DirectCall, Tell
from embedserve.http.heads import RequestHead
from embedserve.oip.repository import Repository
from embedserve.priority import PriorityName, sent_priority
from embedserve.rest import handlers
from embedserve.rest.body import read_body
from embedserve.rest.docs_page import DOCS, docs_page
from embedserve.rest.errors import Response, error_response, html_page, json_response, wire_code
from embedserve.rest.health import health_response, is_health
from embedserve.rest.media_types import Wishes, wishes
from embedserve.rest.oip.api import OipApi, Sender
from embedserve.rest.oip.api import error_response as oip_error
from embedserve.rest.oip.body import read_coded_body
from embedserve.rest.oip.target import Operation, asks_nothing, is_oip, operation
from embedserve.rest.oip.target import is_health as is_oip_health
from embedserve.rest.target import (
    METHODS,
    OPENAPI,
    READS,
    Route,
    is_rest,
    is_strict_uri,
    known_route,
    mount_point,
    path_of,
    raw_target,
    route,
)
from embedserve.tfs.constants import DEFAULT_METRICS_PATH

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from embedserve.grpc import GrpcMiddleware
    from embedserve.metrics import Metrics
    from embedserve.registry import ModelRegistry

__all__ = ["DEFAULT_METRICS_PATH", "RestApp", "create_app", "routes"]

logger = logging.getLogger("embedserve.rest")

_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)


@overload
def create_app(
    registry: ModelRegistry,
    *,
    grpc: Literal[False] = False,
    cors: bool = ...,
    timeout: float | None = ...,
    metrics: Metrics | None = ...,
    metrics_path: str = ...,
    health: bool = ...,
    docs: bool = ...,
    access: Access | None = ...,
    repository: Repository | None = ...,
) -> RestApp: ...


@overload
def create_app(
    registry: ModelRegistry,
    *,
    grpc: bool,
    cors: bool = ...,
    timeout: float | None = ...,
    metrics: Metrics | None = ...,
    metrics_path: str = ...,
    health: bool = ...,
    docs: bool = ...,
    access: Access | None = ...,
    repository: Repository | None = ...,
) -> RestApp | GrpcMiddleware: ...


def create_app(
    registry: ModelRegistry,
    *,
    grpc: bool = False,
    cors: bool = False,
    timeout: float | None = 30.0,
    metrics: Metrics | None = None,
    metrics_path: str = DEFAULT_METRICS_PATH,
    health: bool = True,
    docs: bool = True,
    access: Access | None = None,
    repository: Repository | None = None,
) -> RestApp | GrpcMiddleware:
    """The REST APIs of a registry, with the gRPC APIs on request, as a single ASGI application.

    The APIs are TensorFlow Serving's below `/v1` and the Open Inference Protocol (KServe V2) below `/v2`.

    A host that mounts the application enters the registry, because frameworks run no lifespan of mounted applications:
    `Starlette(routes=[Mount("/ml", create_app(registry))], lifespan=registry.lifespan)`. An application that runs alone
    (`uvicorn module:app`) enters the registry in the application's lifespan, unless entered before.

    Args:
        registry: Entered or not yet. Calls on a foreign loop are carried over to the registry's, at a small cost.
        grpc: Answer gRPC and gRPC-Web calls on the same port, as `embedserve.grpc.GrpcMiddleware` does in front of a
            host application. Below a prefix only gRPC-Web clients reach the gRPC API.
        cors: Add TF Serving's CORS headers to every answer of the REST API, and let any origin make gRPC-Web calls.
        timeout: Seconds allowed for a run of predict, classify or regress; None or 0 sets no limit.
        metrics: Serve the exposition at `metrics_path`, and register `metrics` as an observer of the registry.
        metrics_path: Exact path of the exposition, below the mount point.
        health: Serve `/-/live`, `/-/ready` and `/-/ready/NAME`, and gRPC's health service.
        docs: Serve the OpenAPI document at `/v1/openapi.json`, and at `/-/docs` a page that shows the document.
        access: Clients that may load and unload models, and reload over gRPC; `Access` has the defaults.
        repository: Loads and unloads models on request; the registry by default.
    """
    access = access or Access()
    api = OipApi(registry, repository or Repository(registry), access.reload, _limit(timeout))
    app = RestApp(registry, api, cors=cors, metrics=metrics, metrics_path=metrics_path, health=health, docs=docs)
    if not grpc:
        return app
    # The only reference from REST to gRPC: an application of both APIs.
    from embedserve.grpc import GrpcMiddleware

    metric = None if metrics is None else metrics.read
    options: dict[str, Any] = {"access": access, "repository": repository}
    return GrpcMiddleware(app, registry, all_calls=True, cors=cors, health=health, metric=metric, **options)


def routes(
    registry: ModelRegistry,
    *,
    cors: bool = False,
    timeout: float | None = 30.0,
    metrics: Metrics | None = None,
    metrics_path: str = DEFAULT_METRICS_PATH,
    health: bool = True,
    docs: bool = True,
    access: Access | None = None,
) -> list[BaseRoute]:
    """The REST APIs as Starlette routes beside a host's own routes; arguments as `create_app`.

    The routes take only `/v1/...`, `/v2/...`, and the paths of health, documentation and metrics:
    `Mount("/ml", routes=routes(registry))`, `Starlette(routes=[*own, *routes(registry)])`,
    `fastapi_app.router.routes.extend(routes(registry))`.
    """
    from embedserve.rest.starlette_route import RestRoute

    seen: dict[str, Any] = {"metrics": metrics, "metrics_path": metrics_path, "health": health, "docs": docs}
    return [RestRoute(create_app(registry, grpc=False, cors=cors, timeout=timeout, access=access, **seen))]


def _limit(timeout: float | None) -> float | None:
    return timeout if timeout is not None and timeout > 0 else None


class RestApp(RegistryListening):
    """ASGI application over a registry; the only state is the set of calls under way.

    Attributes:
        ending: Set by a server whose only reason for cancelling is a drain out of time; cancelled requests then get
            503.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        oip: OipApi,
        *,
        cors: bool,
        metrics: Metrics | None,
        metrics_path: str,
        health: bool,
        docs: bool,
    ) -> None:
        self.ending = False
        self._registry = registry
        self._cors = _CORS if cors else ()
        self._oip = oip
        self._timeout = oip.timeout
        self._metrics = metrics
        self._metrics_path = metrics_path
        self._metrics_in_rest = metrics is not None and is_rest(metrics_path)
        self._health = health
        self._docs = docs
        self._calls = Calls()
        if metrics is not None and metrics not in registry.observers:
            registry.observers.add(metrics)

    @property
    def registry(self) -> ModelRegistry:
        """The registry whose models the application serves."""
        return self._registry

    def takes_whole(self, size: int) -> bool:
        """Whether a body of `size` bytes is read as a whole; a larger body is refused before its bytes."""
        return size <= self._registry.options.max_request_bytes

    def __repr__(self) -> str:
        return f"<RestApp of {self._registry!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI connection."""
        if scope["type"] == "http":
            if asyncio._get_running_loop() is not self._registry.loop and self._is_to_be_carried(scope):
                await carry_over(self._registry, self, scope, receive, send)
                return
            found = None if self._metrics_in_rest else known_route(scope)
            try:
                if found is None:
                    response = await self._respond(scope, receive)
                else:
                    response = await self._known(_call_of(scope, receive, found))
            except asyncio.CancelledError:
                if not self.ending:
                    raise
                response = self._cut_short()
            body = response.body
            try:
                await send({"type": "http.response.start", "status": response.status, "headers": _fields(response)})
                if len(body) <= PIECE or scope["method"] == "HEAD":
                    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
                else:
                    with suppress(ClientDisconnected):
                        await send_body(send, body)
            except asyncio.CancelledError:
                if not self.ending:  # At the end of a drain the client has not read on; the server closes.
                    raise
            finally:
                if response.held is not None:
                    response.held.release()
        elif scope["type"] == "lifespan":
            await run_lifespan(self._registry, self, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def direct(self, head: RequestHead, is_http2: bool) -> DirectCall | None:
        """The direct way of requests for a known route (`embedserve.http.direct`), with the answers of `__call__`."""
        scope = scope_of(head, "")
        if head.get(b"content-encoding") or (head.get(b"content-type") or b"").startswith(b"application/grpc"):
            return None  # Middleware for gRPC may stand in front, and takes such calls.
        found: Route | str | None = None if self._metrics_in_rest else known_route(scope)
        if found is None and not self._is_metrics(target := raw_target(scope)) and is_oip(target):
            found = target if asks_nothing(target) else None
        if found is None:
            return None
        registry, is_head = self._registry, head.method == b"HEAD"
        headers = CallHeaders(scope["headers"])

        async def answer(body: bytes, peer: str) -> Answer:
            try:
                response = await self._known(_Call(scope, None, found, headers, peer), body)
            except asyncio.CancelledError:
                if not self.ending:
                    raise
                response = self._cut_short()
            sent = None if response.held is None else response.held.release
            return Answer(response.status, _fields(response), b"" if is_head else response.body, (), sent)

        def call(began: float, body: bytes, peer: str, tell: Tell) -> Coroutine[object, None, Answer] | None:
            return answer(body, peer) if asyncio._get_running_loop() is registry.loop else None

        return call

    def _known(self, call: _Call, body: bytes = b"") -> Coroutine[object, None, Response]:
        """The answer to a request of either API, recorded if anybody wants to see the call."""
        observers = self._registry.observers
        if observers.may_record or call.headers.timing:
            record = None if call.is_health else observers.begin_call("REST", call.headers, call.peer)
            if record is not None:
                return self._recorded(record, call, body)
        return self._answer_oip(call, body) if call.is_oip else self._rest(call, body)

    async def _recorded(self, record: CallRecord, call: _Call, body: bytes) -> Response:
        """As `_known`, with the record current, and the names and times of the call in the answer's headers."""
        target = call.target if isinstance(call.target, str) else raw_target(call.scope)
        record.method, record.target = call.scope["method"], path_of(target)[:MAX_TARGET]
        record.received = len(body)
        with self._registry.observers.recorded(record):
            response = await (self._answer_oip(call, body) if call.is_oip else self._rest(call, body))
            record.status, record.sent = response.status, len(response.body)
        return response._replace(headers=(*response.headers, *record.answer_headers()))

    def _tell(self, found: Route | Operation | None, api: str, code: Code, started: float) -> None:
        """Tell the observers about an answered request, and note the request in the record, if any.

        Args:
            found: The operation and the model; None for a request that names neither.
            api: As for `Observer.request_finished`.
            code: The code of the answer.
            started: The time of the request's arrival.
        """
        name = "" if found is None else found.name
        observers = self._registry.observers
        if observers:
            observers.request_finished(name, api, "REST", code, perf_counter() - started)
        if (record := current_call.get()) is not None:
            record.api, record.code = api or ("" if found is None else found.action), code
            record.model = record.model or name[:MAX_TARGET]

    def _cut_short(self) -> Response:
        """The answer to a request that the end of a drain has cancelled."""
        return self._with_cors(error_response(ServingError(CUT_SHORT, code=Code.UNAVAILABLE)))

    def _is_to_be_carried(self, scope: Scope) -> bool:
        """Whether a request on a foreign loop goes to the registry's loop; health answers even if that loop hangs."""
        target = raw_target(scope)
        if is_oip_health(target) or (self._health and is_health(path_of(target))):
            return False
        return is_elsewhere(self._registry)

    def takes(self, scope: Scope) -> bool:
        """Whether the application answers a request, even with an error; the host has the rest."""
        target = raw_target(scope)
        if is_rest(target) or is_oip(target) or self._is_metrics(target):
            return True
        path = path_of(target)
        return (self._health and is_health(path)) or (self._docs and path == DOCS)

    def _is_metrics(self, target: str) -> bool:
        return self._metrics is not None and path_of(target) == self._metrics_path

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        """Dispatch in TF Serving's order (method, URI, metrics, REST), then to health and to the page at `/`."""
        method, target = scope["method"], raw_target(scope)
        if is_oip(target) and not self._is_metrics(target):
            return await self._known(_call_of(scope, receive, target))
        if method not in METHODS:
            return self._html(scope, 501)
        if not is_strict_uri(target):
            return self._html(scope, 400)
        if self._metrics is not None and self._is_metrics(target):
            return await self._page(scope, self._metrics)
        if is_rest(target):
            return await self._known(_call_of(scope, receive, target))
        if self._health and is_health(path_of(target)):
            return health_response(self._registry, method, path_of(target))
        if self._docs and path_of(target) == DOCS and method in READS:
            return await self._docs_page()
        if path_of(target) == "/" and method in READS:
            return json_response(handlers.about_document(self._registry))
        return self._html(scope, 404)

    @staticmethod
    async def _page(scope: Scope, metrics: Metrics) -> Response:
        asked = any(name == b"accept" and b"application/openmetrics-text" in value for name, value in scope["headers"])
        kind = b"application/openmetrics-text; version=1.0.0; charset=utf-8" if asked else b"text/plain"
        try:
            return Response(200, await metrics.page(openmetrics=asked), ((b"content-type", kind),))
        except ServingError as error:
            return error_response(error)

    async def _docs_page(self) -> Response:
        try:
            return await self._registry.run_in_thread(docs_page)
        except ServingError as error:
            return error_response(error)

    @staticmethod
    def _html(scope: Scope, status: int) -> Response:
        return html_page(status, close=scope.get("http_version", "1.1").startswith("1"))

    async def _rest(self, call: _Call, body: bytes) -> Response:
        """Answer a request under `/v1/`, given by target or by known route, and tell the observers.

        Without `receive` the request is whole: `body` is its body, and its task is cancelled when the client goes.
        """
        scope, target = call.scope, call.target
        started = perf_counter()
        method = scope["method"]
        found: Route | None = None
        api = ""
        code = Code.OK
        try:
            check_usable(self._registry)
            if method == "OPTIONS":
                return self._with_cors(_preflight(scope))
            found = route(method, target) if isinstance(target, str) else target
            if method in READS:
                return self._with_cors(json_response(await self._get(scope, found)))
            api = found.action
            return self._with_cors(await self._post(call, found, body))
        except ServingError as error:
            code = wire_code(error)
            return self._with_cors(error_response(error))
        except Exception:
            logger.exception("a bug in answering %s %r", method, scope["path"])
            code = Code.INTERNAL
            return self._with_cors(error_response(ServingError("internal error")))
        except asyncio.CancelledError:
            code = Code.UNAVAILABLE if self.ending else Code.CANCELLED
            raise
        finally:
            self._tell(found, api, code, started)

    async def _answer_oip(self, call: _Call, body: bytes) -> Response:
        """Answer a request below `/v2`, and tell the observers; `call` and `body` as for `_rest`."""
        scope, target = call.scope, str(call.target)
        started = perf_counter()
        method = scope["method"]
        found: Operation | None = None
        api = ""
        code = Code.OK
        try:
            if is_oip_health(target):  # Health answers before the entry, and on any loop.
                return self._with_cors(await self._oip.read(operation(method, target)))
            check_usable(self._registry)
            if method == "OPTIONS":
                return self._with_cors(_preflight(scope))
            found = operation(method, target)
            if method in READS:
                return self._with_cors(await self._oip.read(found))
            api = found.action if found.action == "infer" else ""
            return self._with_cors(await self._post_oip(call, found, body))
        except ServingError as error:
            code = wire_code(error)
            return self._with_cors(oip_error(error))
        except Exception:
            logger.exception("a bug in answering %s %r", method, scope["path"])
            code = Code.INTERNAL
            return self._with_cors(oip_error(ServingError("internal error")))
        except asyncio.CancelledError:
            code = Code.UNAVAILABLE if self.ending else Code.CANCELLED
            raise
        finally:
            self._tell(found, api, code, started)

    async def _post_oip(self, call: _Call, found: Operation, body: bytes) -> Response:
        registry, receive = self._registry, call.receive
        client = call.scope.get("client")
        sender = Sender(dict(call.scope["headers"]), client[0] if client else None, call.priority)
        held = Reservation(registry.inflight)
        try:
            if receive is None:
                registry.inflight.check_request(len(body))
                held.receive(len(body), "the body")
                answer = await self._oip.post(found, sender, body, held)
            else:
                body = await read_coded_body(sender.headers, receive, held, registry)
                _note_body(body)
                with self._calls.enter(receive):
                    answer = await self._oip.post(found, sender, body, held)
        except BaseException:
            held.release()
            raise
        held.become(len(answer.body))
        return answer if answer.held is held else answer._replace(held=held)

    def _with_cors(self, response: Response) -> Response:
        return response._replace(headers=response.headers + self._cors) if self._cors else response

    async def _get(self, scope: Scope, found: Route) -> bytes:
        if found.action != "openapi":
            return await handlers.get(self._registry, found)
        if not self._docs:
            raise InvalidInputError(f"Malformed request: GET {OPENAPI}")
        return await handlers.openapi_document(self._registry, mount_point(scope))

    async def _post(self, call: _Call, found: Route, body: bytes) -> Response:
        registry, receive = self._registry, call.receive
        headers, priority = call.scope["headers"], call.priority
        wished = wishes(headers, found.query) if found.action == "predict" else None
        if wished is None and found.query:
            raise InvalidInputError(f"Malformed request: POST {raw_target(call.scope)}")
        held = Reservation(registry.inflight)
        try:
            if receive is None:
                registry.inflight.check_request(len(body))
                held.receive(len(body), "the body")
                response = await self._answer(found, body, held, priority, wished)
            else:
                body = await read_body(
                    headers,
                    receive,
                    held,
                    check_size=registry.inflight.check_request,
                    run_in_thread=registry.run_in_thread,
                )
                _note_body(body)
                with self._calls.enter(receive):
                    response = await self._answer(found, body, held, priority, wished)
        except BaseException:
            held.release()
            raise
        held.become(len(response.body))
        return response._replace(held=held)

    async def _answer(
        self, found: Route, body: bytes, held: Reservation, priority: PriorityName, wished: Wishes | None
    ) -> Response:
        if wished is None:
            return json_response(await handlers.post(self._registry, found, body, held, self._timeout, priority))
        written, fields = await handlers.predict_as(wished, self._registry, found, body, held, self._timeout, priority)
        return Response(200, written, fields)


def _fields(response: Response) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-length", b"%d" % len(response.body)), *response.headers)


class _Call(NamedTuple):
    """A request of an API: by target or by known route, and without `receive` if the body is whole."""

    scope: Scope
    receive: Receive | None
    target: str | Route
    headers: CallHeaders
    peer: str

    @property
    def is_oip(self) -> bool:
        """Whether the request is below `/v2`; known routes are TensorFlow Serving's."""
        return isinstance(self.target, str) and is_oip(self.target)

    @property
    def is_health(self) -> bool:
        """Whether the request is a probe of health below `/v2`."""
        return isinstance(self.target, str) and is_oip_health(self.target)

    @property
    def priority(self) -> PriorityName:
        """The client's priority.

        Raises:
            InvalidInputError: The value is no priority.
        """
        sent = self.headers.priority
        return "normal" if sent is None else sent_priority(sent)


def _call_of(scope: Scope, receive: Receive, target: str | Route) -> _Call:
    client = scope.get("client")
    return _Call(scope, receive, target, CallHeaders(scope["headers"]), client[0] if client else "")


def _note_body(body: bytes) -> None:
    """Note the size of a body that was read in pieces."""
    if (record := current_call.get()) is not None:
        record.received = len(body)


def _preflight(scope: Scope) -> Response:
    for name, value in scope["headers"]:
        if name == b"origin" and (b"http://" in value or b"https://" in value):
            return Response(200, b"", ())
    raise InvalidInputError("Origin header is missing in CORS preflight")
