"""From an error to the gRPC status for the client: a ServingError keeps its code, any further error is hidden.

Hidden errors are INTERNAL. The module knows no service and no transport.
"""

from __future__ import annotations

import logging

from embedserve.errors import Code, ServingError

__all__ = ["StatusError", "status_of", "truncated"]

logger = logging.getLogger("embedserve")

MAX_MESSAGE_BYTES = 1024
"""Bytes of UTF-8 kept of a message, as in TensorFlow Serving."""


class StatusError(Exception):
    """The status of a call that ends without an answer; the transport writes code and message unchanged."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


def truncated(message: str) -> str:
    """Cut a message as TensorFlow Serving does: 1024 bytes of UTF-8, then `...TRUNCATED`.

    Bytes count, not characters: messages travel percent-encoded in a trailer, and clients refuse trailers over 8 KiB.
    """
    # A message may quote a client's text, lone surrogates included; the trailer must be encodable.
    data = message.encode("utf-8", "replace")
    if len(data) <= MAX_MESSAGE_BYTES:
        return data.decode()
    return data[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"


def status_of(error: Exception) -> tuple[Code, str]:
    """Code and message for the client. An error that is no ServingError is a bug: logged, and not shown."""
    if isinstance(error, ServingError):
        return error.code, truncated(error.message)
    logger.error("a gRPC call failed with an unexpected error", exc_info=error)
    return Code.INTERNAL, "internal error"
