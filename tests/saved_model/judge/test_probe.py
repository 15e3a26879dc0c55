"""Rows together equal each alone, or the signature is not batched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from embedserve.errors import DeadlineExceededError, InferenceError
from embedserve.saved_model.judge.probe import find_sample, probe
from embedserve.saved_model.judge.probe_inputs import Recorded, candidates
from embedserve.servable import Array, Tensors
from tests.saved_model.judge.signatures import signature


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
