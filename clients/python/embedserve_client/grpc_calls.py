"""A gRPC call on HTTP/2: the headers of a request, and the message or the status of an answer.

The module knows the bytes of the protocol, and no socket.
"""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from urllib.parse import unquote_to_bytes

from embedserve_client.errors import Code, ServingError, of_status
from embedserve_client.exchange import Exchange, Failure, Reply, time_left
from embedserve_client.hpack import Headers, encode
from embedserve_client.http2 import Stream

__all__ = ["Outgoing", "outgoing", "reply_of"]

_PREFIX = 5
_VERSION = "embedserve-client"
# gRPC's table for answers of proxies that know no gRPC.
_HTTP_STATUS = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
_MOST_UNITS = 99_999_999

Outgoing = tuple[bytes, list[bytes | memoryview]]
"""A header block and a body."""


@functools.lru_cache(maxsize=256)
def _fixed_headers(scheme: str, authority: str, path: str, compressed: bool) -> bytes:
    headers = [
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", _VERSION.encode()),
        (b"grpc-accept-encoding", b"identity,gzip"),
    ]
    return encode(headers + ([(b"grpc-encoding", b"gzip")] if compressed else []))


def _timeout(seconds: float) -> bytes:
    """A duration in gRPC's form, rounded up, with eight digits at the most."""
    for factor, unit in ((1e6, b"u"), (1e3, b"m"), (1.0, b"S")):
        units = math.ceil(seconds * factor)
        if units <= _MOST_UNITS:
            return b"%d%b" % (units, unit)
    return b"%dH" % min(math.ceil(seconds / 3600), _MOST_UNITS)


def outgoing(scheme: str, authority: str, exchange: Exchange, compressed: bool) -> Outgoing:
    """The header block and the body of a unary call.

    Raises:
        DeadlineExceededError: The deadline has passed.
    """
    request = exchange.request
    block = _fixed_headers(scheme, authority, request.path, compressed)
    left = time_left(exchange.deadline)
    more: Headers = [] if left is None else [(b"grpc-timeout", _timeout(left))]
    more += [(name.encode(), value.encode()) for name, value in request.headers]
    parts = list(request.parts or ())
    if compressed:
        parts = [gzip.compress(b"".join(parts), compresslevel=1, mtime=0)]
    size = sum(map(len, parts))
    return block + encode(more), [bytes((compressed,)) + size.to_bytes(4), *parts]


def _value(headers: Headers | None, name: bytes) -> bytes | None:
    return next((value for key, value in headers or () if key == name), None)


def reply_of(stream: Stream) -> Reply:
    """The message of an ended stream.

    Raises:
        Failure: The stream failed, the status is an error, or the answer is not gRPC's.
    """
    if stream.failure is not None:
        error = ServingError(f"no answer: {stream.failure}", code=Code.UNAVAILABLE)
        raise Failure(error, repeatable=stream.untouched)
    first = stream.headers if stream.headers is not None else stream.trailers
    status = _value(stream.trailers, b"grpc-status")
    if status is None:
        raise _not_grpc(first)
    if status != b"0":
        message = unquote_to_bytes(_value(stream.trailers, b"grpc-message") or b"").decode("utf-8", "replace")
        number = int(status) if status.isdigit() else int(Code.UNKNOWN)
        raise Failure(of_status(number, message), repeatable=number == Code.UNAVAILABLE)
    return Reply(_message(stream, first))


def _not_grpc(headers: Headers | None) -> Failure:
    status = _value(headers, b":status") or b"none"
    kind = (_value(headers, b"content-type") or b"none").decode("latin-1")
    code = _HTTP_STATUS.get(int(status) if status.isdigit() else 0, Code.UNKNOWN)
    error = of_status(code, f"the answer is not gRPC's: HTTP status {status.decode('latin-1')}, content type {kind}")
    return Failure(error, repeatable=code == Code.UNAVAILABLE)


def _message(stream: Stream, headers: Headers | None) -> bytes:
    parts = stream.parts
    while len(parts) > 1 and len(parts[0]) < _PREFIX:
        parts[:2] = [parts[0] + parts[1]]
    prefix = parts[0][:_PREFIX] if parts else b""
    size = sum(map(len, parts)) - _PREFIX
    if len(prefix) < _PREFIX or int.from_bytes(prefix[1:]) != size:
        raise Failure(ServingError(f"the answer holds {size} bytes that are not one whole message"))
    parts[0] = parts[0][_PREFIX:]
    message = b"".join(parts)
    if not prefix[0]:
        return message
    encoding = _value(headers, b"grpc-encoding") or b"none"
    if encoding != b"gzip":
        raise Failure(ServingError(f"the answer is compressed by {encoding.decode('latin-1')}, and not by gzip"))
    try:
        return gzip.decompress(message)
    except (OSError, EOFError, zlib.error) as error:
        raise Failure(ServingError(f"the answer's gzip cannot be read: {error}")) from None
