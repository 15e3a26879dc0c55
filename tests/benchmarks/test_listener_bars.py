"""The bars of the listener: what is promised can be measured, and what is missing is a gap with a name."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import listener_bars
from benchmarks.listener_bars import BARE, CPP_GRPC, CPP_REST, MOSEC, SERVER, WORKLOADS, bars, promises
from benchmarks.suite import compiled, held, swaps
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.environments import NotInstallable
from benchmarks.suite.load import Load
from benchmarks.suite.measure import Cell, Entrant, Plan, Results
from benchmarks.suite.workloads import models_directory
from tests.support.saved_models import half_plus_two

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load (nghttp2-client) is not installed")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """For the server and for the load; afterwards, this process may use all of them again."""
    monkeypatch.setenv("EMBEDSERVE_BENCHMARKS", str(tmp_path / "cache"))
    all_cores = os.sched_getaffinity(0)
    yield min(all_cores), max(all_cores)
    os.sched_setaffinity(0, all_cores)


def test_every_cell_of_a_promise_is_one_that_its_server_is_measured_in() -> None:
    for promise in promises(SERVER):
        for cell in (promise.one, promise.other):
            contender = CONTENDERS[cell.server]
            plan = Plan([contender], WORKLOADS, 1, 1, 0, 1, frozenset([cell]))
            entrant = Entrant(contender, plan, None, {})  # type: ignore[arg-type]
            assert [found for found, _, _ in entrant.cells()] == [cell], promise.what


def sampled(*cells: tuple[str, str, int, str, float]) -> Results:
    results = Results()
    for workload, protocol, count, server, rate in cells:
        results.samples[Cell(workload, protocol, count, server)] = [Load(10, 0, rate, 1 / rate, 2 / rate, 1 / rate)] * 3
    return results


def test_a_bar_is_met_missed_or_open() -> None:
    results = sampled(
        ("half", "grpc", 64, SERVER, 120.0),
        ("half", "grpc", 64, CPP_GRPC, 100.0),
        ("half", "rest", 64, SERVER, 100.0),
        ("half", "rest", 64, MOSEC, 100.0),
        ("half", "rest", 1, SERVER, 50.0),
        ("half", "rest", 1, CPP_REST, 100.0),
    )
    found = {bar.what: bar for bar in bars(SERVER, results.samples)}
    assert found["gRPC half at 64 / cpp-grpc"].met
    assert not found["REST half at 64 / mosec"].met
    assert found["p50 of REST half at 1 / cpp-rest"].ratio == pytest.approx(2)
    assert math.isnan(found["gRPC mlp at 64 / cpp-grpc"].ratio)
    results.absent[BARE] = "it ended with status 1"
    page = listener_bars.ratio_tables(SERVER, results)
    assert "| gRPC half at 64 / cpp-grpc | 1.20 | 1.20 | ≥ 1.1 | met |" in page
    assert "| REST half at 64 / mosec | 1.00 | 1.00 | ≥ 1.3 | **missed** |" in page
    assert "| gRPC mlp at 64 / cpp-grpc |  |  | ≥ 2.5 | open |" in page
    assert "bare-tensorflow was not measured: it ended with status 1" in page


@pytest.mark.parametrize(("missing", "package"), [("g++", "g++"), ("grpc_cpp_plugin", "libgrpc++-dev")])
def test_a_missing_tool_is_told_with_what_to_install(
    missing: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(NotInstallable) as raised:
        compiled.program_of("grpc_server")
    assert f"{missing} not found: apt-get install" in str(raised.value)
    assert package in str(raised.value)


def test_a_models_names_in_its_graph_are_read_without_tensorflow(tmp_path: Path) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    half_plus_two(tmp_path / "half" / "1")
    content = (tmp_path / "half" / "1" / "saved_model.pb").read_bytes()
    definition = SavedModel.FromString(content).meta_graphs[0].signature_def["serving_default"]
    ((_, x),), ((_, y),) = definition.inputs.items(), definition.outputs.items()
    assert compiled.graph_names(content) == (x.name, y.name)
    assert compiled.arguments(tmp_path, 1)[2:] == ["half", str(tmp_path / "half" / "1"), x.name, y.name]


@needs_h2load
@pytest.mark.timeout(240)
def test_swaps_under_load_fail_no_request_and_connections_hold_little(
    cores: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CONNECTIONS", 50), ("STREAM_CONNECTIONS", 5), ("FEW", 2)):
        monkeypatch.setattr(held, name, value)
    models = models_directory(["half"])
    found = list(swaps.measured(CONTENDERS[SERVER], models, 0.5, cores))
    assert [each.protocol for each in found] == ["rest", "grpc"]
    assert all(each.swaps and not each.quiet.failed + each.swapping.failed for each in found)
    assert all(0 < each.quiet.gap < 60 for each in found)
    assert held.measured(CONTENDERS[SERVER], models, cores).http1 < 2**20
