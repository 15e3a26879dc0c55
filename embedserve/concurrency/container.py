"""The number of CPUs and the bytes of memory usable by the process. The module knows no thread and no request.

Containers limit both by control groups (`docker run --cpus=2 --memory=1g`, a Kubernetes limit), while the machine's own
figures stay visible. The module reads the files of cgroup v1 and v2.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

__all__ = ["present_cpus", "present_memory", "usable_cpus", "usable_memory"]

_UNKNOWN = 16 << 30
"""Bytes to assume on a machine with unreadable memory."""

Reader = Callable[[Path], float | None]
"""Takes the directory of a group; returns the group's limit, or None without a limit."""


def allowances(
    root: Path, controller: str, unified: Reader, classic: Reader, mounts: tuple[str, ...] = ()
) -> Iterator[float]:
    """Yield the limit of the process's control group and of each group above, if present.

    Args:
        root: Where `proc` and `sys` are mounted.
        controller: Version 1's name of the controller, as in `/proc/self/cgroup`.
        unified: Reads a group of version 2.
        classic: Reads a group of version 1.
        mounts: Further names under which version 1's controller may be mounted.
    """
    mount = root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # A container may see the group under the host's name for the group; then only the mount's root is readable.
        groups = [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]
        if not controllers:
            found = (unified(mount / group) for group in groups)
        elif controller in controllers.split(","):
            names = {controllers, controller, *mounts}
            found = (classic(mount / name / group) for name in sorted(names) for group in groups)
        else:
            continue
        yield from (limit for limit in found if limit is not None)


def present_cpus() -> int:
    """Return the number of CPUs allowed to the process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs allowed to the process, or the control group's quota, rounded up, if smaller.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    return max(1, min([present_cpus(), *(math.ceil(quota) for quota in _quotas(root))]))


@cache
def _quotas(root: Path) -> tuple[float, ...]:
    return tuple(allowances(root, "cpu", _cpu_max, _cpu_quota, mounts=("cpu,cpuacct",)))


def _cpu_max(group: Path) -> float | None:
    """`cpu.max` of version 2: quota, or `max`, and period."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _cpu_quota(group: Path) -> float | None:
    """Version 1: a quota of -1 is none."""
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def present_memory() -> int:
    """Return the machine's memory in bytes; 16 GiB if unreadable."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN


def usable_memory(root: Path = Path("/")) -> int:
    """Return the machine's memory in bytes, or the least limit of the process's control groups if smaller.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    return int(min([present_memory(), *_limits(root)]))


@cache
def _limits(root: Path) -> tuple[float, ...]:
    return tuple(allowances(root, "memory", _memory_max, _memory_limit))


def _memory_max(group: Path) -> float | None:
    """`memory.max` of version 2: bytes, or `max`."""
    return _bytes(group / "memory.max")


def _memory_limit(group: Path) -> float | None:
    """Version 1 writes no limit as a number larger than any machine's memory."""
    return _bytes(group / "memory.limit_in_bytes")


def _bytes(file: Path) -> float | None:
    try:
        return int(file.read_text()) or None
    except (OSError, ValueError):
        return None


# Read with the module: options are made on event loops, and a loop must not wait for files.
_quotas(Path("/"))
_limits(Path("/"))
