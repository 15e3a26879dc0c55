"""Models are saved once per session, loaded once per test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.saved_model.load import pick_servable as choosing
from embedserve.saved_model.load.loader import SavedModelLoader, SavedModelServable
from embedserve.servable import ServableId
from tests.support import saved_models

ModelPath = Callable[[str], Path]
Load = Callable[..., SavedModelServable]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelPath:
    """Version directory of a model of `tests.support.saved_models`; do not change what is in it."""
    root = tmp_path_factory.mktemp("models")

    def path_of(name: str) -> Path:
        path = root / name / "1"
        return path if path.exists() else saved_models.MODELS[name](path)

    return path_of


@pytest.fixture
def sessions_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a load measures functions against a session, the session takes less time."""
    times = itertools.count(0.004, -1e-6)
    monkeypatch.setattr(choosing, "_LONG_RUN", math.inf)
    monkeypatch.setattr(choosing, "run_time", SimpleNamespace(fastest=lambda call: next(times)))


@pytest.fixture
def load(model: ModelPath) -> Iterator[Load]:
    """Load a model by name or path, with options of `ModelConfig`; unloaded after the test."""
    loaded: list[tuple[SavedModelLoader, SavedModelServable]] = []

    def load_one(name: str | Path, options: RegistryOptions | None = None, **config: Any) -> SavedModelServable:
        path = name if isinstance(name, Path) else model(name)
        made = SavedModelLoader(
            ServableId(path.parent.name, 1),
            path,
            ModelConfig(name=path.parent.name, base_path=path.parent, **config),
            options or RegistryOptions(),
        )
        servable = made.load()
        loaded.append((made, servable))
        return servable

    yield load_one
    for made, servable in loaded:
        made.unload(servable)
