"""Every rule of the table by its operation: rows together and requests alone, run by TensorFlow."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from embedserve.saved_model.judge.rows import walk
from embedserve.saved_model.judge.rows.table import TABLE
from embedserve.saved_model.judge.rows.values import Kind, Obstacle, Value
from tests.saved_model.judge.rows.cases import APART
from tests.saved_model.judge.rows.graphs import Case, Graph, Input
from tests.saved_model.judge.rows.mixing import MIXED, UNPROVEN
from tests.saved_model.judge.rows.piece_cases import PIECES

pytestmark = pytest.mark.slow


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


MIXED_BEFORE = Value(Kind.MIXED, obstacle=Obstacle("If", "before", "is mixed"))
UNKNOWN = Value(Kind.UNPROVEN, obstacle=Obstacle("Sort", "unknown", "is not known"))


def is_mixed(value: Value) -> bool:
    """Whether nothing that is computed with a value can be proven, nor left to a probe."""
    return value.kind is Kind.MIXED or any(isinstance(one, Obstacle) for one in value.contents or ())


@pytest.mark.parametrize("case", APART + PIECES, ids=str)
def test_no_rule_forgets_that_an_input_is_mixed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[Any] = []
    values = walk._Evaluation.values

    def recorded(self: Any) -> Any:
        evaluated.append(self)
        return values(self)

    monkeypatch.setattr(walk._Evaluation, "values", recorded)
    Graph(case.function, case.inputs).findings()
    monkeypatch.undo()
    for one in evaluated:
        inputs = list(one._inputs)
        if one._node.op not in TABLE or Kind.BOTTOM in {value.kind for value in inputs}:
            continue
        for place in range(len(inputs)):
            for others in (inputs, [UNKNOWN] * len(inputs)):
                changed = [*others[:place], MIXED_BEFORE, *others[place + 1 :]]
                answers = walk._Evaluation(one._scope, one._node, changed).values()
                assert all(map(is_mixed, answers)), (one._node.op, place, answers)


def test_a_loop_that_does_not_come_to_rest_forgets_no_mixed_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_MAX_TURNS", 1)

    def function(x: Any) -> Any:
        mixed = tf.reduce_max(x, 0)
        return tf.while_loop(lambda i, *_: i < 3, lambda i, y, z: (i + 1, y, -z), [0, mixed, x])[1:]

    findings = graph_of(lambda x: function(x)[1]).findings()
    assert findings.mixed is not None
    assert findings.mixed.op == "Max"
