"""Answers as values, and the table from canonical codes to HTTP statuses.

The module turns an error into bytes for the wire, and knows no registry and no route.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

from embedserve.concurrency.inflight import Reservation
from embedserve.errors import Code, DeadlineExceededError, RegistryStateError, ServingError
from embedserve.rest.payload import encode_error
from embedserve.tfs.constants import TIMED_OUT

__all__ = ["HTTP_STATUS", "Response", "error_response", "html_page", "json_response", "wire_code"]

# TF Serving: http_server.cc. Codes missing in the table are 500.
HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class Response(NamedTuple):
    """A whole answer: status, body, headers without `content-length`; `held` is released after sending."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    held: Reservation | None = None


_JSON = ((b"content-type", b"application/json"),)
_HTML = ((b"content-type", b"text/html"),)


def json_response(body: bytes, status: int = 200) -> Response:
    """A JSON document."""
    return Response(status, body, _JSON)


def wire_code(error: ServingError) -> Code:
    """The code for the client. A registry that cannot be used here is the server's fault, not the client's."""
    return Code.UNAVAILABLE if isinstance(error, RegistryStateError) else error.code


def error_response(error: ServingError) -> Response:
    """TF Serving's error body and status."""
    message = error.message
    if isinstance(error, DeadlineExceededError) and not message.startswith(TIMED_OUT):
        message = f"{TIMED_OUT}: {message}"
    return Response(HTTP_STATUS.get(wire_code(error), 500), encode_error(message), _JSON)


def html_page(status: int, *, close: bool = True) -> Response:
    """The error page of libevent for paths outside the REST API; `close` ends an HTTP/1 connection, as in libevent."""
    phrase = HTTPStatus(status).phrase
    page = f"<HTML><HEAD>\n<TITLE>{status} {phrase}</TITLE>\n</HEAD><BODY>\n<H1>{phrase}</H1>\n</BODY></HTML>\n"
    return Response(status, page.encode(), (*_HTML, (b"connection", b"close")) if close else _HTML)
