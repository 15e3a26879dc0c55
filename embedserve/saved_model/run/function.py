"""Servable over `tf.saved_model.load`: a direct call of the signature's function per run.

A run can be stopped in the middle. The module knows no batching.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from embedserve.errors import Code, DeadlineExceededError
from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.run import run_time, unset_state
from embedserve.saved_model.run.arrays import owned, private_copies
from embedserve.saved_model.run.one_at_a_time import OneAtATime
from embedserve.saved_model.status import RUN_ERRORS, code_of, inference_error
from embedserve.servable import Array, Cancellation, Tensors
from embedserve.signature import Signature
from embedserve.tfs.constants import TIMED_OUT

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

    from embedserve.saved_model.tensorflow_types import ConcreteFunction, Tensor

__all__ = ["Deadlines", "FunctionServable", "TimedRun"]

# Kept kernels of unloaded models before all are dropped. TensorFlow keeps the kernel of each inline signature: 50-150
# KB per kernel.
_MAX_KEPT_KERNELS = 256

# Seconds between two checks of the timed runs: the largest delay of a stop.
_TICK = 0.02
# Seconds without a timed run after which the watching thread ends.
_IDLE = 1.0


class TimedRun:
    """A run with its end time on the monotonic clock."""

    __slots__ = ("ends_at", "expired", "stop")

    def __init__(self, timeout: float) -> None:
        self.ends_at = time.monotonic() + timeout
        self.stop: Callable[[], None] | None = None
        self.expired = False


class Deadlines:
    """The current timed runs, and a thread that stops expired runs; the thread lives only while timed runs exist.

    TensorFlow bounds only runs of sessions. The event loop answers a waiting caller on time; a stopped run frees its
    thread.
    """

    def __init__(self) -> None:
        self._runs: set[TimedRun] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Deadlines of {len(self._runs)} runs>"

    def add(self, run: TimedRun) -> None:
        """Watch a run; `run.stop` is called at the end of the run's time. A `TimedRun` is added once."""
        with self._lock:
            self._runs.add(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="embedserve-deadlines", daemon=True)
                self._thread.start()

    def remove(self, run: TimedRun) -> None:
        """Forget a run that has ended."""
        with self._lock:
            self._runs.discard(run)

    def _watch(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(_TICK)
            now = time.monotonic()
            with self._lock:
                expired = [run for run in self._runs if run.ends_at <= now]
                self._runs.difference_update(expired)
                if self._runs or expired:
                    idle_since = now
                elif now - idle_since > _IDLE:
                    self._thread = None
                    return
            for run in expired:
                run.expired = True
                if run.stop is not None:
                    run.stop()


_DEADLINES = Deadlines()


class FunctionServable:
    """A version as TensorFlow functions, from load to `close`."""

    kind = "function"

    def __init__(
        self,
        path: Path,
        tags: Iterable[str],
        signatures: Mapping[str, Signature],
        signature_defs: Mapping[str, SignatureDef] = MappingProxyType({}),
        *,
        inline: bool = True,
        overwriting: frozenset[str] = frozenset(),
        reads_files_at_run_time: bool = False,
    ) -> None:
        """Load the model.

        Args:
            path: Version directory.
            tags: Tag set of the MetaGraph.
            signatures: Signatures to serve.
            signature_defs: Protos of the signatures, with uncallable signatures.
            inline: Whether short runs may use kernels that TensorFlow keeps, constants included.
            overwriting: Signatures whose runs follow each other; see `OneAtATime`.
            reads_files_at_run_time: As in `Servable`.

        Raises:
            LookupError: A lifted signature differs from the stored signature, or is missing.
            Exception: Any error of `tf.saved_model.load`.
        """
        with tensorflow_private.quiet_loading():
            self._loaded: Any = tf.saved_model.load(str(path), tags=sorted(tags))
        self._inline = inline
        self._one_at_a_time = OneAtATime(overwriting)
        self.signatures = signatures
        self.signature_defs = signature_defs
        self.reads_files_at_run_time = reads_files_at_run_time
        lifted = self._loaded.signatures
        absent = sorted(set(signatures) - set(lifted))
        if absent:
            raise LookupError(f"signatures {', '.join(absent)} were not lifted")
        self._functions = {name: _SignatureFunction(lifted[name], signature) for name, signature in signatures.items()}

    def __repr__(self) -> str:
        return f"<FunctionServable {', '.join(self.signatures) or 'without signatures'}>"

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run a signature; see `Servable.run`. A cancelled run ends with code CANCELLED."""
        function = self._functions[signature_name]
        arrays = [inputs[name] for name in function.arguments]
        if not function.stateless:
            arrays = private_copies(arrays)
        try:
            if signature_name in self._one_at_a_time.names:
                values = self._one_at_a_time.run(lambda left: _call(function.call, arrays, cancellation, left), timeout)
            else:
                values = _call(function.call, arrays, cancellation, timeout)
        except RUN_ERRORS as error:
            raise inference_error(error) from None
        if output_names is None:
            return {name: owned(value, dtype) for (name, dtype), value in zip(function.outputs, values, strict=True)}
        wanted = frozenset(output_names)
        return {
            name: owned(value, dtype)
            for (name, dtype), value in zip(function.outputs, values, strict=True)
            if name in wanted
        }

    @property
    def inline(self) -> Collection[str]:
        """As in `Servable`."""
        return {name for name, one in self._functions.items() if one.inline} - self._one_at_a_time.names

    def choose_threads(self, signature_name: str, inputs: Tensors) -> float:
        """Measure a run, and choose the caller's own thread for short runs.

        Args:
            signature_name: A stateless signature.
            inputs: Bound inputs of about a request's size that the signature takes.

        Returns:
            Seconds of the fastest run.
        """
        function = self._functions[signature_name]
        arrays = [inputs[name] for name in function.arguments]
        seconds = run_time.fastest(lambda: function.call(arrays, None))
        if self._inline and seconds < run_time.SHORT_RUN:
            function.run_inline()
        return seconds

    def check_state(self, *, partly: bool) -> None:
        """Make sure that no signature of a TensorFlow 1 model reads an unset variable or table.

        Args:
            partly: Only warn where some signature reads no unset state.

        Raises:
            UnsetStateError: A signature would read unset state.
        """
        model = self._loaded
        unset_state.check(
            model.graph, lambda tensors: model.prune([], tensors)(), self.signatures.values(), partly=partly
        )

    @property
    def captured_inputs(self) -> dict[str, Sequence[Tensor]]:
        """Captured variables and tables of each signature's function, by the name of an output tensor."""
        return {
            next(iter(self.signatures[name].outputs.values())).tensor_name: function.captured_inputs
            for name, function in self._functions.items()
            if self.signatures[name].outputs
        }

    def close(self) -> None:
        """Drop the functions with variables and tables."""
        _kept_kernels.add(sum(function.inline for function in self._functions.values()))
        self._functions = {}
        self._loaded = None


class _KeptKernels:
    """Counts kernels of unloaded models that TensorFlow keeps, and drops the kernels at `_MAX_KEPT_KERNELS`."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._count += count
            if self._count < _MAX_KEPT_KERNELS:
                return
            self._count = 0
        tensorflow_private.forget_kernels()


_kept_kernels = _KeptKernels()


class _SignatureFunction:
    """A signature's call, with the order of inputs and outputs."""

    __slots__ = ("_function", "arguments", "call", "inline", "outputs", "stateless")

    def __init__(self, function: ConcreteFunction, signature: Signature) -> None:
        self.arguments = tensorflow_private.argument_names(function)
        # TensorFlow flattens a dict of outputs in the order of its sorted keys.
        names: list[str] = []
        for alias in sorted(function.structured_outputs):
            composite = signature.composites.get(alias)
            names += [alias] if composite is None else [name for _, name in composite.parts]
        if sorted(self.arguments) != sorted(signature.inputs) or set(names) != set(signature.outputs):
            raise LookupError(
                f"signature {signature.name!r} was lifted as ({', '.join(self.arguments)}) -> {', '.join(names)}, "
                f"stored is {signature}"
            )
        if len(names) != len(function.outputs):
            raise LookupError(f"signature {signature.name!r} was lifted with {len(function.outputs)} outputs")
        self.outputs = [(name, signature.outputs[name].dtype.numpy) for name in names]
        self.stateless = signature.stateless
        self._function = function
        self.call = tensorflow_private.function_call(function)
        self.inline = False

    @property
    def captured_inputs(self) -> Sequence[Tensor]:
        return list(self._function.captured_inputs)

    def run_inline(self) -> None:
        """Run in the caller's thread from now on, where TensorFlow's interface allows."""
        self.call = tensorflow_private.function_call(self._function, inline=True)
        self.inline = isinstance(self.call, tensorflow_private.CancellableCall)


def _call(
    call: tensorflow_private.FunctionCall,
    arrays: Sequence[Array],
    cancellation: Cancellation | None,
    timeout: float | None,
) -> list[object]:
    if timeout is not None:
        return _timed_call(call, arrays, cancellation, timeout)
    if cancellation is None:
        return call(arrays, None)
    try:
        return call(arrays, cancellation.on_cancel)
    finally:
        cancellation.on_cancel(None)


def _timed_call(
    call: tensorflow_private.FunctionCall, arrays: Sequence[Array], cancellation: Cancellation | None, timeout: float
) -> list[object]:
    if timeout <= 0:
        raise DeadlineExceededError(TIMED_OUT)
    timed = TimedRun(timeout)

    def started(stop: Callable[[], None]) -> None:
        timed.stop = stop
        _DEADLINES.add(timed)
        if cancellation is not None:
            cancellation.on_cancel(stop)

    try:
        return call(arrays, started)
    except tf.errors.OpError as error:
        if timed.expired and code_of(error) is Code.CANCELLED:
            raise DeadlineExceededError(TIMED_OUT) from None
        raise
    finally:
        if cancellation is not None:
            cancellation.on_cancel(None)
        _DEADLINES.remove(timed)
