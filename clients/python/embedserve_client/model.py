"""What a caller asks for and is told: model specs, signatures, and states of versions. The module knows no protocol."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from embedserve_client.errors import Code, InvalidModelSpecError

__all__ = [
    "DEFAULT_SIGNATURE",
    "Classifications",
    "ModelMetadata",
    "ModelSpec",
    "Signature",
    "State",
    "TensorSpec",
    "VersionStatus",
    "model_spec",
]

DEFAULT_SIGNATURE = "serving_default"

Classifications: TypeAlias = list[list[tuple[bytes, float]]]
"""(label, score) pairs for each example."""


class ModelSpec(NamedTuple):
    """The target of a call: a model, and a version or a label of the model."""

    name: str
    version: int | None = None
    label: str | None = None


def model_spec(name: str, version: int | None, label: str | None) -> ModelSpec:
    """The checked target of a call.

    Raises:
        InvalidModelSpecError: A wrong type, no name, or a version together with a label.
    """
    if not isinstance(name, str) or not name:
        raise InvalidModelSpecError(f"expects a model's name, but {name!r} is provided")
    if version is not None and (
        not isinstance(version, int) or isinstance(version, bool) or not 0 <= version < 1 << 63
    ):
        raise InvalidModelSpecError(f"a version must be an integer of 0 or more, got {version!r}")
    if label is not None and (not isinstance(label, str) or not label):
        raise InvalidModelSpecError(f"a label must be a string, got {label!r}")
    if version is not None and label is not None:
        raise InvalidModelSpecError(f"give a version or a label, not both: version {version}, label {label!r}")
    return ModelSpec(name, version, label)


class State(enum.IntEnum):
    """The state of a version, with the numbers of TensorFlow Serving."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """The state of a version of a model.

    Attributes:
        version: The number of the version.
        state: AVAILABLE for a version that answers.
        code: `Code.OK`, or the code of a failed load.
        error_message: Why the load failed; empty otherwise.
    """

    version: int
    state: State
    code: Code = Code.OK
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A declared input or output.

    Attributes:
        name: The name in requests and answers.
        dtype: TensorFlow's short name of the dtype (`float`, `int64`, `string`).
        shape: A size for each dimension, None for any size; None for any rank.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any rank"
        return f"{self.dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """A named function of a version.

    Attributes:
        name: The name in requests.
        inputs, outputs: Declared tensors by name.
        method_name: As in the SavedModel, for instance `tensorflow/serving/predict`.
        optional: Names of the inputs that have a default value.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str = ""
    optional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A version with its signatures by name."""

    name: str
    version: int
    signatures: Mapping[str, Signature] = field(default_factory=dict)
