"""A process that has not imported TensorFlow yet enters a registry of several models, and gets them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import run_program
from tests.support.saved_models import half_plus_two

pytestmark = pytest.mark.slow

CODE = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from embedserve import ModelRegistry
assert "tensorflow" not in sys.modules
with ModelRegistry(sys.argv[1]) as registry:
    print(sorted(registry.models()), [registry.predict_sync(name, {"x": [[2.0]]})["y"].item() for name in "abcdef"])
"""


def test_the_first_looks_at_many_models_import_tensorflow_once_and_find_them_all(tmp_path: Path) -> None:
    for name in "abcdef":
        half_plus_two(tmp_path / name / "1")
    assert run_program("-c", CODE, tmp_path, cold=True).strip() == f"{[*'abcdef']} {[3.0] * 6}"
