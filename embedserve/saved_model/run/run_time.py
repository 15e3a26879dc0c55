"""Measures the duration of a run at load, for the choice between ways of running a version."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SHORT_RUN", "fastest"]

SHORT_RUN = 0.001
"""Seconds. A shorter run stays in the caller's thread, as the hand-over to TensorFlow's pool costs about 20 µs."""

# Bounds in calls and in seconds. Many calls of a short run find an undisturbed run on a busy machine; few calls of a
# long run keep the load short.
_FEW, _MANY = 3, 20
_BUDGET, _MOST = 0.02, 0.1


def fastest(call: Callable[[], object], most: float = _MOST) -> float:
    """Seconds of the fastest of up to twenty calls after a first call, which compiles.

    After three calls, no call begins once the calls took 20 ms in sum. No call begins after `most` seconds.
    """
    call()
    times: list[float] = []
    while not times or sum(times) < (most if len(times) < _FEW else _BUDGET if len(times) < _MANY else 0.0):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
