"""A small model's load measures whether functions or a session run it faster, where both answer the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedserve.errors import InferenceError
from embedserve.saved_model.load import pick_servable as choosing
from embedserve.saved_model.run import run_time
from embedserve.saved_model.run.session import SessionServable
from embedserve.servable import Array
from tests.saved_model.conftest import Load, ModelPath


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next measurements find, in seconds: the function's runs, then the session's, twice."""
    found: list[float] = []
    monkeypatch.setattr(choosing, "run_time", SimpleNamespace(fastest=lambda call: found.pop(0)))
    monkeypatch.setattr(choosing, "_LONG_RUN", 60.0)
    return found


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ((0.002, 0.001, 0.002, 0.001), "session"),
        ((0.001, 0.002, 0.001, 0.002), "function"),
        ((0.001, 0.001, 0.001, 0.001), "function"),
        ((0.002, 0.009, 0.002, 0.001), "session"),
        ((0.009, 0.002, 0.001, 0.002), "function"),
    ],
)
def test_the_faster_one_serves_by_the_better_of_two_turns(
    load: Load, times: list[float], found: tuple[float, ...], kind: str
) -> None:
    times[:] = found
    servable = load("dense")
    assert servable.kind == kind
    assert not times
    assert servable.run("serving_default", {"features": np.ones((2, 4), np.float32)})["scores"].shape == (2, 3)


def test_every_signature_is_measured(load: Load, times: list[float]) -> None:
    times[:] = [0.001, 0.002, 0.003, *(0.003, 0.002, 0.0005)] * 2
    assert load("several").kind == "session"
    assert not times


def test_a_signature_that_cannot_be_compared_keeps_the_version_as_it_is(load: Load, times: list[float]) -> None:
    for name in ("conv2d_unknown_rank", "random_noise"):
        assert load(name).kind == "function"


def test_long_runs_stay_where_they_can_be_stopped(model: ModelPath) -> None:
    assert choosing.is_worth_a_try(model("dense"), {"a": 0.001, "b": 0.004})
    assert not choosing.is_worth_a_try(model("dense"), {"a": 0.001, "b": 0.005})
    assert not choosing.is_worth_a_try(model("dense"), {})


@pytest.mark.parametrize("name", ["endless", "counter", "control_flow"])
def test_loops_and_state_are_not_measured(load: Load, times: list[float], name: str) -> None:
    assert load(name).kind == "function"


@pytest.mark.parametrize("options", [{"servable": "function"}, {"warmup": "none"}])
def test_whoever_decides_or_wants_no_runs_gets_no_measurement(
    load: Load, times: list[float], options: dict[str, Any]
) -> None:
    assert load("dense", **options).kind == "function"


@pytest.mark.parametrize("bound", ["_SMALL", "_SMALL_GRAPH"])
def test_large_models_are_not_loaded_twice(
    load: Load, times: list[float], monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(choosing, bound, 1000)
    assert load("dense").kind == "function"


def test_what_no_session_can_load_runs_as_functions(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise ValueError("no session for you")

    monkeypatch.setattr("embedserve.saved_model.run.graph_session.open_saved_model", refuse)
    assert load("dense").kind == "function"


def test_a_session_that_answers_otherwise_is_not_used(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = SessionServable.run

    def off(self: SessionServable, *arguments: Any, **options: Any) -> dict[str, Array]:
        return {name: array + 1 for name, array in real(self, *arguments, **options).items()}

    monkeypatch.setattr(SessionServable, "run", off)
    assert load("dense").kind == "function"
    assert "a graph session gives other answers than its functions do" in caplog.text


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[SessionServable]:
    found: list[SessionServable] = []
    real = SessionServable.close

    def close(self: SessionServable) -> None:
        found.append(self)
        real(self)

    monkeypatch.setattr(SessionServable, "close", close)
    return found


def test_a_session_that_is_not_kept_is_closed(load: Load, times: list[float], closed: list[SessionServable]) -> None:
    times[:] = [0.001, 0.002] * 2
    assert load("dense").kind == "function"
    assert len(closed) == 1


def test_what_fails_in_a_session_runs_as_functions(
    load: Load, monkeypatch: pytest.MonkeyPatch, closed: list[SessionServable]
) -> None:
    def fail(self: SessionServable, *arguments: Any, **options: Any) -> Any:
        raise InferenceError("not in a graph")

    monkeypatch.setattr(SessionServable, "run", fail)
    assert load("dense").kind == "function"
    assert len(closed) == 1


def test_a_measurement_takes_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lasting = 0.0, list[float]()

    def perf_counter() -> float:
        return clock

    def call() -> None:
        nonlocal clock
        clock += lasting.pop(0)

    monkeypatch.setattr(run_time, "time", SimpleNamespace(perf_counter=perf_counter))
    # The first one compiles.
    for lasting in ([9.0, 0.2], [9.0, 0.05, 0.06], [9.0, 0.03, 0.03, 0.01], [9.0, *[0.0002] * 19, 0.0001]):
        expected = min(lasting)
        assert round(run_time.fastest(call), 6) == expected
        assert not lasting
