"""A model that waits for its gate and notes the order of what it ran, behind one run thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from embedserve.servable import Array, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, Gate


class Recorder:
    """Model `m` of one registry."""

    def __init__(self, **options: Any) -> None:
        self.gate = Gate()
        self.ran: list[float] = []
        loader = FakeLoader(self._model, gate=self.gate)
        self.registry = FakeRegistry({"m": {1: loader}}, **{"batching": False, "num_batch_threads": 1} | options)

    def _model(self, version: int, inputs: Tensors) -> dict[str, Array]:
        self.ran += inputs["x"].tolist()
        return {"y": inputs["x"]}

    async def running(self) -> None:
        """Wait until a run is at the gate."""
        await wait_for(lambda: self.gate.waiting == 1)

    async def waiting(self, requests: int) -> None:
        """Wait until so many requests queue."""
        await wait_for(lambda: self.registry.statistics().queues["m", 1].waiting == requests)


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
