"""The comparison of request formats finds every answer right and says whether the bar is met."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmarks.request_formats import GRPC, markdown
from tests.support.programs import run_program


def test_the_best_format_of_bytes_is_held_against_the_bar() -> None:
    # Everything was slow in the second round.
    rates: dict[str, list[float]] = {"REST, JSON": [60, 6], "REST, a": [97, 9.7], "REST, b": [50, 9], GRPC: [100, 10]}
    said = markdown(rates)
    assert "| REST, a | 53 | 0.97 |" in said
    assert said.endswith("REST, a / gRPC: 0.97, wanted ≥ 0.95: met")
    assert markdown({**rates, "REST, a": [90, 9]}).endswith("**missed**")


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load (nghttp2-client) is not installed")
def test_a_short_run_measures_all_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "EMBEDSERVE_BENCHMARKS", str(tmp_path))
    said = run_program("-m", "benchmarks.request_formats", "--model=half", "--rounds=1", "--seconds=0.2")
    assert [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| REST")] == [
        "REST, JSON",
        "REST, application/x-npy",
        "REST, application/octet-stream",
    ]
