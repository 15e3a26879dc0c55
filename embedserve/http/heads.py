"""The head of a request in either HTTP version, and the rules for its fields (RFC 9110, RFC 9113)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

__all__ = ["Field", "MalformedError", "RequestHead", "TooLargeError"]

Field: TypeAlias = tuple[bytes, bytes]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(rb"[^\x00\r\n]*").fullmatch
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+").fullmatch
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*").fullmatch
_AUTHORITY = re.compile(rb"[\x21-\x2e\x30-\x3e\x41-\x7e\x80-\xff]*").fullmatch
_DIGITS = re.compile(rb"[0-9]{1,18}").fullmatch

OF_A_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
"""Fields of an HTTP/1.1 connection, forbidden in HTTP/2 (RFC 9113, section 8.2.2)."""

_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))


class MalformedError(Exception):
    """A request that breaks the rules of its protocol: the reason, in words for a log."""


class TooLargeError(Exception):
    """A request's head is over a limit: `status` is 414 for the target, 431 for the fields."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class RequestHead:
    """The content of a request before its body. Equal requests of a connection share a head, so heads never change.

    Attributes:
        method: As sent, as in `b"POST"`.
        scheme: `b"http"` or `b"https"`; empty for CONNECT.
        authority: Host and port as the client named them; empty for none.
        target: Path and query as sent; empty for CONNECT.
        fields: Names in lower case, and values, in the order sent.
        content_length: Declared bytes of the body; None without a declaration.
        size: Bytes of target and fields, with 32 bytes for each field as RFC 9113 counts.
        direct: The receiver's memory of the direct way for requests with the head; `...` before the first look.
        scope: The receiver's memory of the common part of ASGI scopes; None before the first scope.
    """

    __slots__ = ("authority", "content_length", "direct", "fields", "method", "scheme", "scope", "size", "target")

    def __init__(
        self,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        target: bytes,
        fields: tuple[Field, ...],
        content_length: int | None,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.target = target
        self.fields = fields
        self.content_length = content_length
        self.size = len(target) + sum([len(name) + len(value) + 32 for name, value in fields])
        self.direct: Any = ...
        self.scope: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<RequestHead {self.method!r} {self.target!r}, {len(self.fields)} fields>"

    def get(self, name: bytes) -> bytes | None:
        """The first value of the field `name` (lower case)."""
        for found, value in self.fields:
            if found == name:
                return value
        return None


def http2_head(pairs: Iterable[Field]) -> RequestHead:
    """The head of a decoded header list.

    Raises:
        MalformedError: RFC 9113, section 8, is broken.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[Field] = []
    cookies: list[bytes] = []
    for name, value in pairs:
        if name[:1] == b":":
            if fields or cookies:
                raise MalformedError(f"the pseudo-header {name!r} comes after a field")
            if name not in _PSEUDO:
                raise MalformedError(f"{name!r} is no pseudo-header of a request")
            if name in pseudo:
                raise MalformedError(f"the pseudo-header {name!r} comes twice")
            pseudo[name] = value
            continue
        check_field(name, value)
        if name == b"cookie":
            cookies.append(value)
        else:
            fields.append((name, value))
    if cookies:
        fields.append((b"cookie", b"; ".join(cookies)))
    return _with_pseudo_headers(pseudo, tuple(fields))


def _with_pseudo_headers(pseudo: dict[bytes, bytes], fields: tuple[Field, ...]) -> RequestHead:
    method = pseudo.get(b":method", b"")
    scheme, target = pseudo.get(b":scheme", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", b"")
    if not _METHOD(method):
        raise MalformedError(f":method is {method!r}, expected a token")
    if method == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo or not authority:
            raise MalformedError("CONNECT has :authority and neither :scheme nor :path")
    else:
        if not _SCHEME(scheme):
            raise MalformedError(f":scheme is {scheme!r}, expected a scheme")
        if not _TARGET(target) or not (target[:1] == b"/" or (target == b"*" and method == b"OPTIONS")):
            raise MalformedError(f":path is {target!r}, expected a path")
    if not _AUTHORITY(authority):
        raise MalformedError(f":authority is {authority!r}, expected host and port")
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or (hosts and authority and hosts[0].lower() != authority.lower()):
        raise MalformedError(f"host is {hosts}, :authority is {authority!r}")
    return RequestHead(method, scheme, authority or b"".join(hosts), target, fields, content_length(fields))


def check_field(name: bytes, value: bytes) -> None:
    """Refuse a field that HTTP/2 forbids, in a head or in trailers.

    Raises:
        MalformedError: The name is no lower-case token, the value has a forbidden byte, or the field is HTTP/1.1's.
    """
    if not _NAME(name):
        raise MalformedError(f"the field name {name!r} is no token in lower case")
    if not _VALUE(value) or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
        raise MalformedError(f"the value of {name!r} has a forbidden byte, or space around it")
    if name in OF_A_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise MalformedError(f"the field {name!r} with {value!r} speaks of an HTTP/1.1 connection")


def content_length(fields: Iterable[Field]) -> int | None:
    """The declared length of a body; None without a declaration.

    Raises:
        MalformedError: A value is no plain number of up to 18 digits, or the field comes twice.
    """
    found = [value for name, value in fields if name == b"content-length"]
    if not found:
        return None
    if len(found) > 1:
        raise MalformedError(f"content-length is {found}, expected one field")
    value = found[0]
    if not _DIGITS(value):
        raise MalformedError(f"content-length is {value!r}, expected digits")
    return int(value)


def trailer_fields(pairs: Iterable[Field]) -> tuple[Field, ...]:
    """The fields after a body.

    Raises:
        MalformedError: A pseudo-header, or a field that HTTP/2 forbids.
    """
    fields = tuple((name, value) for name, value in pairs)
    for name, value in fields:
        check_field(name, value)
    return fields
