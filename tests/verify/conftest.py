"""Real models, saved once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.saved_models import MODELS
from tests.support.survey_models import SURVEYED

ModelPath = Callable[[str], Path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelPath:
    """Directory of a model by name, with version 1 in it; do not change what is in it."""
    root = tmp_path_factory.mktemp("verified")

    def path_of(name: str) -> Path:
        path = root / name
        if not path.exists():
            (MODELS | SURVEYED)[name](path / "1")  # type: ignore[operator]
        return path

    return path_of
