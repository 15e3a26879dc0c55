"""How long does a run take, and is it short? Servables choose by it which threads TensorFlow runs them in."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SHORT_RUN", "fastest"]

SHORT_RUN = 0.001
"""Seconds below which a run is not worth handing to TensorFlow's pool, which costs about 20 µs."""


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of three calls after a first one, which compiles."""
    call()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
