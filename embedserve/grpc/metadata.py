"""gRPC's headers as values: deadlines, custom metadata, and the percent-encoding of a status message.

Called by the ASGI transport; grpcio does the same in its core. Follows the gRPC-over-HTTP/2 protocol description.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import quote

from embedserve.errors import InvalidInputError

__all__ = ["encoded_message", "metadata_value", "read_timeout"]

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# Thirty years. The longest that the protocol knows, 11 thousand years, is more than threads and clocks can count.
_LONGEST = 1e9

# Printable ASCII but for the per cent sign travels as it is.
_UNESCAPED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def read_timeout(value: bytes) -> float:
    """Seconds that a `grpc-timeout` header gives.

    Raises:
        InvalidInputError: It is not one to eight digits and a unit.
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
    """A header as a metadata value, the first where a `-bin` header holds several; None for one that is no base64."""
    if not key.endswith("-bin"):
        return value.decode("latin-1")
    first = value.partition(b",")[0].strip()
    try:
        return base64.b64decode(first + b"=" * (-len(first) % 4), validate=True)
    except binascii.Error:
        return None
