"""The choice of batched signatures of a loaded version, and a predictor to route each request.

Each batched signature has a batcher (batcher.py); all further calls run directly.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import TypeVar

from embedserve.batching.batcher import SignatureBatcher
from embedserve.batching.direct import DirectPredictor, MakeError, PredictorStatistics
from embedserve.batching.watchdog import VersionRuns
from embedserve.concurrency.threads import RunPool
from embedserve.config import Batching, BatchingOptions
from embedserve.observer import Observers
from embedserve.priority import Priority
from embedserve.servable import Answer, Array, Predictor, Servable, SlotCall, Tensors
from embedserve.signature import Signature

__all__ = ["BatchingPredictor", "make_predictor"]

T = TypeVar("T")


def make_predictor(
    servable: Servable,
    runs: VersionRuns,
    pool: RunPool,
    observers: Observers,
    options: BatchingOptions,
    batching: Batching,
    max_pending: int,
) -> Predictor:
    """Return the predictor of a loaded version; call on the loop.

    Args:
        servable: The loaded version.
        runs: The version's id and record of runs.
        pool: Run threads, shared with further versions.
        observers: Receive batches and queue waits.
        options: Sizes and bounds of each signature's queue.
        batching: `auto` batches the signatures judged batchable. `adaptive` batches the same signatures with learnt
            limits. True batches all signatures with rows in every input; False batches none.
        max_pending: Bound of the unbatched path, in waiting or running requests.
    """
    direct = DirectPredictor(servable, runs, pool, observers, max_pending)
    batched = [signature for signature in servable.signatures.values() if _is_batched(signature, batching)]
    if not batched:
        return direct
    return BatchingPredictor(direct, batched, pool, observers, options, batching == "adaptive")


def _is_batched(signature: Signature, batching: Batching) -> bool:
    if batching in ("auto", "adaptive"):
        return signature.batching.batchable
    specs = signature.inputs.values()
    return batching and bool(specs) and all(spec.shape is None or len(spec.shape) > 0 for spec in specs)


class BatchingPredictor:
    """Batches some signatures of a loaded version and runs further signatures directly; implements `Predictor`."""

    def __init__(
        self,
        direct: DirectPredictor,
        batched: list[Signature],
        pool: RunPool,
        observers: Observers,
        options: BatchingOptions,
        adaptive: bool = False,
    ) -> None:
        self._direct = direct
        self._create_future = pool.loop.create_future
        self._batchers = {
            signature.name: SignatureBatcher(signature, direct, pool, observers, options, adaptive)
            for signature in batched
        }

    def __repr__(self) -> str:
        return f"<BatchingPredictor {self._direct.runs.id} {[*self._batchers.values()]}, direct: {self._direct!r}>"

    def submit(
        self,
        signature: Signature,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> asyncio.Future[dict[str, Array]]:
        """As `Predictor.submit`."""
        future: asyncio.Future[dict[str, Array]] = self._create_future()
        self.submit_to(future, signature, inputs, output_names, deadline, priority)
        return future

    def submit_to(
        self,
        answer: Answer,
        signature: Signature,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> None:
        """As `Predictor.submit_to`."""
        batcher = self._batchers.get(signature.name)
        if batcher is None:
            self._direct.submit_to(answer, signature, inputs, output_names, deadline, priority)
        else:
            batcher.submit_to(answer, inputs, output_names, deadline, priority)

    def submit_call(
        self, call: SlotCall[T], deadline: float | None = None, priority: int = Priority.NORMAL
    ) -> asyncio.Future[T]:
        """As `Predictor.submit_call`."""
        return self._direct.submit_call(call, deadline, priority)

    def statistics(self) -> PredictorStatistics:
        """Return the counts so far, and the present numbers of waiting requests and runs, over all signatures."""
        direct = self._direct.statistics()
        parts = [direct, *(batcher.statistics() for batcher in self._batchers.values())]
        counts = [field.name for field in fields(PredictorStatistics) if isinstance(field.default, int)]
        return replace(direct, **{name: sum(getattr(part, name) for part in parts) for name in counts})

    def max_batch_rows(self, signature_name: str) -> int:
        """As `Predictor.max_batch_rows`."""
        batcher = self._batchers.get(signature_name)
        return 0 if batcher is None else batcher.max_rows

    @property
    def trouble(self) -> str | None:
        """As `Predictor.trouble`."""
        return self._direct.trouble

    def abort(self, error: MakeError | None = None) -> None:
        """As `Predictor.abort`."""
        self._direct.abort(error)
        for batcher in self._batchers.values():
            batcher.abort(error)

    async def aclose(self) -> None:
        """Close, and wait for the answer of every request and the return of every thread."""
        self._direct.close()
        for batcher in self._batchers.values():
            batcher.close()
        for batcher in self._batchers.values():
            await batcher.drained()
        await self._direct.aclose()
