"""On what inputs a signature is tried: made up within its declaration, or recorded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from embedserve.saved_model.judge.probe_inputs import MadeUp, Recorded, candidates, feature_examples
from embedserve.servable import Tensors
from embedserve.tensors import dtypes
from tests.saved_model.judge.signatures import signature


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
