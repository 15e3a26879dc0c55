"""Loads a version directory: picks the servable, analyses its signatures, replays warm-up requests, frees the memory.

The loader of a generation runs every method in a load or run thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import tensorflow as tf

from embedserve.config import FreeBatch, ModelConfig, RegistryOptions
from embedserve.errors import Code, LoadError, ServingError
from embedserve.saved_model.files import completeness
from embedserve.saved_model.files.graph import LARGE_CONSTANTS, GraphReader, Operations
from embedserve.saved_model.files.meta_graph import has_object_graph, has_saved_model, read_meta_graph, read_signatures
from embedserve.saved_model.judge import bounded, free_batch, guards, probe, verdict
from embedserve.saved_model.judge.probe_inputs import Sample, candidates, example_of
from embedserve.saved_model.judge.rows.walk import RowAnalysis
from embedserve.saved_model.load import custom_ops, memory, warmup
from embedserve.saved_model.load.guarding import GraphCopy, add_checks
from embedserve.saved_model.load.pick_servable import is_worth_a_try, session_if_faster
from embedserve.saved_model.optimise.freezing import NotOptimisableError
from embedserve.saved_model.optimise.optimising import Wanted, optimise, reason_of
from embedserve.saved_model.optimise.xla import OptimisedServable
from embedserve.saved_model.run import graph_session
from embedserve.saved_model.run.function import FunctionServable
from embedserve.saved_model.run.session import SessionServable
from embedserve.saved_model.run.unset_state import UnsetStateError
from embedserve.saved_model.status import clean, code_of
from embedserve.saved_model.tflite.model import FILE_NAME as TFLITE_FILE
from embedserve.saved_model.tflite.model import read_model
from embedserve.saved_model.tflite.servable import MissingOperationError, TfliteServable
from embedserve.servable import Servable, ServableId
from embedserve.signature import BatchingVerdict, Signature
from embedserve.tfs.batching import batching_of_version

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef

    from embedserve.saved_model.tensorflow_types import Tensor

__all__ = ["SavedModelLoader"]

logger = logging.getLogger("embedserve")

SavedModelServable: TypeAlias = FunctionServable | SessionServable | TfliteServable


@dataclass(frozen=True)
class _Loaded:
    """A servable, and the facts about its signatures before the first run.

    Attributes:
        servable: The loaded servable.
        described: Signatures by name, not probed yet.
        operations: Effects of a run of each signature.
        recorded: Facts from recorded requests.
        hazards: For each signature, harms that a request can do to the process in spite of all checks.
        declared: Signatures with the declared dimension 0, where `described` has an unknown dimension 0.
    """

    servable: SavedModelServable
    described: Mapping[str, Signature]
    operations: Mapping[str, Operations]
    recorded: warmup.RecordedInputs
    hazards: Mapping[str, Sequence[str]] = field(default_factory=dict)
    declared: Mapping[str, Signature] = field(default_factory=dict)


class SavedModelLoader:
    """Owns the memory of one generation of a version.

    Args:
        id: Model and version.
        path: Version directory.
        config: The model's options; the registry's options fill the gaps.
        options: The registry's options.
        fingerprint: Fingerprint of the directory at the decision for the version; taken at the load if None.
    """

    def __init__(
        self, id: ServableId, path: Path, config: ModelConfig, options: RegistryOptions, fingerprint: Hashable = None
    ) -> None:
        self._id = id
        self._path = path
        self._config = config
        self._options = options
        self._fingerprint = fingerprint
        self._judged = fingerprint is not None
        self._samples: dict[str, Sample] = {}
        self._seconds: dict[str, float] = {}
        self.batching = options.batching_of(config)
        """Batching options of the version; `load` reads the version's own file."""
        self.warmup_records: int | None = None
        """Replayed warm-up requests; None before `warm_up`, or without a file."""
        self.note = ""
        """Unavailable parts of `optimize`, possible harms of a request to the process, signatures with freed rows."""
        self._copy: GraphCopy | None = None
        self._has_checks = False
        self._notes: list[str] = []

    def __repr__(self) -> str:
        return f"<SavedModelLoader {self._id} at {self._path}>"

    def load(self) -> SavedModelServable:
        """Load the version and analyse its signatures.

        Raises:
            LoadError: The directory or the model is at fault; the message says how, with a remedy.
        """
        custom_ops.preload(self._options.preload_modules, self._options.op_libraries)
        custom_ops.use_gpu_as_needed()
        if self._options.gc_freeze:
            memory.freeze_imports()
        if self._fingerprint is None:
            self._fingerprint = completeness.fingerprint(self._path)
        self.batching = batching_of_version(self._path, self._config, self._options)
        self._notes = []
        loaded = self._load_tflite() or self._load_saved_model()
        try:
            loaded.servable.signatures = self._judge(loaded)
            faster = self._optimised(loaded) or self._in_session(loaded)
        except BaseException:
            self.unload(loaded.servable)
            raise
        self.note = "; ".join(filter(None, (self.note, *self._notes)))
        if not loaded.servable.reads_files_at_run_time:
            self._drop_copy()
        if faster is None:
            return loaded.servable
        loaded.servable.close()
        if isinstance(faster, OptimisedServable):
            memory.give_back()  # The optimisation made several copies of the graph and its constants.
        return faster

    def _load_saved_model(self) -> _Loaded:
        meta_graph = read_meta_graph(self._path, self._config.saved_model_tags)
        self._check_whole()
        graph, rows = GraphReader(meta_graph), RowAnalysis(meta_graph)
        signatures = read_signatures(meta_graph)
        operations = {
            name: graph.operations(
                [spec.tensor_name for spec in signature.outputs.values()],
                [spec.tensor_name for spec in signature.inputs.values()],
            )
            for name, signature in signatures.items()
        }
        custom_ops.check_python_calls(
            {f"signature {name!r}": found for name, found in operations.items()}
            | {"initialisation of the model": graph.startup()}
        )
        signatures, freed = self._freed(signatures, operations, rows)
        recorded = self._recorded(signatures | freed)
        declared = self._described(signatures, operations, (graph, rows), recorded)
        described = declared | self._described(freed, operations, (graph, rows), recorded)
        hazards: Mapping[str, Sequence[str]] = self._copy_changed(meta_graph, graph, signatures, freed)
        try:
            servable = self._load_somehow(meta_graph, described, operations)
        except BaseException:
            self._drop_copy()
            raise
        if self._copy is None:
            hazards = self._with_unchecked(hazards, graph, signatures)
            for name in freed:
                declared[name] = self._kept(declared[name], "it does not load with dimension 0 unknown")
            return _Loaded(servable, declared, operations, recorded, hazards)
        return _Loaded(servable, described, operations, recorded, hazards, {name: declared[name] for name in freed})

    @property
    def _free_batch(self) -> FreeBatch:
        own = self._config.free_batch
        return self._options.free_batch if own is None else own

    def _freed(
        self, signatures: Mapping[str, Signature], operations: Mapping[str, Operations], rows: RowAnalysis
    ) -> tuple[dict[str, Signature], dict[str, Signature]]:
        """All signatures as declared, and with dimension 0 unknown the signatures whose graph allows any row count."""
        declared = dict(signatures)
        freed = {}
        for name, signature in signatures.items():
            if free_batch.declared_rows(signature) is None:
                continue
            why = free_batch.obstacle(signature, operations[name], rows, self._free_batch)
            if why:
                declared[name] = self._kept(signature, why)
            else:
                freed[name] = free_batch.freed(signature)
        return declared, freed

    def _kept(self, signature: Signature, why: str) -> Signature:
        """The signature as declared; a warning for `free_batch=True`, a log line for "auto"."""
        found = f"signature {signature.name!r} takes the declared number of rows: free_batch could not be used: {why}"
        if self._free_batch is True:
            self._warn(found)
        elif self._free_batch == "auto":
            logger.info("%s: %s", self._id, found)
        return free_batch.kept(signature, why)

    def _copy_changed(
        self,
        meta_graph: MetaGraphDef,
        graph: GraphReader,
        signatures: Mapping[str, Signature],
        freed: Mapping[str, Signature],
    ) -> dict[str, list[str]]:
        """Make a changed copy of the version, where operations need checks or the declared number of rows is to go.

        Returns:
            Harms that no check prevents, by signature.
        """
        inputs, outputs = _ends_of(signatures)
        found = guards.find(graph, inputs, [tensor for tensors in outputs.values() for tensor in tensors])
        for one in found:
            logger.info("%s is guarded: %s, or else it %s", *(self._id, one.rule, one.guard.harm))
        hazards = {name: guards.unguarded(graph, inputs, tensors) for name, tensors in outputs.items()}
        for hazard in dict.fromkeys(itertools.chain.from_iterable(hazards.values())):
            self._warn(f"cannot be guarded: {hazard}")
        if not found and not freed:
            return hazards
        changed = type(meta_graph)()
        changed.CopyFrom(meta_graph)
        add_checks(changed, found)
        if freed:
            free_batch.forget_rows(changed, freed.values())
        self._copy = GraphCopy(self._path, changed)
        self._has_checks = bool(found)
        return hazards

    def _with_unchecked(
        self, hazards: Mapping[str, Sequence[str]], graph: GraphReader, signatures: Mapping[str, Signature]
    ) -> Mapping[str, Sequence[str]]:
        """Harms without a check, by signature, for a version that only loads without checks."""
        if not self._has_checks:
            return hazards
        inputs, outputs = _ends_of(signatures)
        return {
            name: [*hazards[name], *(one.hazard for one in guards.find(graph, inputs, tensors))]
            for name, tensors in outputs.items()
        }

    def _warn(self, note: str) -> None:
        logger.warning("%s %s", self._id, note)
        self._notes.append(note)

    def _drop_copy(self) -> None:
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    @property
    def _source(self) -> Path:
        """The directory that TensorFlow loads."""
        return self._path if self._copy is None else self._copy.path

    def _load_somehow(
        self, meta_graph: MetaGraphDef, signatures: Mapping[str, Signature], operations: Mapping[str, Operations]
    ) -> FunctionServable | SessionServable:
        """The servable of the changed graph.

        If the load fails, the loader tries an imported package of operations, then the stored graph.
        """
        try:
            return self._load_servable(meta_graph, signatures, operations)
        except LoadError as error:
            if custom_ops.import_provider(error.message):
                return self._load_servable(meta_graph, signatures, operations)
            if self._copy is None:
                raise
            changed = error
        self._drop_copy()
        servable = self._load_servable(meta_graph, signatures, operations)
        if self._has_checks:
            self._warn(f"cannot be guarded: it does not load with checks ({changed.message})")
        return servable

    def _load_tflite(self) -> _Loaded | None:
        """The version's TFLite model, where a file exists and the options prefer TFLite."""
        preferred = self._config.prefer_tflite_model
        file = self._path / TFLITE_FILE
        if not (self._options.prefer_tflite_model if preferred is None else preferred) or not file.is_file():
            return None
        self._check_whole()
        data = file.read_bytes()
        model = read_model(data)
        custom_ops.check_python_calls({TFLITE_FILE: model.operations})
        operations = dict.fromkeys(model.signatures, model.operations)
        recorded = self._recorded(model.signatures)
        # Older files do not tell a scalar from a tensor of unknown rank.
        unranked = {name: 0 for s in model.signatures.values() for name, spec in s.inputs.items() if spec.shape is None}
        described = self._described(model.signatures, operations, (None, None), recorded, unranked)
        pools = self._config.num_tflite_pools or self._options.num_tflite_pools or self._options.num_batch_threads
        try:
            servable = TfliteServable(data, model, pools)
        except MissingOperationError as error:
            if not has_saved_model(self._path):
                raise
            logger.warning("%s is served from its SavedModel, its %s cannot be: %s", self._id, TFLITE_FILE, error)
            return None
        logger.info("%s runs in TensorFlow Lite: prefer_tflite_model is set", self._id)
        return _Loaded(servable, described, operations, recorded)

    def _check_whole(self) -> None:
        if self._judged and self.unchanged():
            return  # The source found exactly these contents whole.
        missing = completeness.missing(self._path)
        if missing is not None:
            raise LoadError(f"{self._path} is not whole: {missing}", code=Code.FAILED_PRECONDITION)

    def _described(
        self,
        signatures: Mapping[str, Signature],
        operations: Mapping[str, Operations],
        graph: tuple[GraphReader | None, RowAnalysis | None],
        recorded: warmup.RecordedInputs,
        ranks: Mapping[str, int] = MappingProxyType({}),
    ) -> dict[str, Signature]:
        ranks = {**ranks, **recorded.ranks, **self._config.input_ranks}
        return {
            name: dataclasses.replace(
                verdict.describe(signature, operations[name], *graph, ranks, self.batching[0]),
                unbounded=bounded.objection(graph[0], signature, operations.values()),
            )
            for name, signature in signatures.items()
        }

    def _recorded(self, signatures: Mapping[str, Signature]) -> warmup.RecordedInputs:
        if self._warmup == "none":
            return warmup.RecordedInputs()
        return warmup.recorded_inputs(self._path, signatures)

    @property
    def _warmup(self) -> str:
        return self._config.warmup or self._options.warmup

    def _load_servable(
        self, meta_graph: MetaGraphDef, signatures: Mapping[str, Signature], operations: Mapping[str, Operations]
    ) -> FunctionServable | SessionServable:
        kinds, reason = self._kinds(meta_graph, operations)
        failures: dict[str, Exception] = {}
        for kind in kinds:
            try:
                servable = self._load_kind(kind, meta_graph, signatures, operations)
            except Exception as error:
                failures[kind] = error
                way = "tf.saved_model.load cannot lift it" if kind == "function" else "a graph session cannot run it"
                reason = f"{way} ({type(error).__name__}: {clean(str(error))})"
            else:
                if kind == "session" or failures:
                    where = "in a graph session" if kind == "session" else "as functions"
                    logger.info("%s runs %s: %s", self._id, where, reason)
                return servable
        for kind, cause in failures.items():
            if isinstance(cause, UnsetStateError) and cause.spared:
                return self._load_kind(kind, meta_graph, signatures, operations, partly=True)
        failure = failures.get("session") or failures["function"]
        raise self._load_error(failure) from failure

    def _kinds(self, meta_graph: MetaGraphDef, operations: Mapping[str, Operations]) -> tuple[tuple[str, ...], str]:
        """The servables to try in turn, and the reason for the order."""
        choice = self._config.servable or self._options.servable
        if choice != "auto":
            return (choice,), f'servable="{choice}"'
        if not has_object_graph(meta_graph):
            return ("session", "function"), "TensorFlow 1 wrote it"
        constants = max((found.constant_bytes for found in operations.values()), default=0)
        if constants >= LARGE_CONSTANTS:
            return ("session", "function"), f"its graph holds {constants / 2**20:.1f} MB of constants"
        return ("function", "session"), ""

    def _load_kind(
        self,
        kind: str,
        meta_graph: MetaGraphDef,
        signatures: Mapping[str, Signature],
        operations: Mapping[str, Operations],
        *,
        partly: bool = False,
    ) -> FunctionServable | SessionServable:
        described = (signatures, _copied(meta_graph.signature_def))
        if kind == "session":
            return self._open_session(*described, operations, partly=partly)
        servable = FunctionServable(
            *(self._source, self._config.saved_model_tags, *described),
            inline=_is_small(operations),
            overwriting=frozenset(name for name, found in operations.items() if found.overwrites),
            reads_files_at_run_time=any(found.reads_files for found in operations.values()),
        )
        if not has_object_graph(meta_graph):
            servable.check_state(partly=partly)
        return servable

    def _open_session(
        self,
        signatures: Mapping[str, Signature],
        signature_defs: Mapping[str, SignatureDef],
        operations: Mapping[str, Operations],
        captured: Mapping[str, Sequence[Tensor]] = MappingProxyType({}),
        *,
        partly: bool = False,
    ) -> SessionServable:
        session = graph_session.open_saved_model(
            self._source, self._config.saved_model_tags, signatures.values(), captured, partly=partly
        )
        return SessionServable(
            *(session, signatures, signature_defs),
            looping=frozenset(name for name, found in operations.items() if found.loops),
            overwriting=frozenset(name for name, found in operations.items() if found.overwrites),
            prune=_is_small(operations),
            reads_files_at_run_time=any(found.reads_files for found in operations.values()),
        )

    def _load_error(self, error: Exception) -> LoadError:
        message = clean(error.message or "") if isinstance(error, tf.errors.OpError) else str(error)
        code = code_of(error) if isinstance(error, tf.errors.OpError) else Code.UNKNOWN
        what_to_do = custom_ops.advice(message)
        if what_to_do is not None:
            return LoadError(f"{message.splitlines()[0]}\n{what_to_do} (model at {self._path})", code=code)
        return LoadError(f"{type(error).__name__}: {message} (model at {self._path})", code=code)

    def _judge(self, loaded: _Loaded) -> dict[str, Signature]:
        servable = loaded.servable
        judged = {}
        for name in loaded.described:
            signature = self._tried_free(loaded, name)
            unguarded = verdict.unguarded_inputs(signature)
            if unguarded:
                self._warn(
                    f"cannot be guarded: signature {name!r} declares no rank for {', '.join(unguarded)}, and a kernel "
                    "may end the process on a wrong one. Set input_ranks, or record a warm-up request"
                )
            probed, hazards = verdict.needs_probe(signature), loaded.hazards.get(name)
            # A made-up input must not end the process.
            sample = None if hazards else self._find_sample(loaded, signature, probed)
            if probed:
                answer = (
                    BatchingVerdict(False, f"it is not tried on made-up inputs for {hazards[0]}")
                    if hazards
                    else probe.probe(servable, signature, sample)
                )
                found = verdict.by_probe(signature.batching, answer)
                signature = dataclasses.replace(signature, batching=found)
            if sample is not None:
                self._samples[name] = sample
                signature = dataclasses.replace(signature, example=example_of(sample))
                if isinstance(servable, FunctionServable):
                    self._seconds[name] = servable.choose_threads(name, sample.batch(1))
                elif isinstance(servable, SessionServable):
                    servable.choose_threads(name, sample.batch(1))
            logger.info("%s: signature %r is %s", self._id, name, signature.batching)
            judged[name] = signature
        return judged

    def _tried_free(self, loaded: _Loaded, name: str) -> Signature:
        """The signature, with dimension 0 unknown only if runs with further numbers of rows give equal answers."""
        signature, declared = loaded.described[name], loaded.declared.get(name)
        if declared is None:
            return signature
        count = free_batch.declared_rows(declared)
        assert count is not None
        if self._free_batch is not True:
            hazards = loaded.hazards.get(name)
            if hazards:
                return self._kept(declared, f"it is not tried on made-up inputs for {hazards[0]}")
            samples = candidates(signature, loaded.recorded.inputs.get(name, ()), loaded.operations[name].features)
            sample = probe.find_sample(loaded.servable, signature, samples, count)
            objection = probe.objection_to_counts(loaded.servable, signature, sample, count)
            if objection is not None:
                return self._kept(declared, objection)
        self._notes.append(f"signature {name!r}: dimension 0 freed, {count} is declared")
        logger.info("%s: %s", self._id, self._notes[-1])
        return signature

    def _find_sample(self, loaded: _Loaded, signature: Signature, probed: bool) -> Sample | None:
        if not signature.stateless or (self._warmup == "none" and not probed):
            return None
        features = loaded.operations[signature.name].features
        recorded = loaded.recorded.inputs.get(signature.name, ())
        return probe.find_sample(loaded.servable, signature, candidates(signature, recorded, features))

    def _optimised(self, loaded: _Loaded) -> OptimisedServable | None:
        """The optimised copy of a version, if the options ask for a copy; None after a failure, explained in `note`."""
        self.note = ""
        mode = self._config.optimize or self._options.optimize
        if mode == "none":
            return None
        tolerance = self._config.optimize_tolerance
        wanted = Wanted(
            mode,
            self._options.optimize_tolerance if tolerance is None else tolerance,
            *(self._source, self._config.saved_model_tags, loaded.operations),
            *(loaded.recorded.inputs, self._samples, self.batching[1]),
        )
        try:
            if isinstance(loaded.servable, TfliteServable):
                raise NotOptimisableError("it runs in TensorFlow Lite")
            if self._warmup == "none":
                raise NotOptimisableError('with warmup="none" there is nothing to check its answers with')
            optimised = optimise(loaded.servable, wanted)
        except Exception as error:
            self.note = f'optimize="{mode}" cannot be had, it runs as it is: {reason_of(error)}'
            logger.warning("%s: %s", self._id, self.note)
            return None
        self.batching = self.batching[0], optimised.batching
        self.note = "; ".join(f"signature {name!r} runs frozen: {why}" for name, why in optimised.refused.items())
        if self.note:
            logger.warning("%s: %s", self._id, self.note)
        logger.info("%s runs %s: its answers were compared", self._id, optimised.servable.kind)
        for name, sample in self._samples.items():
            optimised.servable.choose_threads(name, sample.batch(1))
        return optimised.servable

    def _in_session(self, loaded: _Loaded) -> SessionServable | None:
        """The version in a graph session, where the options allow both servables and the session is faster."""
        function, operations = loaded.servable, loaded.operations
        if not isinstance(function, FunctionServable) or self._warmup == "none":
            return None
        if (self._config.servable or self._options.servable) != "auto":
            return None
        # A function can stop an abandoned loop, so a loop stays a function. A version with an incomparable signature
        # stays as loaded.
        if any(found.loops or found.writes for found in operations.values()) or set(self._samples) != set(operations):
            return None
        if not is_worth_a_try(self._path, self._seconds):
            return None

        def open_session() -> SessionServable:
            return self._open_session(
                *(function.signatures, function.signature_defs, operations, function.captured_inputs)
            )

        requests = {name: sample.batch(1) for name, sample in self._samples.items()}
        session = session_if_faster(function, open_session, requests)
        if session is not None:
            logger.info("%s runs in a graph session: it is faster there", self._id)
        return session

    def warm_up(self, servable: Servable) -> None:
        """Replay the version's recorded warm-up requests.

        Raises:
            LoadError: The file cannot be read, or a recorded request failed.
        """
        if self._warmup != "none":
            self.warmup_records = warmup.replay(self._path, servable, self._options.num_warmup_iterations)

    def warm_up_thread(self, servable: Servable) -> None:
        """Run each stateless signature on made-up inputs, once per expected batch size; errors are ignored."""
        if self._warmup == "none":
            return
        allowed = self.batching[1].allowed_batch_sizes
        for name, sample in self._samples.items():
            sizes = sorted({1, *allowed}) if servable.signatures[name].batching.batchable else [1]
            for size in sizes:
                with contextlib.suppress(ServingError):
                    servable.run(name, sample.batch(size))

    def unchanged(self) -> bool:
        """Whether the directory still has the loaded contents."""
        return bool(completeness.fingerprint(self._path) == self._fingerprint)

    def unload(self, servable: Servable | None) -> None:
        """Drop the model; the next `give_back` returns the memory."""
        self._samples = {}
        self._drop_copy()
        if isinstance(servable, SavedModelServable):
            servable.close()

    def give_back(self) -> None:
        """See `Loader.give_back`."""
        memory.give_back()


def _ends_of(signatures: Mapping[str, Signature]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Tensors that requests feed → aliases of the tensors, and the computed tensors by signature."""
    inputs = {spec.tensor_name: name for s in signatures.values() for name, spec in s.inputs.items()}
    outputs = {name: [spec.tensor_name for spec in s.outputs.values()] for name, s in signatures.items()}
    return inputs, outputs


def _is_small(operations: Mapping[str, Operations]) -> bool:
    return all(found.constant_bytes < LARGE_CONSTANTS for found in operations.values())


def _copied(definitions: Mapping[str, SignatureDef]) -> dict[str, SignatureDef]:
    """Copies of `SignatureDef`s: a part of a message would keep the whole message alive, with all constants."""
    copies = {}
    for name in sorted(definitions):
        copies[name] = type(definitions[name])()
        copies[name].CopyFrom(definitions[name])
    return copies
