"""Real models, saved once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import saved_models

ModelPath = Callable[[str], Path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelPath:
    """Directory of a model of `tests.support.saved_models`, with version 1 in it; do not change what is in it."""
    root = tmp_path_factory.mktemp("tune")

    def path_of(name: str) -> Path:
        path = root / name
        if not path.exists():
            saved_models.MODELS[name](path / "1")
        return path

    return path_of
