"""Which variables count as unset: those that a run may read before it has assigned them, and no others."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from embedserve.errors import LoadError
from tests.saved_model.conftest import Load
from tests.support import saved_models

X = {"x": np.array([1.0, 2.0], np.float32)}


@pytest.mark.parametrize("order", ["assign", "branches"])
def test_a_variable_that_each_run_assigns_first_may_be_unset_at_load(load: Load, tmp_path: Path, order: str) -> None:
    servable = load(saved_models.tf1_assigns_when_read(tmp_path / "m" / "1", order))
    assert servable.run("serving_default", X)["y"].tolist() == [3.0, 6.0]
    signature = servable.signatures["serving_default"]
    assert (signature.stateless, signature.batching.reason) == (False, "AssignVariableOp writes state")


@pytest.mark.parametrize("kind", ["auto", "session", "function"])
@pytest.mark.parametrize("order", ["never", "one branch"])
def test_a_variable_that_may_be_read_unset_is_found_at_load(
    load: Load, tmp_path: Path, order: str, kind: Literal["auto", "function", "session"]
) -> None:
    path = saved_models.tf1_assigns_when_read(tmp_path / "m" / "1", order)
    with pytest.raises(LoadError, match=r"leaves 1 of 1 variables unset \(v\), and a run may read them before"):
        load(path, servable=kind)


def test_a_signature_that_reads_an_unset_variable_does_not_take_the_others_along(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "embedserve")
    servable = load(saved_models.tf1_assigns_when_read(tmp_path / "m" / "1", "partly"))
    assert servable.run("serving_default", X)["y"].tolist() == [3.0, 6.0]
    assert "requests to signatures other will fail: the SavedModel's restore op leaves 1 of 1 variables unset (w)" in (
        caplog.text
    )


@pytest.mark.parametrize("main_op", [False, True])
def test_an_asset_is_read_through_a_variable_that_the_init_op_assigns(
    load: Load, tmp_path: Path, main_op: bool
) -> None:
    servable = load(saved_models.tf1_asset_in_variable(tmp_path / "m" / "1", main_op))
    answer = servable.run("serving_default", {"x": np.array([b"a"], object)})["y"]
    assert answer.tolist() == [b"a!"]


@pytest.mark.parametrize("servable", ["function", "session"])
def test_runs_that_overwrite_a_variable_do_not_read_each_others_values(
    load: Load, tmp_path: Path, servable: Literal["function", "session"]
) -> None:
    loaded = load(saved_models.tf1_assigns_when_read(tmp_path / "m" / "1", "fed"), servable=servable)
    mixed_up: list[tuple[float, list[float]]] = []

    def ask(value: float) -> None:
        inputs = {"x": np.ones(2, np.float32), "value": np.array(value, np.float32)}
        for _ in range(20):
            answer = loaded.run("serving_default", inputs, timeout=60)["y"].tolist()
            if answer != [value, value]:
                mixed_up.append((value, answer))

    threads = [threading.Thread(target=ask, args=(float(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mixed_up


@pytest.mark.parametrize("state", ["resource", "reference", "table", "old table"])
def test_local_state_that_no_session_sets_is_set_as_functions(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    caplog.set_level(logging.INFO, "embedserve")
    path = saved_models.tf1_without_init(tmp_path / "m" / "1", state)
    with pytest.raises(LoadError, match=r"leaves 1 of 1 (variables|tables) unset"):
        load(path, servable="session")
    servable = load(path)
    assert servable.kind == "function"
    assert servable.run("serving_default", X)["y"].tolist() == [3.0, 6.0]
    assert "runs as functions: a graph session cannot run it (UnsetStateError: " in caplog.text


def test_functions_serve_all_signatures_where_a_session_would_fail_some(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved_models.tf1_without_init(tmp_path / "m" / "1", "partly")
    servable = load(path)
    assert servable.kind == "function"
    answers = [servable.run(name, X)["y"].tolist() for name in ("serving_default", "other")]
    assert answers == [[3.0, 6.0]] * 2
    caplog.clear()
    assert load(path, servable="session").kind == "session"  # Whose owner wants one.
    assert "requests to signatures other will fail: the SavedModel's restore op leaves 1 of 1 variables" in caplog.text


@pytest.mark.parametrize("state", ["resource", "reference"])
def test_a_model_that_asks_whether_its_variable_is_set_is_served(load: Load, tmp_path: Path, state: str) -> None:
    servable = load(saved_models.tf1_without_init(tmp_path / "m" / "1", state, asks=True))
    assert servable.kind == "session"
    assert servable.run("serving_default", X)["y"].tolist() == [3.0, 6.0]
