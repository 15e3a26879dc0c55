"""How long does a run take, and is it short? What decides which way a version runs, measured at its load."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SHORT_RUN", "fastest"]

SHORT_RUN = 0.001
"""Seconds below which a run is not worth handing to TensorFlow's pool, which costs about 20 µs."""

# Short runs are tried often, so that one is undisturbed on a busy machine; long ones shall not make a load long.
_FEW, _MANY = 3, 20
_BUDGET, _MOST = 0.02, 0.1


def fastest(call: Callable[[], object], most: float = _MOST) -> float:
    """Seconds of the fastest of up to twenty calls after a first one, which compiles.

    After three of them none is begun after 20 ms, and none at all after `most` seconds.
    """
    call()
    times: list[float] = []
    while not times or sum(times) < (most if len(times) < _FEW else _BUDGET if len(times) < _MANY else 0.0):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
