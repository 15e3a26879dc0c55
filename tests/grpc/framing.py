"""gRPC and gRPC-Web as a client reads them, apart from embedserve's own code."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import unquote

from embedserve.errors import Code

TRAILER_FRAME = 0x80


def framed(message: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(message).to_bytes(4, "big") + message


def messages_of(body: bytes) -> list[tuple[int, bytes]]:
    """Flags and bytes of each length-prefixed message."""
    messages, at = [], 0
    while at < len(body):
        start = at + 5
        at = start + int.from_bytes(body[at + 1 : start], "big")
        assert at <= len(body), "a message is cut off"
        messages.append((body[start - 5], body[start:at]))
    return messages


def trailers_of(block: bytes) -> dict[bytes, bytes]:
    """The headers in gRPC-Web's last message."""
    *lines, rest = block.split(b"\r\n")
    assert rest == b""
    return {name: value.strip() for name, _, value in (line.partition(b":") for line in lines)}


def status_in(headers: Mapping[bytes, bytes]) -> tuple[Code | None, str]:
    """`grpc-status` and `grpc-message`, decoded; None without a status."""
    code = headers.get(b"grpc-status")
    return None if code is None else Code(int(code)), unquote(headers.get(b"grpc-message", b"").decode("ascii"))


def web_answer(body: bytes, *, text: bool = False) -> tuple[Code | None, str, list[tuple[int, bytes]]]:
    """Code, message and messages of a whole gRPC-Web answer, which must end with its trailers."""
    if text:  # Several padded texts, one after the other.
        body = b"".join(base64.b64decode(part + b"=" * (-len(part) % 4)) for part in _parts(body))
    *messages, (flags, block) = messages_of(body)
    assert flags == TRAILER_FRAME
    return *status_in(trailers_of(block)), messages


def _parts(text: bytes) -> list[bytes]:
    quads = [text[at : at + 4] for at in range(0, len(text), 4)] if b"=" in text.rstrip(b"=") else [text]
    return quads
