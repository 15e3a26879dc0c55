"""Strings for models of many kinds: words and numbers, pictures, `tf.Example`s, or pieces of recorded strings.

Each family has two ordinary strings and unlike strings by `Kind`. The module knows no signature.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ["Examples", "Features", "Kind", "Pictures", "Pieces", "Texts", "Words"]

Features = Mapping[str, tuple[int, int | None]]
"""Features that a parser of `tf.Example`s asks for: name → (`DataType` number, number of values or None for any)."""

# The first words are numbers too, so that a model of numbers takes some of the unlike strings.
_WORDS: list[bytes] = "-1000 0.001 7 the Quick fox, jumps over a lazy dog été 日本 out of vocabulary!".encode().split()
# Most words of an unlike string, and most values of a feature with a variable number of values.
_MOST_WORDS = 12
_MOST_VALUES = 9
# `DataType` numbers of string and int64.
_BYTES, _INT64 = 7, 9


class Kind(enum.Enum):
    """How a made-up value differs from an ordinary value."""

    LARGE = "long, many or large values of either sign"
    NOTHING = "zeros, empty strings, no values"
    SMALL = "short, few, repeated or tiny values"
    PADDED = "negative values, and padding at the end"


class Texts(Protocol):
    """A family of strings."""

    def ordinary(self, index: int) -> bytes:
        """String `index % 2` of the two that a model of the family takes."""

    def unlike(self, kind: Kind, random: np.random.Generator) -> bytes:
        """A string that differs from the ordinary strings in length or content; the model may refuse the string."""


class Words:
    """Numbers as strings; each number is a word too."""

    def ordinary(self, index: int) -> bytes:
        return (b"1", b"2")[index % 2]

    def unlike(self, kind: Kind, random: np.random.Generator) -> bytes:
        if kind is Kind.NOTHING:
            return b""
        if kind is Kind.SMALL:
            return _WORDS[random.integers(len(_WORDS))]
        count = random.integers(5, _MOST_WORDS + 1) if kind is Kind.LARGE else random.integers(2, 5)
        return b" ".join(_WORDS[index] for index in random.integers(3, len(_WORDS), count))


class Pictures:
    """Square PNG pictures of one colour."""

    def ordinary(self, index: int) -> bytes:
        return _png((64, 192)[index % 2], 8)

    def unlike(self, kind: Kind, random: np.random.Generator) -> bytes:
        if kind is Kind.NOTHING:
            return _png(0, 8)
        side = {Kind.LARGE: 24, Kind.SMALL: 1, Kind.PADDED: 8}[kind]
        return _png(int(random.integers(256)), side)


class Pieces:
    """Recorded strings, and pieces of recorded strings."""

    def __init__(self, recorded: Sequence[bytes]) -> None:
        self._recorded = list(dict.fromkeys(recorded))

    def ordinary(self, index: int) -> bytes:
        return self._recorded[index % len(self._recorded)]

    def unlike(self, kind: Kind, random: np.random.Generator) -> bytes:
        first, second = (self._recorded[index] for index in random.integers(len(self._recorded), size=2))
        words = first.split(b" ")
        pieces: dict[Kind, bytes] = {
            Kind.LARGE: first + b" " + second,
            Kind.NOTHING: b"",
            Kind.SMALL: words[random.integers(len(words))],
            Kind.PADDED: b" ".join(words[: len(words) // 2]) + b"  ",
        }
        return pieces[kind]


class Examples:
    """Serialized `tf.Example`s with a model's features; the number of values varies where the model allows."""

    def __init__(self, features: Features) -> None:
        self._features = dict(sorted(features.items()))

    def ordinary(self, index: int) -> bytes:
        row = index % 2
        return self._example({name: _ordinary(dtype, count or 1, row) for name, (dtype, count) in self._items()})

    def unlike(self, kind: Kind, random: np.random.Generator) -> bytes:
        most = {Kind.LARGE: _MOST_VALUES, Kind.NOTHING: 0, Kind.SMALL: 1, Kind.PADDED: 3}[kind]
        values = {}
        for name, (dtype, fixed) in self._items():
            count = fixed if fixed is not None else int(random.integers((most + 1) // 2, most + 1))
            values[name] = _unlike(dtype, count, kind, random)
        return self._example(values)

    def _items(self) -> list[tuple[str, tuple[int, int | None]]]:
        return list(self._features.items())

    def _example(self, values: Mapping[str, Sequence[Any]]) -> bytes:
        from tensorflow.core.example.example_pb2 import Example

        example = Example()
        for name, (dtype, _) in self._items():
            feature = example.features.feature[name]
            if dtype == _BYTES:
                feature.bytes_list.value.extend(values[name])
            elif dtype == _INT64:
                feature.int64_list.value.extend(values[name])
            else:
                feature.float_list.value.extend(values[name])
        return bytes(example.SerializeToString())


def _ordinary(dtype: int, count: int, row: int) -> list[Any]:
    if dtype == _BYTES:
        return [(b"1", b"2")[row]] * count
    if dtype == _INT64:
        return [(index + row + 1) % 3 for index in range(count)]
    return [(0.1 + 0.37 * index + 0.51 * row) % 1.0 for index in range(count)]


def _unlike(dtype: int, count: int, kind: Kind, random: np.random.Generator) -> list[Any]:
    if dtype == _BYTES:
        return [Words().unlike(kind, random) for _ in range(count)]
    if dtype == _INT64:
        # Indices and sizes are never larger than the ordinary values.
        return [0] * count if kind is Kind.NOTHING else list(map(int, random.integers(0, 3, count)))
    scale = {Kind.LARGE: 1e3, Kind.NOTHING: 0.0, Kind.SMALL: 1e-6, Kind.PADDED: 1.0}[kind]
    return list(map(float, random.uniform(-1, 1, count) * scale))


def _png(level: int, side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([level, 255 - level, level]) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
