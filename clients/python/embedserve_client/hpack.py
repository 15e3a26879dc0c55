"""HPACK (RFC 7541) for a client of gRPC: header blocks of literals out, any header block in.

The module knows no frame and no meaning of a header.
"""

from __future__ import annotations

import functools
from collections import deque

__all__ = ["Decoder", "HpackError", "encode"]

Headers = list[tuple[bytes, bytes]]


class HpackError(ValueError):
    """A header block that breaks the rules; the connection cannot be read any further."""


# The static table: `name:=value` by index, from 1 on.
_ROWS = (
    ":authority;:method:=GET;:method:=POST;:path:=/;:path:=/index.html;:scheme:=http;:scheme:=https;"
    ":status:=200;:status:=204;:status:=206;:status:=304;:status:=400;:status:=404;:status:=500;"
    "accept-charset;accept-encoding:=gzip, deflate;accept-language;accept-ranges;accept;"
    "access-control-allow-origin;age;allow;authorization;cache-control;content-disposition;"
    "content-encoding;content-language;content-length;content-location;content-range;content-type;cookie;"
    "date;etag;expect;expires;from;host;if-match;if-modified-since;if-none-match;if-range;"
    "if-unmodified-since;last-modified;link;location;max-forwards;proxy-authenticate;proxy-authorization;"
    "range;referer;refresh;retry-after;server;set-cookie;strict-transport-security;transfer-encoding;"
    "user-agent;vary;via;www-authenticate"
)


def _pair(row: str) -> tuple[bytes, bytes]:
    name, _, value = row.partition(":=")
    return name.encode(), value.encode()


_STATIC = tuple(_pair(row) for row in _ROWS.split(";"))
_NAMES = {name: at for at, (name, _) in reversed(list(enumerate(_STATIC, start=1)))}
_PAIRS = {pair: at for at, pair in enumerate(_STATIC, start=1) if pair[1]}

# Bits of each symbol's Huffman code, as a letter from A (5 bits) on; the code is canonical. 256 is the end of a string.
_LENGTHS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJ"
    "BKABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSR"
    "RSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
_END = 256
_MAX_TABLE = 4096
_ENTRY_OVERHEAD = 32
_MOST_KNOWN, _LONGEST_KNOWN = 64, 512
"""Header blocks remembered by a connection, and the bytes of the longest."""


@functools.cache
def _codes() -> dict[tuple[int, int], int]:
    """Symbols by length and code."""
    found = {}
    code = last = 0
    for length, symbol in sorted((ord(letter) - ord("A") + 5, at) for at, letter in enumerate(_LENGTHS)):
        code <<= length - last
        last = length
        found[length, code] = symbol
        code += 1
    return found


@functools.lru_cache(maxsize=1024)
def _unhuffed(data: bytes) -> bytes:
    codes = _codes()
    text = bytearray()
    length = code = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = codes.get((length, code))
            if symbol is not None:
                if symbol == _END:
                    raise HpackError("the end of a string inside the string")
                text.append(symbol)
                length = code = 0
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("a padding of a Huffman code that is not the start of the end")
    return bytes(text)


def _integer(value: int, prefix: int, first: int) -> bytes:
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes((first | value,))
    found = bytearray((first | limit,))
    value -= limit
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


@functools.lru_cache(maxsize=1024)
def _literal(name: bytes, value: bytes) -> bytes:
    known = _PAIRS.get((name, value))
    if known is not None:
        return _integer(known, 7, 0x80)
    index = _NAMES.get(name)
    head = _integer(index, 4, 0) if index is not None else b"\0" + _integer(len(name), 7, 0) + name
    return head + _integer(len(value), 7, 0) + value


def encode(headers: Headers) -> bytes:
    """A header block that leaves the peer's dynamic table as it is; names are in lower case."""
    return b"".join([_literal(name, value) for name, value in headers])


class Decoder:
    """Reads the header blocks of a connection, in their order."""

    def __init__(self) -> None:
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._limit = _MAX_TABLE
        self._known: dict[bytes, Headers] = {}  # Blocks that neither read nor change the dynamic table.

    def decode(self, block: bytes) -> Headers:
        """The headers of a block; not to be changed.

        Raises:
            HpackError: The block breaks the rules.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        self._dynamic = False
        try:
            found = self._decode(block)
        except IndexError:
            raise HpackError("a header block ends within a header") from None
        if not self._dynamic and len(self._known) < _MOST_KNOWN and len(block) <= _LONGEST_KNOWN:
            self._known[block] = found
        return found

    def _decode(self, block: bytes) -> Headers:
        found: Headers = []
        at = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _read(block, at, 7)
                found.append(self._entry(index))
            elif first & 0xE0 == 0x20:
                limit, at = _read(block, at, 5)
                if limit > _MAX_TABLE:
                    raise HpackError(f"a dynamic table of {limit} bytes")
                self._limit = limit
                self._dynamic = True
                self._evict()
            else:
                keep = bool(first & 0x40)
                index, at = _read(block, at, 6 if keep else 4)
                if index:
                    name, _ = self._entry(index)
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                found.append((name, value))
                if keep:
                    self._dynamic = True
                    self._table.appendleft((name, value))
                    self._size += len(name) + len(value) + _ENTRY_OVERHEAD
                    self._evict()
        return found

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        self._dynamic = True
        try:
            return self._table[index - len(_STATIC) - 1] if index else self._table[len(self._table)]
        except IndexError:
            raise HpackError(f"no entry {index} in the tables") from None

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY_OVERHEAD


def _read(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    limit = (1 << prefix) - 1
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise HpackError("an integer of too many bytes")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = bool(block[at] & 0x80)
    size, at = _read(block, at, 7)
    end = at + size
    if end > len(block):
        raise IndexError
    data = block[at:end]
    return (_unhuffed(data) if coded else data), end
