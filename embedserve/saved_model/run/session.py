"""Servable over a graph session: for versions that run faster in a session, hold large constants, or cannot be lifted.

A time limit can stop a run, a cancellation cannot. The module knows no batching.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import tensorflow as tf

from embedserve.errors import Code, DeadlineExceededError, InferenceError, InvalidInputError, RequestTooLargeError
from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.files.graph import GraphReader
from embedserve.saved_model.run import run_time
from embedserve.saved_model.run.arrays import owned, private_copies
from embedserve.saved_model.run.one_at_a_time import OneAtATime
from embedserve.saved_model.status import RUN_ERRORS, inference_error
from embedserve.servable import Array, Cancellation, Tensors
from embedserve.signature import Signature
from embedserve.tensors import dtypes
from embedserve.tfs.constants import TIMED_OUT

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

    from embedserve.saved_model.tensorflow_types import Graph, Operation, Session, Tensor

__all__ = ["FeedSpec", "Plan", "SessionServable"]

v1 = tf.compat.v1

# Tensor names of the feeds, and of the fetches and targets; an op is written `^name`.
_GraphChoice: TypeAlias = tuple[frozenset[str], frozenset[str]]
_HANDLES = (tf.resource, tf.variant)

# Most output choices per signature. TensorFlow compiles and keeps a graph for each choice of a client.
_MAX_OUTPUT_CHOICES = 32
# Milliseconds, about 25 days: the largest time limit of a run.
_MAX_LIMIT_MS = 2**31 - 1
# Most choices of feeds, fetches and targets. TensorFlow keeps the graph of each choice until the session is closed.
_MAX_GRAPH_CHOICES = 256

FeedSpec: TypeAlias = tuple[np.dtype[np.generic], tuple[int, ...]]
"""The declared dtype and shape of a feed."""


class SessionServable:
    """A version as a graph and the session that runs the graph, from load to `close`."""

    kind = "session"

    def __init__(
        self,
        session: Session,
        signatures: Mapping[str, Signature],
        signature_defs: Mapping[str, SignatureDef] = MappingProxyType({}),
        *,
        looping: frozenset[str] = frozenset(),
        overwriting: frozenset[str] = frozenset(),
        prune: bool = True,
        reads_files_at_run_time: bool = False,
    ) -> None:
        """Take over a session; `close` closes the session.

        Args:
            session: A session from `graph_session`; its graph becomes final.
            signatures: Signatures to serve.
            signature_defs: Protos of the signatures, with uncallable signatures.
            looping: Signatures whose runs may take any time.
            overwriting: Signatures whose runs follow each other; see `OneAtATime`.
            prune: Compute only the requested outputs; each choice costs a copy of the needed constants.
            reads_files_at_run_time: As in `Servable`.
        """
        self.signatures = signatures
        self.signature_defs = signature_defs
        self.reads_files_at_run_time = reads_files_at_run_time
        session.graph.finalize()
        self._session = session
        self._looping = looping
        self._one_at_a_time = OneAtATime(overwriting)
        self._prune = prune
        self._short: set[str] = set()
        self._reader: GraphReader | None = None
        self._choices: set[_GraphChoice] = set()
        self._plans: dict[tuple[str, tuple[str, ...] | None], Plan] = {}
        self._making = threading.Lock()
        self._reading = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self.signatures) or 'without signatures'}>"

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run a signature, and compute only the named outputs; see `Servable.run`.

        TensorFlow cannot stop a session's run, so `cancellation` has no effect after the start of a run. `timeout`
        bounds every run except runs of signatures measured as short.
        """
        if timeout is not None and timeout <= 0:
            raise DeadlineExceededError(TIMED_OUT)
        if cancellation is not None and cancellation.cancelled:
            raise InferenceError("the run was cancelled", code=Code.CANCELLED)
        choice = None if output_names is None else tuple(sorted(output_names))
        plan = self._find_plan(signature_name, choice, inputs)
        arrays = [inputs[name] for name in plan.fed]
        if not plan.stateless:
            arrays = private_copies(arrays)
        try:
            if signature_name in self._one_at_a_time.names:
                values = self._one_at_a_time.run(lambda left: plan.compute(arrays, left), timeout)
            else:
                values = plan.compute(arrays, timeout)
        except RUN_ERRORS as error:
            raise inference_error(error) from None
        outputs = {name: owned(values[index], dtype) for name, dtype, index in plan.fetched}
        for name, source in plan.passed_on:
            outputs[name] = inputs[source].copy()
        if choice is not None and plan.choice is None:
            return {name: outputs[name] for name in choice}
        return outputs

    @property
    def inline(self) -> Collection[str]:
        """As in `Servable`."""
        return self._short - self._one_at_a_time.names

    def choose_threads(self, signature_name: str, inputs: Tensors) -> None:
        """Measure a run in the caller's own thread, and keep to the caller's thread for short runs without loops.

        Args:
            signature_name: A stateless signature.
            inputs: Bound inputs of about a request's size that the signature takes.
        """
        if signature_name in self._looping or tf.config.list_physical_devices("GPU"):
            return
        plan = self._find_plan(signature_name, None, inputs)
        arrays = [inputs[name] for name in plan.fed]
        # A run of twice `SHORT_RUN` in the pool is long in any thread, so a second compiled graph is not needed.
        if plan.fetches and run_time.fastest(lambda: plan.run(arrays, 0)) < 2 * run_time.SHORT_RUN:
            call = tensorflow_private.session_callable(self._session, plan.feeds, plan.fetches)
            if run_time.fastest(lambda: call(*arrays)) < run_time.SHORT_RUN:
                plan.short = call
                self._short.add(signature_name)

    def run_graph(
        self,
        feeds: Tensors,
        fetches: Sequence[str],
        targets: Sequence[str] = (),
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> list[Array]:
        """Feed and fetch any tensors of the graph and run the ops `targets`, for `SessionService.SessionRun`.

        `timeout` bounds every such run; `cancellation` counts only before the start of the run.

        Raises:
            InvalidInputError, RequestTooLargeError: As in `check_graph`.
            InferenceError: With the canonical code of TensorFlow's error.
            DeadlineExceededError: `timeout` passed.
        """
        self.check_graph({name: (array.dtype, array.shape) for name, array in feeds.items()}, fetches, targets)
        graph = self._session.graph
        fed = {_tensor(graph, name).name: array.copy() for name, array in feeds.items()}
        tensors = [_tensor(graph, name) for name in fetches]
        operations = [_operation(graph, name) for name in targets]
        if cancellation is not None and cancellation.cancelled:
            raise InferenceError("the run was cancelled", code=Code.CANCELLED)
        options = v1.RunOptions(timeout_in_ms=_limit(timeout))
        try:
            values, _ = self._session.run((tensors, operations), fed, options=options)
        except RUN_ERRORS as error:
            raise inference_error(error) from None
        return [
            owned(value, dtypes.by_number(tensor.dtype.base_dtype.as_datatype_enum).numpy)
            for value, tensor in zip(values, tensors, strict=True)
        ]

    def check_graph(self, feeds: Mapping[str, FeedSpec], fetches: Sequence[str], targets: Sequence[str] = ()) -> None:
        """Check a request for `run_graph`, before the read of a feed's values; callable from any thread.

        A feed may replace any tensor of the graph, such as the name of a file. So no operation may run that writes
        state or files, opens files that a tensor names, or contacts another machine. Operations of a signature's own
        run are allowed, if only the signature's inputs are fed.

        Raises:
            InvalidInputError: A tensor or op is missing, a feed does not fit its tensor, a tensor has no value, or an
                operation may not run.
            RequestTooLargeError: Too many different choices of feeds, fetches and targets: each choice stays compiled.
        """
        graph = self._session.graph
        fed: set[str] = set()
        for name, declared in feeds.items():
            tensor = _tensor(graph, name)
            _check_feed(tensor, name, declared)
            if tensor.name in fed:
                raise InvalidInputError(f"duplicate feed: {tensor.name}")
            fed.add(tensor.name)
        fetched = {_fetched(graph, name) for name in fetches}
        run = {f"^{_operation(graph, name).name}" for name in targets}
        choice = frozenset(fed), frozenset(fetched | run)
        if choice in self._choices:
            return
        # The reader fills its caches during a read, and half-filled caches hide operations: the lock admits one thread.
        with self._reading:
            if self._reader is None:
                self._reader = GraphReader(v1.MetaGraphDef(graph_def=self._session.graph.as_graph_def()))
            unsafe = self._reader.operations(choice[1], fed).unsafe
            if unsafe is not None and not self._is_within_a_signature(self._reader, *choice):
                raise InvalidInputError(
                    f"SessionRun may not run the graph's {unsafe} operation: it could write state or files, or open "
                    "what a feed names"
                )
            if len(self._choices) >= _MAX_GRAPH_CHOICES:
                raise RequestTooLargeError(
                    f"this version has compiled {_MAX_GRAPH_CHOICES} different choices of feeds, fetches and targets, "
                    "and takes no more"
                )
            self._choices.add(choice)

    def _is_within_a_signature(self, reader: GraphReader, fed: frozenset[str], wanted: frozenset[str]) -> bool:
        """Whether a signature's own run includes all nodes, without further feeds."""
        nodes = reader.reached(wanted, fed)
        for signature in self.signatures.values():
            inputs = {spec.tensor_name for spec in signature.inputs.values()}
            outputs = [spec.tensor_name for spec in signature.outputs.values()]
            if fed <= inputs and nodes <= reader.reached(outputs, inputs):
                return True
        return False

    def close(self) -> None:
        """End the session and drop the graph; current runs fail."""
        self._plans = {}
        self._session.close()
        del self._session

    def _find_plan(self, signature_name: str, choice: tuple[str, ...] | None, inputs: Tensors) -> Plan:
        """The plan for the given inputs; made for the first request of a choice."""
        return self._plans.get((signature_name, choice)) or self._make_plan(signature_name, choice)

    def _make_plan(self, signature_name: str, choice: tuple[str, ...] | None) -> Plan:
        with self._making:
            made = sum(name == signature_name for name, _ in self._plans)
            if not self._prune or made >= _MAX_OUTPUT_CHOICES:
                choice = None
            plan = self._plans.get((signature_name, choice))
            if plan is None:
                plan = Plan(self._session, self.signatures[signature_name], choice)
                if signature_name in self._short and plan.fetches:
                    plan.short = tensorflow_private.session_callable(self._session, plan.feeds, plan.fetches)
                self._plans[signature_name, choice] = plan
            return plan


class Plan:
    """Names and calls to run a choice of a signature's outputs.

    Attributes:
        choice: Outputs computed, None for all.
        stateless: Whether the signature is stateless.
        fed: Input names in the order of the arrays.
        feeds, fetches: Tensor names without repetition: TensorFlow refuses a repeated name.
        fetched: Output name, dtype and index among the fetches.
        passed_on: Output and input names of outputs that equal an input: TensorFlow refuses to fetch an input.
        run: Runs in TensorFlow's pool, with a time limit.
        short: Runs in the caller's thread, without a time limit; None for long runs.
    """

    __slots__ = ("choice", "fed", "feeds", "fetched", "fetches", "passed_on", "run", "short", "stateless")

    def __init__(self, session: Session, signature: Signature, choice: tuple[str, ...] | None) -> None:
        by_tensor = {spec.tensor_name: name for name, spec in signature.inputs.items()}
        specs = [signature.outputs[name] for name in (signature.outputs if choice is None else choice)]
        computed = [spec for spec in specs if spec.tensor_name not in by_tensor]
        self.choice = choice
        self.stateless = signature.stateless
        self.fed = list(by_tensor.values())
        self.feeds = list(by_tensor)
        self.fetches = list(dict.fromkeys(spec.tensor_name for spec in computed))
        self.fetched = [(spec.name, spec.dtype.numpy, self.fetches.index(spec.tensor_name)) for spec in computed]
        self.passed_on = [(spec.name, by_tensor[spec.tensor_name]) for spec in specs if spec not in computed]
        self.run = tensorflow_private.session_run(session, self.feeds, self.fetches)
        self.short: Callable[..., list[object]] | None = None

    def compute(self, arrays: Sequence[Array], timeout: float | None) -> list[object]:
        """Run and return the fetched values; an empty list without fetches."""
        if self.short is not None:
            return self.short(*arrays)
        return self.run(arrays, _limit(timeout)) if self.fetches else []


def _limit(timeout: float | None) -> int:
    """Milliseconds for `RunOptions`; 0 is no limit."""
    return 0 if timeout is None else min(max(1, round(timeout * 1000)), _MAX_LIMIT_MS)


def _tensor(graph: Graph, name: str) -> Tensor:
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError):
        raise InvalidInputError(f"the graph has no tensor {name!r}") from None


def _operation(graph: Graph, name: str) -> Operation:
    try:
        return graph.get_operation_by_name(name)
    except (KeyError, ValueError):
        raise InvalidInputError(f"the graph has no operation {name!r}") from None


def _fetched(graph: Graph, name: str) -> str:
    tensor = _tensor(graph, name)
    if tensor.dtype.base_dtype in _HANDLES:
        raise InvalidInputError(f"tensor {name!r} is {tensor.dtype.name}, which has no value to send")
    fetched: str = tensor.name
    return fetched


def _check_feed(tensor: Tensor, name: str, declared: FeedSpec) -> None:
    dtype, shape = declared
    if tensor.dtype.base_dtype in _HANDLES:
        raise InvalidInputError(f"tensor {name!r} is {tensor.dtype.name}, which cannot be fed")
    wanted = dtypes.by_number(tensor.dtype.base_dtype.as_datatype_enum)
    if dtype != wanted.numpy:
        raise InvalidInputError(f"tensor {name!r} is {wanted.name}, the feed is {dtypes.short_name(dtype)}")
    if not tensor.shape.is_compatible_with(shape):
        raise InvalidInputError(f"tensor {name!r} has shape {tensor.shape}, the feed has {shape}")
