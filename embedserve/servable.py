"""The vocabulary of loads, runs and requests for a version, and the protocols between the layers.

The module knows no TensorFlow, no loop and no directory. Blocking loaders and servables run in threads.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from embedserve.call_record import CallTiming
from embedserve.errors import ServingError
from embedserve.priority import Priority, PriorityName
from embedserve.tensors.dtypes import Array, Tensors

if TYPE_CHECKING:
    import asyncio

    from google.protobuf.message import Message

    from embedserve.config import Batching, BatchingOptions
    from embedserve.signature import Signature

__all__ = [
    "Answer",
    "Array",
    "BlockingLoader",
    "Call",
    "Cancellation",
    "Loader",
    "Predictor",
    "Servable",
    "ServableId",
    "SlotCall",
    "State",
    "Tensors",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Call(NamedTuple):
    """A request beside the inputs: the version, the signature, and how long and how urgently the caller waits.

    The attributes are arguments of `ModelRegistry.predict`; `cast=False` refuses arrays of undeclared dtypes. A named
    tuple is made in less than half the time of a frozen dataclass.
    """

    name: str
    version: int | None
    label: str | None
    signature_name: str
    output_filter: Sequence[str] | None
    timeout: float | None
    priority: PriorityName
    cast: bool = True
    timing: CallTiming | None = None


class State(enum.IntEnum):
    """The stage of a version's life; a version moves only downwards. Numbers as in get_model_status.proto."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, order=True, slots=True)
class ServableId:
    """A version of a model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.version}}}"


class Cancellation:
    """Lets the loop stop a run in a thread.

    The servable sets `on_cancel` at the start of the run and clears the callback at the end. `cancel` may be called
    from any thread, before, during or after the run.
    """

    __slots__ = ("_callback", "cancelled")

    def __init__(self) -> None:
        self.cancelled = False
        self._callback: Callable[[], None] | None = None

    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once at the cancellation; at once after an earlier cancellation."""
        self._callback = callback
        # Set before the check: `cancel` sets the flag before reading the callback, so either side sees the change of
        # the opposite side.
        if callback is not None and self.cancelled:
            callback()

    def cancel(self) -> None:
        """Ask the run to stop. The run ends with an error, or with the result of an already finished run."""
        self.cancelled = True
        callback = self._callback
        if callback is not None:
            callback()


class Servable(Protocol):
    """A loaded version. `run` is called from several run threads at a time."""

    @property
    def kind(self) -> str:
        """How the version runs: `function`, `session`, `frozen`, `xla` or `tflite`."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every callable signature by name."""

    @property
    def signature_defs(self) -> Mapping[str, Message]:
        """Every `SignatureDef` proto of the SavedModel by name, callable or not (for GetModelMetadata)."""

    @property
    def reads_files_at_run_time(self) -> bool:
        """Whether a signature opens files outside the init op; such a version is not reloaded in place."""

    @property
    def inline(self) -> Collection[str]:
        """Signatures whose runs stay in the caller's thread, and wait for no thread, lock or further run."""

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run a signature on bound inputs (see `Signature.bind`) and return the named outputs, or all.

        Args:
            signature_name: A key of `signatures`.
            inputs: Exactly the signature's inputs, in the declared dtypes; never modified.
            output_names: Outputs to compute; None means all.
            cancellation: Stops the run where the servable can be stopped.
            timeout: Seconds left for the run, where the servable can bound it.

        Raises:
            InferenceError: With the canonical code of TensorFlow's error.
            DeadlineExceededError: `timeout` passed.
        """


class Loader(Protocol):
    """Owns a version's resources, from load to unload. Loop only; calls never overlap."""

    @property
    def batching(self) -> tuple[Batching, BatchingOptions] | None:
        """The batching mode of the last loaded version; None means the configuration's mode."""

    @property
    def note(self) -> str:
        """A remark on the last load for the version's status; empty without a remark."""

    async def load(self) -> Servable:
        """Load the version and warm it up; the result is ready for requests. May be called again after an `unload`.

        Raises:
            LoadError: The version is unusable; the message says the reason and the remedy. `unload` comes next.
            HungError: A step has not ended in time and still holds the resources. No `unload` follows.
        """

    async def unload(self) -> None:
        """Drop the resources of the last `load`, complete or failed, and return the memory to the system."""


class BlockingLoader(Protocol):
    """As `Loader`, in steps that block. Every method runs in a thread (`lifecycle.thread_loader`); calls never overlap.

    Attributes:
        note: A remark on the last load for the version's status; empty without a remark.
        warmup_records: The number of recorded warm-up requests read by `warm_up`; None without a file, or after a
            failed request.
    """

    note: str
    warmup_records: int | None

    @property
    def batching(self) -> tuple[Batching, BatchingOptions] | None:
        """As `Loader`."""

    def load(self) -> Servable:
        """Load the version.

        Raises:
            LoadError: The directory or model is unusable; the message says the reason and the remedy.
        """

    def warm_up(self, servable: Servable) -> None:
        """Replay the version's recorded warm-up requests, if any; called once, before `warm_up_thread`.

        Raises:
            LoadError: A recorded request failed.
        """

    def warm_up_thread(self, servable: Servable) -> None:
        """Run each signature without state writes on made-up inputs; called once in every run thread.

        Errors of made-up inputs are ignored: real inputs may still succeed.
        """

    def unchanged(self) -> bool:
        """Whether the version's directory is unchanged since before `load`; called after warm-up."""

    def unload(self, servable: Servable | None) -> None:
        """Drop the version's resources; `servable` is the result of `load`, or None after a failure."""

    def give_back(self) -> None:
        """Return the memory of dropped versions, of all loaders, to the system: slow, so once for several versions."""


class SlotCall(Protocol[T_co]):
    """Work on a version without a signature's run; called in a run thread."""

    def __call__(self, *, cancellation: Cancellation, timeout: float | None) -> T_co:
        """Do the work; both arguments as for `Servable.run`."""


class Answer(Protocol):
    """The place of a request's outcome: a future, or an object with as much of a future as a predictor needs."""

    def done(self) -> bool:
        """Return whether the outcome is there, or the request was given up."""

    def set_result(self, outputs: Any, /) -> None:
        """Take the outputs by name; not after `done`."""

    def set_exception(self, error: Exception, /) -> None:
        """Take the error; not after `done`."""

    def cancel(self) -> bool:
        """Give the request up; False after `done`."""

    def add_done_callback(self, call: Callable[[object], object], /) -> None:
        """Call `call` in a turn of the loop after `done`."""


class Predictor(Protocol):
    """Runs a loaded version for callers on the loop; direct and batched predictors look the same."""

    def submit(
        self,
        signature: Signature,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> asyncio.Future[dict[str, Array]]:
        """Queue a bound request and return the future of its outputs; loop only, never blocks.

        Cancelling the future gives the request up: a queued request is dropped without a run, and a run is cancelled
        once all requests have gone. At `deadline` (a `loop.time()`) the future fails with DeadlineExceededError. The
        future fails with QueueFullError when a request of higher `priority` takes the place in a full queue.

        Raises:
            QueueFullError: The bounded queue is full of requests with the same or a higher priority.
            InvalidInputError: The request can never be batched (too many rows).
        """

    def submit_to(
        self,
        answer: Answer,
        signature: Signature,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> None:
        """As `submit`, with `answer` in the place of the future. Where `submit_to` raises, `answer` gets no outcome."""

    def submit_call(
        self, call: SlotCall[T], deadline: float | None = None, priority: int = Priority.NORMAL
    ) -> asyncio.Future[T]:
        """Queue a call for a run thread, unbatched; bound, cancellation, deadline and priority as for `submit`.

        Raises:
            QueueFullError: The bounded queue is full.
        """

    def max_batch_rows(self, signature_name: str) -> int:
        """The rows of the largest batch of a signature's requests; 0 where each request has a run of its own."""

    @property
    def trouble(self) -> str | None:
        """Why requests to the loaded version are refused; None for a healthy version."""

    def abort(self, error: Callable[[ServableId], ServingError] | None = None) -> None:
        """Fail all unfinished and all further requests, when there is no time to wait.

        Args:
            error: Makes the error of each request; None reports a left registry.
        """

    async def aclose(self) -> None:
        """Wait for the end of all submitted requests; call after the last handle was released."""

    def statistics(self) -> object:
        """A frozen snapshot of the queue, for `ModelRegistry.statistics`."""
