"""A counted hold on a loaded version: bind, predict and pick outputs.

Decode, predict and encode of a request happen under a single handle, so that the request sees exactly one version. The
module knows no wire and no directory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from embedserve.call_record import CallTiming
from embedserve.concurrency.owner_loop import blocking
from embedserve.errors import Code, RegistryStateError, ServingError, SignatureNotFoundError, UnsupportedError
from embedserve.lifecycle.managed_version import ManagedVersion
from embedserve.priority import PriorityName, priority_named
from embedserve.servable import Array, Call, Servable, Tensors
from embedserve.signature import DEFAULT_SIGNATURE, Signature

if TYPE_CHECKING:
    import numpy as np

    from embedserve.config import RegistryOptions
    from embedserve.observer import Observers
    from embedserve.request_log import ModelLog, RequestLogs
    from embedserve.servable import ServableId
    from embedserve.tfs.examples import Classifications, Example, InferenceTask

__all__ = ["Acquisition", "ModelHandle", "Submission", "unknown_signature"]


logger = logging.getLogger("embedserve")

T = TypeVar("T")


class Entry(Protocol):
    """An entered registry, with the methods needed by a handle."""

    options: RegistryOptions
    request_logs: RequestLogs

    def resolve(self, name: str, version: int | None, label: str | None) -> ManagedVersion:
        """Return the version for a model spec."""

    def on_loop(self) -> bool:
        """Return whether the caller runs on the registry's loop."""

    async def bridge(self, call: Coroutine[object, None, T]) -> T:
        """Run a coroutine on the registry's loop for a caller on a foreign loop."""

    def call_sync(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call on the registry's loop and block the calling thread until the result."""

    def call_soon(self, call: Callable[[], object]) -> None:
        """Run `call` on the registry's loop, from any thread."""

    def deadline(self, timeout: float) -> float | None:
        """Return the loop's time after `timeout` seconds; None for infinity."""

    async def predict_held(self, version: ManagedVersion, call: Call, inputs: object) -> dict[str, Array]:
        """Bind, run and return a request on a version; the version is held during the call."""

    def run_bound(
        self,
        version: ManagedVersion,
        signature: Signature,
        bound: Tensors,
        names: tuple[str, ...] | None,
        timeout: float | None,
        priority: PriorityName,
    ) -> Awaitable[dict[str, Array]]:
        """Run a bound request on a version; the caller holds the version until the answer."""

    def submit(self, version: ManagedVersion, signature: Signature, bound: Tensors, submission: Submission) -> None:
        """As `run_bound`, with the outcome for `submission`."""


class Submission:
    """A request whose outcome comes by a call on the loop: no future and no task is made. A subclass takes the outcome.

    Args:
        timeout: Seconds until DeadlineExceededError; None sets no bound.
        priority: As for `ModelRegistry.predict`.
        output_names: The result of the signature's `pick`; None for every output.
    """

    __slots__ = ("_done", "_observed", "_watching", "output_names", "priority", "timeout")

    def __init__(
        self,
        timeout: float | None = None,
        priority: PriorityName = "normal",
        output_names: tuple[str, ...] | None = None,
    ) -> None:
        self.timeout = timeout
        self.priority = priority
        self.output_names = output_names
        self._done = False
        self._observed: tuple[Observers, ServableId, str, asyncio.AbstractEventLoop, float] | None = None
        self._watching: tuple[Callable[[Any], object], ...] = ()

    def answered(self, outputs: dict[str, Array]) -> None:
        """Take the outputs; must not raise, and must not block."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Take the error, in a later turn of the loop; must not raise."""
        raise NotImplementedError

    def cancel(self) -> bool:
        """Give the request up: `answered` and `failed` are not called any more. False after the outcome."""
        if self._done:
            return False
        self._end(ServingError("the caller gave the request up", code=Code.CANCELLED))
        return True

    # As much of a future as `servable.Answer` asks for.

    def done(self) -> bool:
        """As `servable.Answer.done`."""
        return self._done

    def set_result(self, outputs: dict[str, Array]) -> None:
        """As `servable.Answer.set_result`."""
        self._done = True
        if self._observed is not None:
            self._tell_observers(None)
        if self._watching:
            self._tell_watchers()
        try:
            self.answered(outputs)
        except Exception:  # A bug: further requests of the batch wait for their answers.
            logger.exception("the answer to a request was lost")

    def set_exception(self, error: Exception) -> None:
        """As `servable.Answer.set_exception`; the failing queue is left in peace, so `failed` comes later."""
        self._end(error)
        asyncio.get_running_loop().call_soon(self.failed, error)

    def add_done_callback(self, call: Callable[[Any], object]) -> None:
        """As `servable.Answer.add_done_callback`."""
        self._watching = (*self._watching, call)

    def _end(self, error: Exception | None) -> None:
        self._done = True
        if self._observed is not None:
            self._tell_observers(error)
        self._tell_watchers()

    def observe(
        self, observers: Observers, id: ServableId, signature_name: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Tell the observers of the end; for the registry, before the request is queued."""
        self._observed = observers, id, signature_name, loop, loop.time()

    def _tell_observers(self, error: Exception | None) -> None:
        assert self._observed is not None
        observers, id, signature_name, loop, began = self._observed
        observers.run_finished(id, signature_name, loop.time() - began, error)

    def _tell_watchers(self) -> None:
        for call in self._watching:
            asyncio.get_running_loop().call_soon(call, self)


class ModelHandle:
    """Keeps a version loaded until `release`. Hold a handle for a request or a burst of requests, not longer.

    A handle is a context manager with a synchronous release. Use the handle on the registry's loop, or from any thread
    after `acquire_sync`. A released handle raises RegistryStateError.
    """

    __slots__ = ("_released", "_runtime", "_servable", "_version", "name", "signatures", "version")

    def __init__(self, runtime: Entry, version: ManagedVersion) -> None:
        assert version.servable is not None, f"{version!r} is not loaded"
        version.hold()
        self._runtime = runtime
        self._version = version
        self._servable = version.servable
        self._released = False
        self.name = version.id.name
        self.version = version.id.version
        self.signatures: Mapping[str, Signature] = version.signatures

    def __repr__(self) -> str:
        return f"<ModelHandle {self.name} version {self.version}{' (released)' if self._released else ''}>"

    @property
    def servable(self) -> Servable:
        """The loaded version, for adapters with needs beyond `predict`."""
        self._check()
        return self._servable

    @property
    def signature_defs(self) -> Mapping[str, Any]:
        """Every `SignatureDef` proto of the SavedModel by name."""
        return self.servable.signature_defs

    def signature(self, name: str = DEFAULT_SIGNATURE) -> Signature:
        """Return the signature with the name; empty means `serving_default`.

        Raises:
            SignatureNotFoundError: The name is absent in the version.
        """
        try:
            return self.signatures[name or DEFAULT_SIGNATURE]
        except (KeyError, TypeError):
            raise unknown_signature(name, self.signatures, self._servable.signature_defs) from None

    def why_absent(self, signature_name: str) -> str:
        """Return a sentence, after a blank, on why a signature of the model cannot be called; empty without a reason.

        Adapters add the sentence to their own message for an unknown signature.
        """
        return _why_absent(signature_name or DEFAULT_SIGNATURE, self.signature_defs)

    def max_batch_rows(self, signature: Signature) -> int:
        """Return the rows of the largest batch of a signature's requests; 0 where requests are not batched."""
        self._check()
        predictor = self._version.predictor
        return 0 if predictor is None else predictor.max_batch_rows(signature.name)

    async def predict(
        self,
        inputs: object,
        *,
        signature_name: str = DEFAULT_SIGNATURE,
        output_filter: Sequence[str] | None = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
        cast: bool = True,
        timing: CallTiming | None = None,
    ) -> dict[str, Array]:
        """Answer a request on the held version; arguments, result and errors as `ModelRegistry.predict`.

        `cast=False` refuses arrays of undeclared dtypes, as TF Serving does.
        """
        self._check()
        call = Call(self.name, self.version, None, signature_name, output_filter, timeout, priority, cast, timing)
        answer = self._runtime.predict_held(self._version, call, inputs)
        return await (answer if self._runtime.on_loop() else self._runtime.bridge(answer))

    predict_sync = blocking(predict)

    def run(
        self,
        signature: Signature,
        bound: Tensors,
        output_names: tuple[str, ...] | None = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> Awaitable[dict[str, Array]]:
        """Run inputs bound by `signature.bind`; for adapters, on the registry's loop.

        As `predict` without the binding: await the answer while the handle is held.

        Args:
            signature: A member of the handle's `signatures`.
            bound: The result of the signature's `bind`.
            output_names: The result of the signature's `pick`; None for every output.
            timeout: Seconds until DeadlineExceededError; None sets no bound.
            priority: As for `predict`.

        Raises:
            QueueFullError, DeadlineExceededError, InferenceError: As `predict`.
        """
        self._check()
        return self._runtime.run_bound(self._version, signature, bound, output_names, timeout, priority)

    def submit(self, signature: Signature, bound: Tensors, submission: Submission) -> None:
        """As `run`, for a caller without a coroutine: `submission` takes the outcome while the handle is held.

        Args:
            signature: A member of the handle's `signatures`.
            bound: The result of the signature's `bind`.
            submission: New; takes a single outcome. Where `submit` raises, `submission` gets no outcome.

        Raises:
            QueueFullError, DeadlineExceededError: As `predict`, at once; all further errors go to `submission`.
        """
        if self._released:
            self._check()
        self._runtime.submit(self._version, signature, bound, submission)

    async def classify(
        self,
        examples: Sequence[Example],
        *,
        context: Example | None = None,
        signature_name: str = DEFAULT_SIGNATURE,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[list[tuple[bytes, float]]]:
        """Classify `tf.Example`s (protos or bytes): a list of (label, score) pairs for each example.

        Raises:
            InvalidInputError: The signature, the examples or the result do not fit a classifier.
        """
        from embedserve.tfs import examples as tf_example

        return await tf_example.classify(
            self,
            examples,
            context,
            signature_name,
            timeout,
            priority=priority,
            check_method_name=self._checks_method_names,
        )

    classify_sync = blocking(classify)

    async def regress(
        self,
        examples: Sequence[Example],
        *,
        context: Example | None = None,
        signature_name: str = DEFAULT_SIGNATURE,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> Array:
        """Regress `tf.Example`s (protos or bytes): float32, shape `[examples]`.

        Raises:
            InvalidInputError: The signature, the examples or the result do not fit a regressor.
        """
        from embedserve.tfs import examples as tf_example

        return await tf_example.regress(
            self,
            examples,
            context,
            signature_name,
            timeout,
            priority=priority,
            check_method_name=self._checks_method_names,
        )

    regress_sync = blocking(regress)

    async def multi_inference(
        self,
        tasks: Sequence[InferenceTask],
        examples: Sequence[Example],
        *,
        context: Example | None = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[Classifications | Array]:
        """Evaluate several signatures on the same `tf.Example`s: the result of `classify` or `regress` for each task.

        Raises:
            InvalidInputError: As `classify` and `regress`, or a signature is unknown or requested twice.
            UnsupportedError: A task is neither a classification nor a regression.
        """
        from embedserve.tfs import examples as tf_example

        return await tf_example.multi_inference(
            self,
            tasks,
            examples,
            context,
            timeout,
            priority=priority,
            check_method_name=self._checks_method_names,
        )

    multi_inference_sync = blocking(multi_inference)

    async def run_graph(
        self,
        feeds: Tensors,
        fetches: Sequence[str],
        targets: Sequence[str] = (),
        *,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[Array]:
        """Feed and fetch any tensors of a graph session and run the ops `targets`, in a run thread.

        Args:
            feeds: Arrays by tensor name, in the tensors' dtypes.
            fetches: Names of the tensors to return, in order of the result.
            targets: Names of operations to run besides.
            timeout: Seconds. Only the timeout ends a session's run early: a cancelled run goes on in the thread.

        Raises:
            UnsupportedError: The version does not run in a graph session.
            InvalidInputError: As `check_graph`.
            QueueFullError, DeadlineExceededError, InferenceError: As `predict`.
        """
        self._check()
        runtime, version = self._runtime, self._version
        if not runtime.on_loop():
            return await runtime.bridge(self.run_graph(feeds, fetches, targets, timeout=timeout, priority=priority))
        run_graph = self._of_graph("run_graph")
        assert version.predictor is not None
        version.hold()
        try:
            deadline = None if timeout is None else runtime.deadline(timeout)
            call = partial(run_graph, feeds, fetches, targets)
            return await version.predictor.submit_call(call, deadline, priority_named(priority))
        finally:
            version.release()

    run_graph_sync = blocking(run_graph)

    def check_graph(
        self,
        feeds: Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]],
        fetches: Sequence[str],
        targets: Sequence[str] = (),
    ) -> None:
        """Check the arguments of `run_graph` before the values of the feeds are read; in any thread.

        Args:
            feeds: Dtype and shape by tensor name.
            fetches, targets: As for `run_graph`.

        Raises:
            UnsupportedError: The version does not run in a graph session.
            InvalidInputError: A name is unknown, or a feed does not fit the tensor. Also refused are operations outside
                every signature's run that could write state or files, or open files named by a feed.
            RequestTooLargeError: The number of different choices of feeds, fetches and targets exceeds the limit.
        """
        self._check()
        self._of_graph("check_graph")(feeds, fetches, targets)

    def _of_graph(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = getattr(self._servable, name, None)
        if method is None:
            raise UnsupportedError(
                f"version {self.version} of {self.name} runs as {self._servable.kind!r}; only a model that runs in a "
                'graph session has a graph to feed: set servable="session" for this model'
            )
        return method

    @property
    def _checks_method_names(self) -> bool:
        return self._runtime.options.enable_signature_method_name_check

    def request_log(self) -> ModelLog | None:
        """Return the log for a request answered under the handle, or None for an unlogged request. For adapters.

        Each call draws anew from the model's `sampling_rate`: call once per answer, on the registry's loop.
        """
        logs = self._runtime.request_logs
        return logs.sampled(self.name) if logs else None

    def _sync(self, call: Callable[[], Awaitable[T]]) -> T:
        self._check()
        return self._runtime.call_sync(call)

    def _check(self) -> None:
        if self._released:
            raise RegistryStateError(
                f"the handle on {self.name} version {self.version} was released; acquire a new one"
            )

    def release(self) -> None:
        """Release the version; synchronous, not cancellable, harmless when repeated."""
        if self._released:
            return
        self._released = True
        if self._runtime.on_loop():
            self._version.release()
        else:
            self._runtime.call_soon(self._version.release)

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def unknown_signature(
    name: str, signatures: Mapping[str, Signature], signature_defs: Mapping[str, Any]
) -> SignatureNotFoundError:
    """Return the error for an uncallable signature: the reason, if known, and the callable signatures."""
    name = name or DEFAULT_SIGNATURE
    if not isinstance(name, str):
        return SignatureNotFoundError(f"signature_name must be a string, got {name!r}")
    known = ", ".join(sorted(signatures)) or "none"
    return SignatureNotFoundError(
        f'Serving signature key "{name}" not found.{_why_absent(name, signature_defs)} Available signatures: {known}'
    )


def _why_absent(name: str, signature_defs: Mapping[str, Any]) -> str:
    if name not in signature_defs:
        return ""
    from embedserve.saved_model.files.meta_graph import why_not_callable

    reason = why_not_callable(name, signature_defs[name])
    return f" The model has it, and it cannot be called: {reason}." if reason else ""


class Acquisition:
    """The result of `ModelRegistry.acquire`: an async context manager to hold a version, on any loop.

    A cancelled caller leaves no handle behind.
    """

    __slots__ = ("_handle", "_runtime", "_spec")

    def __init__(self, runtime: Callable[[], Entry], *spec: Any) -> None:
        self._runtime = runtime
        self._spec = spec
        self._handle: ModelHandle | None = None

    async def __aenter__(self) -> ModelHandle:
        runtime = self._runtime()
        if runtime.on_loop():
            self._handle = ModelHandle(runtime, runtime.resolve(*self._spec))
            return self._handle
        acquired: ModelHandle | None = None
        left = False

        async def acquire() -> ModelHandle:
            nonlocal acquired
            if left:
                raise asyncio.CancelledError
            acquired = ModelHandle(runtime, runtime.resolve(*self._spec))
            return acquired

        def leave() -> None:
            nonlocal left
            left = True
            if acquired is not None:
                acquired.release()

        try:
            self._handle = await runtime.bridge(acquire())
        except asyncio.CancelledError:
            # The handle may be in transit, or not acquired yet: asyncio starts even a coroutine cancelled before the
            # first step.
            runtime.call_soon(leave)
            raise
        return self._handle

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.release()
