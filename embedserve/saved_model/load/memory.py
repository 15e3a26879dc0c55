"""Keeps the garbage collector's work small, and gives memory back after a version is gone. Called by the loader."""

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
    """Take everything that exists now out of the garbage collector's sight, once in the life of the process.

    Called before the first model is loaded: what TensorFlow's modules hold stays for good and is most of what a
    collection would look at, each time 0.2 s without a thread being able to run. Models come later, so that an
    unloaded one can still be collected.
    """
    if _frozen.acquire(blocking=False):
        gc.collect()
        gc.freeze()


def give_back() -> None:
    """Collect what a dropped model leaves (its functions and graphs refer to each other), and trim the heap."""
    gc.collect()
    if _trim is not None:
        _trim(0)
