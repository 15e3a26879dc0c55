"""Heads of HTTP/1.x messages (RFC 9112): a request's parsed once and remembered, an answer's made once and remembered.

`httptools` reads the syntax. The module decides the cases left open: ambiguous framing is refused, never repaired,
because a second reader could understand the framing differently. The module knows no connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from weakref import WeakKeyDictionary

import httptools

from embedserve.http.heads import Field, MalformedError, RequestHead, content_length
from embedserve.http.limits import Limits

__all__ = [
    "Http1Head",
    "Http1HeadReader",
    "RefusedError",
    "encode_head",
    "encode_trailers",
    "read_trailers",
    "reader_of",
]

REMEMBERED_HEADS = 256
"""Heads that a reader remembers: a few per client program, as equal requests of a program have equal heads."""

REMEMBERED_BYTES = 2_048
"""Bytes of the largest remembered head: with the number of heads a bound on memory."""

_LINE_MARGIN = 32
"""Bytes of a request's line besides its target: the longest method and the version."""

_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)([^#]*)").fullmatch
_HOST = re.compile(rb"[\x21-\x2e\x30-\x3e\x41-\x5b\x5d\x5f-\x7e]*").fullmatch
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_VALUE = re.compile(rb"[^\x00\r\n]*").fullmatch
_LINE_BEGIN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?: |$)").match
_TLS_HANDSHAKE = b"\x16\x03"
_FRAMING = frozenset((b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"trailer"))


class RefusedError(Exception):
    """A request that the protocol itself answers before the connection ends: `status` and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Http1Head(NamedTuple):
    """A head with its consequences for the connection.

    Attributes:
        head: The application's view.
        chunked: The body comes in chunks.
        body_bytes: Bytes of the body; -1 for chunks, which tell their sizes themselves.
        keep_alive: The client will read a further answer.
        expects_continue: The client waits for status 100 before the body.
        is_1_0: The client speaks HTTP/1.0, and knows no chunks.
    """

    head: RequestHead
    chunked: bool
    body_bytes: int
    keep_alive: bool
    expects_continue: bool
    is_1_0: bool


class _Collector:
    """Callbacks of `httptools` for a single head."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[Field] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))


class Http1HeadReader:
    """Reads heads within the limits; a reader may serve many connections.

    Args:
        limits: Bounds of heads.
        scheme: `b"http"`, or `b"https"` behind TLS.

    Attributes:
        remembered: Heads by their bytes: equal requests of a client have equal heads.
    """

    __slots__ = ("_limits", "_scheme", "remembered")

    def __init__(self, limits: Limits, scheme: bytes = b"http") -> None:
        self._limits = limits
        self._scheme = scheme
        self.remembered: dict[bytes, Http1Head] = {}

    def check_partial(self, data: bytes) -> None:
        """Refuse an incomplete head that can no more become valid.

        Raises:
            RefusedError: With 414 or 431.
        """
        limits = self._limits
        if len(data) > limits.max_url_bytes + _LINE_MARGIN and b"\n" not in data[: limits.max_url_bytes + _LINE_MARGIN]:
            raise RefusedError(414, f"the request's line has more than {limits.max_url_bytes} bytes")
        if len(data) > limits.max_header_bytes:
            raise RefusedError(431, f"the request's head has more than {limits.max_header_bytes} bytes")

    @staticmethod
    def check_begin(data: bytes) -> None:
        """Refuse bytes that are the begin of another protocol, without a wait for the head's end.

        Raises:
            RefusedError: With 400.
        """
        line, ended, _ = data.partition(b"\r\n")
        if line.startswith(_TLS_HANDSHAKE):
            raise RefusedError(400, "the bytes are TLS, and this port is not")
        if line not in (b"", b"\r") and (
            not _LINE_BEGIN(line) or (ended and line.count(b" ") > 1 and b" HTTP/" not in line)
        ):
            raise RefusedError(400, "the bytes are not HTTP")

    def read(self, data: bytes) -> Http1Head:
        """The head `data`, up to and with its empty line.

        Raises:
            RefusedError: The head is malformed, ambiguous or over a limit.
        """
        found = self.remembered.get(data)
        if found is not None:
            return found
        self.check_partial(data)
        self.check_begin(data)
        collector = _Collector()
        parser = httptools.HttpRequestParser(collector)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # HTTP lets a server ignore an upgrade: the body is HTTP/1's.
        except httptools.HttpParserInvalidMethodError as error:
            raise RefusedError(501, str(error)) from None
        except httptools.HttpParserError as error:
            raise RefusedError(400, str(error)) from None
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise RefusedError(505, f"the version is {version}, expected 1.0 or 1.1")
        if not data.startswith(b"%s %s HTTP/" % (parser.get_method(), collector.url)):
            raise RefusedError(400, "the request's line has more than one space between its parts")
        found = self._judge(parser.get_method(), collector.url, tuple(collector.fields), version == "1.0")
        if len(data) <= REMEMBERED_BYTES:
            if len(self.remembered) >= REMEMBERED_HEADS:
                self.remembered.clear()
            self.remembered[data] = found
        return found

    def _judge(self, method: bytes, url: bytes, fields: tuple[Field, ...], is_1_0: bool) -> Http1Head:
        limits = self._limits
        if len(fields) > limits.max_headers:
            raise RefusedError(431, f"the request has {len(fields)} fields, at most {limits.max_headers} are taken")
        if len(url) > limits.max_url_bytes:
            raise RefusedError(414, f"the target has {len(url)} bytes, at most {limits.max_url_bytes} are taken")
        chunked = _is_chunked(fields, is_1_0)
        try:
            length = content_length(fields)
        except MalformedError as error:
            raise RefusedError(400, str(error)) from None
        if chunked and length is not None:
            raise RefusedError(400, "the request has both content-length and transfer-encoding")
        authority, target = _authority_and_target(method, url, fields, is_1_0)
        options = _tokens(fields, b"connection")
        keep_alive = b"keep-alive" in options if is_1_0 else b"close" not in options
        expects = not is_1_0 and b"100-continue" in _tokens(fields, b"expect") and (chunked or bool(length))
        scheme = self._scheme if method != b"CONNECT" else b""
        head = RequestHead(method, scheme, authority, target, fields, length)
        body_bytes = -1 if chunked else length or 0
        return Http1Head(head, chunked, body_bytes, keep_alive and method != b"CONNECT", expects, is_1_0)


_readers: WeakKeyDictionary[object, dict[tuple[Limits, bytes], Http1HeadReader]] = WeakKeyDictionary()


def reader_of(server: object, limits: Limits, scheme: bytes) -> Http1HeadReader:
    """The reader of a server's heads, whose memory all connections of the server share."""
    readers = _readers.setdefault(server, {})
    key = limits, scheme
    reader = readers.get(key)
    if reader is None:
        reader = readers[key] = Http1HeadReader(limits, scheme)
    return reader


def _tokens(fields: Iterable[Field], name: bytes) -> set[bytes]:
    return {token.strip().lower() for found, value in fields if found == name for token in value.split(b",")}


def _is_chunked(fields: tuple[Field, ...], is_1_0: bool) -> bool:
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if not codings:
        return False
    if is_1_0:
        raise RefusedError(400, "the request has transfer-encoding, which HTTP/1.0 does not know")
    if codings != [b"chunked"]:
        raise RefusedError(501, f"transfer-encoding is {codings}, expected chunked")
    return True


def _authority_and_target(method: bytes, url: bytes, fields: tuple[Field, ...], is_1_0: bool) -> tuple[bytes, bytes]:
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or (not hosts and not is_1_0):
        raise RefusedError(400, f"the request has {len(hosts)} host fields, expected one")
    host = b"".join(hosts)
    if method == b"CONNECT":
        host, target = url, b""
    elif url[:1] == b"/" or (url == b"*" and method == b"OPTIONS"):
        target = url
    else:
        absolute = _ABSOLUTE(url)
        if absolute is None:
            raise RefusedError(400, f"the target is {url[:100]!r}, expected a path or a URL")
        host, target = absolute.groups()
        if target[:1] != b"/":
            target = b"/" + target
    if not _HOST(host):
        raise RefusedError(400, f"the host is {host[:100]!r}, expected a name and a port")
    return host, target.partition(b"#")[0]


def read_trailers(data: bytes, limits: Limits) -> tuple[Field, ...]:
    """The fields of a trailer section, without its empty line.

    Raises:
        RefusedError: A line is no field, or the section has too many fields.
    """
    fields = []
    for line in data.split(b"\r\n") if data else ():
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not colon or not _NAME(name) or not _VALUE(value):
            raise RefusedError(400, f"a trailer is {line[:100]!r}, expected a field")
        fields.append((name, value))
    if len(fields) > limits.max_headers:
        raise RefusedError(431, f"the request has {len(fields)} trailers, at most {limits.max_headers} are taken")
    return tuple(fields)


def encode_head(fields: Iterable[Field]) -> bytes:
    """Status line and fields of an answer; names in lower case, without the fields that the connection decides.

    Args:
        fields: `:status` first, as for HTTP/2.

    Raises:
        MalformedError: A name or a value has a forbidden byte.
        ValueError: The first field is no `:status`.
    """
    return _encode_head(tuple(fields))


@lru_cache(maxsize=256)
def _encode_head(fields: tuple[Field, ...]) -> bytes:
    if not fields or fields[0][0] != b":status" or len(fields[0][1]) != 3 or not fields[0][1].isdigit():
        raise ValueError(f"the head begins with {fields[:1]}, expected a :status of three digits")
    lines = [b"HTTP/1.1 " + fields[0][1] + b" " + _phrase(int(fields[0][1]))]
    for name, value in fields[1:]:
        lower = name.lower()
        if not _NAME(lower) or not _VALUE(value):
            raise MalformedError(f"the field {name!r} with {value!r} has a forbidden byte")
        if lower not in _FRAMING:
            lines.append(lower + b": " + value)
    return b"\r\n".join(lines) + b"\r\n"


def encode_trailers(fields: Iterable[Field]) -> bytes:
    """The trailer section of an answer in chunks, with its empty line.

    Raises:
        MalformedError: As `encode_head`.
    """
    return encode_head(((b":status", b"200"), *fields)).partition(b"\r\n")[2] + b"\r\n"


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
