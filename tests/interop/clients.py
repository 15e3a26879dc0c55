"""The clients of the table, each with the same few methods: the official ones, a bare HTTP/2 one, gRPC-Web's."""

from __future__ import annotations

import asyncio
import base64
import gzip
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio
import httpx
import pytest

from embedserve.errors import Code
from tests.grpc.framing import framed, messages_of, status_in, web_answer
from tests.interop.h2_client import H2Connection
from tests.interop.rpcs import RPCS, Rpc

UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
PATIENCE = 60.0
WEB, WEB_TEXT = "application/grpc-web+proto", "application/grpc-web-text"


@dataclass(frozen=True)
class Outcome:
    """How a call ended; `zipped` is None where a client does not show whether the answer was compressed."""

    code: Code
    text: str
    response: Any = field(default=None, repr=False)  # 64 MiB are long in words.
    zipped: bool | None = None


class Client(Protocol):
    """A client of one server."""

    def __init__(self, port: int) -> None: ...

    def call(self, method: str, request: Any, *, timeout: float | None = None, zipped: bool = False) -> Outcome:
        """Make a unary call; `zipped` compresses the request."""

    def leave(self, method: str, request: Any) -> None:
        """Make a unary call, and go away when the server has the request."""

    def stream(self, method: str, requests: Sequence[Any], answers: int) -> list[Any]:
        """Send the requests, one after each answer, take so many answers, and go away if there are more to come."""


def _of(error: Any) -> Outcome:
    return Outcome(Code(error.code().value[0]), error.details())


class Blocking:
    """grpcio's blocking stubs."""

    def __init__(self, port: int) -> None:
        self._target = f"127.0.0.1:{port}"

    def _method(self, channel: Any, method: str) -> Any:
        return getattr(RPCS[method].stub(channel), method)

    def call(self, method: str, request: Any, *, timeout: float | None = None, zipped: bool = False) -> Outcome:
        compression = grpc.Compression.Gzip if zipped else None
        with grpc.insecure_channel(self._target, options=UNLIMITED) as channel:
            try:
                response = self._method(channel, method)(request, timeout=timeout or PATIENCE, compression=compression)
            except grpc.RpcError as error:
                return _of(error)
        return Outcome(Code.OK, "", response)

    def leave(self, method: str, request: Any) -> None:
        with grpc.insecure_channel(self._target) as channel:
            call = self._method(channel, method).future(request, timeout=PATIENCE)
            self._method(channel, "Check")(_check(), timeout=PATIENCE)  # Comes after it on the connection.
            call.cancel()

    def stream(self, method: str, requests: Sequence[Any], answers: int) -> list[Any]:
        turns = threading.Semaphore(1)

        def sent() -> Iterator[Any]:
            for request in requests:
                turns.acquire()
                yield request

        found = []
        with grpc.insecure_channel(self._target) as channel:
            given = sent() if method == "ServerReflectionInfo" else requests[0]
            call = self._method(channel, method)(given, timeout=PATIENCE)
            for response in call:
                found.append(response)
                turns.release()
                if len(found) == answers and method == "Watch":
                    call.cancel()
                    break
        return found


class Aio:
    """grpcio's asyncio stubs."""

    def __init__(self, port: int) -> None:
        self._target = f"127.0.0.1:{port}"

    def _run(self, work: Callable[[Callable[[str], Any]], Any]) -> Any:
        async def connected() -> Any:
            async with grpc.aio.insecure_channel(self._target, options=UNLIMITED) as channel:
                return await work(lambda method: getattr(RPCS[method].stub(channel), method))

        return asyncio.run(connected())

    def call(self, method: str, request: Any, *, timeout: float | None = None, zipped: bool = False) -> Outcome:
        compression = grpc.Compression.Gzip if zipped else None

        async def work(stub: Callable[[str], Any]) -> Outcome:
            try:
                return Outcome(
                    Code.OK, "", await stub(method)(request, timeout=timeout or PATIENCE, compression=compression)
                )
            except grpc.RpcError as error:
                return _of(error)

        outcome: Outcome = self._run(work)
        return outcome

    def leave(self, method: str, request: Any) -> None:
        async def work(stub: Callable[[str], Any]) -> None:
            call = stub(method)(request, timeout=PATIENCE)
            await stub("Check")(_check(), timeout=PATIENCE)
            call.cancel()

        self._run(work)

    def stream(self, method: str, requests: Sequence[Any], answers: int) -> list[Any]:
        async def work(stub: Callable[[str], Any]) -> list[Any]:
            if method == "Watch":
                call = stub(method)(requests[0], timeout=PATIENCE)
                found = [await call.read() for _ in range(answers)]
                call.cancel()
                return found
            call, found = stub(method)(timeout=PATIENCE), []
            for request in requests:
                await call.write(request)
                found.append(await call.read())
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            return found

        found: list[Any] = self._run(work)
        return found


class H2:
    """Frames of HTTP/2 by the h2 package, and messages put together here: what any other client sends."""

    web = False

    def __init__(self, port: int) -> None:
        self._port = port

    def _connected(self) -> H2Connection:
        return H2Connection(self._port, PATIENCE)

    def _request(self, connection: H2Connection, method: str, body: bytes | None, **how: Any) -> int:
        headers = _headers(**how)
        if self.web:
            headers["content-type"] = WEB
            del headers["te"]
        return connection.request(RPCS[method].path, headers.items(), body)

    def _answer(self, connection: H2Connection, stream: int) -> tuple[Code | None, str, list[tuple[int, bytes]]]:
        connection.until_ended(stream)
        body = connection.body(stream)
        if self.web:
            assert not connection.trailers(stream)
            return web_answer(body)
        return *status_in(connection.status_headers(stream)), messages_of(body)

    def call(self, method: str, request: Any, *, timeout: float | None = None, zipped: bool = False) -> Outcome:
        with self._connected() as connection:
            stream = self._request(connection, method, _body(request, zipped), timeout=timeout, zipped=zipped)
            return _read(RPCS[method], *self._answer(connection, stream))

    def leave(self, method: str, request: Any) -> None:
        with self._connected() as connection:
            stream = self._request(connection, method, _body(request))
            self._answer(connection, self._request(connection, "Check", _body(_check())))
            connection.reset(stream)

    def stream(self, method: str, requests: Sequence[Any], answers: int) -> list[Any]:
        with self._connected() as connection:
            stream = self._request(connection, method, None)
            for number, request in enumerate(requests, 1):
                connection.send(stream, _body(request), end=number == len(requests))
                connection.until(partial(self._has, connection, stream, number))
            found = messages_of(connection.body(stream))
            if method != "Watch":
                assert self._answer(connection, stream) == (Code.OK, "", found)
            return [RPCS[method].response.FromString(message) for _, message in found[:answers]]

    @staticmethod
    def _has(connection: H2Connection, stream: int, messages: int) -> bool:
        return len(messages_of(connection.body(stream))) >= messages


class WebH2(H2):
    """gRPC-Web over HTTP/2 by the same."""

    web = True


class Web:
    """gRPC-Web by httpx, over HTTP/1.1."""

    text = False

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def _connected(self) -> httpx.Client:
        return httpx.Client(timeout=PATIENCE, verify=False)

    def _request(self, method: str, body: bytes, **how: Any) -> httpx.Request:
        headers = _headers(**how) | {"content-type": WEB_TEXT if self.text else WEB}
        del headers["te"]
        content = base64.b64encode(body) if self.text else body
        return httpx.Request("POST", f"{self._url}{RPCS[method].path}", content=content, headers=headers)

    def call(self, method: str, request: Any, *, timeout: float | None = None, zipped: bool = False) -> Outcome:
        sent = self._request(method, _body(request, zipped), timeout=timeout, zipped=zipped)
        with self._connected() as client:
            response = client.send(sent)
        assert response.status_code == 200
        assert response.http_version == "HTTP/1.1"
        return _read(RPCS[method], *web_answer(response.content, text=self.text))

    def leave(self, method: str, request: Any) -> None:
        sent = self._request(method, _body(request))
        sent.extensions["timeout"] = {"connect": PATIENCE, "write": PATIENCE, "pool": PATIENCE, "read": 0.3}
        with self._connected() as client, pytest.raises(httpx.ReadTimeout):
            client.send(sent)

    def stream(self, method: str, requests: Sequence[Any], answers: int) -> list[Any]:
        (request,) = requests
        with self._connected() as client:
            response = client.send(self._request(method, _body(request)), stream=True)
            pieces = response.iter_raw()
            found = [next(pieces) for _ in range(answers)]
            response.close()
        bodies = [base64.b64decode(piece) if self.text else piece for piece in found]
        return [RPCS[method].response.FromString(message) for body in bodies for _, message in messages_of(body)]


class WebText(Web):
    """The text form of gRPC-Web."""

    text = True


CLIENTS: dict[str, type[Client]] = {
    "blocking": Blocking,
    "aio": Aio,
    "h2": H2,
    "web": Web,
    "web-text": WebText,
    "web over HTTP/2": WebH2,
}


def _check() -> Any:
    from grpc_health.v1 import health_pb2

    return health_pb2.HealthCheckRequest()


def _headers(timeout: float | None = None, zipped: bool = False) -> dict[str, str]:
    headers = {"content-type": "application/grpc", "te": "trailers"}
    if timeout is not None:
        headers["grpc-timeout"] = f"{round(timeout * 1000)}m"
    if zipped:
        headers |= {"grpc-encoding": "gzip", "grpc-accept-encoding": "identity,gzip"}
    return headers


def _body(request: Any, zipped: bool = False) -> bytes:
    message = request.SerializeToString()
    return framed(gzip.compress(message, 1), 1) if zipped else framed(message)


def _read(rpc: Rpc, code: Code | None, text: str, messages: Sequence[tuple[int, bytes]]) -> Outcome:
    assert code is not None
    if code is not Code.OK:
        assert not messages
        return Outcome(code, text)
    ((flags, message),) = messages
    message = gzip.decompress(message) if flags else message
    return Outcome(code, text, rpc.response.FromString(message), bool(flags))
