"""A servable that runs a Python function, keeps what it was given, and can be held back; and a rig around it."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedserve.batching.direct import DirectPredictor
from embedserve.batching.routing import BatchingPredictor, make_predictor
from embedserve.batching.watchdog import VersionRuns
from embedserve.concurrency.threads import RunPool
from embedserve.config import Batching, BatchingOptions
from embedserve.errors import Code, InferenceError
from embedserve.observer import Observer, Observers
from embedserve.priority import Priority
from embedserve.servable import Answer, Array, Cancellation, ServableId, Tensors
from embedserve.signature import BatchingVerdict, Signature, TensorSpec
from embedserve.tensors.dtypes import by_name

Shape = tuple[int | None, ...] | None
Model = Callable[[Tensors], dict[str, Array]]

ID = ServableId("m", 1)


def signature(
    inputs: Mapping[str, Shape] | None = None,
    *,
    name: str = "serving_default",
    dtype: str = "int64",
    batchable: bool = True,
    stateless: bool = True,
    shape_free: bool = False,
) -> Signature:
    """By default int64 `x [?]`; the outputs are whatever the model gives."""
    specs = {key: TensorSpec(key, by_name(dtype), shape) for key, shape in (inputs or {"x": (None,)}).items()}
    return Signature(
        name=name,
        inputs=specs,
        outputs={"y": TensorSpec("y", by_name(dtype), None)},
        stateless=stateless,
        shape_free=shape_free,
        batching=BatchingVerdict(batchable, "as the test says"),
    )


def times_ten(inputs: Tensors) -> dict[str, Array]:
    return {"y": inputs["x"] * 10}


def fails_on(value: int) -> Model:
    def run(inputs: Tensors) -> dict[str, Array]:
        if (inputs["x"] == value).any():
            raise InferenceError(f"{value} is guilty", code=Code.OUT_OF_RANGE)
        return times_ten(inputs)

    return run


class FakeServable:
    """Runs `model`. While `gate` is not set, runs wait in their thread until it is, or until they are cancelled."""

    kind = "fake"
    reads_files_at_run_time = False
    inline: Collection[str] = frozenset()
    signature_defs: Mapping[str, Any] = {}

    def __init__(self, model: Model = times_ten, *signatures: Signature, held: bool = False) -> None:
        self.model = model
        self.signatures = {s.name: s for s in signatures or (signature(),)}
        self.gate = threading.Semaphore(0) if held else None
        self.began = threading.Semaphore(0)
        self.runs: list[Tensors] = []
        self.timeouts: list[float | None] = []
        self.output_names: list[Sequence[str] | None] = []
        self.cancelled = 0

    @property
    def sizes(self) -> list[int]:
        """Rows of the first input of each run."""
        return [len(next(iter(inputs.values()))) for inputs in self.runs]

    def let(self, runs: int) -> None:
        """Let so many runs go on."""
        assert self.gate is not None
        self.gate.release(runs)

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        self.runs.append(inputs)
        self.timeouts.append(timeout)
        self.output_names.append(output_names)
        self.began.release()
        gate = self.gate
        if gate is not None:
            assert cancellation is not None
            cancellation.on_cancel(gate.release)
            assert gate.acquire(timeout=60)
            cancellation.on_cancel(None)
            if cancellation.cancelled:
                self.cancelled += 1
                raise InferenceError("the run was cancelled", code=Code.CANCELLED)
        return self.model(inputs)


def outcome(answer: Answer) -> BaseException | None:
    """The error of a future that is done."""
    assert isinstance(answer, asyncio.Future)
    return answer.exception()


@dataclass
class Rig:
    """A predictor over a fake servable, and what a test needs to drive it."""

    servable: FakeServable
    pool: RunPool
    predictor: DirectPredictor | BatchingPredictor

    def submit(
        self,
        *values: Any,
        timeout: float | None = None,
        output_names: tuple[str, ...] | None = None,
        name: str = "serving_default",
        priority: int = Priority.NORMAL,
        **inputs: Any,
    ) -> asyncio.Future[dict[str, Array]]:
        """`submit(1, 2)` is one request with two rows; keywords are arrays by input name."""
        arrays = {key: np.asarray(value) for key, value in inputs.items()} or {"x": np.array(values, np.int64)}
        deadline = None if timeout is None else self.pool.loop.time() + timeout
        return self.predictor.submit(self.servable.signatures[name], arrays, output_names, deadline, priority)

    async def began(self, runs: int = 1) -> None:
        """Wait until so many (more) runs are in their threads."""
        for _ in range(runs):
            assert await asyncio.to_thread(self.servable.began.acquire, True, 30)


@asynccontextmanager
async def rig(
    servable: FakeServable | None = None,
    options: BatchingOptions | None = None,
    *,
    batching: Batching = "auto",
    threads: int = 1,
    max_pending: int = 1000,
    run_timeout: float = math.inf,
    loop_run_limit: float = 0.0,
    observers: Sequence[Observer] = (),
) -> AsyncIterator[Rig]:
    """A predictor that is closed, with everything answered, at the end."""
    servable = servable or FakeServable()
    pool = RunPool(asyncio.get_running_loop(), threads, loop_run_limit=loop_run_limit)
    predictor = make_predictor(
        servable,
        VersionRuns(ID, Observers(observers), run_timeout),
        pool,
        Observers(observers),
        options or BatchingOptions(),
        batching,
        max_pending,
    )
    assert isinstance(predictor, DirectPredictor | BatchingPredictor)
    try:
        yield Rig(servable, pool, predictor)
        await asyncio.wait_for(predictor.aclose(), 30)
    finally:
        if servable.gate is not None:
            servable.let(1000)
        pool.close()
