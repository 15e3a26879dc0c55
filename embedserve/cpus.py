"""How many CPUs may this process use? What the number of threads is chosen by. Knows no threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["present_cpus", "usable_cpus"]


def present_cpus() -> int:
    """The CPUs that the process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cpus(root: Path = Path("/")) -> int:
    """The CPUs that the process may run on, or as many as its control group's quota pays for where that is less.

    Containers are limited so (`docker run --cpus=2`, a Kubernetes limit) without any other CPU being hidden.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    return max(1, min([present_cpus(), *(math.ceil(quota) for quota in _quotas(root))]))


@cache
def _quotas(root: Path) -> tuple[float, ...]:
    return tuple(_read_quotas(root))


def _read_quotas(root: Path) -> Iterator[float]:
    """The quota of the process's control group and of each above it, in CPUs."""
    mount = root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Seen from a container the group may be named as its host knows it; then only the mount's root is there.
        groups = [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]
        if not controllers:
            found = (_unified(mount / group) for group in groups)
        elif "cpu" in controllers.split(","):
            names = {controllers, "cpu", "cpu,cpuacct"}
            found = (_classic(mount / name / group) for name in sorted(names) for group in groups)
        else:
            continue
        yield from (quota for quota in found if quota is not None)


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
