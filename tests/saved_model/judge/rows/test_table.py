"""Every rule of the table by its operation: rows together and requests alone, run by TensorFlow."""

from __future__ import annotations

from typing import Any

import pytest

from embedserve.saved_model.judge.rows.table import TABLE
from tests.saved_model.judge.rows.cases import APART
from tests.saved_model.judge.rows.graphs import Case, Graph, Input
from tests.saved_model.judge.rows.mixing import MIXED, UNPROVEN
from tests.saved_model.judge.rows.piece_cases import PIECES


def graph_of(function: Any, *inputs: Input) -> Graph:
    return Graph(function, inputs or (Input(),))


@pytest.mark.parametrize("case", APART + PIECES, ids=str)
def test_what_is_proven_to_keep_rows_apart_does(case: Case) -> None:
    graph = Graph(case.function, case.inputs)
    findings = graph.findings()
    assert findings.proven, findings
    assert graph.difference() is None


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_rows_is_named_and_does_mix_them(name: str) -> None:
    operation, function, *inputs = MIXED[name]
    graph = graph_of(function, *inputs)
    findings = graph.findings()
    assert findings.mixed is not None, findings
    assert findings.mixed.op == operation
    assert findings.mixed.node in graph.nodes()
    try:
        difference = graph.difference()
    except Exception as error:
        difference = str(error)
    assert difference is not None, "the case shows nothing"


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_the_table_does_not_know_is_left_to_a_probe(name: str) -> None:
    findings = graph_of(*UNPROVEN[name]).findings()
    assert (findings.proven, findings.mixed) == (False, None)
    assert findings.unproven is not None


def test_every_rule_of_the_table_is_run_both_ways() -> None:
    run = set().union(*(Graph(case.function, case.inputs).operations() for case in APART + PIECES))
    assert TABLE.keys() - run == set()
