"""Classify, Regress and MultiInference over `tf.Example` on a model (TF Serving: classifier.cc, regressor.cc).

Checks the signature's structure, feeds serialized Examples through `predict` (batched like any request) and reads the
result. Knows no wire. Order and words of errors are TensorFlow Serving's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from embedserve.errors import InvalidInputError, UnsupportedError
from embedserve.observer import running_api
from embedserve.priority import PriorityName
from embedserve.servable import Array
from embedserve.signature import DEFAULT_SIGNATURE, Signature
from embedserve.tensors import dtypes

__all__ = [
    "CLASSIFY_METHOD",
    "REGRESS_METHOD",
    "Classifications",
    "InferenceTask",
    "classification_outputs",
    "classify",
    "multi_inference",
    "regress",
    "regression_outputs",
]

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

INPUT = "inputs"
CLASSES = "classes"
SCORES = "scores"
OUTPUT = "outputs"


class Model(Protocol):
    """A held version that answers requests, for instance a `ModelHandle`."""

    name: str
    signatures: Mapping[str, Signature]

    def why_absent(self, signature_name: str) -> str:
        """A sentence, after a blank, on why a signature of the model cannot be called; else empty."""

    async def predict(
        self,
        inputs: object,
        *,
        signature_name: str,
        output_filter: Sequence[str] | None,
        timeout: float | None,
        priority: PriorityName,
    ) -> Mapping[str, Array]:
        """Answer a request."""


class SerializableExample(Protocol):
    """A `tf.train.Example`, or an object with the same serialization."""

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The Example's bytes."""


Example: TypeAlias = bytes | SerializableExample
Classifications: TypeAlias = list[list[tuple[bytes, float]]]
"""(label, score) pairs for each example; a part missing from the signature is `b""` or 0."""


class InferenceTask(NamedTuple):
    """A task of a MultiInference request.

    Attributes:
        signature_name: The signature to evaluate; at most once per request.
        method_name: `tensorflow/serving/classify` or `tensorflow/serving/regress`.
        model_name: The model's name in the request; None for the handle's name.
    """

    signature_name: str
    method_name: str
    model_name: str | None = None

    @property
    def classifies(self) -> bool:
        """Whether the task's result is a classification."""
        return self.method_name == CLASSIFY_METHOD


async def classify(
    model: Model,
    examples: Sequence[Example],
    context: Example | None = None,
    signature_name: str = DEFAULT_SIGNATURE,
    timeout: float | None = None,
    *,
    priority: PriorityName = "normal",
    check_method_name: bool = False,
) -> Classifications:
    """Classify Examples; `context` is merged under each example (the example's own features win).

    `check_method_name` is `RegistryOptions.enable_signature_method_name_check`.

    Raises:
        InvalidInputError: The call has no examples, or the signature or the result is not a classifier's.
    """
    signature = _signature(model, signature_name)
    names = classification_outputs(signature, check_method_name)
    outputs = await _run(model, signature, names, _feed(examples, context), timeout, priority, "Classify")
    return _classifications(outputs, len(examples))


async def regress(
    model: Model,
    examples: Sequence[Example],
    context: Example | None = None,
    signature_name: str = DEFAULT_SIGNATURE,
    timeout: float | None = None,
    *,
    priority: PriorityName = "normal",
    check_method_name: bool = False,
) -> Array:
    """Regress Examples: float32 of shape `[examples]`; `context` as for `classify`.

    Raises:
        InvalidInputError: The call has no examples, or the signature or the result is not a regressor's.
    """
    signature = _signature(model, signature_name)
    names = regression_outputs(signature, check_method_name)
    outputs = await _run(model, signature, names, _feed(examples, context), timeout, priority, "Regress")
    return _regressions(outputs, len(examples))


async def multi_inference(
    model: Model,
    tasks: Sequence[InferenceTask],
    examples: Sequence[Example],
    context: Example | None = None,
    timeout: float | None = None,
    *,
    priority: PriorityName = "normal",
    check_method_name: bool = False,
) -> list[Classifications | Array]:
    """Evaluate several signatures on the same Examples, at the same time; a failing task fails all tasks.

    Returns:
        In task order, the results of `classify` or `regress`.

    Raises:
        InvalidInputError: As in `classify` and `regress`, or a signature is unknown or asked for twice.
        UnsupportedError: A task is neither a classification nor a regression.
    """
    checked = _checked_tasks(model, tasks, check_method_name)
    feed = _feed(examples, context)
    try:
        async with asyncio.TaskGroup() as group:
            runs = [
                group.create_task(_run(model, signature, names, feed, timeout, priority, "MultiInference"))
                for _, signature, names in checked
            ]
    except ExceptionGroup as failures:
        raise _first(failures) from None
    return [
        _classifications(run.result(), len(examples)) if task.classifies else _regressions(run.result(), len(examples))
        for (task, _, _), run in zip(checked, runs, strict=True)
    ]


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    error: Exception = failures
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _checked_tasks(
    model: Model, tasks: Sequence[InferenceTask], check_method_name: bool
) -> list[tuple[InferenceTask, Signature, tuple[str, ...]]]:
    """Each task with the signature and the outputs to run, checked in the order of multi_inference.cc."""
    model_name: str | None = None
    checked: dict[str, tuple[InferenceTask, Signature, tuple[str, ...]]] = {}
    for task in tasks:
        name = model.name if task.model_name is None else task.model_name
        if not name:
            raise InvalidInputError("Found ModelSpec with an empty model name.")
        if name != (model_name or name):
            raise InvalidInputError("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        model_name = name
        signature_name = task.signature_name or DEFAULT_SIGNATURE
        if signature_name in checked:
            raise InvalidInputError(f"Duplicate evaluation of signature: {signature_name}")
        signature = model.signatures.get(signature_name)
        if signature is None:
            raise InvalidInputError(
                f"Requested signature not found in model graph: {signature_name}" + model.why_absent(signature_name)
            )
        if task.method_name == CLASSIFY_METHOD:
            names = classification_outputs(signature, check_method_name)
        elif task.method_name == REGRESS_METHOD:
            names = regression_outputs(signature, check_method_name)
        else:
            raise UnsupportedError(f"Unsupported signature method_name: {task.method_name}")
        checked[signature_name] = task, signature, names
    return list(checked.values())


def _signature(model: Model, name: str) -> Signature:
    signature = model.signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        name = name or DEFAULT_SIGNATURE
        raise InvalidInputError(f"No signature was found with the name: {name}{model.why_absent(name)}")
    return signature


def classification_outputs(signature: Signature, check_method_name: bool) -> tuple[str, ...]:
    """The outputs to run for a classification, classes first.

    Raises:
        InvalidInputError: The signature cannot classify.
    """
    if check_method_name and signature.method_name != CLASSIFY_METHOD:
        raise InvalidInputError(
            f"Expected classification signature method_name to be {CLASSIFY_METHOD}. Was: {signature.method_name}"
        )
    _check_input(signature, "classification")
    if len(signature.outputs) not in (1, 2):
        raise InvalidInputError(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    names = tuple(name for name in (CLASSES, SCORES) if name in signature.outputs)
    if not names:
        raise InvalidInputError(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return names


def regression_outputs(signature: Signature, check_method_name: bool) -> tuple[str, ...]:
    """The output to run for a regression.

    Raises:
        InvalidInputError: The signature cannot regress.
    """
    if check_method_name and signature.method_name != REGRESS_METHOD:
        raise InvalidInputError(
            f"Expected regression signature method_name to be {REGRESS_METHOD}. Was: {signature.method_name}"
        )
    _check_input(signature, "regression")
    if len(signature.outputs) != 1:
        raise InvalidInputError("Expected one output Tensor.")
    if OUTPUT not in signature.outputs:
        raise InvalidInputError(f"No regression outputs found in SignatureDef: {signature}")
    return (OUTPUT,)


def _check_input(signature: Signature, task: str) -> None:
    if len(signature.inputs) != 1:
        raise InvalidInputError("Expected one input Tensor.")
    if INPUT not in signature.inputs:
        raise InvalidInputError(f"No {task} inputs found in SignatureDef: {signature}")


def _feed(examples: Sequence[Example], context: Example | None) -> Array:
    """The 1-D string tensor of serialized Examples. Concatenated messages merge, so the context goes in front."""
    if not len(examples):
        raise InvalidInputError("Input is empty.")
    shared = b"" if context is None else _serialized(context)
    feed = np.empty(len(examples), dtype=object)
    feed[:] = [shared + _serialized(example) for example in examples]
    return feed


def _serialized(example: Example) -> bytes:
    return example if isinstance(example, bytes) else example.SerializeToString()


async def _run(
    model: Model,
    signature: Signature,
    names: tuple[str, ...],
    feed: Array,
    timeout: float | None,
    priority: PriorityName,
    api: str,
) -> Mapping[str, Array]:
    # All outputs need no filter, and requests without a filter share batches with plain predictions.
    output_filter = None if len(names) == len(signature.outputs) else names
    token = running_api.set(api)
    try:
        return await model.predict(
            {INPUT: feed},
            signature_name=signature.name,
            output_filter=output_filter,
            timeout=timeout,
            priority=priority,
        )
    finally:
        running_api.reset(token)


def _classifications(outputs: Mapping[str, Array], num_examples: int) -> Classifications:
    classes, scores = outputs.get(CLASSES), outputs.get(SCORES)
    for name, array, expected in ((CLASSES, classes, "DT_STRING"), (SCORES, scores, "DT_FLOAT")):
        if array is None:
            continue
        if array.ndim != 2:
            raise InvalidInputError(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if (given := _dtype(array)) != expected:
            raise InvalidInputError(f"Expected {name} Tensor of {expected}. Got: {given}")
        if len(array) != num_examples:
            raise InvalidInputError(f"Expected {name} output batch size of {num_examples}. Got: {len(array)}")
    if classes is not None and scores is not None:
        if classes.shape != scores.shape:
            raise InvalidInputError(
                f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
            )
        return [
            list(zip(labels, values, strict=True))
            for labels, values in zip(classes.tolist(), scores.tolist(), strict=True)
        ]
    if classes is not None:
        return [[(label, 0.0) for label in labels] for labels in classes.tolist()]
    assert scores is not None, "a classification signature gives classes or scores"
    return [[(b"", value) for value in values] for values in scores.tolist()]


def _regressions(outputs: Mapping[str, Array], num_examples: int) -> Array:
    array = outputs.get(OUTPUT)
    if array is None:
        raise InvalidInputError(f"Could not find output tensor '{OUTPUT}'")
    if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
        raise InvalidInputError(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}"
        )
    if len(array) != num_examples:
        raise InvalidInputError(f"Input batch size did not match output batch size: {num_examples} vs. {len(array)}")
    if (given := _dtype(array)) != "DT_FLOAT":
        raise InvalidInputError(f"Expected output Tensor of DT_FLOAT.  Got: {given}")
    return array.reshape(-1)


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _dtype(array: Array) -> str:
    return dtypes.by_numpy(array.dtype).enum_name
