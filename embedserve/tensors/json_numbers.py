"""The fast path for JSON requests that are mostly numbers: simdjson's buffers instead of a Python object per number.

The path answers exactly as the slow way, or declines with None. Unusual documents of any sort are declined. The texts
around the numbers say all about the form of a document with a single list of numbers (`Nest`), and are remembered. The
module knows no signature.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson

from embedserve.tensors.dtypes import MAX_RANK, Array, DType
from embedserve.tensors.json_values import narrowed, quick_array, within

__all__ = ["DeclinedError", "Document", "ListReader", "Nest", "keys_of", "parse", "parse_nest"]

_COUNT_LIMIT = 0xFFFFFF
"""Greatest count of a list's elements in simdjson; longer lists have the same count."""

_SMALL_ROW = 512
"""Bytes per row below which building Python objects for all rows at once is faster."""

_BYTES_PER_LIST = 256
"""Bytes of text compared in the time that checking a list takes."""

_BUFFERS: Mapping[str, tuple[object, type]] = {
    "number": ("d", np.float64),
    "int32": ("i", np.int64),
    "int64": ("i", np.int64),
    "uint32": ("u", np.uint64),
    "uint64": ("u", np.uint64),
}
_BRACKET = ord("[")
# The text before the numbers of a `Nest`: perhaps the signature's name, the kind of request, perhaps the input's name,
# the opening brackets. Blanks in the pattern stand for white space.
_BEFORE = re.compile(
    (
        rb' { (?:"signature_name" : "([A-Za-z0-9_.:/-]*)" , )?'
        rb'(?:"(instances|inputs)" : |"instances" : \[ { "([A-Za-z0-9_.:/-]+)" : '
        rb'|"inputs" : { "([A-Za-z0-9_.:/-]+)" : )'
        rb"((?:\[ ){1,%d})"
    ).replace(b" ", rb"[ \t\n\r]*+")
    % MAX_RANK
).fullmatch
_BLANKS = b" \t\n\r"
_NO_STRUCTURE = b"0123456789+-.eE" + _BLANKS
_IN_LIST = _NO_STRUCTURE + b","

_SHORT_LIST = 768
"""Bytes of a list's text below which orjson's list of Python numbers is faster than simdjson's buffer."""

_LONGEST_TEXT = 512
"""Bytes of text before or after the numbers of a `Nest`; with the number of remembered texts a bound on memory."""


class DeclinedError(Exception):
    """The document is not for the fast path."""


_KEPT_BYTES = 8 * 2**20
"""Bytes of the longest text whose parser is kept, with memory of about three times the text."""

# Reuse of parsers: most of the time for a megabyte goes into new memory of the process.
_idle_parsers: deque[simdjson.Parser] = deque(maxlen=2)


def parse(body: bytes) -> Document | None:
    """Parse a document; None (declined) for a document that is no strict JSON, or no object."""
    document = _parsed(body)
    return document if document is not None and document.is_object else None


def _parsed(text: bytes) -> Document | None:
    try:
        parser = _idle_parsers.pop()
    except IndexError:
        parser = simdjson.Parser()
    try:
        root = parser.parse(text)
    except (ValueError, RuntimeError):
        _give_back(parser, text)
        return None
    return Document(text, parser, root)


def parse_nest(body: bytes) -> Nest | None:
    """Parse a document of nothing but a list of numbers, inside lists of a single list; None for any other document."""
    start = body.rfind(b"[") + 1
    end = body.find(b"]", start)
    if not 0 < start <= _LONGEST_TEXT or not 0 <= len(body) - end <= _LONGEST_TEXT:
        return None
    form = _form(body[:start], body[end:])
    if form is None:
        return None
    text = body[start - 1 : end + 1]
    if len(text) > _SHORT_LIST:
        document = _parsed(text)
        return None if document is None else Nest(form, document)
    if text.translate(None, _IN_LIST) != b"[]":
        return None
    try:
        return Nest(form, orjson.loads(text))
    except ValueError:
        return None


def _give_back(parser: simdjson.Parser, body: bytes) -> None:
    if len(body) <= _KEPT_BYTES:
        _idle_parsers.append(parser)


class _Form(NamedTuple):
    """The meaning of the text around a single list of numbers.

    Attributes:
        signature_name: The name in the document; empty without a name.
        input_name: Empty for an input without a name.
        rows: The inputs are rows.
        outer: Sizes of the dimensions but the last.
    """

    signature_name: str
    input_name: str
    rows: bool
    outer: tuple[int, ...]


@lru_cache(maxsize=256)
def _form(before: bytes, after: bytes) -> _Form | None:
    """The form of a document with the texts before and after the numbers; remembered, as a client's texts are few."""
    found = _BEFORE(before)
    if found is None:
        return None
    signature_name, kind, in_row, in_column, brackets = found.groups()
    lists = brackets.count(b"[")
    closing = b"]" * lists + (b"}]}" if in_row else b"}}" if in_column else b"}")
    if after.translate(None, _BLANKS) != closing:
        return None
    rows = in_row is not None or kind == b"instances"
    outer = (1,) * (lists if in_row else lists - 1)
    if len(outer) >= MAX_RANK:
        return None
    return _Form((signature_name or b"").decode(), (in_row or in_column or b"").decode(), rows, outer)


class Nest:
    """A `:predict` document with a list of numbers, inside lists of a single list, as its only tensor.

    Attributes:
        signature_name: The name in the document; empty without a name.
    """

    __slots__ = ("_form", "_numbers", "signature_name")

    def __init__(self, form: _Form, numbers: list[Any] | Document) -> None:
        self.signature_name = form.signature_name
        self._form = form
        self._numbers = numbers

    def read(self, dtypes: Mapping[str, DType]) -> tuple[dict[str, Array], bool] | None:
        """As `Document.read`."""
        if len(dtypes) != 1:
            return None
        numbers, form = self._numbers, self._form
        ((name, dtype),) = dtypes.items()
        if form.input_name and (form.input_name != name or name == "b64"):
            return None
        flat = quick_array(numbers, dtype) if isinstance(numbers, list) else _read_list(numbers, dtype)
        if flat is None or not flat.size:
            return None
        return {name: flat.reshape((*form.outer, flat.size))}, form.rows


class Document:
    """A `:predict` document, or a list of numbers, in the memory of a parser that is reused after the reading."""

    def __init__(self, body: bytes, parser: simdjson.Parser, root: Any) -> None:
        self._body = body
        self._parser = parser
        self._root = root

    @property
    def is_object(self) -> bool:
        """Whether the document is an object."""
        return isinstance(self._root, simdjson.Object)

    def get(self, key: str, default: Any) -> Any:
        """A member, or the default for a missing member; a list as a Python list."""
        value = self._root.get(key, default)
        return value.as_list() if isinstance(value, simdjson.Array) else value

    def read(self, dtypes: Mapping[str, DType]) -> tuple[dict[str, Array], bool] | None:
        """Read the inputs, once.

        Args:
            dtypes: By input name.

        Returns:
            Arrays by input name, and whether the inputs are rows; None if the slow way must read or refuse the
            document.
        """
        with self:
            return self._read(dtypes)

    def __enter__(self) -> Any:
        return self._root

    def __exit__(self, *_: object) -> None:
        del self._root  # A parser cannot be reused while an object points into its document.
        _give_back(self._parser, self._body)

    def _read(self, dtypes: Mapping[str, DType]) -> tuple[dict[str, Array], bool] | None:
        if b"\\" in self._body:
            return None
        try:
            keys = keys_of(self._root)
            if ("instances" in keys) == ("inputs" in keys) or not dtypes:
                return None
            reader = _Reader(self._body, dtypes)
            arrays = reader.read(self._root, keys)
        except DeclinedError:
            return None
        return (arrays, "instances" in keys) if reader.is_regular() else None


def keys_of(node: simdjson.Object) -> list[str]:
    """The keys of an object.

    Raises:
        DeclinedError: The object is empty, or has a key twice.
    """
    keys = list(node)
    if not keys or len(set(keys)) != len(keys):
        raise DeclinedError
    return keys


class ListReader:
    """Reads lists of numbers in a document, and proves that none of the document's lists is ragged.

    A reader of a kind of document walks the document in order, and hands every part to a method here.

    Counts of elements and lists are no proof: `[[1,2],[3],[4,5,6]]` has the counts of a regular array. A few lists are
    checked singly. For many lists, `parts` collects the expected text without numbers and white space.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.parts: list[bytes | tuple[int, ...]] = [b"{"]  # A shape stands for its array's brackets and commas.
        self.lists = 0
        self.looks_left = len(body) // _BYTES_PER_LIST

    def label(self, key: str) -> None:
        """Take the key of a member."""
        self.parts.append(b'"%b":' % key.encode())

    def scalar(self, value: Any) -> None:
        """Take a string, number, bool or null."""
        self.parts.append(_scalar_text(value))

    def value(self, node: Any) -> None:
        """Take a whole value of any kind; for small ones."""
        if isinstance(node, simdjson.Object):
            self.parts.append(b"{")
            for key in node:
                self.label(key)
                self.value(node[key])
                self.parts.append(b",")
            self._end(b"}")
        elif isinstance(node, simdjson.Array):
            self.lists += 1
            self.parts.append(b"[")
            for item in node:
                self.value(item)
                self.parts.append(b",")
            self._end(b"]")
        else:
            self.scalar(node)

    def _end(self, bracket: bytes) -> None:
        """Close an object or list, in place of the comma after its last member."""
        if self.parts[-1] == b",":
            self.parts[-1] = bracket
        else:
            self.parts.append(bracket)

    def numbers(self, node: simdjson.Array, dtype: DType) -> Array:
        """Take a list of numbers, and lists inside, in their dtype and shape.

        Raises:
            DeclinedError: The list is not one of regular lists of numbers, or the numbers are not of the dtype.
        """
        shape = _shape(node)
        flat = _flat(node, dtype, math.prod(shape))
        lists = sum(itertools.accumulate(shape[:-1], operator.mul, initial=1))
        self.lists += lists
        self.looks_left -= lists
        # With as many lists as dimensions, each list holds only the next list, and `_shape` has checked all lists.
        if self.looks_left >= 0 and lists > len(shape):
            _look(node, shape)
        self.parts.append(shape)
        return flat.reshape(shape)

    def is_regular(self) -> bool:
        """Whether all lists of the text belong to regular arrays of the found shapes."""
        if self.looks_left >= 0:  # All lists were checked and have the right lengths; the text must have no more.
            return int(np.count_nonzero(np.frombuffer(self.body, np.uint8) == _BRACKET)) == self.lists
        # Equal skeletons mean equal structure: all parts but the arrays are the document's own, and an array cannot
        # go on after its closing bracket.
        rebuilt = b"".join([part if isinstance(part, bytes) else _brackets(part) for part in self.parts])
        text = self.body.removeprefix(b"\xef\xbb\xbf")
        return rebuilt.translate(None, _NO_STRUCTURE) == text.translate(None, _NO_STRUCTURE)


class _Reader(ListReader):
    """Reads a `:predict` document."""

    def __init__(self, body: bytes, dtypes: Mapping[str, DType]) -> None:
        super().__init__(body)
        self.dtypes = dtypes

    def read(self, document: simdjson.Object, keys: list[str]) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for key in keys:
            self.label(key)
            if key == "instances":
                arrays = self._instances(document[key])
            elif key == "inputs":
                arrays = self._inputs(document[key])
            else:
                self._other(document[key])
            self.parts.append(b",")
        self.parts[-1] = b"}"
        return arrays

    def _other(self, node: object) -> None:
        """Read a member that is no input: a scalar, or a list of strings."""
        if not isinstance(node, simdjson.Array):
            self.scalar(node)
            return
        values = node.as_list()
        if not values or not all(isinstance(value, str) for value in values):
            raise DeclinedError
        self.lists += 1
        self.parts.append(b"[%b]" % b",".join(map(_scalar_text, values)))

    def _inputs(self, node: Any) -> dict[str, Array]:
        if not isinstance(node, simdjson.Object):
            return self._single(node)
        keys, arrays = keys_of(node), {}
        if keys == ["b64"] or not self.dtypes.keys() <= set(keys):
            raise DeclinedError
        self.parts.append(b"{")
        for key in keys:
            self.label(key)
            if key in self.dtypes:
                arrays[key] = self._tensor(node[key], self.dtypes[key])
            else:
                self.scalar(node[key])
            self.parts.append(b",")
        self.parts[-1] = b"}"
        return arrays

    def _single(self, node: object) -> dict[str, Array]:
        if len(self.dtypes) != 1:
            raise DeclinedError
        ((name, dtype),) = self.dtypes.items()
        return {name: self._tensor(node, dtype)}

    def _instances(self, node: object) -> dict[str, Array]:
        if not isinstance(node, simdjson.Array) or not 0 < len(node) < _COUNT_LIMIT:
            raise DeclinedError
        if not isinstance(node[0], simdjson.Object):
            return self._single(node)
        if len(self.body) < len(node) * _SMALL_ROW:
            raise DeclinedError
        columns: dict[str, list[Array]] = {name: [] for name in self.dtypes}
        self.lists += 1
        self.parts.append(b"[")
        for row in node:
            if not isinstance(row, simdjson.Object) or len(row) != len(columns):
                raise DeclinedError
            for name, array in self._inputs(row).items():
                columns[name].append(array)
            self.parts.append(b",")
        self.parts[-1] = b"]"
        if any(len({array.shape for array in column}) != 1 for column in columns.values()):
            raise DeclinedError
        if any(column[0].ndim == MAX_RANK for column in columns.values()):
            raise DeclinedError
        return {name: np.stack(column) for name, column in columns.items()}

    def _tensor(self, node: object, dtype: DType) -> Array:
        if isinstance(node, simdjson.Array):
            return self.numbers(node, dtype)
        self.scalar(node)
        array = quick_array(node, dtype)
        if array is None:
            raise DeclinedError
        return array


def _read_list(document: Document, dtype: DType) -> Array | None:
    with document as node:
        count = len(node)
        try:
            return _flat(node, dtype, count) if 0 < count < _COUNT_LIMIT else None
        except DeclinedError:
            return None


def _flat(node: simdjson.Array, dtype: DType, count: int) -> Array:
    """The `count` numbers of a list, and of the lists inside, in their dtype."""
    if dtype.json not in _BUFFERS:
        raise DeclinedError
    kind, scalar = _BUFFERS[dtype.json]
    try:
        flat: Array = np.frombuffer(node.as_buffer(of_type=kind), scalar)
    except (TypeError, ValueError, RuntimeError):  # An element is no number, no integer, or not within 64 bits.
        raise DeclinedError from None
    if flat.size != count or (kind != "d" and not within(flat, dtype)):
        raise DeclinedError
    return narrowed(flat, dtype)


def _shape(node: simdjson.Array) -> tuple[int, ...]:
    """Shape by walking `node[0][0]...`."""
    shape: list[int] = []
    first: object = node
    while isinstance(first, simdjson.Array):
        size = len(first)
        if size == 0 or size == _COUNT_LIMIT or len(shape) == MAX_RANK:
            raise DeclinedError
        shape.append(size)
        first = first[0]
    return tuple(shape)


def _look(node: simdjson.Array, shape: tuple[int, ...]) -> None:
    """Check the lists of an array singly; lists deeper than the array's rank are not seen."""
    level: list[Any] = [node]
    for depth, size in enumerate(shape, start=1):
        if any(not isinstance(inner, simdjson.Array) or len(inner) != size for inner in level):
            raise DeclinedError
        if depth < len(shape):
            level = list(itertools.chain.from_iterable(level))


def _brackets(shape: tuple[int, ...]) -> bytes:
    """The text of an array without its numbers: `[[,],[,]]` for 2 by 2."""
    text = b"[%b]" % (b"," * (shape[-1] - 1))
    for size in reversed(shape[:-1]):
        text = b"[%b]" % b",".join([text] * size)
    return text


def _scalar_text(value: Any) -> bytes:
    """The part of a scalar's text that a skeleton keeps; empty for numbers."""
    if isinstance(value, str):
        return b'"%b"' % value.encode()
    if value is None:
        return b"null"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int | float):
        return b""
    raise DeclinedError
