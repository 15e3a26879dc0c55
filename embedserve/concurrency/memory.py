"""How much memory may this process use? What the bound on requests in flight is chosen by. Knows no request."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from embedserve.concurrency.cgroups import allowances

__all__ = ["present_memory", "usable_memory"]

_UNKNOWN = 16 << 30
"""Bytes that are assumed where the machine's memory cannot be read."""


def present_memory() -> int:
    """The machine's memory in bytes, or 16 GiB where it cannot be read."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN


def usable_memory(root: Path = Path("/")) -> int:
    """The machine's memory in bytes, or the least limit of the process's control groups where that is less.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    return int(min([present_memory(), *_limits(root)]))


@cache
def _limits(root: Path) -> tuple[float, ...]:
    return tuple(allowances(root, "memory", _unified, _classic))


def _unified(group: Path) -> float | None:
    """`memory.max` of version 2: bytes, or `max`."""
    return _bytes(group / "memory.max")


def _classic(group: Path) -> float | None:
    """Version 1 has no word for no limit: a number that no machine has."""
    return _bytes(group / "memory.limit_in_bytes")


def _bytes(file: Path) -> float | None:
    try:
        return int(file.read_text()) or None
    except (OSError, ValueError):
        return None


# Here, because options are read on event loops, which are not to wait for files.
_limits(Path("/"))
