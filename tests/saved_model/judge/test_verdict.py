"""Which signatures batch, which take any shape, which cannot be guarded, and on what inputs that is found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from embedserve.config import Batching
from embedserve.errors import DeadlineExceededError, InferenceError, InvalidInputError
from embedserve.saved_model.judge.probe_inputs import MadeUp, Recorded, candidates, feature_examples
from embedserve.saved_model.judge.verdict import find_sample, probe
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors import dtypes
from tests.saved_model.conftest import Load


@pytest.mark.parametrize(
    ("name", "signature_name", "reason"),
    [
        ("half_plus_two", "serving_default", None),
        ("dense", "serving_default", None),
        ("integer_matmul", "serving_default", None),
        ("strings", "serving_default", None),
        ("lookup", "serving_default", None),
        ("conv2d", "serving_default", None),
        ("text_cnn", "serving_default", None),
        ("keras_export", "serving_default", None),
        ("control_flow", "pure", None),
        ("examples", "classify_labels", None),
        ("big_constant", "serving_default", None),
        ("tf1_legacy_init", "serving_default", None),
        ("counter", "serving_default", "AssignAddVariableOp writes state"),
        ("control_flow", "hidden", "AssignAddVariableOp writes state"),
        ("tf1_counter", "serving_default", "AssignAdd writes state"),
        ("random_noise", "serving_default", "RandomUniform draws random numbers"),
        ("several", "scalars", "input 'a' is float []: no leading unknown dimension"),
        ("several", "free", "input 'x' is float of unknown rank: no leading unknown dimension"),
        ("exposed_variable", "serving_default", "output 'all' is float [64]: no leading unknown dimension"),
        ("across_rows", "serving_default", "output 'y' of a row depends on the other rows of its batch"),
        ("endless", "serving_default", "output 'done' of a row depends on the other rows of its batch"),
    ],
)
def test_auto_batches_only_what_is_safe(load: Load, name: str, signature_name: str, reason: str | None) -> None:
    verdict = load(name).signatures[signature_name].batching
    assert verdict.batchable is (reason is None)
    assert verdict.reason == (reason or "two rows together equal each alone")


@pytest.mark.parametrize("batching", [True, False])
def test_the_option_overrides_the_judgement(load: Load, batching: Batching) -> None:
    for name in ("counter", "dense"):
        verdict = load(name, batching=batching).signatures["serving_default"].batching
        assert (verdict.batchable, verdict.reason) == (batching, f"batching={batching}")


@pytest.mark.parametrize(
    ("name", "signature_name", "shape_free"),
    [
        ("half_plus_two", "serving_default", True),
        ("several", "free", True),
        ("several", "scalars", False),  # Two inputs could be broadcast to the product of their sizes.
        ("dense", "serving_default", False),
        ("conv2d_unknown_rank", "serving_default", False),
    ],
)
def test_only_element_wise_signatures_take_any_shape(
    load: Load, name: str, signature_name: str, shape_free: bool
) -> None:
    signature = load(name).signatures[signature_name]
    assert signature.shape_free is shape_free
    if shape_free:
        assert signature.bind({"x": [1.0, 2.0, 5.0]})["x"].shape == (3,)


def test_half_plus_two_answers_tensorflow_servings_best_known_request(load: Load) -> None:
    servable = load("half_plus_two")
    inputs = servable.signatures["serving_default"].bind([1.0, 2.0, 5.0])
    assert servable.run("serving_default", inputs)["y"].tolist() == [2.5, 3.0, 4.5]


def test_element_wise_operations_survive_every_rank(load: Load) -> None:
    servable = load("half_plus_two")
    signature = servable.signatures["serving_default"]
    for rank in range(13):
        x = np.ones((1,) * rank, np.float32)
        assert servable.run("serving_default", signature.bind({"x": x}))["y"].shape == x.shape


def test_an_unknown_rank_is_said_to_be_unguarded(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    load("conv2d_unknown_rank")
    assert "cannot be guarded: signature 'serving_default' declares no rank for image" in caplog.text


def test_input_ranks_guard_an_unknown_rank(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    servable = load("conv2d_unknown_rank", input_ranks={"image": 4})
    signature = servable.signatures["serving_default"]
    assert "cannot be guarded" not in caplog.text
    with pytest.raises(InvalidInputError, match=r"expected \[\?,\?,\?,\?\] \(rank set by input_ranks\)"):
        signature.bind({"image": np.ones((2, 2, 2), np.float32)})
    assert servable.run("serving_default", signature.bind(np.ones((1, 2, 2, 1), np.float32)))["score"].shape == (1, 2)


def test_a_wrong_input_rank_does_not_abort_the_load(load: Load) -> None:
    assert load("conv2d_unknown_rank", input_ranks={"image": 3}).signatures["serving_default"].input_ranks == {
        "image": 3
    }


def test_what_only_a_parser_of_examples_uses_has_rank_one(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    signature = load("tf1_examples").signatures["classify_x_to_y"]
    assert signature.input_ranks == {"inputs": 1}
    assert "cannot be guarded" not in caplog.text


def signature(**inputs: tuple[str, tuple[int | None, ...] | None]) -> Signature:
    specs = {name: TensorSpec(name, dtypes.by_name(dtype), shape) for name, (dtype, shape) in inputs.items()}
    return Signature("serving_default", specs, {"y": TensorSpec("y", dtypes.by_name("float"), (None,))})


class TestSamples:
    @pytest.mark.parametrize("dtype", [row for row in dtypes.DTYPES if row.name not in ("resource", "variant")])
    def test_made_up_rows_differ_and_fit(self, dtype: dtypes.DType) -> None:
        one = signature(x=(dtype.name, (None, None, 2)))
        batch = MadeUp(one, 3, (b"1", b"2")).batch(4)
        bound = one.bind(batch)["x"]
        assert (bound.shape, bound.dtype) == ((4, 3, 2), dtype.numpy)
        for row in range(3):
            assert bound[row].tobytes() != bound[row + 1].tobytes() or bound[row].tolist() != bound[row + 1].tolist()

    def test_declared_sizes_are_kept(self) -> None:
        batch = MadeUp(signature(a=("float", (2, None)), b=("int32", ())), 3, ()).batch(5)
        assert {name: array.shape for name, array in batch.items()} == {"a": (2, 3), "b": ()}

    def test_nothing_is_made_up_for_an_unknown_rank(self) -> None:
        assert list(candidates(signature(x=("float", None)))) == []
        with pytest.raises(ValueError, match="rank of 'x' is unknown"):
            MadeUp(signature(x=("float", None)), 1, ())

    def test_numbers_of_a_rank_that_only_the_user_set_are_not_made_up(self) -> None:
        ranked = dataclasses.replace(signature(x=("float", None)), input_ranks={"x": 3})
        assert list(candidates(ranked)) == []

    def test_examples_and_element_wise_signatures_need_no_declared_rank(self) -> None:
        examples = dataclasses.replace(signature(x=("string", None)), input_ranks={"x": 1})
        free = dataclasses.replace(signature(x=("float", None)), shape_free=True)
        assert next(iter(candidates(examples, (), [b"a", b"b"]))).batch(2)["x"].tolist() == [b"a", b"b"]
        assert next(iter(candidates(free))).batch(2)["x"].shape == (2,)

    def test_made_up_inputs_stay_small(self) -> None:
        shapes = [sample.batch(1)["x"].shape for sample in candidates(signature(x=("float", (None,) * 5)))]
        assert shapes == [(1, 4, 4, 4, 4), (1, 1, 1, 1, 1), (1, 32, 32, 32, 32)]

    def test_recorded_rows_come_first_and_repeat(self) -> None:
        one = signature(x=("float", (None, 2)))
        recorded: list[Tensors] = [{"x": np.array([[1, 2]], np.float32)}, {"x": np.array([[3, 4]], np.float32)}]
        first = next(iter(candidates(one, recorded)))
        assert isinstance(first, Recorded)
        assert first.batch(3)["x"].tolist() == [[1, 2], [3, 4], [1, 2]]

    def test_empty_recorded_requests_are_of_no_use(self) -> None:
        one = signature(x=("float", (None, 2)))
        assert not isinstance(next(iter(candidates(one, [{"x": np.zeros((0, 2), np.float32)}]))), Recorded)

    def test_examples_have_the_features_asked_for(self) -> None:
        from tensorflow.core.example.example_pb2 import Example

        first, second = map(Example.FromString, feature_examples({"f": (1, 2), "i": (9, 1), "s": (7, 1)}))
        assert first != second
        assert len(first.features.feature["f"].float_list.value) == 2
        assert first.features.feature["s"].bytes_list.value == [b"1"]


class Fake:
    """A servable made of one function over `x`."""

    kind = "function"
    signature_defs: Mapping[str, Any] = {}
    reads_files_at_run_time = False

    def __init__(self, function: Callable[[Array], Array]) -> None:
        self.signatures = {"serving_default": signature(x=("float", (None, 2)))}
        self.function = function

    def run(
        self, signature_name: str, inputs: Tensors, output_names: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Array]:
        return {"y": self.function(inputs["x"])}


def verdict(function: Callable[[Array], Array], rows: Sequence[Sequence[float]] = ((1, 2), (3, 4))) -> str | None:
    servable = Fake(function)
    one = servable.signatures["serving_default"]
    found = probe(servable, one, Recorded(one, [{"x": np.array([row], np.float32)} for row in rows]))
    return None if found.batchable else found.reason


def raising(error: Exception) -> Callable[[Array], Array]:
    def function(x: Array) -> Array:
        raise error

    return function


class TestProbe:
    def test_tolerance_is_relative(self) -> None:
        assert verdict(lambda x: x * (1 + 5e-6 * (len(x) - 1))) is None
        assert verdict(lambda x: x * (1 + 5e-5 * (len(x) - 1))) is not None
        assert verdict(lambda x: x * 1e6 * (1 + 5e-6 * (len(x) - 1))) is None
        assert verdict(lambda x: x * 1e-6 * (1 + 5e-5 * (len(x) - 1))) is not None

    def test_integers_and_strings_are_compared_exactly(self) -> None:
        assert verdict(lambda x: x.astype(np.int64)) is None
        assert verdict(lambda x: x.astype(np.int64) * 10**9 + len(x)) is not None
        assert verdict(lambda x: np.array([b"a"] * len(x), object)) is None
        assert verdict(lambda x: np.array([b"%d" % len(x)] * len(x), object)) is not None

    def test_nan_equals_nan(self) -> None:
        assert verdict(lambda x: x * np.float32(np.nan)) is None

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (lambda x: x[:1], "output 'y' of two rows has shape [1, 2]"),
            (lambda x: x.sum(), "output 'y' of two rows has shape []"),
            (lambda x: np.tile(x, (1, len(x))), "output 'y' of a row depends on the other rows of its batch"),
            (raising(InferenceError("no")), "two rows together fail: no"),
        ],
    )
    def test_what_cannot_be_split_is_not_batched(self, function: Callable[[Array], Array], reason: str) -> None:
        assert verdict(function) == reason

    def test_rows_that_are_alike_prove_nothing(self) -> None:
        assert verdict(lambda x: x, [(1, 2), (1, 2)]) == "the recorded requests are all alike: nothing to probe with"

    def test_without_a_sample_there_is_no_batching(self) -> None:
        servable = Fake(lambda x: x)
        found = probe(servable, servable.signatures["serving_default"], None)
        assert not found.batchable
        assert "record warm-up requests" in found.reason


class TestFindSample:
    def test_the_first_sample_that_the_model_takes_is_found(self) -> None:
        def picky(x: Array) -> Array:
            if x.shape[1] < 30:
                raise InferenceError("too small")
            return x

        servable = Fake(picky)
        one = signature(x=("float", (None, None)))
        found = find_sample(servable, one, candidates(one))
        assert found is not None
        assert found.batch(1)["x"].shape == (1, 32)

    def test_a_run_without_end_gives_up(self) -> None:
        one = signature(x=("float", (None, None)))
        assert find_sample(Fake(raising(DeadlineExceededError("no"))), one, candidates(one)) is None
