"""Parameters with Triton's names and units, and classification."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from embedserve.errors import InvalidInputError, ServingError, UnsupportedError
from embedserve.oip.requests import WantedOutput, classified, request_of, shorter


@pytest.mark.parametrize(
    ("given", "priority"),
    [
        (0, "normal"),
        (1, "high"),
        (2, "normal"),
        (3, "low"),
        (900, "low"),
        ("high", "high"),
        ("LOW", "low"),
        ("1", "high"),
    ],
)
def test_priority_1_is_the_most_urgent_and_0_the_default(given: Any, priority: str) -> None:
    assert request_of("", {"priority": given}, ()).priority == priority


def test_without_a_priority_the_header_may_name_one() -> None:
    assert request_of("", {}, ()).priority is None


def test_a_timeout_is_in_microseconds_and_0_is_none() -> None:
    assert request_of("", {"timeout": 2_500_000}, ()).timeout == 2.5
    assert request_of("", {"timeout": 0}, ()).timeout is None
    assert shorter(None, 2.0) == shorter(2.0, None) == shorter(3.0, 2.0) == 2.0
    assert shorter(None, None) is None


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"priority": -1}, InvalidInputError),
        ({"priority": 1.5}, InvalidInputError),
        ({"priority": "urgent"}, InvalidInputError),
        ({"timeout": -1}, InvalidInputError),
        ({"timeout": "1"}, InvalidInputError),
        ({"timeout": True}, InvalidInputError),
        ({"signature_name": 1}, InvalidInputError),
        ({"binary_data_output": "yes"}, InvalidInputError),
        ({"sequence_id": 7}, UnsupportedError),
        ({"sequence_id": "a"}, UnsupportedError),
    ],
)
def test_a_parameter_of_a_wrong_kind_is_refused_by_name(parameters: dict[str, Any], error: type[ServingError]) -> None:
    with pytest.raises(error) as refused:
        request_of("", parameters, ())
    assert next(iter(parameters)) in refused.value.message


@pytest.mark.parametrize(
    "parameters", [{"my_own": 3}, {"sequence_id": 0, "sequence_start": False}, {"headers": "x"}, {"priority": None}]
)
def test_unknown_and_unset_parameters_are_ignored(parameters: dict[str, Any]) -> None:
    assert request_of("7", parameters, ()).id == "7"


def test_a_tensor_in_shared_memory_is_unimplemented() -> None:
    with pytest.raises(UnsupportedError, match="output 'y' is in shared memory"):
        request_of("", {}, [("y", {"shared_memory_region": "r"})])


def test_an_output_overrides_whether_the_answer_is_binary() -> None:
    outputs = [("a", {"binary_data": False}), ("b", {})]
    request = request_of("", {"binary_data_output": True}, outputs)
    assert not request.is_binary("a", False)
    assert request.is_binary("b", False)
    assert request_of("", {}, outputs).is_binary("b", True)


@pytest.mark.parametrize(
    ("array", "count", "classes"),
    [
        (np.array([1, 5, 10, 4], np.int32), 2, [b"10:2", b"5:1"]),
        (np.array([1.0, 1.0, 0.5], np.float32), 2, [b"1.000000:0", b"1.000000:1"]),
        (np.array([[0.5, 2.0], [3.0, 1.0]]), 1, [[b"2.000000:1"], [b"3.000000:0"]]),
        (np.array([[[1], [2]], [[4], [3]]], np.uint8), 9, [[b"2:1", b"1:0"], [b"4:0", b"3:1"]]),
        (np.array([1, 2], ml_dtypes.bfloat16), 1, [b"2.000000:1"]),
        (np.array(3.0), 1, [b"3.000000:0"]),
    ],
)
def test_classes_are_the_greatest_values_with_their_indices_by_row(array: Any, count: int, classes: Any) -> None:
    found = classified({"y": array, "z": array}, [WantedOutput("y", count)])
    assert found["y"].tolist() == classes
    assert found["z"] is array


@pytest.mark.parametrize("array", [np.array([b"a"], dtype=object), np.array([True]), np.zeros((2, 0))])
def test_what_has_no_order_has_no_classes(array: Any) -> None:
    with pytest.raises(InvalidInputError, match="cannot be classified"):
        classified({"y": array}, [WantedOutput("y", 1)])
    with pytest.raises(InvalidInputError, match="classification is -1"):
        request_of("", {}, [("y", {"classification": -1})])
