"""A counted hold on one loaded version: what a request binds, predicts and picks outputs with.

Made by the registry only. Decode, predict and encode of one request happen under one handle, so that the request sees
exactly one version. Knows no wire and no directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from embedserve.errors import RegistryStateError, SignatureNotFoundError, UnsupportedError
from embedserve.lifecycle.managed_version import ManagedVersion
from embedserve.priority import PriorityName, priority_named
from embedserve.servable import Array, Servable, Tensors
from embedserve.signature import DEFAULT_SIGNATURE, Signature

if TYPE_CHECKING:
    import numpy as np

    from embedserve.config import RegistryOptions
    from embedserve.request_log import ModelLog, RequestLogs
    from embedserve.tfs.examples import Classifications, InferenceTask

__all__ = ["Acquisition", "ModelHandle", "unknown_signature"]


T = TypeVar("T")


class Entry(Protocol):
    """One entry of a registry, as far as a handle knows it."""

    options: RegistryOptions
    request_logs: RequestLogs

    def resolve(self, name: str, version: int | None, label: str | None) -> ManagedVersion:
        """The version that answers a model spec."""

    def on_loop(self) -> bool:
        """Whether the caller runs on the registry's loop."""

    async def bridge(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the registry's loop for a caller on another."""

    def call_sync(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call on the registry's loop for a thread that waits."""

    def call_soon(self, call: Callable[[], object]) -> None:
        """Run `call` on the registry's loop, from any thread."""

    def deadline(self, timeout: float) -> float | None:
        """The loop's time after `timeout` seconds; None for infinity."""

    async def predict_on(
        self,
        version: ManagedVersion,
        inputs: Any,
        signature_name: str,
        output_filter: Sequence[str] | None,
        timeout: float | None,
        cast: bool,
        priority: PriorityName,
    ) -> dict[str, Array]:
        """Bind, run and return one request on a version, which is held meanwhile."""

    def run_bound(
        self,
        version: ManagedVersion,
        signature: Signature,
        bound: Tensors,
        names: tuple[str, ...] | None,
        timeout: float | None,
        priority: PriorityName,
    ) -> Awaitable[dict[str, Array]]:
        """Run one bound request on a version that the caller holds until it has the answer."""


class ModelHandle:
    """Keeps one version loaded while it is held. Hold it for one request, or one burst of them, not longer.

    Usable as `with` (release is synchronous) on the registry's loop, and from any thread when it came from
    `acquire_sync`. A released handle raises RegistryStateError.
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
        """The loaded version itself, for adapters that need more than `predict`."""
        self._check()
        return self._servable

    @property
    def signature_defs(self) -> Mapping[str, Any]:
        """Every `SignatureDef` proto of the SavedModel by name."""
        return self.servable.signature_defs

    def signature(self, name: str = DEFAULT_SIGNATURE) -> Signature:
        """The signature of that name; empty means `serving_default`.

        Raises:
            SignatureNotFoundError: The version has no such signature.
        """
        try:
            return self.signatures[name or DEFAULT_SIGNATURE]
        except (KeyError, TypeError):
            raise unknown_signature(name, self.signatures, self._servable.signature_defs) from None

    def why_absent(self, signature_name: str) -> str:
        """A sentence, after a blank, on why a signature of the model cannot be called; empty if there is none such.

        For adapters, which have words of their own for a signature that is not found.
        """
        return _why_absent(signature_name or DEFAULT_SIGNATURE, self.signature_defs)

    async def predict(
        self,
        inputs: Any,
        *,
        signature_name: str = DEFAULT_SIGNATURE,
        output_filter: Sequence[str] | None = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
        cast: bool = True,
    ) -> dict[str, Array]:
        """Answer one request on this version; arguments, result and errors as `ModelRegistry.predict`.

        `cast=False` refuses arrays of another dtype than the declared one, as TF Serving does.
        """
        self._check()
        if not self._runtime.on_loop():
            return await self._runtime.bridge(
                self.predict(
                    inputs,
                    signature_name=signature_name,
                    output_filter=output_filter,
                    timeout=timeout,
                    priority=priority,
                    cast=cast,
                )
            )
        return await self._runtime.predict_on(
            self._version, inputs, signature_name, output_filter, timeout, cast, priority
        )

    def run(
        self,
        signature: Signature,
        bound: Tensors,
        output_names: tuple[str, ...] | None = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> Awaitable[dict[str, Array]]:
        """Run inputs that `signature.bind` has returned; for adapters, on the registry's loop.

        As `predict` without the binding: await the answer while the handle is held.

        Args:
            signature: One of this handle's `signatures`.
            bound: What its `bind` returned.
            output_names: What its `pick` returned; None for every output.
            timeout: Seconds until DeadlineExceededError; None waits as long as it takes.
            priority: As for `predict`.

        Raises:
            QueueFullError, DeadlineExceededError, InferenceError: As `predict`.
        """
        self._check()
        return self._runtime.run_bound(self._version, signature, bound, output_names, timeout, priority)

    def predict_sync(
        self,
        inputs: Any,
        *,
        signature_name: str = DEFAULT_SIGNATURE,
        output_filter: Sequence[str] | None = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
        cast: bool = True,
    ) -> dict[str, Array]:
        """As `predict`, from any thread but the registry's loop.

        Raises:
            RegistryStateError: Called on the registry's own loop, which it would block for ever.
        """
        return self._sync(
            lambda: self.predict(
                inputs,
                signature_name=signature_name,
                output_filter=output_filter,
                timeout=timeout,
                priority=priority,
                cast=cast,
            )
        )

    async def classify(
        self,
        examples: Sequence[Any],
        *,
        context: Any = None,
        signature_name: str = DEFAULT_SIGNATURE,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[list[tuple[bytes, float]]]:
        """Classify `tf.Example`s (protos or their bytes): for each example its (label, score) pairs.

        Raises:
            InvalidInputError: The signature, the examples or the result are not those of a classifier.
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

    def classify_sync(
        self,
        examples: Sequence[Any],
        *,
        context: Any = None,
        signature_name: str = DEFAULT_SIGNATURE,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[list[tuple[bytes, float]]]:
        """As `classify`, from any thread but the registry's loop."""
        return self._sync(
            lambda: self.classify(
                examples, context=context, signature_name=signature_name, timeout=timeout, priority=priority
            )
        )

    async def regress(
        self,
        examples: Sequence[Any],
        *,
        context: Any = None,
        signature_name: str = DEFAULT_SIGNATURE,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> Array:
        """Regress `tf.Example`s (protos or their bytes): float32, shape `[examples]`.

        Raises:
            InvalidInputError: The signature, the examples or the result are not those of a regressor.
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

    def regress_sync(
        self,
        examples: Sequence[Any],
        *,
        context: Any = None,
        signature_name: str = DEFAULT_SIGNATURE,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> Array:
        """As `regress`, from any thread but the registry's loop."""
        return self._sync(
            lambda: self.regress(
                examples, context=context, signature_name=signature_name, timeout=timeout, priority=priority
            )
        )

    async def multi_inference(
        self,
        tasks: Sequence[InferenceTask],
        examples: Sequence[Any],
        *,
        context: Any = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[Classifications | Array]:
        """Evaluate several signatures on the same `tf.Example`s: for each task what `classify` or `regress` gives.

        Raises:
            InvalidInputError: As those, or a signature is unknown or asked for twice.
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

    def multi_inference_sync(
        self,
        tasks: Sequence[InferenceTask],
        examples: Sequence[Any],
        *,
        context: Any = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[Classifications | Array]:
        """As `multi_inference`, from any thread but the registry's loop."""
        return self._sync(
            lambda: self.multi_inference(tasks, examples, context=context, timeout=timeout, priority=priority)
        )

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
            fetches: Names of the tensors to return, in that order.
            targets: Names of operations to run besides.
            timeout: Seconds. A session's run ends early only by this: after a cancellation it goes on in its thread.

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

    def check_graph(
        self,
        feeds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
        fetches: Sequence[str],
        targets: Sequence[str] = (),
    ) -> None:
        """Check what `run_graph` would be asked for, before the values of the feeds are read; in any thread.

        Args:
            feeds: Dtype and shape by tensor name.
            fetches, targets: As for `run_graph`.

        Raises:
            UnsupportedError: The version does not run in a graph session.
            InvalidInputError: A name that is not there, a feed that does not fit its tensor, or an operation that could
                write state or files, or open files that a feed names, and that no signature's own run reaches.
            RequestTooLargeError: Too many different choices of feeds, fetches and targets.
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

    def run_graph_sync(
        self,
        feeds: Tensors,
        fetches: Sequence[str],
        targets: Sequence[str] = (),
        *,
        timeout: float | None = None,
        priority: PriorityName = "normal",
    ) -> list[Array]:
        """As `run_graph`, from any thread but the registry's loop."""
        return self._sync(lambda: self.run_graph(feeds, fetches, targets, timeout=timeout, priority=priority))

    @property
    def _checks_method_names(self) -> bool:
        return self._runtime.options.enable_signature_method_name_check

    def request_log(self) -> ModelLog | None:
        """Where to log a request that was answered under this handle; None when it is not to be logged. For adapters.

        Each call draws anew from the model's `sampling_rate`: ask once for each answer, on the registry's loop.
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
        """Let the version go; synchronous, cannot be cancelled, harmless when repeated."""
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
    """The error for a signature that cannot be called: why, where the model has it, and those that can be."""
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
    """What `ModelRegistry.acquire` returns: an async context manager that holds one version, on any loop.

    A caller that is cancelled on the way leaves no handle behind.
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
            # The handle may be on its way here, or yet to be acquired: asyncio starts what was cancelled too early.
            runtime.call_soon(leave)
            raise
        return self._handle

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.release()
