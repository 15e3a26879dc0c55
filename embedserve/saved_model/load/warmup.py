"""Recorded warm-up requests: `assets.extra/tf_serving_warmup_requests`, a TFRecord file of `PredictionLog`s.

The module replays the requests on a version before the version serves, with the messages and limits of TensorFlow
Serving (`saved_model_warmup_util.cc`). The requests also tell ranks and values of real inputs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from embedserve.concurrency.load_pool import doing
from embedserve.errors import Code, InvalidInputError, LoadError, ServingError, SignatureNotFoundError
from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.files.meta_graph import warmup_file
from embedserve.saved_model.run.session import SessionServable
from embedserve.saved_model.status import clean
from embedserve.servable import Servable, Tensors
from embedserve.signature import DEFAULT_SIGNATURE, Signature
from embedserve.tensors import proto
from embedserve.tfs.constants import MAX_WARMUP_RECORDS

if TYPE_CHECKING:
    from tensorflow_serving.apis.input_pb2 import Input
    from tensorflow_serving.apis.model_pb2 import ModelSpec
    from tensorflow_serving.apis.predict_pb2 import PredictRequest
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
    from tensorflow_serving.apis.session_service_pb2 import SessionRunRequest

__all__ = ["RecordedInputs", "read_logs", "recorded_inputs", "replay", "request_inputs"]

logger = logging.getLogger("embedserve")

# Seconds for a recorded request; a longer run counts as endless.
_PATIENCE = 600.0
_UNSUPPORTED = {"session_run_log": 5, "predict_streamed_log": 7}


@dataclass
class RecordedInputs:
    """Facts about a model from recorded Predict requests.

    Attributes:
        ranks: Rank of each input name, where all records agree.
        inputs: Bound inputs of some requests, by signature name.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, list[Tensors]] = field(default_factory=dict)


def recorded_inputs(path: Path, signatures: Mapping[str, Signature], most: int = 16) -> RecordedInputs:
    """Read the inputs of at most `most` recorded Predict requests per signature.

    An unreadable file ends the reading without an error; `replay` reports the error.
    """
    found = RecordedInputs()
    contradicted: set[str] = set()
    try:
        for count, log in enumerate(read_logs(warmup_file(path))):
            if count >= MAX_WARMUP_RECORDS:
                break
            if log.WhichOneof("log_type") != "predict_log":
                continue
            request = log.predict_log.request
            signature = signatures.get(request.model_spec.signature_name or DEFAULT_SIGNATURE)
            if signature is None:
                continue
            bound = signature.bind({name: proto.decode(tensor, name) for name, tensor in request.inputs.items()})
            for name, array in bound.items():
                if found.ranks.setdefault(name, array.ndim) != array.ndim:
                    contradicted.add(name)
            kept = found.inputs.setdefault(signature.name, [])
            if len(kept) < most:
                kept.append(bound)
    except ServingError as error:
        logger.debug("recorded warm-up requests of %s tell nothing more: %s", path, error)
    found.ranks = {name: rank for name, rank in found.ranks.items() if name not in contradicted}
    return found


def replay(path: Path, servable: Servable, iterations: int = 1) -> int | None:
    """Run every recorded request `iterations` times.

    Returns:
        The number of records, or None where there is no file.

    Raises:
        LoadError: The file cannot be read, has too many records, or a request failed.
    """
    file = warmup_file(path)
    if not file.is_file():
        logger.debug("No warmup data file found at %s", file)
        return None
    started = time.perf_counter()
    records = 0
    for log in read_logs(file):
        records += 1
        try:
            run = _request(log, servable)
            for _ in range(iterations if run is not None else 0):
                assert run is not None
                with doing(f"warm-up record {records}", _PATIENCE):
                    run()
        except ServingError as error:
            raise LoadError(f"{error} (warm-up record {records} of {file})", code=error.code) from error
        if records > MAX_WARMUP_RECORDS:
            raise LoadError(
                f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at {file}",
                code=Code.INVALID_ARGUMENT,
            )
    logger.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d. "
        "Elapsed time (microseconds): %d.",
        *(file, records, (time.perf_counter() - started) * 1e6),
    )
    return records


def read_logs(file: Path) -> Iterator[PredictionLog]:
    """The `PredictionLog`s of a TFRecord file, none for a missing file.

    Raises:
        LoadError: A record is broken (DATA_LOSS) or no `PredictionLog` (INVALID_ARGUMENT).
    """
    if not file.is_file():
        return
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    with tensorflow_private.quiet_loading():
        records = tf.compat.v1.io.tf_record_iterator(str(file))
    try:
        for record in records:
            try:
                yield PredictionLog.FromString(record)
            except DecodeError:
                raise LoadError(
                    f"Failed to parse warmup record: {record[:200]!r} from {file}", code=Code.INVALID_ARGUMENT
                ) from None
    except tf.errors.OpError as error:
        raise LoadError(
            f"{clean(error.message or '')}. Please verify your warmup data is in TFRecord format. ({file})",
            code=Code.DATA_LOSS,
        ) from None


def _request(log: PredictionLog, servable: Servable) -> Callable[[], object] | None:
    """The call that replays a record; None for a record without a request."""
    kind = log.WhichOneof("log_type")
    if kind is None:
        return None
    if kind == "session_run_log" and isinstance(servable, SessionServable):
        return _session_run(log.session_run_log.request, servable)
    if kind in _UNSUPPORTED:
        raise LoadError(f"Unsupported log_type for warmup: {_UNSUPPORTED[kind]}", code=Code.UNIMPLEMENTED)
    request = getattr(log, kind).request
    if kind == "predict_log":
        return _predict(request, servable)
    examples = _examples(request.input)
    if kind == "multi_inference_log":
        runs = [_inference(task.model_spec, examples, servable) for task in request.tasks]
        return lambda: [run() for run in runs]
    return _inference(request.model_spec, examples, servable)


def _predict(request: PredictRequest, servable: Servable) -> Callable[[], object]:
    signature, inputs = _predict_inputs(request, servable.signatures)
    outputs = signature.pick(list(request.output_filter))
    return lambda: servable.run(signature.name, inputs, outputs)


def _inference(model_spec: ModelSpec, examples: list[bytes], servable: Servable) -> Callable[[], object]:
    signature, inputs = _inference_inputs(model_spec, examples, servable.signatures)
    return lambda: servable.run(signature.name, inputs)


def request_inputs(log: PredictionLog, signatures: Mapping[str, Signature]) -> tuple[Signature, Tensors]:
    """The signature and the bound inputs of a recorded Predict, Classify or Regress request.

    Raises:
        ServingError: The record is of another kind, or does not fit the signatures.
    """
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        return _predict_inputs(log.predict_log.request, signatures)
    if kind not in ("classify_log", "regress_log"):
        raise InvalidInputError(f"of a kind with no single signature ({kind})")
    request = getattr(log, kind).request
    return _inference_inputs(request.model_spec, _examples(request.input), signatures)


def _predict_inputs(request: PredictRequest, signatures: Mapping[str, Signature]) -> tuple[Signature, Tensors]:
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = signatures.get(name)
    if signature is None:
        raise SignatureNotFoundError(f'Serving signature key "{name}" not found.')
    return signature, signature.bind({alias: proto.decode(tensor, alias) for alias, tensor in request.inputs.items()})


def _inference_inputs(
    model_spec: ModelSpec, examples: list[bytes], signatures: Mapping[str, Signature]
) -> tuple[Signature, Tensors]:
    name = model_spec.signature_name or DEFAULT_SIGNATURE
    signature = signatures.get(name)
    if signature is None:
        raise InvalidInputError(f"No signature was found with the name: {name}")
    if len(signature.inputs) != 1:
        raise InvalidInputError("Expected one input Tensor.")
    return signature, signature.bind({next(iter(signature.inputs)): examples})


def _examples(given: Input) -> list[bytes]:
    """Serialized Examples of an `Input`; the context fills features that an Example lacks."""
    if given.WhichOneof("kind") == "example_list_with_context":
        examples = []
        for example in given.example_list_with_context.examples:
            merged = type(example)()
            merged.CopyFrom(given.example_list_with_context.context)
            for name, feature in example.features.feature.items():
                merged.features.feature[name].CopyFrom(feature)
            examples.append(merged.SerializeToString())
    else:
        examples = [example.SerializeToString() for example in given.example_list.examples]
    if not examples:
        raise InvalidInputError("Input is empty.")
    return examples


def _session_run(request: SessionRunRequest, servable: SessionServable) -> Callable[[], object]:
    feeds = {feed.name: proto.decode(feed.tensor, feed.name) for feed in request.feed}
    fetches, targets = list(request.fetch), list(request.target)
    if request.tensor_name_is_alias:
        signature = servable.signatures.get(request.model_spec.signature_name or DEFAULT_SIGNATURE)
        if signature is None:
            raise InvalidInputError(f"No signature was found with the name: {request.model_spec.signature_name}")
        for alias in [*feeds, *fetches]:
            if alias not in signature.inputs and alias not in signature.outputs:
                raise InvalidInputError(f"alias {alias!r} not found in signature {signature.name!r}")
        feeds = {signature.inputs[alias].tensor_name: array for alias, array in feeds.items()}
        fetches = [signature.outputs[alias].tensor_name for alias in fetches]
    return lambda: servable.run_graph(feeds, fetches, targets)
