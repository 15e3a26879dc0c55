"""Which cells are measured, and in which order."""

from __future__ import annotations

import pytest

from embedserve.signature import BatchingVerdict
from embedserve.tuning.plan import ALONE, Cell, Grid, Setting, default_run_threads, plan

SAFE = BatchingVerdict(True, "two rows together equal each alone")


def test_every_combination_is_a_cell_and_those_of_a_setting_stand_together() -> None:
    cells, notes = plan(Grid((8, 1, 8), (32, ALONE), (2, 1)), SAFE)
    assert notes == []
    assert cells == [
        Cell(Setting(threads, limit), callers) for threads in (1, 2) for limit in (ALONE, 32) for callers in (1, 8)
    ]


def test_a_signature_that_does_not_batch_is_measured_without_and_the_reason_is_told() -> None:
    cells, notes = plan(Grid((1,), (8, 32), (1, 2)), BatchingVerdict(False, "AssignAddVariableOp writes state"))
    assert cells == [Cell(Setting(1, ALONE), 1), Cell(Setting(2, ALONE), 1)]
    assert notes == ["Not batched, so only measured without: AssignAddVariableOp writes state."]


@pytest.mark.parametrize(("cpus", "threads"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (64, (1, 32, 64))])
def test_run_threads_follow_the_cpus(cpus: int, threads: tuple[int, ...]) -> None:
    assert default_run_threads(cpus) == threads


def test_a_setting_says_what_it_is() -> None:
    assert str(Setting(1, ALONE)) == "1 run thread, no batching"
    assert str(Setting(2, 32)) == "2 run threads, batches up to 32 rows"
