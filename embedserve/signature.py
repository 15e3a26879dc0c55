"""The inputs and outputs of a signature: bind a request's inputs, pick outputs, explain a mismatch.

`bind` runs once per request, on the hot path: a fitting array costs a few look-ups. The module runs no TensorFlow and
keeps rule 9: no bad shape reaches a kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from embedserve.errors import Code, InvalidInputError, ServingError
from embedserve.tensors.dtypes import Array, DType, Tensors, short_name
from embedserve.tensors.foreign import MissingValueError, columns_of

__all__ = ["DEFAULT_SIGNATURE", "BatchingVerdict", "Composite", "Signature", "TensorSpec"]

DEFAULT_SIGNATURE = "serving_default"
_FEW_NAMES = 16
"""Largest number of input names for TensorFlow Serving's full list; above, only the wrong names are listed."""

_PREDICT_METHODS = tuple(f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
        name: The alias in requests.
        dtype: Row of the dtype table.
        shape: Sizes, None where unknown; None as a whole for an unknown rank.
        tensor_name: Name in the graph (`x:0`), for messages and for sessions.
    """

    name: str
    dtype: DType
    shape: tuple[int | None, ...] | None
    tensor_name: str = ""

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype.name} of unknown rank"
        return f"{self.dtype.name} [{','.join('?' if size is None else str(size) for size in self.shape)}]"

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of `shape` fits the declared rank and fixed sizes."""
        return self.shape is None or _fits(shape, self.shape)


def _fits(shape: tuple[int, ...], required: tuple[int | None, ...]) -> bool:
    return len(shape) == len(required) and all(
        expected is None or size == expected for size, expected in zip(shape, required, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Composite:
    """An output of several tensors, or an output without values; the parts are separate outputs.

    Attributes:
        kind: The kind for messages: `a sparse tensor`.
        parts: The role of each part and the name of the part's output; in TensorFlow's order.
    """

    kind: str
    parts: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = ", ".join(f"{word} {name!r}" for word, name in self.parts)
        return f"{self.kind}, which no answer can carry" + (f"; its parts are the outputs {parts}" if parts else "")


@dataclass(frozen=True, slots=True)
class BatchingVerdict:
    """Whether requests of a signature may be merged along dimension 0, and the reason.

    Attributes:
        batchable: Whether merging is allowed.
        reason: A sentence without a full stop.
        by: The origin of the verdict. `proof` (for) and `graph` (against): the graph alone. `probe`: a run of made-up
            or recorded rows, where the graph leaves the question open. `option`: the owner. `none`: no verdict yet.
        operation, node: The first operation in the way of a proof and the node in the graph; empty with a proof.
    """

    batchable: bool
    reason: str
    by: Literal["proof", "graph", "probe", "option", "none"] = "none"
    operation: str = ""
    node: str = ""

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by in ("proof", "probe") else ""
        return f"{'batched' if self.batchable else 'not batched'}{by}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Signature:
    """A callable signature of a loaded version.

    Attributes:
        name: Key in the SavedModel.
        inputs, outputs: Specs by alias, sorted by alias. A part of a composite output stands under the tensor's name.
        method_name: As stored (`tensorflow/serving/predict`, ...).
        defaults: Values for optional inputs.
        stateless: The signature neither writes state nor draws random numbers, nested functions included.
        shape_free: Only element-wise operations, so declared shapes need not hold (rule 9's exception).
        batching: Whether concurrent requests may share a run.
        unbounded: Why the sizes of the inputs do not bound the time of a run; empty where the sizes do.
        input_ranks: Required rank per input of unknown declared rank.
        composites: Outputs without an answerable form, by alias.
        example: Inputs of one row that the model answered at the load, taken from the recorded warm-up requests or made
            up; empty where no request was tried or the inputs are large.
        fixed_rows: Why a request must have the declared number of rows, where `free_batch` was not used; for messages.
        input_dtypes: Dtypes of `inputs` by alias.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str = "tensorflow/serving/predict"
    defaults: Mapping[str, Array] = field(default_factory=dict)
    stateless: bool = True
    shape_free: bool = False
    batching: BatchingVerdict = BatchingVerdict(False, "not judged")
    unbounded: str = "not judged"
    input_ranks: Mapping[str, int] = field(default_factory=dict)
    composites: Mapping[str, Composite] = field(default_factory=dict)
    fixed_rows: str = ""
    example: Tensors = field(default_factory=dict, repr=False)
    input_dtypes: Mapping[str, DType] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        # The expectations of `bind`, worked out once: (name, numpy dtype, shape or None, spec).
        checks = tuple((name, spec.dtype.numpy, self._required_shape(spec), spec) for name, spec in self.inputs.items())
        object.__setattr__(self, "_checks", checks)
        object.__setattr__(self, "input_dtypes", {name: spec.dtype for name, spec in self.inputs.items()})
        object.__setattr__(self, "_fed", {name: i for i, name in enumerate(self._names_by_tensor())})

    _checks: tuple[tuple[str, np.dtype[np.generic], tuple[int | None, ...] | None, TensorSpec], ...] = field(
        init=False, repr=False, default=()
    )
    _fed: Mapping[str, int] = field(init=False, repr=False, default_factory=dict)

    def __str__(self) -> str:
        def side(specs: Iterable[TensorSpec]) -> str:
            return ", ".join(f"{spec.name}: {spec}" for spec in specs)

        return f"{self.name}({side(self.inputs.values())}) -> {side(self.outputs.values())}"

    def _names_by_tensor(self) -> list[str]:
        return sorted(self.inputs, key=lambda name: self.inputs[name].tensor_name or name)

    def _required_shape(self, spec: TensorSpec) -> tuple[int | None, ...] | None:
        if self.shape_free:
            return None
        if spec.shape is None and spec.name in self.input_ranks:
            return (None,) * self.input_ranks[spec.name]
        return spec.shape

    def bind(self, inputs: object, *, used_defaults: bool = True, cast: bool = True) -> dict[str, Array]:
        """Check a request's inputs against the signature and convert the values to the declared dtypes.

        Args:
            inputs: A mapping by input name; a DataFrame of pandas or polars, a pyarrow Table or RecordBatch, or a list
                of records, with a column for each input; or the bare value of a signature with a single input. Values
                may be numbers, strings, bytes, lists, ndarrays, tf.Tensors, or other objects readable by numpy (a
                column). Python numbers and lists take the declared dtype; arrays are cast where `np.can_cast(...,
                "same_kind")` allows it; `str` becomes UTF-8 bytes.
            used_defaults: Fill left-out inputs from `defaults`.
            cast: Cast arrays as described; False refuses an array of an undeclared dtype, as TF Serving does.

        Returns:
            An array per input, in the signature's dtypes. Fitting arrays are passed on without a copy.

        Raises:
            InvalidInputError: Names, dtype or shape do not fit, or a value is missing; the message begins with TF
                Serving's words, if any.
        """
        if type(inputs) is not dict and not isinstance(inputs, Mapping):
            inputs = self._bare(inputs, cast)
        if len(inputs) == len(self._checks):
            bound: dict[str, Array] = {}
            for name, dtype, shape, spec in self._checks:
                try:
                    value = inputs[name]
                except KeyError:
                    break
                # The common case first: an ndarray of the declared dtype and a fitting shape.
                if type(value) is not np.ndarray or value.dtype is not dtype or dtype.hasobject:
                    value = self._convert(spec, value, cast)
                if shape is not None:
                    given = value.shape
                    if len(given) != len(shape):
                        raise self._shape_error(spec, shape, given)
                    for size, expected in zip(given, shape, strict=True):
                        if expected is not None and size != expected:
                            raise self._shape_error(spec, shape, given)
                bound[name] = value
            else:
                return bound
        return self.bind(self._complete(inputs, used_defaults), cast=cast)

    def check_names(self, names: Collection[str]) -> None:
        """Refuse wrong input names, as `bind` does, before any value is read.

        Raises:
            InvalidInputError: As `bind`.
        """
        if len(names) != len(self.inputs) or any(name not in names for name in self.inputs):
            self._check_names(set(names), self.defaults)

    def check_declared(self, name: str, dtype: DType, shape: tuple[int, ...]) -> None:
        """Refuse a tensor by the declared dtype and shape, as `bind` without casts does.

        Raises:
            InvalidInputError: As `bind`.
        """
        spec = self.inputs[name]
        if dtype is not spec.dtype:
            raise self._dtype_error(spec, dtype.name)
        required = self._required_shape(spec)
        if required is not None and not _fits(shape, required):
            raise self._shape_error(spec, required, shape)

    def _bare(self, value: object, cast: bool) -> Mapping[str, object]:
        """Return the inputs for a table's columns, or for a bare value."""
        try:
            columns = columns_of(value)
        except ValueError as error:
            raise InvalidInputError(f"inputs for signature {self.name!r}: {error}") from None
        if columns is not None and (len(self.inputs) != 1 or columns.keys() == self.inputs.keys()):
            return {name: self._column(name, column, cast) for name, column in columns.items()}
        if len(self.inputs) == 1:
            (spec,) = self.inputs.values()
            if columns is not None:
                raise InvalidInputError(
                    f"a {type(value).__name__} gives one input per column, and signature {self.name!r} has one input, "
                    f"{spec.name!r}, which is {spec}: give its values as one array, as df[[...]].to_numpy() makes it, "
                    f"or one column named {spec.name!r}. The columns are {','.join(columns)}"
                )
            return {spec.name: value}
        raise InvalidInputError(
            f"inputs must be a mapping by input name for signature {self.name!r}, which has {len(self.inputs)} inputs "
            f"({', '.join(self.inputs) or 'none'}), or a table or records of these columns; got "
            f"{type(value).__name__}"
        )

    def _column(self, name: str, column: object, cast: bool) -> Any:
        """Return an input's column; a column of single values gets the shape of an input declared as `[rows, 1]`."""
        spec = self.inputs.get(name)
        if spec is None or spec.shape is None or len(spec.shape) != 2:
            return column
        array = self._convert(spec, column, cast)
        return array[:, None] if array.ndim == 1 else array

    def _complete(self, inputs: Mapping[str, object], used_defaults: bool) -> dict[str, object]:
        """Fill in defaults, or raise the error with the wrong names."""
        defaults = self.defaults if used_defaults else {}
        self._check_names(set(inputs), defaults)
        return {name: inputs[name] if name in inputs else defaults[name] for name in self.inputs}

    def _check_names(self, given: Set[str], defaults: Mapping[str, Array]) -> None:
        """Raise the error with the wrong names, if any (TF Serving: predict_util.cc)."""
        names = set(self.inputs)
        unnamed = [name for name in given if not isinstance(name, str)]
        if unnamed:
            raise InvalidInputError(f"input names must be strings; got {unnamed[0]!r}")
        few = len(names | given) <= _FEW_NAMES
        missing = names - given - defaults.keys()
        apart = f"Sent extra: {{{_listed(given - names)}}}. Missing but required: {{{_listed(missing)}}}."
        if len(given) > len(names) or (len(given) < len(names) and not defaults):
            lists = f" len({{{_listed(given)}}}) != len({{{_listed(names)}}})" if few else ""
            raise InvalidInputError(f"input size does not match signature: {len(given)}!={len(names)}{lists}. {apart}")
        for name in sorted(names - given):
            if name not in defaults:
                found = (
                    f"Inputs expected to be in the request {{{_listed(given)}}}, or "
                    f"default input alias set: {_listed(defaults)}"
                )
                raise InvalidInputError(
                    f"Signature input alias: {name}(feed name: {self.inputs[name].tensor_name}) not found in request "
                    f"and no default value provided. {f'{found}. {apart}' if few else apart}"
                )
        if given - names:
            found = f"Used request inputs: {_listed(given & names)}, request input: {_listed(given)}"
            raise InvalidInputError(f"Inputs contains invalid name. {f'{found}. {apart}' if few else apart}")

    def _convert(self, spec: TensorSpec, value: object, cast: bool) -> Array:
        if not cast and hasattr(value, "__array__"):
            value = np.asarray(value)
            given = short_name(value.dtype)
            if given != spec.dtype.name:
                raise self._dtype_error(spec, given)
        try:
            return spec.dtype.convert(value)
        except MissingValueError as error:
            where = f"row {error.index[0]} of input {spec.name!r}" if error.index else f"input {spec.name!r}"
            raise InvalidInputError(
                f"{where} is missing ({error.what}): signature {self.name!r} takes {spec}, which has no missing values"
            ) from None
        except TypeError as error:
            raise self._dtype_error(spec, error.args[0] if error.args else type(value).__name__) from None
        except (ValueError, OverflowError) as error:
            raise InvalidInputError(
                f"input {spec.name!r} of signature {self.name!r} is {spec}; "
                f"the given value cannot be read as that: {error}"
            ) from None

    def _dtype_error(self, spec: TensorSpec, given: str) -> InvalidInputError:
        return InvalidInputError(
            f"Expects arg[{self._fed[spec.name]}] to be {spec.dtype.name} but {given} is provided: "
            f"input {spec.name!r} of signature {self.name!r} is {spec}"
        )

    def _shape_error(
        self, spec: TensorSpec, required: tuple[int | None, ...], given: tuple[int, ...]
    ) -> InvalidInputError:
        expected = ",".join("?" if size is None else str(size) for size in required)
        why = " (rank set by input_ranks)" if spec.shape is None else ""
        if self.fixed_rows and required and _fits(given, (None, *required[1:])):
            why = f": free_batch could not be used: {self.fixed_rows}"
        return InvalidInputError(
            f"input {spec.name!r} of signature {self.name!r} has shape [{','.join(map(str, given))}], "
            f"expected [{expected}]{why}"
        )

    def check_predict_method(self) -> None:
        """Refuse a signature unfit for Predict, for `enable_signature_method_name_check`.

        Raises:
            ServingError: INTERNAL, as TF Serving (predict_util.cc).
        """
        if self.method_name not in _PREDICT_METHODS:
            raise ServingError(
                f"Expected prediction signature method_name to be one of {{{', '.join(_PREDICT_METHODS)}}}. "
                f"Was: {self.method_name}",
                code=Code.INTERNAL,
            )

    def pick(self, output_filter: Sequence[str] | None) -> tuple[str, ...] | None:
        """Check an output filter; None or empty means all outputs.

        Raises:
            InvalidInputError: An unknown or a repeated output name (TF Serving: predict_util.cc).
        """
        if not output_filter:
            return None
        if isinstance(output_filter, str):
            output_filter = (output_filter,)
        seen: set[str] = set()
        if not isinstance(output_filter, Iterable):
            raise InvalidInputError(f"output_filter must be names of outputs, got {output_filter!r}")
        for name in output_filter:
            if not isinstance(name, str):
                raise InvalidInputError(f"output_filter must be names of outputs, got {name!r} among them")
            if name not in self.outputs:
                raise InvalidInputError(
                    f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                    f"{{{_listed(self.outputs)}}}."
                    + (f" {name!r} is {self.composites[name]}" if name in self.composites else "")
                )
            if name in seen:
                raise InvalidInputError(f"duplicate output tensor alias: {name}")
            seen.add(name)
        return tuple(output_filter)


def _listed(names: Iterable[str]) -> str:
    return ",".join(sorted(names))


def rows(inputs: Tensors) -> int:
    """Return the size along dimension 0 of bound inputs; every input has a dimension 0 of the same size."""
    return len(next(iter(inputs.values())))
