"""Which signatures end in a time that the sizes of their inputs bound."""

from __future__ import annotations

import pytest

from embedserve.saved_model.judge.bounded import BOUNDED, SIZED
from embedserve.saved_model.judge.guards import GUARDS, UNGUARDED
from tests.saved_model.conftest import Load


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signature_name"),
    [
        ("half_plus_two", "serving_default"),
        ("dense", "serving_default"),
        ("integer_matmul", "serving_default"),
        ("several", "serving_default"),
        ("conv2d", "serving_default"),
        ("keras_export", "serving_default"),
        ("big_constant", "serving_default"),
        ("sized_by_shape", "serving_default"),
    ],
)
def test_plain_kernels_are_bounded_by_the_sizes_of_the_inputs(load: Load, name: str, signature_name: str) -> None:
    assert load(name).signatures[signature_name].unbounded == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signature_name", "reason"),
    [
        ("endless", "serving_default", "do not bound StatelessWhile"),
        ("control_flow", "pure", "writes state of the version"),
        ("positive_only", "serving_default", "do not bound If"),
        ("sized_by_value", "serving_default", "a value chooses the size of Fill"),
        ("strings", "serving_default", "holds texts of any length"),
        ("lookup", "serving_default", "holds texts of any length"),
        ("random_noise", "serving_default", "do not bound RandomUniform"),
        ("counter", "read", "AssignAddVariableOp writes state of the version"),
        ("reads_asset_at_run_time", "serving_default", "holds texts of any length"),
    ],
)
def test_loops_branches_files_texts_state_and_chosen_sizes_are_not_bounded(
    load: Load, name: str, signature_name: str, reason: str
) -> None:
    unbounded = load(name).signatures[signature_name].unbounded
    assert unbounded
    assert reason in unbounded


def test_no_operation_that_needs_a_guard_counts_as_bounded() -> None:
    guarded = GUARDS.keys() | UNGUARDED.keys()
    # The guard of GatherV2 watches the operand that must not be chosen here.
    assert not BOUNDED & guarded
    assert SIZED.keys() & guarded == {"GatherV2"}
    assert not BOUNDED & SIZED.keys()
