"""The gRPC services as an ASGI application: gRPC on servers with trailers, gRPC-Web on any server.

The module decides about the calls and their ends. The services hold
the methods, and `wire` the HTTP form. A call costs a coroutine and no task; only long calls get a task for watching.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from embedserve.asgi.calls import Call, Calls, ClientDisconnected, Event, Receive, Scope, Send
from embedserve.asgi.carrying import carry_over, is_elsewhere
from embedserve.asgi.clients import is_loopback
from embedserve.asgi.hosting import check_usable, path_as_sent, run_lifespan
from embedserve.asgi.listening import RegistryListening
from embedserve.call_record import CallHeaders
from embedserve.concurrency.inflight import InflightBytes, Reservation
from embedserve.concurrency.off_loop import ZIPPED_BYTES
from embedserve.config import Access
from embedserve.errors import CUT_SHORT, Code, DeadlineExceededError, ServingError
from embedserve.grpc.calls import Streaming, Unary
from embedserve.grpc.errors import StatusError, status_of
from embedserve.grpc.transports.cors import Cors
from embedserve.grpc.transports.frames import PREFIX_BYTES, MessageReader, too_large
from embedserve.grpc.transports.known_calls import KnownCall, known_calls
from embedserve.grpc.transports.wire import Wire, metadata_value, read_timeout, refusal, wire_of
from embedserve.http.account import Accounted
from embedserve.http.asgi_request import scope_of
from embedserve.http.direct import Answer, DirectCall, Tell, offer_of
from embedserve.http.heads import RequestHead

if TYPE_CHECKING:
    from embedserve.grpc.services.model_service import MetricReader, Reload
    from embedserve.oip.repository import Repository
    from embedserve.registry import ModelRegistry

__all__ = ["GrpcApp", "GrpcMiddleware"]

MAX_MESSAGE_BYTES = 2**31 - 1

DRAIN_BYTES = 1 << 20
"""Bytes read of the rest of a refused request."""
GRACE = 1.0
"""Seconds for a client to send the rest of a refused request, and to read the end of an answer after a deadline."""

NO_TRAILERS = (
    "gRPC cannot be answered here: the server does not offer the ASGI extension http.response.trailers. "
    "`uvicorn --http embedserve.http:HttpProtocol` offers the extension, as hypercorn does over HTTP/2. "
    "gRPC-Web works here, and `embedserve.grpc.serve` answers gRPC on a port of its own"
)
OVER_HTTP_1 = "gRPC needs HTTP/2, and this request came over HTTP/1; gRPC-Web works over both"
NO_TE = "the header `te: trailers` is missing, without which servers send no trailers and so no status"


class GrpcApp(RegistryListening):
    """ASGI application that answers the calls of a registry's gRPC services, and gRPC-Web's.

    Run alone, the application enters the registry in the application's lifespan, unless entered before. Mounted below a
    prefix, the application is for gRPC-Web clients: gRPC clients cannot use a prefix, and need `GrpcMiddleware`.

    Args:
        registry: Entered or not yet. Calls on a foreign loop are carried over to the registry's, at a small cost.
        max_message_bytes: Largest message in or out, after decompression; `max_request_bytes` bounds requests too.
        max_send_bytes: Largest message out; `max_message_bytes` by default.
        compression: Compression of answers for clients that accept compression; compressed requests are always read.
        max_concurrent_calls: Calls over this number are refused with RESOURCE_EXHAUSTED.
        cors: Let web pages of any origin call (True), or of the given origins, as in `https://app.example`.
        health: Serve `grpc.health.v1.Health`.
        reflection: Serve server reflection.
        access: Clients that may reload, use SessionRun and the profiler; `Access` has the defaults.
        tensor_content: Answer numeric tensors as `tensor_content` instead of typed fields.
        reload: Applies the `ModelServerConfig` of a HandleReloadConfigRequest; `registry.reconfigure` by default.
        metric: Reads a metric for HandleReloadConfigRequest's `metric_names`.
        repository: Loads and unloads models on request; the registry by default.

    Raises:
        ConfigError: The package of a requested service is not installed.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_send_bytes: int | None = None,
        compression: Literal["none", "gzip"] = "none",
        max_concurrent_calls: int | None = None,
        cors: bool | str | Iterable[str] = False,
        health: bool = True,
        reflection: bool = True,
        access: Access | None = None,
        tensor_content: bool = False,
        reload: Reload | None = None,
        metric: MetricReader | None = None,
        repository: Repository | None = None,
    ) -> None:
        # Message modules need TensorFlow, and break an import of TensorFlow in another thread; this import waits.
        import_module("tensorflow")
        from embedserve.grpc.services.table import Services

        self._registry = registry
        self._services = Services(
            registry,
            health=health,
            reflection=reflection,
            access=access or Access(),
            tensor_content=tensor_content,
            reload=reload,
            metric=metric,
            repository=repository,
        )
        self._methods = self._services.methods
        self.limit = min(max_message_bytes, registry.options.max_request_bytes)
        self.send_limit = max_message_bytes if max_send_bytes is None else max_send_bytes
        self._gzip = compression == "gzip"
        self.max_calls = max_concurrent_calls
        self._cors = Cors(cors) or None
        self._calls = Calls()
        self.active = 0
        self.is_cut = False

    def __repr__(self) -> str:
        return f"<GrpcApp of {self._registry!r}, {self.active} calls>"

    def takes_whole(self, size: int) -> bool:
        """Whether a body of `size` bytes is read as a whole."""
        return size <= self.limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI connection."""
        if scope["type"] == "http":
            call = self.call(scope, receive, all_calls=True)
            if call is None:
                await self._no_call(scope, send)
            else:
                await self.answer(call, send)
        elif scope["type"] == "lifespan":
            await run_lifespan(self._registry, self, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def call(self, scope: Scope, receive: Receive, all_calls: bool = False) -> _Request | None:
        """An HTTP request as a call for `answer`; None for a request of the host.

        An unknown method of a known service counts as a call. Any further request is the host's, unless `all_calls`.
        """
        if scope["method"] == "POST" and (all_calls or self._is_own(scope)):
            for name, value in scope["headers"]:
                if name == b"content-type":
                    wire = wire_of(value)
                    client = scope.get("client")
                    peer = client[0] if client else ""
                    return None if wire is None else _Request(scope, dict(scope["headers"]), wire, receive, peer)
        return None

    def is_preflight(self, scope: Scope) -> bool:
        """Whether a browser asks for permission to call a service."""
        return scope["method"] == "OPTIONS" and self._cors is not None and self._is_own(scope)

    def _is_own(self, scope: Scope) -> bool:
        return _path(scope)[1:].rpartition("/")[0] in self._services.names

    async def aclose(self) -> None:
        """End the calls without an end of their own, watches of health and profiles, before a server ends."""
        await self._services.aclose()

    def cut(self) -> None:
        """Answer calls that a server cancels from now on with UNAVAILABLE: the time of a drain is over."""
        self.is_cut = True

    # A single call.

    async def answer(self, request: _Request, send: Send) -> None:
        """Answer a call, with a message or an error. The hot path."""
        wire = request.wire
        if asyncio._get_running_loop() is not self._registry.loop and is_elsewhere(self._registry):
            await carry_over(self._registry, partial(self._answer_there, request), request.scope, request.receive, send)
            return
        if not wire.web and (missing := _missing_for_trailers(request.scope, request.fields)) is not None:
            await _refuse_for_trailers(send, missing)
            return
        extra = () if self._cors is None else self._cors.headers(request.fields)
        answering = False
        held: Reservation | None = None
        self.active += 1
        try:
            method = self._methods.get(_path(request.scope))
            self._check(method)
            request.held = held = Reservation(self._registry.inflight)
            request.set_deadline(asyncio.get_running_loop().time())
            if isinstance(method, Streaming):
                answering = True
                await self._stream(method, request, send, extra)
                return
            assert isinstance(method, Unary)
            with self._calls.enter(deadline=request.deadline) as call:
                event = await request.receive()
                message, flags = await self._call(method, event, request, call)
                call.deafen()
                answering = True
                await wire.answer(send, message, flags, extra, request.trailing)
                return
        except ClientDisconnected:
            return
        except Exception as error:
            if answering:  # The answer can only be broken off: the client has gone, or does not read in time.
                if isinstance(error, OSError | DeadlineExceededError | ClientDisconnected):
                    return
                raise
            code, text = (error.code, error.message) if isinstance(error, StatusError) else status_of(error)
        except asyncio.CancelledError:
            if not self.is_cut or answering:
                raise
            code, text = Code.UNAVAILABLE, CUT_SHORT
        finally:
            self.active -= 1
            if held is not None:
                held.release()
        await self._refuse(request, send, code, text, extra)

    def direct(self, head: RequestHead, is_http2: bool) -> DirectCall | None:
        """The direct way of unary calls (`embedserve.http.direct`), with the answers of `__call__`."""
        method = self._services.direct.get(head.target.decode("latin-1"))
        wire = wire_of(head.get(b"content-type") or b"")
        if method is None or wire is None or wire.web or head.method != b"POST":
            return None
        scope, headers = scope_of(head, ""), dict(head.fields)
        if not is_http2 or headers.get(b"te") != b"trailers":
            return None
        extra = () if self._cors is None else self._cors.headers(headers)
        registry = self._registry
        zips = self._gzip and b"gzip" in headers.get(b"grpc-accept-encoding", b"")
        known = None if zips else known_calls(self, method.known, headers, wire.fields(0, extra))

        def call(
            began: float, body: bytes, peer: str, tell: Tell
        ) -> Coroutine[object, None, Answer] | KnownCall | None:
            if asyncio._get_running_loop() is not registry.loop:
                return None
            observers = registry.observers
            if known is not None and not (observers.may_record or observers.keep_contexts):
                started = known(began, body, tell)
                if started is not None:
                    return started
            return self._answer_whole(method, _Request(scope, headers, wire, _nothing, peer), began, body, extra)

        return call

    async def _answer_whole(
        self, method: Unary, request: _Request, began: float, body: bytes, extra: Iterable[tuple[bytes, bytes]]
    ) -> Answer:
        """The answer to a whole request, whose task is cancelled when the client goes. The hottest path."""
        held: Reservation | None = None
        answered = False
        self.active += 1
        try:
            self._check(method)
            request.held = held = Reservation(self._registry.inflight)
            request.set_deadline(began)
            event = {"type": "http.request", "body": body}
            if request.deadline is None:
                message, flags = await self._call(method, event, request)
            else:
                with self._calls.enter(deadline=request.deadline):
                    message, flags = await self._call(method, event, request)
            answered = True
            return request.wire.whole(message, flags, extra, partial(self._sent, held), request.trailing)
        except Exception as error:
            code, text = (error.code, error.message) if isinstance(error, StatusError) else status_of(error)
        except asyncio.CancelledError:
            if not self.is_cut:
                raise
            code, text = Code.UNAVAILABLE, CUT_SHORT
        finally:
            if not answered:
                self.active -= 1
                if held is not None:
                    held.release()
        return refusal(request.wire.fields(0, extra), code, text, request.trailing)

    def _sent(self, held: Reservation) -> None:
        self.active -= 1
        held.release()

    async def _call(
        self, method: Unary, event: Event, request: _Request, watch: Call | None = None
    ) -> tuple[bytes, int]:
        """Call a method with the message that begins in `event`.

        Returns:
            The answer's message in the form for the client, and the flags of the form.
        """
        message = self._whole(event, request)
        if message is None:
            message = await self._put_together(event, request)
        if watch is not None:
            watch.listen(request.receive)
        message = await method.answer(message, request)
        if len(message) > self.send_limit:
            raise too_large(len(message), self.send_limit, "Sent")
        if self._gzip and b"gzip" in request.fields.get(b"grpc-accept-encoding", b""):
            return await self._zipped(message)
        return message, 0

    async def _answer_there(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        request.receive = receive
        await self.answer(request, send)

    @staticmethod
    async def _refuse(
        request: _Request, send: Send, code: Code, text: str, extra: Iterable[tuple[bytes, bytes]]
    ) -> None:
        if asyncio._get_running_loop() is None:  # trio, which knows no time-outs of asyncio.
            await request.wire.start(send, 0, extra)
            await request.wire.end(send, code, text, request.trailing)
            return
        await request.drain()
        with suppress(OSError):
            async with request.within_reason():
                await request.wire.start(send, 0, extra)
                await request.wire.end(send, code, text, request.trailing)

    def _check(self, method: Unary | Streaming | None) -> None:
        check_usable(self._registry)
        if method is None:
            raise ServingError("Method not found!", code=Code.UNIMPLEMENTED)
        if self.max_calls is not None and self.active > self.max_calls:
            raise ServingError("Concurrent RPC limit exceeded!", code=Code.RESOURCE_EXHAUSTED)

    def _whole(self, event: Event, request: _Request) -> bytes | None:
        """The message of a request whose first event is a single whole message, as in most requests; else None."""
        body: bytes = event.get("body", b"")
        if (
            not event.get("more_body")
            and not request.wire.text
            and body[:1] == b"\0"
            and len(body) - PREFIX_BYTES == int.from_bytes(body[1:PREFIX_BYTES], "big") <= self.limit
        ):
            request.ended = True
            return body[PREFIX_BYTES:]
        return None

    async def _put_together(self, event: Event, request: _Request) -> bytes:
        """The only message of a request that `_whole` declines."""
        request.first = event
        with self._reader(request) as reader:
            message = await reader.only()
            # The method reserves the message again at once; the bytes on the wire may have been fewer.
            request.held.sent = reader.sent
            return message

    def _reader(self, request: _Request) -> MessageReader:
        return MessageReader(self._registry, request.next_event, self.limit, request.encoding, request.wire.text)

    async def _zipped(self, message: bytes) -> tuple[bytes, int]:
        """A message in its smaller form, and the flags of the form."""
        compress = partial(gzip.compress, message, 6)
        zipped = await self._registry.run_in_thread(compress) if len(message) > ZIPPED_BYTES else compress()
        return (zipped, 1) if len(zipped) < len(message) else (message, 0)

    async def _stream(
        self, method: Streaming, request: _Request, send: Send, extra: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Pass messages on either way until the method ends, its deadline passes or the client goes."""
        wire = request.wire
        code, text = Code.OK, ""
        try:
            with self._calls.enter(deadline=request.deadline) as call, self._reader(request) as reader:

                async def messages() -> AsyncGenerator[bytes, None]:
                    async with aclosing(reader.messages()) as read:
                        async for message in read:
                            yield message
                    call.listen(request.receive)

                await wire.start(send, 0, extra)
                async with aclosing(messages()) as given, aclosing(method.stream(given, request)) as answers:
                    async for answer in answers:
                        await wire.message(send, answer, 0)
        except StatusError as error:
            if reader.disconnected:
                return
            code, text = error.code, error.message
        except DeadlineExceededError as error:
            code, text = status_of(error)
        except asyncio.CancelledError:
            if not self.is_cut:
                raise
            code, text = Code.UNAVAILABLE, CUT_SHORT
        async with request.within_reason():
            await wire.end(send, code, text)

    # Requests that are no calls.

    async def _no_call(self, scope: Scope, send: Send) -> None:
        headers = dict(scope["headers"])
        if scope["method"] == "OPTIONS" and self._cors is not None and b"access-control-request-method" in headers:
            await _respond(send, 204, b"", self._cors.preflight(headers))
        elif scope["method"] != "POST":
            await _respond(send, 405, b"gRPC calls are POST requests\n", [(b"allow", b"POST")])
        else:
            given = headers.get(b"content-type", b"")[:100].decode("latin-1")
            text = f"content-type is {given!r}; calls have application/grpc, application/grpc-web or its text form\n"
            await _respond(send, 415, text.encode(), [])


class _Request:
    """A client's call, with the transport's side for the method, in the manner of a `grpc.aio.ServicerContext`."""

    __slots__ = ("deadline", "ended", "fields", "first", "held", "peer", "receive", "scope", "trailing", "wire")

    held: Reservation

    def __init__(
        self, scope: Scope, headers: Mapping[bytes, bytes], wire: Wire, receive: Receive, peer: str = ""
    ) -> None:
        self.scope = scope
        self.peer = peer
        self.trailing: tuple[tuple[bytes, bytes], ...] = ()
        self.fields = headers
        self.wire = wire
        self.receive = receive
        self.first: Event | None = None  # An event that was received and not read yet.
        self.ended = False
        self.deadline: float | None = None

    @property
    def encoding(self) -> bytes:
        return self.fields.get(b"grpc-encoding", b"")

    async def next_event(self) -> Event:
        """The next event of the body."""
        event = self.first
        self.first = None
        if event is None:
            event = await self.receive()
        self.ended = not event.get("more_body", False)
        return event

    async def drain(self) -> None:
        """Read the rest of a body before its answer: servers lose the connection over bytes after the answer.

        Bytes and seconds are bounded: clients that send more are still answered.
        """
        size = 0
        try:
            async with asyncio.timeout(GRACE):
                while not self.ended and size < DRAIN_BYTES:
                    size += len((await self.next_event()).get("body", b""))
        except TimeoutError:
            pass

    def set_deadline(self, began: float) -> None:
        """Read the deadline of a call that began at the loop's time `began`."""
        timeout = self.fields.get(b"grpc-timeout")
        if timeout is not None:
            self.deadline = began + read_timeout(timeout)

    def within_reason(self) -> asyncio.Timeout:
        """Context for sending the end: up to the deadline, or `GRACE` seconds after a deadline that has passed."""
        if self.deadline is None:
            return asyncio.timeout(None)
        return asyncio.timeout_at(max(self.deadline, asyncio.get_running_loop().time() + GRACE))

    def time_remaining(self) -> float | None:
        if self.deadline is None:
            return None
        return max(self.deadline - asyncio.get_running_loop().time(), 0.0)

    def metadata_value(self, key: str) -> str | bytes | None:
        value = self.fields.get(key.encode())
        return None if value is None else metadata_value(key, value)

    @property
    def path(self) -> str:
        return _path(self.scope)

    def headers(self) -> CallHeaders:
        return CallHeaders(self.scope["headers"])

    def add_trailing(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.trailing = (*self.trailing, *fields)

    def is_local(self) -> bool:
        client = self.scope.get("client")  # None on Unix sockets, and on hosts without knowledge of clients.
        return client is not None and is_loopback(client[0])


class GrpcMiddleware:
    """Wraps a host application: takes the calls of a registry's gRPC services, and hands all further requests on.

    A middleware, not a mounted application, because gRPC clients cannot use a path prefix.

    Args:
        app: The host application, whose lifespan enters the registry.
        registry: The registry of the models.
        all_calls: Also take calls of unknown services, and answer UNIMPLEMENTED: for a host without its own services.
        options: As for `GrpcApp`.
    """

    def __init__(self, app: Any, registry: ModelRegistry, *, all_calls: bool = False, **options: Any) -> None:
        self._app = app
        self._all_calls = all_calls
        self._grpc = GrpcApp(registry, **options)
        self._offer = offer_of(app)

    def __repr__(self) -> str:
        return f"<GrpcMiddleware {self._grpc!r} before {self._app!r}>"

    def account(self) -> InflightBytes | None:
        """As `GrpcApp.account`; the host's requests are counted too."""
        return self._grpc.account()

    def refused(self, reason: str) -> None:
        """As `GrpcApp.refused`."""
        self._grpc.refused(reason)

    def takes_whole(self, size: int) -> bool:
        """Whether both applications read a body of `size` bytes as a whole; a host may want a stream."""
        return isinstance(self._app, Accounted) and self._app.takes_whole(size) and self._grpc.takes_whole(size)

    async def aclose(self) -> None:
        """As `GrpcApp.aclose`."""
        await self._grpc.aclose()

    def cut(self) -> None:
        """As `GrpcApp.cut`."""
        self._grpc.cut()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI connection, or leave the connection to the host."""
        await self.route(scope, receive, send)

    def direct(self, head: RequestHead, is_http2: bool) -> DirectCall | None:
        """The direct way of the own calls, and of the host application's if the host offers one."""
        found = self._grpc.direct(head, is_http2)
        return self._offer(head, is_http2) if found is None and self._offer is not None else found

    def route(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[object, None, None]:
        """The coroutine of the answering application, as a call of the middleware without an outer coroutine."""
        if scope["type"] == "http":
            call = self._grpc.call(scope, receive, self._all_calls)
            if call is not None:
                return self._grpc.answer(call, send)
            if self._grpc.is_preflight(scope):
                return self._grpc(scope, receive, send)
        answering: Coroutine[object, None, None] = self._app(scope, receive, send)
        return answering


async def _nothing() -> Event:
    raise AssertionError("the request is whole")


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    if body:
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _path(scope: Scope) -> str:
    """Path of the method, below the application's mount point."""
    path = path_as_sent(scope)
    root: str = scope.get("root_path") or ""
    return path.removeprefix(root.rstrip("/")) if root else path


def _missing_for_trailers(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    """The reason why an answer would lose its trailers, and the status with the trailers; None without a reason."""
    if "http.response.trailers" not in (scope.get("extensions") or ()):
        return NO_TRAILERS
    if scope["http_version"].startswith("1"):  # Some servers offer trailers in HTTP/1, and drop the trailers.
        return OVER_HTTP_1
    # Servers send trailers only for exactly this value.
    return None if headers.get(b"te") == b"trailers" else NO_TE


async def _refuse_for_trailers(send: Send, reason: str) -> None:
    """Send the status in the headers instead of trailers: clients read a status there too."""
    headers = [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"%d" % Code.UNIMPLEMENTED),
        (b"grpc-message", reason.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
