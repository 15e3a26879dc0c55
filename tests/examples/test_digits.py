"""The dense network: served, swapped, rolled back, two at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import run_program

pytestmark = pytest.mark.timeout(400)  # Several programs that import TensorFlow, one after the other.


def test_a_version_dropped_in_goes_live_and_is_rolled_back(tmp_path: Path) -> None:
    printed = run_program("-m", "examples.digits.swap", tmp_path)
    assert "models: digits mnist" in printed
    versions = re.findall(r"version (\d) is right on (\d+)%", printed)
    assert [version for version, _ in versions] == ["1", "2", "1"]
    before, better, back = (int(right) for _, right in versions)
    assert better > before == back
    assert better > 90
