"""Keeps the garbage collector's work small, and gives memory back after a version is gone."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable

__all__ = ["freeze_imports", "give_back"]


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


_frozen = threading.Lock()


def freeze_imports() -> None:
    """Hide all existing objects from the garbage collector, once in the life of the process.

    Call the function before the first load. The objects of TensorFlow's modules stay for good, and are most of the work
    of a collection: 0.2 s in which no thread runs. Objects of models come later, and can still be collected.
    """
    if _frozen.acquire(blocking=False):
        gc.collect()
        gc.freeze()


def give_back() -> None:
    """Collect the functions and graphs of a dropped model, which form reference cycles, and trim the heap."""
    gc.collect()
    if _trim is not None:
        _trim(0)
