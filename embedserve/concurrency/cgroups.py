"""What do the control groups above this process allow it? Reads the files of cgroup v1 and v2, and decides nothing.

Containers are limited so (`docker run --cpus=2 --memory=1g`, a Kubernetes limit) while the machine's own figures stay
visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["allowances"]

Reader = Callable[[Path], float | None]
"""Takes the directory of one group; gives its limit, or None where the group has none."""


def allowances(
    root: Path, controller: str, unified: Reader, classic: Reader, mounts: tuple[str, ...] = ()
) -> Iterator[float]:
    """Yield the limit of the process's control group and of each group above, where there is one.

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
        # Seen from a container the group may be named as its host knows it; then only the mount's root is there.
        groups = [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]
        if not controllers:
            found = (unified(mount / group) for group in groups)
        elif controller in controllers.split(","):
            names = {controllers, controller, *mounts}
            found = (classic(mount / name / group) for name in sorted(names) for group in groups)
        else:
            continue
        yield from (limit for limit in found if limit is not None)
