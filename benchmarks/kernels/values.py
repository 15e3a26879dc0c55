"""Hostile arrays: values that a dtype and a shape admit, and a kernel may not expect."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

__all__ = ["hostile"]

_INTEGERS = (
    -1,
    -1,
    0,
    0,
    1,
    2,
    3,
    -2,
    7,
    100,
    2**15,
    2**31 - 1,
    -(2**31),
    2**31,
    2**32 + 1,
    2**62,
    2**63 - 1,
    -(2**63),
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 1e-45, 2.0**31, 2.0**63)
_TEXTS = (
    *(b"", b"a", b"1", b"-1", b"abc,def", b"\xff\xfe", b"\x00", b"1e999", b"a" * 300, b"{}", b"9" * 30, b"\xe2\x82"),
    # Headers of pictures and sounds that promise more than there is, and two serialized tf.Examples.
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\x00\x00\x00",
    b"BM" + b"\x00" * 8 + b"\x36\x00\x00\x00\x28\x00\x00\x00" + b"\xff\xff\xff\x7f" * 2 + b"\x01\x00\x18\x00",
    *(b"GIF89a\xff\xff\xff\xff", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", b"RIFF\xff\xff\xff\xffWAVEfmt "),
    *(b"\n\r\n\x0b\n\x01a\x12\x06\x12\x04\n\x02\x00\x00", b"\x08\x01\x12\x04\x12\x02\x08\x02"),
)


def hostile(dtype: Any, shape: tuple[int, ...], r: random.Random) -> np.ndarray[Any, Any]:
    """An array of this dtype and shape: small and orderly, one value throughout, or a mixture with odd ones."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if dtype.hasobject or dtype.kind in "SU":
        texts = np.empty(count, object)
        texts[:] = [r.choice(_TEXTS) for _ in range(count)]
        return texts.reshape(shape)
    if dtype.kind == "b":
        return np.array([r.random() < 0.5 for _ in range(count)], dtype).reshape(shape)
    if dtype.fields:
        return hostile(dtype[0], shape, r).view(dtype)
    odd = _INTEGERS if dtype.kind in "iu" else _FLOATS
    match r.randrange(10):
        case 0 | 1:
            numbers: list[Any] = [index % 3 for index in range(count)]
        case 2 | 3:
            numbers = [r.randrange(4) for _ in range(count)]
        case 4:
            numbers = sorted(r.randrange(5) for _ in range(count))
        case 5 | 6:
            numbers = [r.choice(odd)] * count
        case 7:
            numbers = [r.choice([-1, 0, 1, 2]) for _ in range(count)]
        case 8:
            numbers = [r.randrange(4) for _ in range(count)]
            if count:
                numbers[r.randrange(count)] = r.choice(odd)
        case _:
            numbers = [r.choice(odd) for _ in range(count)]
    return _as(numbers, dtype).reshape(shape)


def _as(numbers: list[Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if dtype.kind not in "iu":
        with np.errstate(all="ignore"):
            return np.array(numbers, np.float64).astype(dtype)
    limits = np.iinfo(dtype)
    return np.array([min(max(number, int(limits.min)), int(limits.max)) for number in numbers], dtype)
