"""The requests that callers put: made up from the signature, or recorded ones.

Called by `command` with the model loaded. Recorded files are those of warm-up requests and of request logs.
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
"""Seconds that a request may take, as over REST."""

# As many as a version replays of its warm-up file.
_MOST_RECORDS = 1000
# How many of them may fail before the first that is answered.
_TRIED = 8


@dataclass(frozen=True)
class Requests:
    """What is asked, in turn.

    Attributes:
        signature: The signature that is asked.
        inputs: Inputs of each request, bound.
        origin: Where they come from, in words.
    """

    signature: Signature
    inputs: tuple[Tensors, ...]
    origin: str

    def rows(self, inputs: Tensors) -> int:
        """Rows of one request; 1 where its inputs have none."""
        shapes = [shape_of(self.signature, self.signature.inputs[name]) for name in inputs]
        return rows(inputs) if shapes and all(shape and shape[0] is None for shape in shapes) else 1

    @property
    def most_rows(self) -> int:
        """Rows of the largest request."""
        return max(map(self.rows, self.inputs))

    @property
    def mean_rows(self) -> float:
        """Rows of a request, on average."""
        return sum(map(self.rows, self.inputs)) / len(self.inputs)

    def __str__(self) -> str:
        first = ", ".join(
            f"{name} {self.signature.inputs[name].dtype.name} {list(array.shape)}"
            for name, array in self.inputs[0].items()
        )
        return f"{self.origin}: {first}{' and more' * (len(self.inputs) > 1)}"


def chosen_signature(signatures: Mapping[str, Signature], name: str | None) -> Signature:
    """The signature of that name; without one the default or the only one.

    Raises:
        ConfigError: There is none of that name, or several and no default.
    """
    if name is None:
        name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures or len(signatures) != 1 else next(iter(signatures))
    if name not in signatures:
        known = ", ".join(sorted(signatures)) or "none"
        raise ConfigError(f"the model has no signature {name!r}; its signatures: {known}")
    return signatures[name]


async def made_up(handle: ModelHandle, signature: Signature, path: Path, tags: Iterable[str], rows: int) -> Requests:
    """One request of `rows` rows that the model answers.

    Args:
        handle: The loaded version.
        signature: One of its signatures.
        path: Its directory, where the graph tells which `tf.Example`s it parses.
        tags: Tag set it was loaded by.
        rows: Rows of the request, where its inputs have rows.

    Raises:
        ConfigError: None can be made up.
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
    """What a signature parses out of `tf.Example`s, if it does."""
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
    """The recorded requests that ask `signature`; blocks.

    Args:
        files: TFRecord files of `PredictionLog`s.
        signatures: All of the model's.
        signature: The one to measure.

    Raises:
        ConfigError: A file is missing or cannot be read, or holds nothing that this model can be asked.
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
    """See that the model answers one of the requests at least.

    Raises:
        ConfigError: The first few all fail, and with what.
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
