"""Which signatures batch, which take any shape, which cannot be guarded, and on what inputs that is found out."""

from __future__ import annotations

import numpy as np
import pytest

from embedserve.config import Batching
from embedserve.errors import InvalidInputError
from tests.saved_model.conftest import Load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "signature_name"),
    [
        ("half_plus_two", "serving_default"),
        ("dense", "serving_default"),
        ("integer_matmul", "serving_default"),
        ("strings", "serving_default"),
        ("lookup", "serving_default"),
        ("reads_asset_at_run_time", "serving_default"),
        ("positive_only", "serving_default"),
        ("several", "serving_default"),
        ("conv2d", "serving_default"),
        ("text_cnn", "serving_default"),
        ("keras_export", "serving_default"),
        ("keras_line", "serving_default"),
        ("keras_saved", "serving_default"),
        ("examples", "classify_labels"),
        ("examples", "regress_x_to_y"),
        ("tf1_examples", "classify_x_to_y"),
        ("big_constant", "serving_default"),
        ("tf1_ref_variables", "serving_default"),
        ("tf1_legacy_init", "serving_default"),
    ],
)
def test_what_keeps_rows_apart_is_batched_by_proof(load: Load, name: str, signature_name: str) -> None:
    verdict = load(name).signatures[signature_name].batching
    assert str(verdict) == "batched by proof: each operation keeps the rows apart"
    assert (verdict.operation, verdict.node) == ("", "")


@pytest.mark.parametrize(
    ("name", "signature_name", "reason"),
    [
        ("counter", "serving_default", "AssignAddVariableOp writes state"),
        ("control_flow", "hidden", "AssignAddVariableOp writes state"),
        ("tf1_counter", "serving_default", "AssignAdd writes state"),
        ("random_noise", "serving_default", "RandomUniform draws random numbers"),
        ("several", "scalars", "input 'a' is float []: no leading unknown dimension"),
        ("several", "free", "input 'x' is float of unknown rank: no leading unknown dimension"),
        ("exposed_variable", "serving_default", "output 'all' is float [64]: no leading unknown dimension"),
        ("across_rows", "serving_default", "Mean 'Mean' reduces the rows to one value"),
        ("endless", "serving_default", "StatelessWhile 'while' depends on a condition over the whole batch"),
        ("control_flow", "pure", "StatelessWhile 'while' depends on a condition over the whole batch"),
    ],
)
def test_auto_batches_only_what_is_safe(load: Load, name: str, signature_name: str, reason: str) -> None:
    verdict = load(name).signatures[signature_name].batching
    assert (verdict.batchable, verdict.by, verdict.reason) == (False, "graph", reason)


def test_a_refusal_names_the_first_operation_in_the_way_and_its_node(load: Load) -> None:
    verdict = load("across_rows").signatures["serving_default"].batching
    assert (verdict.operation, verdict.node) == ("Mean", "Mean")


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
