"""An inference request beside its tensors: id, signature, priority, timeout, wanted outputs; and classification.

Parameters have Triton's names and units. The module knows no wire and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from embedserve.errors import InvalidInputError, UnsupportedError
from embedserve.priority import PriorityName, priority_named
from embedserve.servable import Array, Tensors
from embedserve.tensors.dtypes import by_numpy

__all__ = ["InferRequest", "WantedOutput", "check_tensor_parameters", "classified", "request_of", "shorter"]

_BY_LEVEL: tuple[PriorityName, ...] = ("normal", "high", "normal", "low")
_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")


class WantedOutput(NamedTuple):
    """An output that a request names.

    Attributes:
        name: Of the signature.
        classes: Answer this number of greatest values with their indices in place of the tensor; 0 is the tensor.
        binary: Whether to answer raw bytes; None follows the whole request.
    """

    name: str
    classes: int = 0
    binary: bool | None = None


class InferRequest(NamedTuple):
    """A request beside its tensors.

    Attributes:
        id: Given back with the answer.
        signature_name: Empty means `serving_default`.
        priority: None where the request names none.
        timeout: Seconds; None sets no bound.
        outputs: The wanted outputs; empty means all.
        binary: Whether outputs are raw bytes, unless an output says otherwise; None where the request does not say.
        final_response: Whether the client of a stream wants the last answer of each request marked.
    """

    id: str = ""
    signature_name: str = ""
    priority: PriorityName | None = None
    timeout: float | None = None
    outputs: tuple[WantedOutput, ...] = ()
    binary: bool | None = None
    final_response: bool = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the wanted outputs, for `Signature.pick`."""
        return tuple([output.name for output in self.outputs])

    def is_binary(self, name: str, default: bool) -> bool:
        """Whether an output is answered as raw bytes."""
        for output in self.outputs:
            if output.name == name and output.binary is not None:
                return output.binary
        return default if self.binary is None else self.binary


def request_of(
    id: str, parameters: Mapping[str, Any], outputs: Iterable[tuple[str, Mapping[str, Any]]]
) -> InferRequest:
    """Read the parameters of a request, and of the outputs that the request names. Unknown parameters are ignored.

    Args:
        id: As sent.
        parameters: Bools, numbers and strings by name.
        outputs: Name and parameters of each wanted output.

    Raises:
        InvalidInputError: A value of a wrong kind or range.
        UnsupportedError: A parameter for sequences or shared memory.
    """
    for name in _SEQUENCES:
        if parameters.get(name):
            raise UnsupportedError(f"parameter {name!r} is for sequences, which are not supported")
    wanted = tuple([_wanted(name, given) for name, given in outputs])
    if not parameters:
        return InferRequest(id, outputs=wanted)
    return InferRequest(
        id,
        _of_kind(parameters, "signature_name", str, ""),
        _priority(parameters.get("priority")),
        _timeout(parameters.get("timeout")),
        wanted,
        _of_kind(parameters, "binary_data_output", bool, None),
        _of_kind(parameters, "triton_enable_empty_final_response", bool, False),
    )


def _wanted(name: str, parameters: Mapping[str, Any]) -> WantedOutput:
    if not parameters:
        return WantedOutput(name)
    check_tensor_parameters(f"output {name!r}", parameters)
    classes = _of_kind(parameters, "classification", int, 0)
    if classes < 0:
        raise InvalidInputError(f"output {name!r}: classification is {classes}, expected a number of classes")
    return WantedOutput(name, classes, _of_kind(parameters, "binary_data", bool, None))


def check_tensor_parameters(what: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a tensor in shared memory.

    Raises:
        UnsupportedError: The tensor is in shared memory.
    """
    if any(name.startswith("shared_memory_") for name in parameters):
        raise UnsupportedError(f"{what} is in shared memory, which is not supported: send and ask for the bytes")


def _of_kind(parameters: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = parameters.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise InvalidInputError(f"parameter {name!r} is {value!r}, expected a value of type {kind.__name__}")
    return value


def _priority(value: object) -> PriorityName | None:
    """Triton's levels, of which 1 is the most urgent and 0 the default; or a name."""
    if value is None:
        return None
    if type(value) is int and value >= 0:
        return _BY_LEVEL[min(value, len(_BY_LEVEL) - 1)]
    if isinstance(value, str):
        level = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
        if level is not None:
            return _priority(level)
        return _BY_LEVEL[priority_named(value) + 1]
    raise InvalidInputError(f"parameter 'priority' is {value!r}, expected a number of 0 or more: 1 is the most urgent")


def _timeout(value: object) -> float | None:
    """Microseconds, of which 0 sets no bound, as seconds."""
    if value is None or (type(value) is int and value == 0):
        return None
    if type(value) is not int or value < 0:
        raise InvalidInputError(f"parameter 'timeout' is {value!r}, expected microseconds, an integer of 0 or more")
    return value / 1e6


def shorter(one: float | None, other: float | None) -> float | None:
    """The shorter of two timeouts, of which None is the longest."""
    return other if one is None else one if other is None else min(one, other)


def classified(outputs: Tensors, wanted: Iterable[WantedOutput]) -> Tensors:
    """The outputs, with classes in place of the tensors whose classes are wanted.

    An element is `<value>:<index>`. Of a tensor with several dimensions each row has its own classes.

    Raises:
        InvalidInputError: The tensor's values have no order: strings, bools.
    """
    counts = {output.name: output.classes for output in wanted if output.classes}
    if not counts:
        return outputs
    return {name: _classes(name, array, counts[name]) if name in counts else array for name, array in outputs.items()}


def _classes(name: str, array: Array, count: int) -> Array:
    if array.dtype.hasobject or array.dtype.kind not in "fiuV" or array.dtype.fields or array.size == 0:
        kind = f"{by_numpy(array.dtype).name} of shape {list(array.shape)}"
        raise InvalidInputError(f"output {name!r} is {kind}, and cannot be classified: numbers can")
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)
    if array.dtype.kind in "fV":
        rows = rows.astype(np.float64)
    last = rows.shape[1] - 1
    # Of equal values the lowest index is first: the order is that of the columns read backwards, backwards.
    order = last - rows[:, ::-1].argsort(axis=1, kind="stable")[:, ::-1][:, :count]
    values = np.take_along_axis(rows, order, axis=1)
    form = "%f:%d" if rows.dtype.kind == "f" else "%d:%d"
    texts = [(form % pair).encode() for pair in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)]
    classes = np.empty(len(texts), dtype=object)
    classes[:] = texts
    return classes.reshape(order.shape if array.ndim > 1 else order.shape[1:])
