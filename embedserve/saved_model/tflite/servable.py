"""Servable over TensorFlow Lite interpreters, each for a single run at a time, over a shared copy of the model's bytes.

An interpreter cannot be interrupted: `timeout` and cancellation end the wait for a free interpreter, and a run always
finishes. The module knows no batching.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from embedserve.errors import Code, DeadlineExceededError, InferenceError, InvalidInputError, LoadError, ServingError
from embedserve.saved_model.tflite.model import TfliteModel, TfliteTensor
from embedserve.servable import Array, Cancellation, Tensors
from embedserve.signature import Signature
from embedserve.tfs.constants import TIMED_OUT

__all__ = ["MissingOperationError", "TfliteServable"]

logger = logging.getLogger("embedserve")

# Highest rank of an input. XNNPACK, which runs most models, refuses a higher rank, and writes past its arrays from rank
# 10 on.
_MAX_RANK = 6
_MISSING_OPERATION = ("unresolved custom op", "Select TensorFlow op")

Shapes = tuple[tuple[int, ...], ...]


class MissingOperationError(LoadError):
    """The model holds an operation that the Python interpreters lack."""

    code = Code.UNIMPLEMENTED


class TfliteServable:
    """A version as a TFLite model and its interpreters, from load to `close`.

    Args:
        data: Bytes of the model file, shared by all interpreters; a later change of the file has no effect.
        model: The contents of the file.
        interpreters: Number of simultaneous runs.

    Raises:
        LoadError: No interpreter can be built.
    """

    kind = "tflite"
    reads_files_at_run_time = False
    inline: Collection[str] = frozenset()  # A run waits for a free interpreter.

    def __init__(self, data: bytes, model: TfliteModel, interpreters: int) -> None:
        self.signatures = model.signatures
        self.signature_defs = model.signature_defs
        self._plans = {name: _Plan(model, signature) for name, signature in model.signatures.items()}
        self._waiting = threading.Condition()
        make = _interpreter_class()
        self._idle = [_Interpreter(_build(make, data), model) for _ in range(interpreters)]

    def __repr__(self) -> str:
        return f"<TfliteServable {', '.join(self.signatures) or 'without signatures'}, {len(self._idle)} idle>"

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run a signature; see `Servable.run`. A run computes all outputs and reads the requested outputs."""
        if timeout is not None and timeout <= 0:
            raise DeadlineExceededError(TIMED_OUT)
        plan = self._plans[signature_name]
        arrays = [feed if isinstance(feed, np.ndarray) else inputs[feed] for feed in plan.feeds]
        shapes = tuple([array.shape for array in arrays])
        for tensor, shape in zip(plan.inputs, shapes, strict=True):
            if len(shape) > max(_MAX_RANK, len(tensor.shape or ())):
                raise InvalidInputError(
                    f"input {tensor.alias!r} has rank {len(shape)}, TensorFlow Lite takes at most {_MAX_RANK}"
                )
        outputs = plan.outputs if output_names is None else {name: plan.outputs[name] for name in output_names}
        interpreter = self._take(shapes, timeout)
        try:
            if cancellation is not None and cancellation.cancelled:
                raise InferenceError("the run was cancelled", code=Code.CANCELLED)
            return interpreter.run(arrays, shapes, outputs)
        finally:
            with self._waiting:
                self._idle.append(interpreter)
                self._waiting.notify()

    def _take(self, shapes: Shapes, timeout: float | None) -> _Interpreter:
        """An idle interpreter, preferably with memory for the given shapes."""
        with self._waiting:
            if not self._idle and not self._waiting.wait_for(lambda: self._idle, timeout):
                raise DeadlineExceededError(TIMED_OUT)
            for i, interpreter in enumerate(self._idle):
                if interpreter.shapes == shapes:
                    return self._idle.pop(i)
            return self._idle.pop()

    def close(self) -> None:
        """Drop the interpreters and the model."""
        self._idle = []
        self._plans = {}


class _Plan:
    """Feeds and outputs of a signature.

    Attributes:
        inputs: All inputs of the model, in the model's order.
        feeds: The signature's alias for each input, or zeros for an input outside the signature: without zeros, an
            interpreter would reuse values of the previous request.
        outputs: Tensor by alias.
    """

    __slots__ = ("feeds", "inputs", "outputs")

    def __init__(self, model: TfliteModel, signature: Signature) -> None:
        aliases = {spec.tensor_name: alias for alias, spec in signature.inputs.items()}
        by_name = {tensor.name: tensor for tensor in model.outputs}
        self.inputs = model.inputs
        self.feeds: list[str | Array] = [
            aliases[tensor.name] if tensor.name in aliases else _zeros(tensor) for tensor in model.inputs
        ]
        self.outputs = {alias: by_name[spec.tensor_name] for alias, spec in signature.outputs.items()}


def _zeros(tensor: TfliteTensor) -> Array:
    shape = [max(size, 1) for size in tensor.shape or ()]
    return np.full(shape, b"", object) if tensor.dtype.numpy.hasobject else np.zeros(shape, tensor.dtype.numpy)


class _Interpreter:
    """An interpreter for a single run at a time.

    Attributes:
        shapes: Input shapes with allocated memory; None before a new allocation.
    """

    def __init__(self, interpreter: Any, model: TfliteModel) -> None:
        self._indices = [tensor.index for tensor in model.inputs]
        self._has_variables = model.has_variables
        self._interpreter = interpreter
        self.shapes: Shapes | None = None

    def run(self, arrays: Sequence[Array], shapes: Shapes, outputs: Mapping[str, TfliteTensor]) -> dict[str, Array]:
        """Set every input, run, and copy the outputs.

        Raises:
            InferenceError: INTERNAL, with TensorFlow Serving's message followed by the interpreter's message.
        """
        interpreter = self._interpreter
        if shapes != self.shapes:
            self._allocate(shapes)
        try:
            if self._has_variables:
                interpreter.reset_all_variables()  # A request must not see another request's state.
            for index, array in zip(self._indices, arrays, strict=True):
                interpreter.set_tensor(index, array if array.ndim or not array.dtype.hasobject else _single(array))
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            self.shapes = None
            raise _failed("Failed to invoke TfLite interpreter", error) from None
        return {alias: self._read(tensor) for alias, tensor in outputs.items()}

    def _allocate(self, shapes: Shapes) -> None:
        self.shapes = None
        try:
            for index, shape in zip(self._indices, shapes, strict=True):
                self._interpreter.resize_tensor_input(index, shape)
        except (RuntimeError, ValueError) as error:
            raise _failed("Failed to resize input tensor", error) from None
        try:
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise _failed("Failed to allocate tensors", error) from None
        self.shapes = shapes

    def _read(self, tensor: TfliteTensor) -> Array:
        try:
            value: Array = self._interpreter.get_tensor(tensor.index)
        except (RuntimeError, ValueError) as error:
            raise _failed(f"Missing output TFLite tensor: {tensor.name}", error) from None
        return value


def _single(text: Array) -> Array:
    """A string of rank 0 as bytes: the binding would read an object array's pointer as its contents."""
    value: bytes = text.item()
    if not value:
        raise InvalidInputError("TensorFlow Lite's Python interpreter takes no empty string of rank 0")
    return np.array(value)


def _failed(what: str, error: Exception) -> ServingError:
    if isinstance(error, UnicodeDecodeError):  # The text quotes a request.
        text = error.object.decode("utf-8", "replace")
        return InferenceError(f"{what}: {text.strip()}", code=Code.INVALID_ARGUMENT)
    return InferenceError(f"{what}: {str(error).strip()}", code=Code.INTERNAL)


def _build(make: Any, data: bytes) -> Any:
    """An interpreter with memory for the shapes that the file declares.

    Raises:
        LoadError: In TensorFlow Serving's words; MissingOperationError if the SavedModel may serve instead.
    """
    try:
        interpreter = make(model_content=data, num_threads=1)
    except ValueError as error:
        raise LoadError(f"Cannot build FlatBufferModel from buffer. {error}", code=Code.INVALID_ARGUMENT) from None
    except RuntimeError as error:
        raise _not_built("Cannot build Interpreter from buffer.", error) from None
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise _not_built("Failed to allocate tensors.", error) from None
    return interpreter


def _not_built(what: str, error: Exception) -> LoadError:
    message = f"{what} {str(error).strip()}"
    if any(words in message for words in _MISSING_OPERATION):
        return MissingOperationError(
            f"{message} TensorFlow Lite's Python interpreter has the built-in operations only: convert the model "
            "without Select TensorFlow and custom operations, or serve the SavedModel"
        )
    return LoadError(message, code=Code.INTERNAL)


def _interpreter_class() -> Any:
    try:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError as error:
        logger.info("ai-edge-litert cannot be imported (%s): TensorFlow's own interpreter is used", error)
    lite = getattr(tf, "lite", None)
    if lite is None or not hasattr(lite, "Interpreter"):
        raise LoadError(
            "there is no TensorFlow Lite interpreter: install ai-edge-litert (embedserve[tflite])",
            code=Code.UNIMPLEMENTED,
        )
    return lite.Interpreter
