"""The words shared by everything that loads, runs or asks for a version, and the protocols between them.

Knows no TensorFlow, no loop and no directory: loaders and servables are run in threads by what imports this.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from embedserve.errors import ServingError
from embedserve.priority import Priority
from embedserve.tensors.dtypes import Array, Tensors

if TYPE_CHECKING:
    import asyncio

    from embedserve.config import Batching, BatchingOptions
    from embedserve.signature import Signature

__all__ = ["Array", "Cancellation", "Loader", "Predictor", "Servable", "ServableId", "SlotCall", "State", "Tensors"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class State(enum.IntEnum):
    """Where a version is in its life; it only ever moves down. Numbers as in get_model_status.proto."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, order=True, slots=True)
class ServableId:
    """One version of one model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.version}}}"


class Cancellation:
    """Lets the loop stop a run that is already in a thread.

    The servable sets `on_cancel` when the run starts and clears it when the run ends; `cancel` may be called from any
    thread, before, during or after the run.
    """

    __slots__ = ("_callback", "cancelled")

    def __init__(self) -> None:
        self.cancelled = False
        self._callback: Callable[[], None] | None = None

    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once when cancelled; at once if that has already happened."""
        self._callback = callback
        # Set before the check: `cancel` sets the flag before it reads the callback, so one of the two sees the other.
        if callback is not None and self.cancelled:
            callback()

    def cancel(self) -> None:
        """Ask the run to stop. It ends with an error, or with its result if it was already done."""
        self.cancelled = True
        callback = self._callback
        if callback is not None:
            callback()


class Servable(Protocol):
    """One loaded version. `run` is called from run threads, several at a time."""

    @property
    def kind(self) -> str:
        """How the version runs: `function`, `session`, `frozen`, `xla` or `tflite`."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every callable signature by name."""

    @property
    def signature_defs(self) -> Mapping[str, Any]:
        """Every `SignatureDef` proto of the SavedModel by name, callable or not (for GetModelMetadata)."""

    @property
    def reads_files_at_run_time(self) -> bool:
        """Whether a signature opens files outside the init op; such a version is not reloaded in place."""

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run one signature on bound inputs (see `Signature.bind`) and return the named outputs, or all.

        Args:
            signature_name: A key of `signatures`.
            inputs: Exactly the signature's inputs, in its dtypes; never modified.
            output_names: Outputs to compute; None means all.
            cancellation: Stops the run where the servable can be stopped.
            timeout: Seconds left for the run, where the servable can bound it.

        Raises:
            InferenceError: With the canonical code of TensorFlow's error.
            DeadlineExceededError: `timeout` passed.
        """


class Loader(Protocol):
    """Owns one version's resources, from load to unload. Every method runs in a thread; calls never overlap."""

    @property
    def batching(self) -> tuple[Batching, BatchingOptions] | None:
        """How the version loaded last is to be batched; None means as the configuration says."""

    note: str
    """What else to know of the version loaded last, for its status; empty if there is nothing."""

    warmup_records: int | None
    """Recorded warm-up requests that `warm_up` read to the end; None where there is no file, or a request failed."""

    def load(self) -> Servable:
        """Load the version.

        Raises:
            LoadError: What is wrong with the directory or the model, and what to do.
        """

    def warm_up(self, servable: Servable) -> None:
        """Replay the version's recorded warm-up requests, if it has any; called once, before `warm_up_thread`.

        Raises:
            LoadError: A recorded request failed.
        """

    def warm_up_thread(self, servable: Servable) -> None:
        """Run each signature that is free of state writes on made-up inputs; called once in every run thread.

        Errors of made-up inputs are ignored: they say nothing about real ones.
        """

    def unchanged(self) -> bool:
        """Whether the version's directory is still what it was before `load`; asked after warm-up."""

    def unload(self, servable: Servable | None) -> None:
        """Drop the version's resources; `servable` is what `load` returned, or None where it failed."""

    def give_back(self) -> None:
        """Give the memory of dropped versions, whosever they were, back to the system: slow, so once for several."""


class SlotCall(Protocol[T_co]):
    """Work of one version that is not a run of a signature; called in a run thread."""

    def __call__(self, *, cancellation: Cancellation, timeout: float | None) -> T_co:
        """Do it; both arguments as for `Servable.run`."""


class Predictor(Protocol):
    """Runs one loaded version for callers on the loop; direct and batched look the same from here."""

    def submit(
        self,
        signature: Signature,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> asyncio.Future[dict[str, Array]]:
        """Queue one bound request and return the future of its outputs; loop only, never blocks.

        Cancelling the future gives the request up: it is dropped before it costs a run, and a run whose requests have
        all gone is cancelled. At `deadline` (a `loop.time()`) the future fails with DeadlineExceededError, and with
        QueueFullError when a request of higher `priority` takes its place in a full queue.

        Raises:
            QueueFullError: The bounded queue is full, and nothing of lower priority waits there.
            InvalidInputError: The request can never be batched (too many rows).
        """

    def submit_call(
        self, call: SlotCall[T], deadline: float | None = None, priority: int = Priority.NORMAL
    ) -> asyncio.Future[T]:
        """Queue one call for a run thread, unbatched; bound, cancellation, deadline and priority as for `submit`.

        Raises:
            QueueFullError: The bounded queue is full.
        """

    @property
    def trouble(self) -> str | None:
        """Why requests are refused although the version is loaded; None where they are not."""

    def abort(self, error: Callable[[ServableId], ServingError] | None = None) -> None:
        """Fail everything submitted that has not ended, where waiting any longer is not wanted, and all that comes.

        Args:
            error: Makes each request's own; None says that the registry was left.
        """

    async def aclose(self) -> None:
        """Wait until everything submitted has ended; call after the last handle was released."""

    def statistics(self) -> object:
        """A frozen snapshot of the queue, for `ModelRegistry.statistics`."""
