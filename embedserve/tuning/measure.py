"""Closed-loop callers for a bounded time: each caller asks again right after the answer.

The module knows no model.
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
"""Sends the request with the given number, modulo the number of requests, and returns after the answer."""


@dataclass(frozen=True)
class Measurement:
    """Latencies and throughput seen by callers. Failed requests count in neither.

    Attributes:
        seconds: From the first request to the last answer.
        answered: Number of answered requests.
        failed: Number of failed requests by reason.
        p50, p95, p99: Percentiles of the latency in seconds; None without an answer.
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
        """The number of failed requests."""
        return sum(self.failed.values())


async def measure(ask: Ask, concurrency: int, seconds: float, warmup: float) -> Measurement:
    """Let `concurrency` callers ask for `warmup` seconds, not counted, and then for `seconds`.

    No request begins later. All begun requests are awaited, so the call may take longer by a latency. Each caller asks
    at least once.
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
                await asyncio.sleep(0)  # Instant refusals must not keep the loop from further callers.
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
