"""Rows together equal each alone, or the signature is not batched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.errors import DeadlineExceededError, InferenceError
from embedserve.saved_model.judge.probe import find_sample, probe
from embedserve.saved_model.judge.probe_inputs import MadeUp, Recorded, candidates
from embedserve.saved_model.judge.probe_texts import Features, Words
from embedserve.servable import Array, Tensors
from tests.saved_model.conftest import Load
from tests.saved_model.judge.signatures import signature
from tests.support.survey_models import SURVEYED

pytestmark = pytest.mark.slow

DEPENDS = "output 'y' of a row depends on the other rows of its batch"


class Fake:
    """A servable made of one function over `x`."""

    kind = "function"
    signature_defs: Mapping[str, Any] = {}
    reads_files_at_run_time = False
    inline: Collection[str] = frozenset()

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


def verdict_of_two(function: Callable[[Tensors], Array]) -> str | None:
    """The verdict on a function of numbers `x` and texts `q`, by made-up rows."""
    servable = Fake(lambda x: x)
    one = signature(x=("float", (None,)), q=("string", (None,)))
    servable.run = lambda name, inputs, *rest, **options: {"y": function(inputs)}  # type: ignore[method-assign]
    found = probe(servable, one, MadeUp(one, 1, Words()))
    return None if found.batchable else found.reason


def raising(error: Exception) -> Callable[[Array], Array]:
    def function(x: Array) -> Array:
        raise error

    return function


class TestProbe:
    def test_tolerance_is_relative(self) -> None:
        assert verdict(lambda x: x * (1 + 5e-6 * (len(x) > 1))) is None
        assert verdict(lambda x: x * (1 + 5e-5 * (len(x) > 1))) == DEPENDS
        assert verdict(lambda x: x * 1e6 * (1 + 5e-6 * (len(x) > 1))) is None
        assert verdict(lambda x: x * 1e-6 * (1 + 5e-5 * (len(x) > 1))) == DEPENDS

    def test_integers_and_strings_are_compared_exactly(self) -> None:
        assert verdict(lambda x: x.astype(np.int64)) is None
        assert verdict(lambda x: x.astype(np.int64) * 10**9 + len(x)) == DEPENDS
        assert verdict(lambda x: np.array([b"a"] * len(x), object)) is None
        assert verdict(lambda x: np.array([b"%d" % len(x)] * len(x), object)) == DEPENDS

    def test_nan_equals_nan(self) -> None:
        assert verdict(lambda x: x * np.float32(np.nan)) is None

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x * 0.5 if np.abs(x).max() > 10 else x,  # A large row changes its neighbours' answers.
            lambda x: x if np.abs(x).min() > 0 else x + 1,  # A row with a zero does.
            lambda x: x if (x > 0).all() else x + 1,  # A negative one does.
            lambda x: x if np.abs(x).max(axis=1).min() > 1e-3 else x + 1,  # A tiny one does.
            lambda x: x + (x[0] == x[-1]).all() * (len(x) > 1),  # Equal rows do.
            lambda x: x + np.arange(len(x))[:, None],  # A row's place does.
            lambda x: x - x[:1] if len(x) == 2 else x * 0,  # The first row does.
            lambda x: x + 1e-4 * np.abs(x).max(),  # Little of a large neighbour is much of a small row.
        ],
    )
    def test_a_neighbour_of_another_kind_is_seen(self, function: Callable[[Array], Array]) -> None:
        found = verdict(lambda x: function(x).astype(np.float32), [(1, 2), (0.3, 0.2)])
        assert found == DEPENDS

    def test_sums_that_cancel_out_are_no_difference(self) -> None:
        def sums(x: Array) -> Array:
            # What a kernel does: another order of summing for another number of rows, alike for whatever they hold.
            return (x[:, :1] - x[:, 1:] + np.float32(1e-7 * (len(x) > 1))).astype(np.float32)

        assert verdict(sums, [(1, 1), (1, 2), (2, 4)]) is None

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (lambda x: x[:1], "output 'y' of 2 rows has shape [1, 2]"),
            (lambda x: x.sum(), "output 'y' of 2 rows has shape []"),
            (lambda x: np.tile(x, (1, len(x))), "output 'y' of a row depends on the other rows of its batch"),
        ],
    )
    def test_what_cannot_be_split_is_not_batched(self, function: Callable[[Array], Array], reason: str) -> None:
        assert verdict(function) == reason

    def test_rows_that_fail_only_together_are_not_batched(self) -> None:
        assert verdict(lambda x: x if len(x) == 1 else raising(InferenceError("no"))(x)) == "rows together fail: no"

    def test_a_row_that_the_model_refuses_is_left_out(self) -> None:
        assert verdict(lambda x: x if (x > 0).all() else raising(InferenceError("no"))(x)) is None

    def test_a_row_without_end_is_not_batched(self) -> None:
        endless = raising(DeadlineExceededError("too late"))
        assert verdict(lambda x: x if (x > 0).all() else endless(x)) == "rows together fail: too late"

    def test_rows_that_are_alike_prove_nothing(self) -> None:
        picky = raising(InferenceError("no"))
        found = verdict(lambda x: x if (x == (1, 2)).all() else picky(x), [(1, 2), (1, 2)])
        assert found == "the requests it takes are all alike: nothing to probe with"

    def test_a_handful_of_runs_is_enough(self) -> None:
        runs: list[int] = []
        assert verdict(lambda x: runs.append(len(x)) or x) is None  # type: ignore[func-returns-value]
        assert len(runs) <= 13
        assert max(runs) <= 6

    def test_rows_that_share_one_input_are_asked(self) -> None:
        def part_of_its_keys_largest(inputs: Tensors) -> Array:
            scores, keys = inputs["x"], inputs["q"]
            return np.stack(
                [one / (1 + np.abs(scores[keys == key]).max()) for one, key in zip(scores, keys, strict=True)]
            )

        assert verdict_of_two(part_of_its_keys_largest) == DEPENDS
        assert verdict_of_two(lambda inputs: inputs["x"]) is None

    def test_a_shared_input_that_the_model_refuses_is_left_out(self) -> None:
        def picky(inputs: Tensors) -> Array:
            if any((0 < score < 0.5) != (key == b"1") for score, key in zip(inputs["x"], inputs["q"], strict=True)):
                raise InferenceError("no")
            return inputs["x"]

        assert verdict_of_two(picky) is None

    def test_without_a_sample_there_is_no_batching(self) -> None:
        servable = Fake(lambda x: x)
        found = probe(servable, servable.signatures["serving_default"], None)
        assert not found.batchable
        assert "record warm-up requests" in found.reason


@pytest.mark.parametrize(
    ("name", "features", "batches"),
    [
        ("mean_of_clicks", {"clicks": (1, None)}, False),
        ("split_words", {}, False),
        ("text_of_any_length", {}, False),
        ("branch_on_the_batch", {}, False),
        ("similarities", {}, False),
        ("batch_statistics", {}, False),
        ("text_of_fixed_length", {}, True),
        ("pooled_examples", {"ids": (9, None)}, True),
        ("pictures", {}, True),
        ("transformer_with_padding_mask", {}, True),
        ("feature_space", {}, True),
    ],
)
def test_a_probe_tells_real_models_apart_even_where_the_graph_is_not_read(
    load: Load, tmp_path: Path, name: str, features: Features, batches: bool
) -> None:
    servable = load(SURVEYED[name](tmp_path / name / "1"), batching=False)
    one = servable.signatures["serving_default"]
    sample = find_sample(servable, one, candidates(one, (), features))
    found = probe(servable, one, sample)
    assert found.batchable is batches, found.reason
    if not batches:
        assert "depends on the other rows of its batch" in found.reason


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
