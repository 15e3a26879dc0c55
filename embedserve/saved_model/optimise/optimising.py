"""Optimised execution: a frozen copy of a loaded version, or a copy compiled by XLA, with verified answers.

The module refuses an unavailable optimisation with the reason.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tensorflow as tf

from embedserve.config import BatchingOptions
from embedserve.errors import ServingError
from embedserve.saved_model.files.graph import LARGE_CONSTANTS, Operations
from embedserve.saved_model.judge import compare
from embedserve.saved_model.judge.probe_inputs import Recorded, Sample, shape_of
from embedserve.saved_model.optimise.freezing import Frozen, NotOptimisableError, freeze
from embedserve.saved_model.optimise.xla import OptimisedServable, add_compiled
from embedserve.saved_model.run import run_time
from embedserve.saved_model.run.function import FunctionServable
from embedserve.saved_model.run.graph_session import open_saved_model
from embedserve.saved_model.status import clean
from embedserve.servable import Servable, Tensors
from embedserve.signature import Signature

if TYPE_CHECKING:
    from embedserve.saved_model.tensorflow_types import Graph

__all__ = ["Optimised", "Wanted", "optimise", "reason_of"]

logger = logging.getLogger("embedserve")

# Seconds per run; a made-up input may make a loop very long.
_PATIENCE = 30.0
# Run time relative to the frozen graph. XLA is given up for a signature above `_HOPELESS` for a single program, or
# above `_NO_GAIN` on average.
_HOPELESS = 1.5
_NO_GAIN = 1.0
# Seconds for three runs: the wait for XLA's compiler is far longer anyway.
_MEASURING = 0.5
# Most row shapes per signature, as each shape needs a program for each batch size.
_MAX_ROW_SHAPES = 4


@dataclass(frozen=True)
class Wanted:
    """The wanted optimisation of a version.

    Attributes:
        mode: `freeze`, or `xla`, which freezes too.
        tolerance: Largest allowed difference from the plain version's answers, relative to an output's largest element.
        path, tags: Directory and tag set of the SavedModel.
        operations: Effects of a run of each signature.
        recorded: Inputs of recorded requests, by signature.
        samples: Inputs of any number of rows, by signature, for each signature with accepted inputs.
        batching: Batching options of the version.
    """

    mode: Literal["freeze", "xla"]
    tolerance: float
    path: Path
    tags: Sequence[str]
    operations: Mapping[str, Operations]
    recorded: Mapping[str, Sequence[Tensors]]
    samples: Mapping[str, Sample]
    batching: BatchingOptions

    def requests(self, signature: Signature) -> list[Tensors]:
        """Inputs for the comparison of answers."""
        rows = (1, 2, 3) if signature.batching.batchable else (1, 2)
        sample = self.samples.get(signature.name)
        made_up = [sample.batch(size) for size in rows] if sample is not None else []
        return [*self.recorded.get(signature.name, ()), *made_up]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes with programs: the allowed sizes, or the powers of two up to the largest batch."""
        most = self.batching.max_batch_size
        powers = itertools.takewhile(lambda size: size < most, (2**power for power in itertools.count()))
        return self.batching.allowed_batch_sizes or (*powers, most)

    def shapes(self, signature: Signature) -> list[Tensors]:
        """Inputs with the shapes of the programs, the smallest first.

        Raises:
            NotOptimisableError: The shapes of requests are unknown.
        """
        recorded = _alike(self.recorded.get(signature.name, ()))
        for spec in signature.inputs.values():
            shape = shape_of(signature, spec)
            if not recorded and (shape is None or None in shape[1:]):
                raise NotOptimisableError(
                    f"input {spec.name!r} is {spec} and may have any size, and each would need a program: record "
                    "warm-up requests of the sizes that are asked for"
                )
        if not signature.batching.batchable:
            return [request for alike in recorded for request in alike] or [self.samples[signature.name].batch(1)]
        samples: list[Sample] = [Recorded(signature, alike) for alike in recorded]
        samples = samples or [self.samples[signature.name]]
        return [sample.batch(size) for size in self.sizes for sample in samples]


def _alike(requests: Sequence[Tensors]) -> list[list[Tensors]]:
    """Requests grouped by the sizes of their rows, the most frequent sizes first."""
    groups: dict[object, list[Tensors]] = {}
    for request in requests:
        if all(array.size for array in request.values()):
            sizes = tuple((name, array.shape[1:]) for name, array in sorted(request.items()))
            groups.setdefault(sizes, []).append(request)
    return sorted(groups.values(), key=len, reverse=True)[:_MAX_ROW_SHAPES]


@dataclass(frozen=True)
class Optimised:
    """The result of an optimisation.

    Attributes:
        servable: The optimised copy.
        refused: Why signatures run frozen although XLA was wanted, by name.
        batching: Batching options of the copy: batches are padded to the sizes with programs.
    """

    servable: OptimisedServable
    refused: Mapping[str, str]
    batching: BatchingOptions


def optimise(plain: Servable, wanted: Wanted) -> Optimised:
    """Make the optimised copy of a version and compare the answers with the answers of `plain`; `plain` stays open.

    Raises:
        NotOptimisableError: The version cannot be optimised; the message says why.
    """
    _check_signatures(plain.signatures, wanted)
    frozen = _freeze(plain, wanted)
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(frozen.graph_def, name="")
    refused: dict[str, str] = {}
    compiled = _add_compiled(graph, frozen, plain.signatures, wanted, refused) if wanted.mode == "xla" else {}
    looping = frozenset(name for name, found in wanted.operations.items() if found.loops)
    servable = OptimisedServable(
        *(frozen.open(graph), compiled, plain.signatures, plain.signature_defs),
        looping=looping,
        prune=frozen.graph_def.ByteSize() < LARGE_CONSTANTS,
        reads_files_at_run_time=plain.reads_files_at_run_time,
    )
    del frozen, graph  # The session holds the constants now.
    try:
        apart = [_compare(plain, servable, name, wanted) for name in plain.signatures]
        logger.debug("frozen answers differ by at most %.1e of their size", max(apart, default=0.0))
        for name in compiled:
            try:
                _compile(plain, servable, name, wanted)
            except (NotOptimisableError, ServingError, tf.errors.OpError) as error:
                servable.forget(name)
                refused[name] = reason_of(error)
    except BaseException:
        servable.close()
        raise
    batching = wanted.batching
    if any(plain.signatures[name].batching.batchable for name in set(compiled) - set(refused)):
        batching = batching.model_copy(update={"allowed_batch_sizes": wanted.sizes})
    return Optimised(servable, refused, batching)


def _check_signatures(signatures: Mapping[str, Signature], wanted: Wanted) -> None:
    for name, signature in signatures.items():
        operations = wanted.operations[name]
        if operations.writes is not None:
            raise NotOptimisableError(f"signature {name!r} is stateful: {operations.writes} writes state")
        if operations.random is not None:
            raise NotOptimisableError(f"signature {name!r} is stateful: {operations.random} draws random numbers")
        if operations.reads_files:
            raise NotOptimisableError(f"signature {name!r} opens files in every run")
        if not wanted.requests(signature):
            raise _nothing_to_check_with(name)


def _nothing_to_check_with(name: str) -> NotOptimisableError:
    return NotOptimisableError(
        f"no input to check the answers of signature {name!r} with could be made up: record warm-up requests"
    )


def _freeze(plain: Servable, wanted: Wanted) -> Frozen:
    signatures = plain.signatures.values()
    feeds = [spec.tensor_name for signature in signatures for spec in signature.inputs.values()]
    fetches = [spec.tensor_name for signature in signatures for spec in signature.outputs.values()]
    captured = plain.captured_inputs if isinstance(plain, FunctionServable) else {}
    session = open_saved_model(wanted.path, wanted.tags, signatures, captured, partly=True)
    try:
        return freeze(session, feeds, fetches)
    finally:
        session.close()


def _add_compiled(
    graph: Graph, frozen: Frozen, signatures: Mapping[str, Signature], wanted: Wanted, refused: dict[str, str]
) -> dict[str, Signature]:
    compiled = {}
    for name, signature in signatures.items():
        try:
            wanted.shapes(signature)
            if wanted.operations[name].loops:
                raise NotOptimisableError("a loop that XLA compiled could not be stopped")
            compiled[name] = add_compiled(graph, frozen.graph_def, signature)
        except Exception as error:
            refused[name] = reason_of(error)
    return compiled


def reason_of(error: Exception) -> str:
    """Why an optimisation failed, in one line."""
    reason = clean(str(error)).partition("\n")[0]
    return reason if isinstance(error, NotOptimisableError) else f"{type(error).__name__}: {reason}"


def _compare(plain: Servable, servable: Servable, name: str, wanted: Wanted) -> float:
    """The largest difference of the answers to the requests of a signature."""
    found = [
        _difference(plain, servable, name, inputs, wanted.tolerance)
        for inputs in wanted.requests(plain.signatures[name])
    ]
    compared = [difference for difference in found if difference is not None]
    if not compared:
        raise _nothing_to_check_with(name)
    return max(compared)


def _difference(plain: Servable, servable: Servable, name: str, inputs: Tensors, tolerance: float) -> float | None:
    """The difference of the answers to a request; None where the plain version fails too.

    Raises:
        NotOptimisableError: The difference is too large, or only the plain version answers.
    """
    try:
        expected = plain.run(name, inputs, timeout=_PATIENCE)
    except ServingError:
        return None
    try:
        found = servable.run(name, inputs, timeout=_PATIENCE)
    except ServingError as error:
        raise NotOptimisableError(f"signature {name!r} fails when it is optimised: {error}") from None
    apart = 0.0
    for output, array in expected.items():
        difference = compare.difference(found[output], array)
        if not compare.equal(found[output], array, tolerance):
            raise NotOptimisableError(
                f"output {output!r} of signature {name!r} differs by {difference:.1e} of its size, "
                f"optimize_tolerance is {tolerance:g}"
            )
        apart = max(apart, difference)
    return apart


def _compile(plain: Servable, servable: OptimisedServable, name: str, wanted: Wanted) -> None:
    """Make a program for each shape, and check that the programs give equal answers, no slower than the frozen graph.

    Raises:
        NotOptimisableError: The answers differ, or the programs are slower. ServingError, tf.errors.OpError: XLA cannot
            compile the signature.
    """
    ratios: list[float] = []
    for inputs in wanted.shapes(plain.signatures[name]):
        before = run_time.fastest(partial(servable.run, name, inputs), _MEASURING)
        servable.compile(name, inputs)
        if _difference(plain, servable, name, inputs, wanted.tolerance) is None:
            shapes = ", ".join(f"{key!r} {list(array.shape)}" for key, array in inputs.items())
            raise NotOptimisableError(f"there is no plain answer to compare with for {shapes}")
        ratios.append(run_time.fastest(partial(servable.run, name, inputs), _MEASURING) / before)
        if ratios[-1] > _HOPELESS:
            break
    ratio = sum(ratios) / len(ratios) if ratios[-1] <= _HOPELESS else ratios[-1]
    if ratio > _NO_GAIN:
        raise NotOptimisableError(f"compiled by XLA it takes {ratio:.2f} times as long as frozen")
