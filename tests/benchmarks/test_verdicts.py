"""The survey of batching verdicts: a table of real models, and no answer that a neighbour changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.verdicts import BUILDERS, main

# Quick to save and to load, and of every kind of verdict.
BATCHED = ("dense", "text_of_fixed_length", "string_lookup", "hashing", "lstm_with_mask", "detection_combined")
NOT_BATCHED = {
    "mean_of_clicks": "SparseToDense",
    "text_of_any_length": "RaggedTensorToTensor",
    "branch_on_the_batch": "a condition over the whole batch",
    "batch_statistics": "Mean",
    "tf1_cnn_with_dropout": "draws random numbers",
    "counter": "writes state",
}


def test_batched_models_answer_the_same_beside_unlike_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["--pairs=8", f"--directory={tmp_path}", f"--models={','.join([*BATCHED, *NOT_BATCHED])}"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    row = r"^\| (\w+) \| serving_default \| (yes|no) \| (\w+) \| (.+?) \| (\d*) \| (.*?) \|$"
    rows = re.findall(row, printed, re.MULTILINE)
    assert [row[0] for row in rows] == [*BATCHED, *NOT_BATCHED]
    for name, batched, by, reason, runs, largest in rows:
        if name in BATCHED:
            assert (batched, by, runs) == ("yes", "proof", "8"), reason
            assert largest == "exact" or float(largest) <= 1e-5
        else:
            assert (batched, by, runs) == ("no", "graph", "")
            assert NOT_BATCHED[name] in reason
    assert "answers differ in 0 signatures" in printed


def test_a_name_that_no_model_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models=none,dense"]) == 2
    assert "no model is called none" in capsys.readouterr().err


def test_at_least_forty_models_are_surveyed() -> None:
    assert len(BUILDERS) >= 40
