"""On what inputs a signature is tried: made up within its declaration, or recorded."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from embedserve.saved_model.judge.probe_inputs import MadeUp, Recorded, Sample, candidates
from embedserve.saved_model.judge.probe_texts import Examples, Kind, Pieces, Words
from embedserve.servable import Array, Tensors
from embedserve.tensors import dtypes
from tests.saved_model.judge.signatures import signature


class TestSamples:
    @pytest.mark.parametrize("dtype", [row for row in dtypes.DTYPES if row.name not in ("resource", "variant")])
    def test_made_up_rows_differ_and_fit(self, dtype: dtypes.DType) -> None:
        one = signature(x=(dtype.name, (None, None, 2)))
        batch = MadeUp(one, 3, Words()).batch(4)
        bound = one.bind(batch)["x"]
        assert (bound.shape, bound.dtype) == ((4, 3, 2), dtype.numpy)
        for row in range(3):
            assert bound[row].tobytes() != bound[row + 1].tobytes() or bound[row].tolist() != bound[row + 1].tolist()

    def test_declared_sizes_are_kept(self) -> None:
        batch = MadeUp(signature(a=("float", (2, None)), b=("int32", ())), 3, Words()).batch(5)
        assert {name: array.shape for name, array in batch.items()} == {"a": (2, 3), "b": ()}

    def test_nothing_is_made_up_for_an_unknown_rank(self) -> None:
        assert list(candidates(signature(x=("float", None)))) == []
        with pytest.raises(ValueError, match="rank of 'x' is unknown"):
            MadeUp(signature(x=("float", None)), 1, Words())

    def test_numbers_of_a_rank_that_only_the_user_set_are_not_made_up(self) -> None:
        ranked = dataclasses.replace(signature(x=("float", None)), input_ranks={"x": 3})
        assert list(candidates(ranked)) == []

    def test_examples_and_element_wise_signatures_need_no_declared_rank(self) -> None:
        examples = dataclasses.replace(signature(x=("string", None)), input_ranks={"x": 1})
        free = dataclasses.replace(signature(x=("float", None)), shape_free=True)
        made_up = next(iter(candidates(examples, (), {"n": (9, 1)}))).batch(2)["x"].tolist()
        assert [values(text, "n") for text in made_up] == [[1], [2]]
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
        examples = Examples({"f": (1, 2), "i": (9, 1), "s": (7, None)})
        first, second = examples.ordinary(0), examples.ordinary(1)
        assert first != second
        assert len(values(first, "f")) == 2
        assert values(first, "s") == [b"1"]


def values(serialized: bytes, feature: str) -> list[Any]:
    """The values of a feature of a tf.Example."""
    from tensorflow.core.example.example_pb2 import Example

    found = Example.FromString(serialized).features.feature[feature]
    kind = found.WhichOneof("kind")
    return [] if kind is None else list(getattr(found, kind).value)


def unlike(sample: Sample, count: int = 200, seed: int = 0) -> list[dict[str, Array]]:
    return list(itertools.islice(sample.unlike(np.random.default_rng(seed)), count))


class TestUnlikeRows:
    @pytest.mark.parametrize("dtype", [row for row in dtypes.DTYPES if row.name not in ("resource", "variant")])
    def test_they_fit_the_signature_and_differ(self, dtype: dtypes.DType) -> None:
        one = signature(x=(dtype.name, (None, None, 2)))
        rows = unlike(MadeUp(one, 3, Words()), 20)
        for row in rows:
            assert one.bind(row)["x"].shape == (1, 3, 2)
            assert row["x"].dtype == dtype.numpy
        assert len({repr(row["x"].tolist()) for row in rows}) > 5

    def test_floats_differ_in_sign_and_magnitude(self) -> None:
        rows = [row["x"] for row in unlike(MadeUp(signature(x=("float", (None, 8))), 4, Words()), 6)]
        sizes = [float(np.abs(row).max()) for row in rows]
        assert max(sizes) > 100
        assert min(sizes) == 0
        assert any(0 < size < 1e-5 for size in sizes)
        assert any((row < 0).any() for row in rows)
        assert any((row[0, 4:] == 0).all() and (row[0, :4] < 0).all() for row in rows), "padding at the end"

    def test_integers_stay_within_what_is_safe_and_hold_padding_and_repetitions(self) -> None:
        rows = [row["x"][0].tolist() for row in unlike(MadeUp(signature(x=("int64", (None, 6))), 4, Words()))]
        assert {value for row in rows for value in row} == {0, 1, 2}, "a kernel may abort on a larger or negative size"
        assert [0] * 6 in rows
        assert any(row[3:] == [0] * 3 and any(row[:3]) for row in rows)
        assert any(len(set(row)) == 1 and row[0] for row in rows)

    def test_recorded_integers_say_what_is_safe(self) -> None:
        one = signature(x=("int32", (None, 4)))
        sample = Recorded(one, [{"x": np.array([[10, 90, 40, 7]], np.int32)}])
        rows = unlike(sample)
        assert rows[0]["x"].tolist() == [[10, 90, 40, 7]]
        found = {value for row in rows for value in row["x"].ravel().tolist()}
        assert found <= {0, *range(7, 91)}
        assert len(found) > 50

    def test_strings_differ_in_length_and_some_are_empty(self) -> None:
        rows = unlike(MadeUp(signature(x=("string", (None,))), 4, Words()))
        counts = {len(row["x"][0].split()) for row in rows}
        assert {0, 1, 2, 3, 8, 12} <= counts

    def test_examples_differ_in_their_numbers_of_values_only_where_those_may_vary(self) -> None:
        features = {"any": (1, None), "fixed": (9, 3), "words": (7, None)}
        rows = [row["x"][0] for row in unlike(MadeUp(signature(x=("string", (None,))), 4, Examples(features)))]
        assert {len(values(row, "any")) for row in rows} >= {0, 1, 3, 9}
        assert {len(values(row, "words")) for row in rows} >= {0, 1, 3, 9}
        assert {len(values(row, "fixed")) for row in rows} == {3}

    def test_recorded_strings_are_cut_and_joined(self) -> None:
        one = signature(x=("string", (None,)))
        sample = Recorded(one, [{"x": np.array([b"a b c d", b"e f"], object)}])
        texts = [row["x"][0] for row in unlike(sample)]
        assert texts[0] == b"a b c d"
        assert texts[2] == b"e f"
        assert {b"", b"a b c d e f", b"a", b"a b  "} <= set(texts)

    def test_recorded_examples_are_joined_by_made_up_ones(self) -> None:
        one = signature(x=("string", (None,)))
        recorded = Examples({"v": (1, None)}).ordinary(0)
        sample = next(iter(candidates(one, [{"x": np.array([recorded], object)}], {"v": (1, None)})))
        assert {len(values(row["x"][0], "v")) for row in unlike(sample)} >= {0, 1, 9}

    def test_one_seed_gives_one_row_after_another_the_same(self) -> None:
        sample = MadeUp(signature(x=("float", (None, 3)), t=("string", (None,))), 4, Words())
        first, again, other = (repr(unlike(sample, 12, seed)) for seed in (0, 0, 1))
        assert first == again != other

    def test_there_are_none_without_rows(self) -> None:
        for shape in ((), (2, None), (3,)):
            one = signature(a=("float", shape), b=("float", (None,)))
            assert unlike(MadeUp(one, 3, Words())) == []
            recorded = {"a": np.ones([size or 2 for size in shape], np.float32), "b": np.ones(2, np.float32)}
            assert unlike(Recorded(one, [recorded])) == []

    def test_inputs_are_of_different_kinds_after_the_first_rows(self) -> None:
        sample = MadeUp(signature(a=("float", (None, 8)), b=("float", (None, 8))), 4, Words())
        rows = unlike(sample)
        assert any(not row["a"].any() and np.abs(row["b"]).max() > 100 for row in rows)


def test_pieces_hold_any_one_recorded_string() -> None:
    random = np.random.default_rng(0)
    assert {Pieces([b""]).unlike(kind, random) for kind in Kind} == {b"", b" ", b"  "}
