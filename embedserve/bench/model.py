"""The model to measure: where it is, and a registry that serves it under a setting.

Called by `command`. Knows no request.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.bench.plan import ALONE, Setting
from embedserve.config import (
    BatchingOptions,
    LatestVersions,
    ModelConfig,
    RegistryOptions,
    RetryPolicy,
    SpecificVersions,
    absolute,
)
from embedserve.errors import Code, ConfigError
from embedserve.lifecycle.version_policy import find_versions, version_number
from embedserve.registry import ModelRegistry
from embedserve.store_url import is_url

__all__ = ["BenchedModel", "Place", "batching_options", "check_whole", "find"]

# As TensorFlow Serving's default for requests: what a run takes is `max_execution_batch_size`.
_LARGEST_REQUEST = 1000
_FILES = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")


@dataclass(frozen=True)
class Place:
    """Where a version is.

    Attributes:
        base_path: The model's directory.
        version: The version to measure.
        path: Its directory.
        newest: The version that the model's directory would be served with.
    """

    base_path: Path
    version: int
    path: Path
    newest: int


def find(directory: str | os.PathLike[str]) -> Place:
    """The version that a version's or a model's directory stands for; of a model its newest.

    Raises:
        ConfigError: There is no such directory, or it is neither; what it is instead.
    """
    if is_url(os.fspath(directory)):
        raise ConfigError(f"{directory} is a URL: only a local directory can be measured")
    path = absolute(directory)
    if not path.is_dir():
        raise ConfigError(f"there is no directory {path}", code=Code.NOT_FOUND)
    if _holds_model(path):
        number = version_number(path.name)
        if number is None:
            raise ConfigError(
                f"{path} is a model, but its name is no version number: a server finds it as {path.name}/1"
            )
        return Place(path.parent, number, path, max(_versions(path.parent)))
    versions = _versions(path)
    if not versions:
        models = sorted(child.name for child in path.iterdir() if child.is_dir() and _versions(child))
        if models:
            raise ConfigError(f"{path} holds models ({', '.join(models[:5])}), not versions of one: name one of them")
        raise ConfigError(
            f"{path} is no model: it holds neither {' nor '.join(_FILES)}, nor version directories that do"
        )
    newest = max(versions)
    return Place(path, newest, versions[newest], newest)


def check_whole(place: Place) -> None:
    """See that a registry would load the version, and not wait for the rest of it; imports TensorFlow.

    Raises:
        ConfigError: What is missing.
    """
    from embedserve.saved_model.files import completeness

    missing = completeness.missing(place.path)
    if missing is not None:
        raise ConfigError(f"{place.path} is not whole: {missing}", code=Code.FAILED_PRECONDITION)


def _holds_model(path: Path) -> bool:
    return any((path / name).is_file() for name in _FILES)


def _versions(base_path: Path) -> dict[int, Path]:
    found, _ = find_versions([child.name for child in base_path.iterdir()], LatestVersions())
    return {number: base_path / name for number, name in found.items() if _holds_model(base_path / name)}


def batching_options(setting: Setting, most_rows: int) -> BatchingOptions:
    """How a setting batches, with room for `most_rows` in the queue.

    Requests of more rows than a run takes are cut, so that none is refused for its size that was not before.
    """
    return BatchingOptions(
        max_batch_size=max(_LARGEST_REQUEST, setting.batch_limit),
        enable_large_batch_splitting=True,
        max_execution_batch_size=setting.batch_limit,
        max_enqueued_batches=max(64, math.ceil(most_rows / setting.batch_limit)),
    )


@dataclass(frozen=True)
class BenchedModel:
    """One version, and the options that it is served with whatever the setting.

    Attributes:
        place: Where it is.
        config: Its options.
        options: The registry's.
    """

    place: Place
    config: ModelConfig
    options: RegistryOptions

    def registry(self, setting: Setting, most_rows: int = 0) -> ModelRegistry:
        """A registry that serves this version alone, not entered yet; batching only what is safe to batch.

        Args:
            setting: Run threads and batch limit.
            most_rows: Rows that may wait at once.
        """
        alone = setting.batch_limit == ALONE
        model = self.config.model_copy(
            update={
                "version_policy": SpecificVersions(versions=(self.place.version,)),
                "batching": False if alone else "auto",
                "batching_options": None if alone else batching_options(setting, most_rows),
            }
        )
        options: dict[str, Any] = {name: getattr(self.options, name) for name in RegistryOptions.model_fields}
        options |= {
            "num_batch_threads": setting.run_threads,
            # One scan, one attempt: nothing here changes while it is measured.
            "poll_interval": math.inf,
            "watch": False,
            "settle": 0.0,
            "retry": RetryPolicy(max_retries=0),
        }
        return ModelRegistry(models=[model], **options)
