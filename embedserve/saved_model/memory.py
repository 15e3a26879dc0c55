"""Gives memory back to the system after a version is gone. Called by the loader."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

__all__ = ["give_back"]


def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # Not glibc.
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int

    def call(pad: int) -> int:
        return int(trim(pad))

    return call


_trim = _malloc_trim()


def give_back() -> None:
    """Collect what a dropped model leaves (its functions and graphs refer to each other), and trim the heap."""
    gc.collect()
    if _trim is not None:
        _trim(0)
