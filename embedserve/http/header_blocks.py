"""Header blocks ⇄ fields (RFC 7541): decoded once and remembered, encoded without the dynamic table and remembered.

The `hpack` package does the compression. The module knows no streams.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias, cast

import hpack
from hpack.hpack import encode_integer
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE
from hpack.table import HeaderTable

from embedserve.http.frames import ErrorCode, ProtocolError
from embedserve.http.heads import OF_A_CONNECTION, Field, RequestHead, TooLargeError, check_field, http2_head
from embedserve.http.limits import Limits

__all__ = ["NO_DYNAMIC_TABLE", "BlockReader", "encode_fields"]

EXPANSION = 4
"""Factor over `max_header_bytes` up to which a list is still decoded, so that the connection survives the refusal."""

REMEMBERED_BLOCKS = 64
"""Blocks that a connection remembers. Clients send a handful of different blocks while the table is unchanged."""

REMEMBERED_BYTES = 1_024
"""Bytes of the largest remembered block: with the number of blocks a bound on memory."""

NO_DYNAMIC_TABLE = b"\x20"
"""A table size of zero, sent before the first block of a connection: the server's blocks do not use the table."""

_TableState: TypeAlias = tuple[int, int, Field | None]


class BlockReader:
    """Decodes the header blocks of a connection, in the order received."""

    __slots__ = ("_decoder", "_heads", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = hpack.Decoder(EXPANSION * limits.max_header_bytes)
        self._heads: dict[bytes, RequestHead] = {}

    def head(self, block: bytes) -> RequestHead:
        """The request head in `block`.

        A block that leaves the table unchanged keeps its meaning until another block changes the table.

        Raises:
            ProtocolError: The block cannot be decoded; the connection ends, because its table is lost.
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
        pairs = _plain_fields(block, self._decoder.header_table, self._limits.max_headers + 4)
        if pairs is None:
            pairs = self._decode(block)
        size = sum([len(name) + len(value) + 32 for name, value in pairs])
        if size > self._limits.max_header_bytes or len(pairs) > self._limits.max_headers + 4:
            raise TooLargeError(431, f"the head has {len(pairs)} fields and {size} bytes")
        for name, value in pairs:
            if name == b":path" and len(value) > self._limits.max_url_bytes:
                raise TooLargeError(414, f"the target has {len(value)} bytes")
        return pairs

    def _decode(self, block: bytes) -> list[Field]:
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
        return pairs

    def _table_state(self) -> _TableState:
        """A value that changes with the table: a new entry becomes the first, a removed entry shortens the table."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return table.maxsize, len(entries), entries[0] if entries else None


def _plain_fields(block: bytes, table: HeaderTable, most: int) -> list[Field] | None:
    """The fields of a block that leaves the table unchanged; None for a block with further forms.

    A field that differs in each request, as a trace identifier does, makes every block new. Such blocks consist of
    indices and of literals that enter no table. Reading the fields here takes a tenth of the general decoder's time.
    """
    static, dynamic = HeaderTable.STATIC_TABLE, table.dynamic_entries
    fixed, known = len(static), len(static) + len(dynamic)
    found: list[Field] = []
    at, size = 0, len(block)
    try:
        while at < size:
            first = block[at]
            at += 1
            if first > 0x80:
                index = first & 0x7F
                if index == 0x7F or index > known:
                    return None
                found.append(static[index - 1] if index <= fixed else dynamic[index - fixed - 1])
            elif first < 0x20:
                index = first & 0x0F
                if index == 0x0F:
                    index += block[at]
                    at += 1
                    if index > known or index >= 0x8F:
                        return None
                if index:
                    name = (static[index - 1] if index <= fixed else dynamic[index - fixed - 1])[0]
                else:
                    name, at = _read_string(block, at)
                value, at = _read_string(block, at)
                found.append((name, value))
            else:
                return None
    except (IndexError, hpack.HPACKError):
        return None  # The general decoder explains the error.
    return found if len(found) <= most else None


_huffman_steps: dict[int, tuple[int, bytes, bool]] = {}
"""From state and byte to the next state, the emitted bytes, and whether the string may end there."""

HUFFMAN_STEPS = 16_384
"""Steps that are remembered, of 65,536 possible steps: text needs some thousand."""


def decode_huffman(data: bytes) -> bytes:
    """A Huffman-coded string (RFC 7541, section 5.2), by `hpack`'s table of half bytes in steps of a whole byte.

    Raises:
        HPACKDecodingError: An unknown code, or wrong padding.
    """
    state, complete, pieces = 0, True, []
    steps = _huffman_steps
    for byte in data:
        key = state << 8 | byte
        step = steps.get(key) or _huffman_step(key)
        state, piece, complete = step
        pieces.append(piece)
    if not complete:
        raise hpack.HPACKDecodingError("a Huffman-coded string has no valid end")
    return b"".join(pieces)


def _huffman_step(key: int) -> tuple[int, bytes, bool]:
    state, emitted, flags = key >> 8, b"", 0
    for half in (key >> 4 & 0xF, key & 0xF):
        state, flags, symbol = HUFFMAN_TABLE[state * 16 + half]
        if flags & HUFFMAN_FAIL:
            raise hpack.HPACKDecodingError("a Huffman-coded string has a code that does not exist")
        if flags & HUFFMAN_EMIT_SYMBOL:
            emitted += bytes((symbol,))
    step = state, emitted, bool(flags & HUFFMAN_COMPLETE)
    if len(_huffman_steps) < HUFFMAN_STEPS:
        _huffman_steps[key] = step
    return step


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    """The string at `at`, and the position behind the string.

    Raises:
        IndexError: The block ends too early, or the string is longer than 16 KiB.
    """
    head = block[at]
    length = head & 0x7F
    at += 1
    if length == 0x7F:
        low = block[at]
        at += 1
        length += low & 0x7F
        if low & 0x80:
            high = block[at]
            at += 1
            if high & 0x80:
                raise IndexError
            length += high << 7
    end = at + length
    if end > len(block):
        raise IndexError
    value = block[at:end]
    if head & 0x80:
        return (_decode_short if length <= CACHED_VALUE_BYTES else decode_huffman)(value), end
    return value, end


_decode_short = lru_cache(maxsize=1024)(decode_huffman)


def _string(value: bytes) -> bytes:
    return bytes(encode_integer(len(value), 7)) + value


CACHED_VALUE_BYTES = 128
"""Bytes of the longest value whose encoded field is remembered: short values repeat, long values seldom."""


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
    """A header block of `fields`, valid on every connection of the server.

    Names become lower case. The fields of an HTTP/1.1 connection are left out, because applications send such fields
    unasked.

    Raises:
        MalformedError: A name or a value has a forbidden byte.
        ValueError: A pseudo-header that is no valid `:status`.
    """
    return _encode_fields(tuple(fields))


@lru_cache(maxsize=256)
def _encode_fields(fields: tuple[Field, ...]) -> bytes:
    return b"".join(
        [
            (_encode_field if len(value) <= CACHED_VALUE_BYTES else _encode_field.__wrapped__)(name, value)
            for name, value in fields
            if name.lower() not in OF_A_CONNECTION
        ]
    )
