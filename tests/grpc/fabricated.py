"""Calls on the bare ASGI interface: every event in and out is the test's own, as no real server lets it choose them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

from embedserve.errors import Code
from embedserve.grpc.transports.frames import frame
from tests.grpc.conftest import predict_request
from tests.grpc.framing import TRAILER_FRAME, messages_of, status_in, trailers_of

PREDICT = "/tensorflow.serving.PredictionService/Predict"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

GRPC, WEB, TEXT = b"application/grpc", b"application/grpc-web", b"application/grpc-web-text"
KINDS = (GRPC, WEB, TEXT)

TRAILERS: dict[str, Any] = {"http.response.trailers": {}}


def predict_body(*values: float) -> bytes:
    """A framed PredictRequest to model `m`."""
    return frame(predict_request(x=values or (1,)).SerializeToString())


class Answer(NamedTuple):
    """What an application sent, as a client understands it."""

    status: int
    headers: dict[bytes, bytes]
    messages: list[tuple[int, bytes]]
    code: Code | None
    text: str


def scope_of(
    path: str = PREDICT,
    *,
    content_type: bytes | None = GRPC,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (),
    te: bytes | None = b"trailers",
    **fields: Any,
) -> dict[str, Any]:
    """The scope of a request, as hypercorn makes it of a gRPC client's over HTTP/2."""
    given = [(b"host", b"x"), *headers]
    if te is not None:
        given.append((b"te", te))
    if content_type is not None:
        given.append((b"content-type", content_type))
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "root_path": "", "headers": given}
    return scope | {"http_version": "2", "extensions": TRAILERS} | fields


class Connection:
    """One request, its client and its server, played by the test.

    Args:
        app: The application.
        body: Pieces of the request's body.
        ends: The body ends after them; otherwise `piece` adds to it.
        repeats: The server says again and again that the body has ended, instead of waiting for the client to go.
        scope: As `scope_of` has them.
    """

    def __init__(self, app: Any, *body: bytes, ends: bool = True, repeats: bool = False, **scope: Any) -> None:
        self.app = app
        self.scope = scope_of(**scope)
        self.sent: list[dict[str, Any]] = []
        self.reads = True
        self.received = 0
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._repeats = repeats
        self._ended = False
        for number, piece in enumerate(body, 1):
            self.piece(piece, more=not ends or number < len(body))
        if ends and not body:
            self.piece(b"", more=False)

    def piece(self, data: bytes, more: bool = False) -> None:
        self._events.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def go(self) -> None:
        """The client goes away."""
        self._events.put_nowait({"type": "http.disconnect"})

    async def _receive(self) -> dict[str, Any]:
        self.received += 1
        if self._repeats and self._ended and self._events.empty():
            return {"type": "http.request", "body": b"", "more_body": False}
        event = await self._events.get()
        self._ended = not event.get("more_body", False)
        return event

    async def _send(self, event: dict[str, Any]) -> None:
        while not self.reads:
            await asyncio.sleep(0.001)
        self.sent.append(event)

    async def run(self) -> None:
        """Let the application answer."""
        await self.app(self.scope, self._receive, self._send)

    async def answer(self) -> Answer:
        """Let the application answer, within reason."""
        await asyncio.wait_for(self.run(), 60)
        return self.understood()

    async def until_sent(self, events: int) -> None:
        while len(self.sent) < events:
            await asyncio.sleep(0.001)

    def understood(self) -> Answer:
        """The answer, whose events must come in the order that ASGI demands."""
        start, *rest = self.sent
        assert start["type"] == "http.response.start"
        trailers = dict(rest.pop()["headers"]) if start.get("trailers") else {}
        assert [event["type"] for event in rest] == ["http.response.body"] * len(rest)
        assert [event.get("more_body", False) for event in rest] == [True] * (len(rest) - 1) + [False]
        headers = dict(start["headers"])
        assert len(headers) == len(start["headers"]), "a header came twice"
        pieces = [event["body"] for event in rest]
        if b"content-length" in headers:
            assert int(headers[b"content-length"]) == len(b"".join(pieces))
        if headers.get(b"content-type", b"").startswith(TEXT):
            pieces = [base64.b64decode(piece, validate=True) for piece in pieces]
        is_grpc = headers.get(b"content-type", b"").startswith(GRPC)
        messages = messages_of(b"".join(pieces)) if is_grpc else [(0, b"".join(pieces))]
        if messages and messages[-1][0] == TRAILER_FRAME:
            assert not trailers
            trailers = trailers_of(messages.pop()[1])
        code, text = status_in(trailers or headers)
        return Answer(start["status"], headers, messages, code, text)
