"""The cases of TF Serving's own policy tests, and ours for generations."""

from __future__ import annotations

import pytest

from embedserve.lifecycle.transition_policy import (
    Action,
    VersionSnapshot,
    as_told,
    availability_preserving,
    resource_preserving,
)
from embedserve.servable import State

A, N, L, U, E = State.AVAILABLE, State.START, State.LOADING, State.UNLOADING, State.END
Row = tuple[int, State, bool]


def snapshots(*rows: Row) -> list[VersionSnapshot]:
    return [VersionSnapshot(version, 1, state, aspired) for version, state, aspired in rows]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, U, False), (2, E, False), (3, A, True), (4, N, True), (5, N, True)], (Action.LOAD, 5)),
        ([(1, U, False), (2, E, False), (3, A, False), (4, A, True), (5, N, True)], (Action.UNLOAD, 3)),
        ([(1, E, False), (2, A, False), (3, E, False)], (Action.UNLOAD, 2)),
        ([(1, A, True), (2, E, True), (3, L, True), (4, U, False), (5, E, False)], None),
        ([(1, A, False), (2, L, True)], None),
        ([(1, A, False), (2, E, True)], None),
        ([(1, A, False), (2, L, True), (3, A, True)], (Action.UNLOAD, 1)),
        ([(2, A, False), (1, A, False), (3, E, True), (4, L, True)], (Action.UNLOAD, 1)),
        ([], None),
        ([(7, N, True)], (Action.LOAD, 7)),
    ],
)
def test_availability_preserving(rows: list[Row], expected: tuple[Action, int] | None) -> None:
    action = availability_preserving(snapshots(*rows))
    assert (action and (action[0], action[1].version)) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, A, False), (2, N, True)], (Action.UNLOAD, 1)),
        ([(1, U, False), (2, N, True)], None),
        ([(1, L, False), (2, N, True)], None),
        ([(1, E, False), (2, N, True), (3, N, True)], (Action.LOAD, 3)),
        ([(1, A, True), (2, N, True)], (Action.LOAD, 2)),
        ([(1, A, True)], None),
    ],
)
def test_resource_preserving(rows: list[Row], expected: tuple[Action, int] | None) -> None:
    action = resource_preserving(snapshots(*rows))
    assert (action and (action[0], action[1].version)) == expected


def test_a_replaced_generation_is_kept_until_its_successor_serves() -> None:
    old, new = VersionSnapshot(1, 1, A, False), VersionSnapshot(1, 2, N, True)
    other = VersionSnapshot(2, 1, A, True)
    assert availability_preserving([old, new, other]) == (Action.LOAD, new)
    loading = VersionSnapshot(1, 2, L, True)
    assert availability_preserving([old, loading, other]) is None
    failed = VersionSnapshot(1, 2, E, True)
    assert availability_preserving([old, failed, other]) is None
    serving = VersionSnapshot(1, 2, A, True)
    assert availability_preserving([old, serving, other]) == (Action.UNLOAD, old)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, A, False), (2, N, True)], (Action.UNLOAD, 1)),
        ([(1, U, False), (2, N, True)], (Action.LOAD, 2)),
        ([(1, A, False), (2, L, True)], (Action.UNLOAD, 1)),
        ([(1, A, True), (2, L, False)], None),
        ([], None),
    ],
)
def test_as_told(rows: list[Row], expected: tuple[Action, int] | None) -> None:
    action = as_told(snapshots(*rows))
    assert (action and (action[0], action[1].version)) == expected


def test_as_told_keeps_a_generation_until_its_successor_serves() -> None:
    old = VersionSnapshot(1, 1, A, False)
    assert as_told([old, VersionSnapshot(1, 2, L, True)]) is None
    assert as_told([old, VersionSnapshot(1, 2, E, True)]) is None
    assert as_told([old, VersionSnapshot(1, 2, A, True)]) == (Action.UNLOAD, old)
