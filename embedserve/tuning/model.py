"""Finds the model to measure, and makes registries to serve the model under a setting.

The module knows no request.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from embedserve.tuning.plan import ALONE, Setting

__all__ = ["Place", "TunedModel", "batching_options", "check_whole", "find"]

# Rows; TensorFlow Serving's default for a request. `max_execution_batch_size` bounds the rows of a run.
_LARGEST_REQUEST = 1000
_FILES = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")


@dataclass(frozen=True)
class Place:
    """The location of a version.

    Attributes:
        base_path: The model's directory.
        version: The version to measure.
        path: The version's directory.
        newest: The newest version in the model's directory.
    """

    base_path: Path
    version: int
    path: Path
    newest: int


def find(directory: str | os.PathLike[str]) -> Place:
    """The version in a version's or a model's directory; of a model the newest version.

    Raises:
        ConfigError: The directory is missing, or is no model and no version; the message says the contents.
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
    """Check that a registry would load the version at once, without missing files; imports TensorFlow.

    Raises:
        ConfigError: A file is missing; the message names the file.
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
    """The batching options of a setting, with room for `most_rows` in the queue.

    Requests larger than a run are cut, so that the setting refuses no request for its size.
    """
    return BatchingOptions(
        max_batch_size=max(_LARGEST_REQUEST, setting.batch_limit),
        enable_large_batch_splitting=True,
        max_execution_batch_size=setting.batch_limit,
        max_enqueued_batches=max(64, math.ceil(most_rows / setting.batch_limit)),
    )


@dataclass(frozen=True)
class TunedModel:
    """A version, with the options common to all settings.

    Attributes:
        place: The version's location.
        config: The model's options.
        options: The registry's options.
    """

    place: Place
    config: ModelConfig
    options: RegistryOptions

    def registry(self, setting: Setting, most_rows: int = 0) -> ModelRegistry:
        """Make a registry with the version alone, not entered yet; only signatures safe to batch are batched.

        Args:
            setting: Run threads and batch limit.
            most_rows: The most rows waiting at once.
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
            # A single scan and attempt: the directory does not change during the measurement.
            "poll_interval": math.inf,
            "watch": False,
            "settle": 0.0,
            "retry": RetryPolicy(max_retries=0),
        }
        return ModelRegistry(models=[model], **options)
