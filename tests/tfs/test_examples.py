"""Classify, Regress and MultiInference: structure, order and words of TensorFlow Serving, over a fake handle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from embedserve.errors import Code, InferenceError, InvalidInputError, UnsupportedError
from embedserve.handle import ModelHandle
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import by_name
from embedserve.tfs import examples as tf_example
from embedserve.tfs.examples import CLASSIFY_METHOD, REGRESS_METHOD, InferenceTask, classify, multi_inference, regress

EXAMPLES = [b"one", b"two"]


def signature(
    name: str = "serving_default",
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    method_name: str = "tensorflow/serving/predict",
) -> Signature:
    """A signature from short dtype names, `inputs: string` by default."""

    def specs(of: Mapping[str, str]) -> dict[str, TensorSpec]:
        return {alias: TensorSpec(alias, by_name(of[alias]), None, f"{alias}:0") for alias in sorted(of)}

    return Signature(name, specs(inputs or {"inputs": "string"}), specs(outputs or {}), method_name)


@dataclass
class FakeHandle:
    """Answers `predict` with given arrays and remembers what it was asked."""

    signatures: Mapping[str, Signature]
    outputs: Mapping[str, Array] | Callable[[Tensors], Mapping[str, Array]] = field(default_factory=dict)
    name: str = "m"
    asked: list[dict[str, Any]] = field(default_factory=list)

    def why_absent(self, signature_name: str) -> str:
        return ""

    async def predict(
        self,
        inputs: Tensors,
        *,
        signature_name: str,
        output_filter: Sequence[str] | None,
        timeout: float | None,
        priority: str,
    ) -> dict[str, Array]:
        self.asked.append(
            {
                "inputs": inputs,
                "signature_name": signature_name,
                "output_filter": output_filter,
                "timeout": timeout,
                "priority": priority,
            }
        )
        await asyncio.sleep(0)
        return dict(self.outputs(inputs) if callable(self.outputs) else self.outputs)


def handle(
    *signatures: Signature, outputs: Mapping[str, Any] | Callable[[Tensors], Mapping[str, Array]] | None = None
) -> ModelHandle:
    return cast(ModelHandle, FakeHandle({s.name: s for s in signatures}, outputs or {}))


def asked(of: ModelHandle) -> list[dict[str, Any]]:
    return cast(FakeHandle, of).asked


def strings(*rows: Sequence[bytes]) -> Array:
    array = np.empty((len(rows), len(rows[0])), dtype=object)
    array[:] = rows
    return array


def floats(values: Any) -> Array:
    return np.array(values, np.float32)


CLASSIFIER = signature(outputs={"classes": "string", "scores": "float"})
SCORER = signature(outputs={"scores": "float"})
LABELLER = signature(outputs={"classes": "string"})
REGRESSOR = signature(outputs={"outputs": "float"})


async def test_classify_pairs_labels_with_scores() -> None:
    h = handle(CLASSIFIER, outputs={"classes": strings([b"a", b"b"], [b"c", b"d"]), "scores": floats([[1, 2], [3, 4]])})
    assert await classify(h, EXAMPLES) == [[(b"a", 1.0), (b"b", 2.0)], [(b"c", 3.0), (b"d", 4.0)]]


async def test_classify_leaves_a_missing_part_at_its_default() -> None:
    assert await classify(handle(SCORER, outputs={"scores": floats([[1], [2]])}), EXAMPLES) == [
        [(b"", 1.0)],
        [(b"", 2.0)],
    ]
    h = handle(LABELLER, outputs={"classes": strings([b"a"], [b"b"])})
    assert await classify(h, EXAMPLES) == [[(b"a", 0.0)], [(b"b", 0.0)]]


async def test_an_example_without_classes_has_an_empty_list() -> None:
    assert await classify(handle(SCORER, outputs={"scores": floats(np.zeros((2, 0)))}), EXAMPLES) == [[], []]


async def test_an_unrelated_second_output_is_tolerated_and_not_computed() -> None:
    h = handle(signature(outputs={"scores": "float", "debug": "int64"}), outputs={"scores": floats([[1], [2]])})
    await classify(h, EXAMPLES)
    assert asked(h)[0]["output_filter"] == ("scores",)


@pytest.mark.parametrize("values", [[3.0, 4.0], [[3.0], [4.0]]])
async def test_regress_gives_one_float_for_each_example(values: Any) -> None:
    result = await regress(handle(REGRESSOR, outputs={"outputs": floats(values)}), EXAMPLES)
    assert result.dtype == np.float32
    assert result.tolist() == [3.0, 4.0]


async def test_examples_are_fed_as_a_vector_of_bytes_with_the_context_in_front() -> None:
    class Example:
        def SerializeToString(self) -> bytes:  # noqa: N802
            return b"proto"

    h = handle(REGRESSOR, outputs={"outputs": floats([1, 2])})
    await regress(h, [b"one", Example()], b"ctx+", timeout=2.5, priority="low")
    (call,) = asked(h)
    assert call["inputs"]["inputs"].tolist() == [b"ctx+one", b"ctx+proto"]
    assert call["inputs"]["inputs"].dtype == object
    assert call["timeout"] == 2.5
    assert call["priority"] == "low"
    assert call["output_filter"] is None


async def test_the_examples_own_feature_wins_over_the_context() -> None:
    tf = pytest.importorskip("tensorflow")

    def example(**features: float) -> Any:
        return tf.train.Example(
            features=tf.train.Features(
                feature={k: tf.train.Feature(float_list=tf.train.FloatList(value=[v])) for k, v in features.items()}
            )
        )

    h = handle(REGRESSOR, outputs={"outputs": floats([1])})
    await regress(h, [example(x=2)], example(x=1, y=7))
    merged = tf.train.Example.FromString(asked(h)[0]["inputs"]["inputs"][0]).features.feature
    assert merged["x"].float_list.value == [2]
    assert merged["y"].float_list.value == [7]


TWO_INPUTS = {"inputs": "string", "more": "string"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (signature("other"), "No signature was found with the name: serving_default"),
        (signature(inputs=TWO_INPUTS, outputs={"scores": "float"}), "Expected one input Tensor."),
        (
            signature(inputs={"x": "string"}, outputs={"scores": "float"}),
            "No classification inputs found in SignatureDef: ",
        ),
        (
            signature(outputs={"classes": "string", "scores": "float", "more": "float"}),
            "Expected one or two output Tensors, found 3",
        ),
        (
            signature(outputs={"y": "float"}),
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            "Signature was: ",
        ),
    ],
)
async def test_structure_errors_of_classify_come_before_empty_input(given: Signature, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        await classify(handle(given), [])
    assert raised.value.message.startswith(message)
    assert raised.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (signature("other"), "No signature was found with the name: serving_default"),
        (signature(inputs=TWO_INPUTS, outputs={"outputs": "float"}), "Expected one input Tensor."),
        (
            signature(inputs={"x": "string"}, outputs={"outputs": "float"}),
            "No regression inputs found in SignatureDef: ",
        ),
        (signature(outputs={"outputs": "float", "more": "float"}), "Expected one output Tensor."),
        (signature(outputs={"y": "float"}), "No regression outputs found in SignatureDef: "),
    ],
)
async def test_structure_errors_of_regress_come_before_empty_input(given: Signature, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        await regress(handle(given), [])
    assert raised.value.message.startswith(message)


async def test_no_examples_is_an_error() -> None:
    for call in (
        classify(handle(SCORER), []),
        regress(handle(REGRESSOR), []),
        multi_inference(handle(SCORER), [InferenceTask("", CLASSIFY_METHOD)], []),
    ):
        with pytest.raises(InvalidInputError, match=r"^Input is empty\.$"):
            await call


async def test_method_names_count_only_when_they_are_checked() -> None:
    h = handle(SCORER, outputs={"scores": floats([[1], [2]])})
    await classify(h, EXAMPLES)
    with pytest.raises(InvalidInputError) as raised:
        await classify(h, EXAMPLES, check_method_name=True)
    assert raised.value.message == (
        "Expected classification signature method_name to be tensorflow/serving/classify. "
        "Was: tensorflow/serving/predict"
    )
    with pytest.raises(InvalidInputError) as raised:
        await regress(handle(REGRESSOR), EXAMPLES, check_method_name=True)
    assert raised.value.message == (
        "Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict"
    )
    right = signature(outputs={"scores": "float"}, method_name=CLASSIFY_METHOD)
    await classify(handle(right, outputs={"scores": floats([[1], [2]])}), EXAMPLES, check_method_name=True)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"classes": strings([b"a"], [b"b"])[:, 0], "scores": floats([[1], [2]])},
            "Expected Tensor shape: [batch_size num_classes] but got [2]",
        ),
        (
            {"classes": floats([[1], [2]]), "scores": floats([[1], [2]])},
            "Expected classes Tensor of DT_STRING. Got: DT_FLOAT",
        ),
        (
            {"classes": strings([b"a"], [b"b"]), "scores": np.zeros((2, 1))},
            "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE",
        ),
        (
            {"classes": strings([b"a"]), "scores": floats([[1], [2]])},
            "Expected classes output batch size of 2. Got: 1",
        ),
        (
            {"classes": strings([b"a"], [b"b"]), "scores": floats([[1]])},
            "Expected scores output batch size of 2. Got: 1",
        ),
        (
            {"classes": strings([b"a"], [b"b"]), "scores": floats([[1, 2], [3, 4]])},
            "Tensors class and score should match in dim_size(1). Got 1 vs. 2",
        ),
    ],
)
async def test_result_errors_of_classify(outputs: Mapping[str, Array], message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        await classify(handle(CLASSIFIER, outputs=outputs), EXAMPLES)
    assert raised.value.message == message


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            floats([[1, 2], [3, 4]]),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
        ),
        (floats(1), "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []"),
        (floats([1]), "Input batch size did not match output batch size: 2 vs. 1"),
        (np.zeros(2), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)
async def test_result_errors_of_regress(output: Array, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        await regress(handle(REGRESSOR, outputs={"outputs": output}), EXAMPLES)
    assert raised.value.message == message


async def test_a_regression_without_its_output_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match=r"^Could not find output tensor 'outputs'$"):
        await regress(handle(REGRESSOR), EXAMPLES)


def both() -> tuple[Signature, Signature]:
    return signature("c", outputs={"scores": "float"}), signature("r", outputs={"outputs": "float"})


BOTH = {"scores": floats([[1], [2]]), "outputs": floats([3, 4])}


async def test_multi_inference_answers_in_task_order() -> None:
    h = handle(*both(), outputs=BOTH)
    regressed, classified = await multi_inference(
        h, [InferenceTask("r", REGRESS_METHOD), InferenceTask("c", CLASSIFY_METHOD, "m")], EXAMPLES, b"ctx"
    )
    assert isinstance(regressed, np.ndarray)
    assert regressed.tolist() == [3.0, 4.0]
    assert classified == [[(b"", 1.0)], [(b"", 2.0)]]
    assert [call["inputs"]["inputs"].tolist() for call in asked(h)] == [[b"ctxone", b"ctxtwo"]] * 2


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([("c", CLASSIFY_METHOD, "")], InvalidInputError, "Found ModelSpec with an empty model name."),
        (
            [("c", CLASSIFY_METHOD, "m"), ("r", REGRESS_METHOD, "n")],
            InvalidInputError,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [("c", CLASSIFY_METHOD, "m"), ("c", REGRESS_METHOD, "m")],
            InvalidInputError,
            "Duplicate evaluation of signature: c",
        ),
        (
            [("none", CLASSIFY_METHOD, "m")],
            InvalidInputError,
            "Requested signature not found in model graph: none",
        ),
        (
            [("", CLASSIFY_METHOD, "m")],
            InvalidInputError,
            "Requested signature not found in model graph: serving_default",
        ),
        (
            [("c", "tensorflow/serving/predict", "m")],
            UnsupportedError,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        ([("c", REGRESS_METHOD, "m")], InvalidInputError, "No regression outputs found in SignatureDef: "),
        # The first task with a fault decides.
        (
            [("c", CLASSIFY_METHOD, "m"), ("c", CLASSIFY_METHOD, "m"), ("r", REGRESS_METHOD, "")],
            InvalidInputError,
            "Duplicate evaluation of signature: c",
        ),
    ],
)
async def test_task_errors_of_multi_inference(
    tasks: list[tuple[str, str, str]], error: type[Exception], message: str
) -> None:
    h = handle(*both(), outputs=BOTH)
    with pytest.raises(error) as raised:
        await multi_inference(h, [InferenceTask(*task) for task in tasks], [])
    assert str(raised.value).startswith(message)
    assert not asked(h)


async def test_one_failing_task_fails_the_request_with_its_own_error() -> None:
    def fail(inputs: Tensors) -> Mapping[str, Array]:
        raise InferenceError("the graph complains", code=Code.OUT_OF_RANGE)

    with pytest.raises(InferenceError, match="the graph complains") as raised:
        await multi_inference(
            handle(*both(), outputs=fail),
            [InferenceTask("c", CLASSIFY_METHOD), InferenceTask("r", REGRESS_METHOD)],
            EXAMPLES,
        )
    assert raised.value.code is Code.OUT_OF_RANGE


async def test_cancelling_multi_inference_gives_every_run_up() -> None:
    started, gone = asyncio.Semaphore(0), 0

    class Waiting(FakeHandle):
        async def predict(self, inputs: Tensors, **options: Any) -> dict[str, Array]:
            nonlocal gone
            started.release()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                gone += 1
                raise
            raise AssertionError

    h = cast(ModelHandle, Waiting({s.name: s for s in both()}))
    tasks = [InferenceTask("c", CLASSIFY_METHOD), InferenceTask("r", REGRESS_METHOD)]
    call = asyncio.create_task(multi_inference(h, tasks, EXAMPLES))
    await started.acquire()
    await started.acquire()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert gone == 2


def test_every_public_name_is_there() -> None:
    assert all(hasattr(tf_example, name) for name in tf_example.__all__)
