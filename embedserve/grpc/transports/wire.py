"""The HTTP form of a call: gRPC proper, gRPC-Web, and gRPC-Web as text; each as ASGI messages.

Each content type has a `Wire`. The module also has deadlines, custom metadata and the percent-encoding of a status
message; grpcio does the same in its core. The module knows no method. Sources: gRPC's PROTOCOL-HTTP2 and PROTOCOL-WEB.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import TypeAlias
from urllib.parse import quote

from embedserve.asgi.calls import Send
from embedserve.asgi.sending import send_body
from embedserve.concurrency.off_loop import MESSAGE_BYTES
from embedserve.errors import Code, InvalidInputError
from embedserve.grpc.transports.frames import frame
from embedserve.http.direct import Answer

__all__ = [
    "OK_TRAILERS",
    "Fields",
    "Headers",
    "Wire",
    "encoded_message",
    "metadata_value",
    "read_timeout",
    "refusal",
    "wire_of",
]


Headers: TypeAlias = list[tuple[bytes, bytes]]
Fields: TypeAlias = Iterable[tuple[bytes, bytes]]

_TRAILER_FRAME = 0x80
_OK = (b"grpc-status", b"0")
OK_TRAILERS = (_OK,)
"""The trailers of a call with an answer."""

_ENCODINGS = (b"grpc-accept-encoding", b"identity, gzip")
_GZIPPED = (b"grpc-encoding", b"gzip")

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# Seconds, some thirty years. The protocol's longest, 11 thousand years, is more than threads and clocks can count.
_LONGEST = 1e9

# Printable ASCII except the per cent sign travels unescaped.
_UNESCAPED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def read_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout` header.

    Raises:
        InvalidInputError: The value is not one to eight digits and a unit.
    """
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise InvalidInputError(
            f"grpc-timeout {value.decode('latin-1')!r} is not 1 to 8 digits and one of the units H, M, S, m, u, n"
        )
    return min(int(found[1]) * _SECONDS[found[2]], _LONGEST)


def encoded_message(message: str) -> bytes:
    """A status message as the value of `grpc-message`."""
    text = quote(message, safe=_UNESCAPED, errors="replace")
    bare = text.strip(" ")
    if bare != text:  # HTTP does not keep the spaces around a value.
        head = text[: len(text) - len(text.lstrip(" "))]
        text = f"{'%20' * len(head)}{bare}{'%20' * (len(text) - len(bare) - len(head))}"
    return text.encode()


def metadata_value(key: str, value: bytes) -> str | bytes | None:
    """A header as a metadata value; the first value of a `-bin` header with several, None for malformed base64."""
    if not key.endswith("-bin"):
        return value.decode("latin-1")
    first = value.partition(b",")[0].strip()
    try:
        return base64.b64decode(first + b"=" * (-len(first) % 4), validate=True)
    except binascii.Error:
        return None


class Wire:
    """gRPC over HTTP/2: frames in the body, the status in the trailers.

    Attributes:
        text: The body is base64, both ways.
        web: The wire needs no trailers, and works on any ASGI server.
    """

    text = False
    web = False

    def __init__(self, content_type: bytes) -> None:
        self._content_type = (b"content-type", content_type)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._content_type[1].decode()}>"

    async def answer(self, send: Send, message: bytes, flags: int, extra: Fields = (), trailing: Fields = ()) -> None:
        """Send a whole answer with a single message; `trailing` is metadata after the status."""
        await send(self._start(flags, extra))
        if len(message) > MESSAGE_BYTES:  # Two messages rather than a copy.
            await send({"type": "http.response.body", "body": _prefix(message, flags), "more_body": True})
            await send_body(send, message)
        else:
            await send({"type": "http.response.body", "body": frame(message, flags)})
        await send({"type": "http.response.trailers", "headers": [_OK, *trailing]})

    def whole(
        self, message: bytes, flags: int, extra: Fields, sent: Callable[[], None], trailing: Fields = ()
    ) -> Answer:
        """A whole answer with a single message, for the direct way."""
        trailers = (*OK_TRAILERS, *trailing) if trailing else OK_TRAILERS
        return Answer(200, self.fields(flags, extra), frame(message, flags), trailers, sent)

    def fields(self, flags: int, extra: Fields) -> tuple[tuple[bytes, bytes], ...]:
        """The fields of a head, for messages with `flags`."""
        return (self._content_type, _ENCODINGS, *extra, *((_GZIPPED,) if flags else ()))

    async def start(self, send: Send, flags: int, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Begin an answer; `flags` are the flags of its messages."""
        await send(self._start(flags, extra))

    def _start(self, flags: int, extra: Iterable[tuple[bytes, bytes]]) -> dict[str, object]:
        # Made anew for each answer: outer applications may add to the headers.
        headers: Headers = [*self.fields(flags, extra)]
        event: dict[str, object] = {"type": "http.response.start", "status": 200, "headers": headers}
        if not self.web:
            event["trailers"] = True
        return event

    async def message(self, send: Send, message: bytes, flags: int) -> None:
        """Send a message of a stream."""
        await send({"type": "http.response.body", "body": frame(message, flags), "more_body": True})

    async def end(self, send: Send, code: Code = Code.OK, message: str = "", trailing: Fields = ()) -> None:
        """End an answer that has begun, with its status and further metadata."""
        await send({"type": "http.response.body", "body": b""})
        await send({"type": "http.response.trailers", "headers": [*_status(code, message), *trailing]})


class WebWire(Wire):
    """gRPC-Web: the trailers are the last frame of the body."""

    web = True

    async def answer(self, send: Send, message: bytes, flags: int, extra: Fields = (), trailing: Fields = ()) -> None:
        trailers = _trailer_frame(Code.OK, "", trailing)
        if len(message) > MESSAGE_BYTES:
            await self._large(send, (_prefix(message, flags), message, trailers), flags, extra)
            return
        body = self._encoded(frame(message, flags) + trailers)
        await self.start(send, flags, ((b"content-length", b"%d" % len(body)), *extra))
        await send({"type": "http.response.body", "body": body})

    async def _large(self, send: Send, parts: tuple[bytes, ...], flags: int, extra: Fields) -> None:
        size = sum(map(len, parts))
        await self.start(send, flags, ((b"content-length", b"%d" % self._encoded_size(size)), *extra))
        for piece in self._pieces(*parts):
            await send_body(send, piece, more_body=True)
        await send({"type": "http.response.body", "body": b""})

    async def message(self, send: Send, message: bytes, flags: int) -> None:
        await send({"type": "http.response.body", "body": self._encoded(frame(message, flags)), "more_body": True})

    async def end(self, send: Send, code: Code = Code.OK, message: str = "", trailing: Fields = ()) -> None:
        await send({"type": "http.response.body", "body": self._encoded(_trailer_frame(code, message, trailing))})

    def _encoded(self, body: bytes) -> bytes:
        return body

    def _encoded_size(self, size: int) -> int:
        return size

    def _pieces(self, *parts: bytes) -> Iterable[bytes]:
        """A large body in pieces, without joining the parts."""
        return parts


class WebTextWire(WebWire):
    """gRPC-Web for clients that read text only."""

    text = True

    def _encoded(self, body: bytes) -> bytes:
        return base64.b64encode(body)

    def _encoded_size(self, size: int) -> int:
        return (size + 2) // 3 * 4

    def _pieces(self, *parts: bytes) -> Iterable[bytes]:
        body = memoryview(b"".join(parts))  # The copy is quick; only encoding at a stretch would hold up the loop.
        for at in range(0, len(body), 3 * MESSAGE_BYTES):
            yield base64.b64encode(body[at : at + 3 * MESSAGE_BYTES])


def _prefix(message: bytes, flags: int) -> bytes:
    return flags.to_bytes() + len(message).to_bytes(4, "big")


def _status(code: Code, message: str) -> Headers:
    if code == Code.OK:
        return [_OK]
    headers = [(b"grpc-status", b"%d" % code)]
    return [*headers, (b"grpc-message", encoded_message(message))] if message else headers


def refusal(fields: tuple[tuple[bytes, bytes], ...], code: Code, message: str, trailing: Fields = ()) -> Answer:
    """A whole answer without a message, for the direct way; `fields` are the head's."""
    return Answer(200, fields, b"", (*_status(code, message), *trailing))


def _trailer_frame(code: Code, message: str, trailing: Fields = ()) -> bytes:
    fields = (*_status(code, message), *trailing)
    return frame(b"".join(b"%s: %s\r\n" % field for field in fields), _TRAILER_FRAME)


_WIRES: dict[bytes, Wire] = {
    content_type: kind(content_type)
    for kind, name in ((Wire, b"application/grpc"), (WebWire, b"application/grpc-web"))
    for content_type in (name, name + b"+proto")
} | {
    # An answer in text names the format of its messages, because clients look for the format.
    name: WebTextWire(b"application/grpc-web-text+proto")
    for name in (b"application/grpc-web-text", b"application/grpc-web-text+proto")
}


def wire_of(content_type: bytes) -> Wire | None:
    """The wire of a content type; None for content types other than gRPC with protobuf messages."""
    wire = _WIRES.get(content_type)
    return _WIRES.get(content_type.partition(b";")[0].strip().lower()) if wire is None else wire
