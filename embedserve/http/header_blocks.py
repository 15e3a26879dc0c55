"""Header blocks ⇄ fields (RFC 7541): decoded once and remembered, encoded without the dynamic table and remembered.

Knows no streams. Compression itself is the `hpack` package's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias, cast

import hpack
from hpack.hpack import encode_integer
from hpack.table import HeaderTable

from embedserve.http.frames import ErrorCode, ProtocolError
from embedserve.http.heads import OF_A_CONNECTION, Field, RequestHead, TooLargeError, check_field, http2_head
from embedserve.http.limits import Limits

__all__ = ["NO_DYNAMIC_TABLE", "BlockReader", "encode_fields"]

EXPANSION = 4
"""A list this many times over `max_header_bytes` is still decoded, so that the connection survives the refusal."""

REMEMBERED_BLOCKS = 64
"""Blocks that a connection remembers. Clients send a handful of different ones as long as the table is unchanged."""

REMEMBERED_BYTES = 1_024
"""Bytes of the largest block that is remembered: with the number of blocks a bound on memory."""

NO_DYNAMIC_TABLE = b"\x20"
"""A table size of zero. Sent before the first block of a connection: no block of this server uses the table."""

_TableState: TypeAlias = tuple[int, int, Field | None]


class BlockReader:
    """Decodes the header blocks of one connection, in the order in which they came."""

    __slots__ = ("_decoder", "_heads", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = hpack.Decoder(EXPANSION * limits.max_header_bytes)
        self._heads: dict[bytes, RequestHead] = {}

    def head(self, block: bytes) -> RequestHead:
        """The request head in `block`.

        A block that leaves the table unchanged means the same until another one changes the table.

        Raises:
            ProtocolError: The block cannot be decoded, which loses the table and so the connection.
            MalformedError: The block is no valid request; the connection goes on.
            TooLargeError: The head is over a limit; the connection goes on.
        """
        found = self._heads.get(block)
        if found is not None:
            return found
        before = self._table_state()
        pairs = self.fields(block)
        after = self._table_state()
        head = http2_head(pairs)
        if before[:2] == after[:2] and before[2] is after[2] and len(block) <= REMEMBERED_BYTES:
            if len(self._heads) >= REMEMBERED_BLOCKS:
                self._heads.clear()
            self._heads[block] = head
        return head

    def fields(self, block: bytes) -> list[Field]:
        """The fields in `block`, unchecked.

        Raises:
            ProtocolError: As `head`.
            TooLargeError: As `head`.
        """
        before = self._table_state()
        try:
            pairs = cast("list[Field]", self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError as error:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from None
        except hpack.HPACKError as error:
            raise ProtocolError(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        after = self._table_state()
        if before[:2] != after[:2] or before[2] is not after[2]:
            self._heads.clear()
        size = sum([len(name) + len(value) + 32 for name, value in pairs])
        if size > self._limits.max_header_bytes or len(pairs) > self._limits.max_headers + 4:
            raise TooLargeError(431, f"the head has {len(pairs)} fields and {size} bytes")
        for name, value in pairs:
            if name == b":path" and len(value) > self._limits.max_url_bytes:
                raise TooLargeError(414, f"the target has {len(value)} bytes")
        return pairs

    def _table_state(self) -> _TableState:
        """Differs whenever the table does: what enters it becomes its first entry, and what leaves it shortens it."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), entries[0] if entries else None


def _string(value: bytes) -> bytes:
    return bytes(encode_integer(len(value), 7)) + value


CACHED_VALUE_BYTES = 128
"""Bytes of the longest value whose encoded field is remembered: names and short values repeat, long ones seldom."""


@lru_cache(maxsize=1024)
def _encode_field(name: bytes, value: bytes) -> bytes:
    name = name.lower()
    check = check_field if name[:1] != b":" else _check_status
    check(name, value)
    known = HeaderTable.STATIC_TABLE_MAPPING.get(name)
    if known is None:
        return b"\x00" + _string(name) + _string(value)
    index = known[1].get(value)
    if index is not None:
        return bytes([0x80 | index])
    return bytes(encode_integer(known[0], 4)) + _string(value)


def _check_status(name: bytes, value: bytes) -> None:
    if name != b":status" or len(value) != 3 or not value.isdigit():
        raise ValueError(f"{name!r} with {value!r} is no status")


def encode_fields(fields: Iterable[Field]) -> bytes:
    """A header block of `fields`, valid on every connection of this server.

    Names are put in lower case; fields of an HTTP/1.1 connection are left out, as applications send them unasked.

    Raises:
        MalformedError: A name or a value has a forbidden byte.
        ValueError: A pseudo-header that is no valid `:status`.
    """
    return b"".join(
        [
            (_encode_field if len(value) <= CACHED_VALUE_BYTES else _encode_field.__wrapped__)(name, value)
            for name, value in fields
            if name.lower() not in OF_A_CONNECTION
        ]
    )
