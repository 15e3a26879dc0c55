"""The demo says what is true: every figure it prints is taken from its own run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import run_program

pytestmark = pytest.mark.timeout(400)  # Several programs that import TensorFlow, one after the other.


def test_demo_shows_every_way_in_a_swap_and_a_roll_back(tmp_path: Path) -> None:
    printed = run_program("-m", "scripts.demo", "--models", tmp_path / "models")
    label = re.search(r"held-out image, an? (\d):", printed)
    assert label is not None
    assert len(re.findall(rf"^  digit {label[1]}, probability", printed, re.MULTILINE)) >= 3
    assert re.search(r"^  curl -d '\{\"instances\":\[\[\d", printed, re.MULTILINE)
    assert re.findall(r"model version (\d)", printed) == ["1", "1", "2"]
    accuracies = [int(right) for right in re.findall(r"(\d+) of 360 held-out digits right", printed)]
    assert len(accuracies) == 2
    assert accuracies[1] > accuracies[0]
    assert accuracies[1] > 0.95 * 360
