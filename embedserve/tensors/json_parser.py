"""Reads a JSON document as TensorFlow Serving's parser does, and explains errors in the document.

Three readers work from fast to slow. orjson reads strict documents. The standard library's scanner reads documents with
`NaN` and `Infinity`. A tolerant parser without recursion reads the rest, and explains every error. All readers give the
same tree: dict, list, str, int, float, bool, None. Bytes that are no UTF-8 become lone surrogates (`surrogateescape`).
The module knows no tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

import orjson

from embedserve.concurrency.codec_pool import CHECK_EVERY, check_wanted
from embedserve.errors import InvalidInputError

__all__ = ["Repeated", "is_deep", "loads", "parse"]

MAX_DEPTH = 68
"""Depth of nested lists and objects: 64 lists of a tensor, with the request's objects around and base64 objects within.
"""

_DEEP = b"[" * MAX_DEPTH


_BOM = b"\xef\xbb\xbf"
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
_WHITE = re.compile(rb"[ \t\n\r]*+")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(\.[0-9]++)?([eE][-+]?[0-9]++)?")
# Numbers and commas, up to the last comma. A class of bytes alone: CPython up to 3.11.2 goes back too little after a
# possessive group, and every other repeated group takes memory for each number.
_NUMBER_RUN = re.compile(rb"([-+.0-9eE, \t\n\r]*),")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*+')
_HEX = re.compile(rb"[0-9A-Fa-f]{4}")
_LITERALS = {ord("t"): (b"true", True), ord("f"): (b"false", False), ord("n"): (b"null", None)}
_ESCAPES = {ord(a): b for a, b in zip('"\\/bfnrt', (b'"', b"\\", b"/", b"\b", b"\f", b"\n", b"\r", b"\t"), strict=True)}
_NUMBER_STARTS = frozenset(b"-0123456789")
_END = 0  # A zero byte reads as the end of the text.

# Text that the standard library reads differently: numbers over the range of double or uint64, surrogate escapes.
_NOT_FOR_STDLIB = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{19}|\\u")


class Repeated(dict[str, object]):
    """An object with a repeated key: a look-up finds the first value, `pairs` has all members in order."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        super().__init__(reversed(pairs))
        self.pairs = tuple(pairs)


def is_deep(body: bytes) -> bool:
    """Whether a document looks nested too deeply; the tolerant parser then finds the position of the error."""
    return _DEEP in body


def loads(body: bytes) -> Any:
    """Read the first complete value of a document; further text is ignored.

    Raises:
        InvalidInputError: `JSON Parse error: <what> at offset: <byte>`.
        AbandonedError: The request that waited for the value is over.
    """
    if is_deep(body):
        return parse(body)
    try:
        value = orjson.loads(body)
    except ValueError:
        pass
    else:
        if not _repeats_a_key(body, value):
            return value
        del value  # Two trees would be twice the memory.
    if _NOT_FOR_STDLIB.search(body) is None:
        text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff").lstrip(" \t\n\r")
        try:
            value = _STDLIB.raw_decode(text)[0]
        except (ValueError, RecursionError):
            pass
        else:
            if isinstance(value, dict):  # A bare number may be the begin of a malformed number: `0e`.
                return value
    return parse(body)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else Repeated(pairs)


_STDLIB = json.JSONDecoder(object_pairs_hook=_object)


def _repeats_a_key(body: bytes, value: object) -> bool:
    """Whether the document has an object with a repeated key: its text then has more strings than `value`."""
    quotes = body.count(b'"')
    if type(value) is dict and quotes == 2 * len(value):
        return False
    if b"\\" in body:  # Backslashes stand in strings only, each before an escaped byte.
        quotes -= sum(1 for escape in re.finditer(rb"\\.", body, re.DOTALL) if escape[0] == b'\\"')
    missing = quotes // 2
    level: list[Any] = [value]  # Of one type each, after a look at all types.
    while level and missing:
        kinds = set(map(type, level))
        if str in kinds:
            missing -= len(level) if len(kinds) == 1 else list(map(type, level)).count(str)
        objects = [] if dict not in kinds else level if len(kinds) == 1 else [v for v in level if type(v) is dict]
        missing -= sum(map(len, objects))
        lists = [] if list not in kinds else level if len(kinds) == 1 else [v for v in level if type(v) is list]
        level = list(chain(chain.from_iterable(lists), chain.from_iterable(map(dict.values, objects))))
    return missing != 0


def parse(body: bytes) -> Any:
    """Read as `loads` does, with the tolerant parser alone (RapidJSON 1.1: reader.h, iterative)."""
    if not body:
        raise InvalidInputError("JSON Parse error: The document is empty.")
    return _Parser(body).parse()


class _Parser:
    """A single pass over a document; a stack of open containers replaces recursion."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.size = len(body)
        self.at = len(_BOM) if body.startswith(_BOM) else 0
        self.runs = True

    def parse(self) -> Any:
        # Elements of an array or members of an object, with the key of the next value; None in an array.
        stack: list[tuple[list[Any], str | None]] = []
        patience = CHECK_EVERY
        while True:
            patience -= 1
            if not patience:
                check_wanted()
                patience = CHECK_EVERY
            value, opened = self._value(stack)
            if opened:
                if len(stack) == MAX_DEPTH:
                    self._fail(f"More than {MAX_DEPTH} lists and objects inside each other.")
                stack.append(([], None if opened == 0x5B else self._key()))
                continue
            while stack:
                items, key = stack.pop()
                items.append(value if key is None else (key, value))
                after = self._skip()
                if after == 0x2C:  # ,
                    self.at += 1
                    stack.append((items, None if key is None else self._key()))
                    break
                if key is None and after == 0x5D:  # ]
                    value = items
                elif key is not None and after == 0x7D:  # }
                    value = _object(items)
                else:
                    kinds = "']' after an array element" if key is None else "'}' after an object member"
                    self._fail(f"Missing a comma or {kinds}.")
                self.at += 1
            else:
                return value

    def _fail(self, text: str, at: int | None = None) -> NoReturn:
        raise InvalidInputError(f"JSON Parse error: {text} at offset: {self.at if at is None else at}")

    def _peek(self) -> int:
        return self.body[self.at] if self.at < self.size else _END

    def _skip(self) -> int:
        """Move to the next byte that is not white space, and return it."""
        self.at = _WHITE.match(self.body, self.at).end()  # type: ignore[union-attr]
        return self._peek()

    def _value(self, stack: list[tuple[list[Any], str | None]]) -> tuple[object, int]:
        """Read a value, or the opening bracket of a container with content; the second result is the bracket, or 0."""
        byte = self._skip()
        if byte in _NUMBER_STARTS:
            if self.runs and stack and stack[-1][1] is None and self._number_run(stack[-1][0]):
                return self._value(stack)
            return self._number(), 0
        if byte == 0x22:
            return self._string(), 0
        if byte == 0x5B or byte == 0x7B:
            self.at += 1
            if self._skip() != byte + 2:
                return None, byte
            self.at += 1
            return ([] if byte == 0x5B else {}), 0
        if byte in _LITERALS:
            return self._literal(*_LITERALS[byte]), 0
        if byte == 0x4E or byte == 0x49:  # NaN, Infinity
            return self._no_number(), 0
        if not stack and byte in b"}],:\0":
            self._fail("The document is empty.")
        self._fail("Invalid value.")

    def _key(self) -> str:
        if self._skip() != 0x22:
            self._fail("Missing a name for object member.")
        key = self._string()
        if self._skip() != 0x3A:
            self._fail("Missing a colon after a name of object member.")
        self.at += 1
        return key

    def _literal(self, word: bytes, value: bool | None) -> bool | None:
        for byte in word:
            if self._peek() != byte:
                self._fail("Invalid value.")
            self.at += 1
        return value

    def _number_run(self, items: list[object]) -> bool:
        """Take all numbers that are followed by a comma, in a single call."""
        run = _NUMBER_RUN.match(self.body, self.at)
        if run is None:
            return False
        try:
            items.extend(orjson.loads(b"[" + run[1] + b"]"))
        except ValueError:
            self.runs = False  # A number is over the range, or is none: single reads find the position.
            return False
        self.at = run.end()
        return True

    def _number(self) -> int | float:
        start = self.at
        match = _NUMBER.match(self.body, start)
        if match is None:
            return self._no_number()
        self.at = match.end()
        text, after = match[0], self._peek()
        if match[1] is None and match[2] is None and after == 0x2E:
            self.at += 1
            self._fail("Miss fraction part in number.")
        if match[2] is None and after in b"eE":
            self.at += 1
            if self._peek() in b"+-":
                self.at += 1
            self._fail("Miss exponent in number.")
        if match[1] is None and match[2] is None and len(text) <= 20:
            integer = int(text)
            if _INT64_MIN <= integer <= _UINT64_MAX:
                return integer
        number = float(text)
        if math.isinf(number):
            self._fail("Number too big to be stored in double.", start)
        return number

    def _no_number(self) -> float:
        minus = self._peek() == 0x2D
        self.at += minus
        if self._peek() == 0x4E:
            self._literal(b"NaN", None)
            return math.nan
        self._literal(b"Inf", None)
        if self._peek() == 0x69:
            self._literal(b"inity", None)
        return -math.inf if minus else math.inf

    def _string(self) -> str:
        start = self.at + 1
        end = _PLAIN.match(self.body, start).end()  # type: ignore[union-attr]
        parts = [self.body[start:end]]
        self.at = end
        while (byte := self._peek()) != 0x22:
            if byte == _END:
                self._fail("Missing a closing quotation mark in string.")
            if byte != 0x5C:
                self._fail("Invalid escape character in string.")
            parts.append(self._escape())
            start = self.at
            self.at = _PLAIN.match(self.body, start).end()  # type: ignore[union-attr]
            parts.append(self.body[start : self.at])
        self.at += 1
        return b"".join(parts).decode("utf-8", "surrogateescape")

    def _escape(self) -> bytes:
        start = self.at
        self.at += 1
        byte = self._peek()
        self.at += 1
        if byte in _ESCAPES:
            return _ESCAPES[byte]
        if byte != 0x75:
            self._fail("Invalid escape character in string.", start)
        point = self._hex(start)
        if 0xD800 <= point < 0xDC00:
            if self.body[self.at : self.at + 2] != b"\\u":
                self._fail("The surrogate pair in string is invalid.", start)
            self.at += 2
            low = self._hex(start)
            if not 0xDC00 <= low < 0xE000:
                self._fail("The surrogate pair in string is invalid.", start)
            point = 0x10000 + (point - 0xD800 << 10) + (low - 0xDC00)
        return chr(point).encode("utf-8", "surrogatepass")

    def _hex(self, start: int) -> int:
        digits = _HEX.match(self.body, self.at)
        if digits is None:
            self._fail("Incorrect hex digit after \\u escape in string.", start)
        self.at += 4
        return int(digits[0], 16)
