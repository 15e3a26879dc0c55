"""The requests of callers: made up from the signature, or recorded.

Recorded requests come from warm-up files and request logs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedserve.errors import ConfigError, ServingError
from embedserve.handle import ModelHandle
from embedserve.saved_model.judge.probe_inputs import candidates, shape_of
from embedserve.saved_model.judge.probe_texts import Features
from embedserve.servable import Tensors
from embedserve.signature import DEFAULT_SIGNATURE, Signature, rows

__all__ = ["PATIENCE", "Requests", "check_answered", "chosen_signature", "features_of", "made_up", "recorded"]

PATIENCE = 30.0
"""Seconds for a request, as over REST."""

# Most records read, as in the replay of a version's warm-up file.
_MOST_RECORDS = 1000
# Requests that may fail before the first answer.
_TRIED = 8


@dataclass(frozen=True)
class Requests:
    """The requests, sent in turn.

    Attributes:
        signature: The requested signature.
        inputs: Bound inputs of each request.
        origin: The source of the requests, in words.
    """

    signature: Signature
    inputs: tuple[Tensors, ...]
    origin: str

    def rows(self, inputs: Tensors) -> int:
        """Rows of a request; 1 for inputs without rows."""
        shapes = [shape_of(self.signature, self.signature.inputs[name]) for name in inputs]
        return rows(inputs) if shapes and all(shape and shape[0] is None for shape in shapes) else 1

    @property
    def most_rows(self) -> int:
        """Rows of the largest request."""
        return max(map(self.rows, self.inputs))

    @property
    def mean_rows(self) -> float:
        """Mean rows of a request."""
        return sum(map(self.rows, self.inputs)) / len(self.inputs)

    def __str__(self) -> str:
        first = ", ".join(
            f"{name} {self.signature.inputs[name].dtype.name} {list(array.shape)}"
            for name, array in self.inputs[0].items()
        )
        return f"{self.origin}: {first}{' and more' * (len(self.inputs) > 1)}"


def chosen_signature(signatures: Mapping[str, Signature], name: str | None) -> Signature:
    """The named signature; without a name the default signature or the only signature.

    Raises:
        ConfigError: The name is unknown, or the model has several signatures and no default.
    """
    if name is None:
        name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures or len(signatures) != 1 else next(iter(signatures))
    if name not in signatures:
        known = ", ".join(sorted(signatures)) or "none"
        raise ConfigError(f"the model has no signature {name!r}; its signatures: {known}")
    return signatures[name]


async def made_up(handle: ModelHandle, signature: Signature, path: Path, tags: Iterable[str], rows: int) -> Requests:
    """Make up a request of `rows` rows that the model answers.

    Args:
        handle: The loaded version.
        signature: A signature of the version.
        path: The version's directory, for the features parsed from `tf.Example`s by the graph.
        tags: Tag set of the loaded MetaGraph.
        rows: Rows of the request, for inputs with rows.

    Raises:
        ConfigError: The model answers no made-up request.
    """
    takes_text = any(spec.dtype.numpy.hasobject for spec in signature.inputs.values())
    features = await asyncio.to_thread(features_of, path, tags, signature) if takes_text else {}
    reason = "an input declares no rank"
    for sample in candidates(signature, features=features):
        inputs = sample.batch(rows)
        try:
            await handle.predict(inputs, signature_name=signature.name, timeout=PATIENCE)
        except ServingError as error:
            reason = str(error)
        else:
            return Requests(signature, (signature.bind(inputs),), "made up from the signature")
    raise ConfigError(
        f"no request can be made up that the model answers ({reason}): give recorded ones by --requests=FILE"
    )


def features_of(path: Path, tags: Iterable[str], signature: Signature) -> Features:
    """The features parsed from `tf.Example`s by a signature; empty without parsing."""
    from embedserve.saved_model.files.graph import GraphReader
    from embedserve.saved_model.files.meta_graph import has_saved_model, read_meta_graph

    if not has_saved_model(path):
        return {}
    outputs, inputs = signature.outputs.values(), signature.inputs.values()
    found = GraphReader(read_meta_graph(path, tags)).operations(
        [spec.tensor_name for spec in outputs], [spec.tensor_name for spec in inputs]
    )
    return found.features


def recorded(files: Sequence[Path], signatures: Mapping[str, Signature], signature: Signature) -> Requests:
    """Read the recorded requests for `signature`; blocks.

    Args:
        files: TFRecord files of `PredictionLog`s.
        signatures: All signatures of the model.
        signature: The signature to measure.

    Raises:
        ConfigError: A file is missing or unreadable, or holds no request for the signature.
    """
    from embedserve.saved_model.load.warmup import read_logs, request_inputs

    inputs: list[Tensors] = []
    left_out = Counter[str]()
    for file in files:
        if not file.is_file():
            raise ConfigError(f"there is no file {file}")
        try:
            for log in read_logs(file):
                if len(inputs) == _MOST_RECORDS:
                    left_out[f"over the limit of {_MOST_RECORDS}"] += 1
                    continue
                try:
                    asked, bound = request_inputs(log, signatures)
                except ServingError as error:
                    left_out[_first_line(error)] += 1
                    continue
                if asked is signature:
                    inputs.append(bound)
                else:
                    left_out[f"of signature {asked.name!r}"] += 1
        except ServingError as error:
            if not inputs:
                raise ConfigError(f"{file} cannot be read: {_first_line(error)}") from None
            left_out[f"and more, for {file} cannot be read to its end"] += 1
    names = ", ".join(map(str, files))
    others = "; ".join(f"{count} {reason}" for reason, count in left_out.most_common(3))
    if not inputs:
        raise ConfigError(
            f"nothing in {names} is a request for signature {signature.name!r} of this model"
            + (f": left out {others}" if others else "")
        )
    origin = f"{len(inputs)} recorded in {names}" + (f" (left out: {others})" if others else "")
    return Requests(signature, tuple(inputs), origin)


async def check_answered(handle: ModelHandle, requests: Requests) -> None:
    """Check that the model answers at least one of the first requests.

    Raises:
        ConfigError: The first requests all fail; the message is the first error.
    """
    reason: ServingError | None = None
    for inputs in requests.inputs[:_TRIED]:
        try:
            await handle.predict(inputs, signature_name=requests.signature.name, timeout=PATIENCE)
        except ServingError as error:
            reason = reason or error
        else:
            return
    assert reason is not None
    raise ConfigError(f"every request fails: {_first_line(reason)}", code=reason.code)


def _first_line(error: ServingError) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
