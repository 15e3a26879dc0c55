"""Closed-loop callers for a bounded time: each asks again as soon as it has its answer.

Called by `sweep` for each cell. Knows no model.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from embedserve.errors import Code, ServingError

__all__ = ["Ask", "Measurement", "measure"]

Ask: TypeAlias = Callable[[int], Awaitable[object]]
"""Puts the request of that number, modulo how many there are, and returns when it is answered."""


@dataclass(frozen=True)
class Measurement:
    """What callers saw. Failed requests count neither in the throughput nor in the latencies.

    Attributes:
        seconds: From the first request to the last answer.
        answered: Requests that were answered.
        failed: Requests that were not, by reason.
        p50, p95, p99: Percentiles of the latency in seconds; None where nothing was answered.
    """

    seconds: float
    answered: int
    failed: Mapping[str, int] = field(default_factory=dict)
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @property
    def throughput(self) -> float:
        """Answered requests per second."""
        return self.answered / self.seconds

    @property
    def failures(self) -> int:
        """How many requests failed."""
        return sum(self.failed.values())


async def measure(ask: Ask, concurrency: int, seconds: float, warmup: float) -> Measurement:
    """Let `concurrency` callers ask for `warmup` seconds, which do not count, and then for `seconds`.

    No request is begun later, and every one that was begun is waited for, so it may take longer by one latency; each
    caller asks at least once.
    """
    await _calls(ask, concurrency, warmup)
    return await _calls(ask, concurrency, seconds)


async def _calls(ask: Ask, concurrency: int, seconds: float) -> Measurement:
    latencies = array("d")
    failed = Counter[str]()
    clock = time.perf_counter
    started = clock()
    stop = started + seconds

    async def caller(turn: int) -> None:
        now = started
        while True:
            before = now
            try:
                await ask(turn)
            except ServingError as error:
                failed[_reason(error)] += 1
                await asyncio.sleep(0)  # A refusal that comes at once must not keep the loop from the others.
                now = clock()
            else:
                now = clock()
                latencies.append(now - before)
            turn += concurrency
            if now >= stop:
                return

    async with asyncio.TaskGroup() as callers:
        for number in range(concurrency):
            callers.create_task(caller(number))
    elapsed = clock() - started
    if not latencies:
        return Measurement(elapsed, 0, dict(failed))
    p50, p95, p99 = np.percentile(np.frombuffer(latencies), (50, 95, 99), method="inverted_cdf").tolist()
    return Measurement(elapsed, len(latencies), dict(failed), p50, p95, p99)


def _reason(error: ServingError) -> str:
    return f"{Code(error.code).name}: {error.message.splitlines()[0] if error.message else ''}"
