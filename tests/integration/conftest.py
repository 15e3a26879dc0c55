"""Real models, saved once per session, and directories that they are deployed to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedserve import RetryPolicy
from tests.support import saved_models

SavedModel = Callable[..., Path]

# As the defaults, but for nobody to wait for.
QUICK: dict[str, Any] = {"settle": 0.05, "poll_interval": 0.2, "retry": RetryPolicy(initial=0.02, maximum=0.02)}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    """The path of a model of `tests.support.saved_models`, built with these arguments; do not change what is in it."""
    root = tmp_path_factory.mktemp("saved")

    def path_of(name: str, **arguments: Any) -> Path:
        path = root / "-".join([name, *map(str, arguments.values())]) / "1"
        return path if path.exists() else getattr(saved_models, name)(path, **arguments)

    return path_of


@pytest.fixture(scope="session")
def line(saved: SavedModel) -> Callable[[int], Path]:
    """A model that tells its version: `y = version`, whatever `x` is."""
    return lambda version: saved("half_plus_two", a=0.0, b=float(version))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty models directory."""
    path = tmp_path / "models"
    path.mkdir()
    return path


def deploy(source: Path, target: Path) -> Path:
    """A new version directory as deployers are told to make it: copied beside, then renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".{target.name}"
    shutil.copytree(source, beside)
    return beside.rename(target)


def overwrite(source: Path, target: Path) -> None:
    """New contents in the same directory, file by file, each by rename, as rsync does it."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            beside = target / path.relative_to(source).with_name(f".{path.name}.new")
            shutil.copyfile(path, beside)
            os.replace(beside, beside.with_name(path.name))
