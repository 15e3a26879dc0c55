"""How many CPUs may this process use? What the number of threads is chosen by. Knows no threads."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

from embedserve.concurrency.cgroups import allowances

__all__ = ["present_cpus", "usable_cpus"]


def present_cpus() -> int:
    """The CPUs that the process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cpus(root: Path = Path("/")) -> int:
    """The CPUs that the process may run on, or as many as its control group's quota pays for where that is less.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    return max(1, min([present_cpus(), *(math.ceil(quota) for quota in _quotas(root))]))


@cache
def _quotas(root: Path) -> tuple[float, ...]:
    return tuple(allowances(root, "cpu", _unified, _classic, mounts=("cpu,cpuacct",)))


def _unified(group: Path) -> float | None:
    """`cpu.max` of version 2: quota, or `max`, and period."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _classic(group: Path) -> float | None:
    """Version 1: a quota of -1 is none."""
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


# Here, because options are made on event loops, which are not to wait for files.
_quotas(Path("/"))
