"""The options of a model, and the short ways to write a model in a list."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, Unpack

from pydantic import Field, field_serializer, field_validator

from embedserve.config.keywords import ModelOptions
from embedserve.config.location import Location, ModelName, location
from embedserve.config.row import Options, PythonOnly, SetBy, validated
from embedserve.config.values import (
    AllVersions,
    Batching,
    BatchingOptions,
    FreeBatch,
    LatestVersions,
    LoggingOptions,
    Optimize,
    ServableKind,
    SpecificVersions,
    VersionPolicy,
    Warmup,
)
from embedserve.errors import ConfigError
from embedserve.store_url import StoreUrl

__all__ = ["ModelConfig", "ModelLike", "model_configs"]

# In JSON a policy stands under its name, as in a ModelServerConfig: without the name, `all` and `latest` would look the
# same.
_POLICIES: dict[str, type[VersionPolicy]] = {
    "latest": LatestVersions,
    "all": AllVersions,
    "specific": SpecificVersions,
}


class ModelConfig(Options):
    """A model: the place of the versions and the options of serving. None means the registry's option."""

    name: Annotated[ModelName, SetBy("model_name", "model_config_file")] = Field(
        description="The model's name in requests: up to 255 characters without control characters; parts between "
        "slashes are not empty, `.` or `..`."
    )
    base_path: Annotated[Location, SetBy("model_base_path", "model_config_file")] = Field(
        description="Directory of numeric version directories, made absolute, or the URL of a directory in a remote "
        "store (`s3://`, `gs://`, `http://`... through fsspec). Versions in a store are synced to a local "
        "cache."
    )
    version_policy: Annotated[VersionPolicy, SetBy("model_config_file")] = Field(
        default=LatestVersions(), description="The choice of served versions among the found versions."
    )
    version_labels: Annotated[Mapping[str, int], SetBy("model_config_file")] = Field(
        default_factory=dict, description="Label → version."
    )
    batching: Batching | None = Field(
        default=None,
        description="`auto` batches signatures that are safe to batch; `adaptive` also learns the size and the "
        "waiting time of batches; True and False override the analysis.",
    )
    batching_options: BatchingOptions | None = Field(default=None, description="Queue and batch sizes.")
    free_batch: FreeBatch | None = Field(
        default=None,
        description="Whether requests may have more or fewer rows than the fixed dimension 0 of a signature. `auto` "
        "allows a free number where the graph keeps any number of rows apart and a probe at the load "
        "agrees. True means: the owner knows the rows to be independent. False never allows a free "
        "number.",
    )
    servable: ServableKind | None = Field(
        default=None,
        description="`function` (`tf.saved_model.load`), `session` (a graph session), or `auto`: the load of a small "
        "model measures both and takes the faster kind.",
    )
    optimize: Optimize | None = Field(
        default=None,
        description="`freeze` turns variables into constants, `xla` compiles besides; see docs/performance.md. An "
        "impossible optimisation, or a change of answers, is refused: the version is served unoptimised, "
        "and the status says why.",
    )
    optimize_tolerance: float | None = Field(
        default=None,
        ge=0,
        description="Largest difference of an optimised answer, relative to the largest element of the output.",
    )
    saved_model_tags: Annotated[tuple[str, ...], SetBy("saved_model_tags", "platform_config_file")] = Field(
        default=("serve",), description="Tag set of the MetaGraph to load."
    )
    input_ranks: Annotated[Mapping[str, int], PythonOnly("the server learns ranks from warm-up requests")] = Field(
        default_factory=dict, description="Rank per input name, for inputs of unknown declared rank."
    )
    warmup: Warmup | None = Field(
        default=None,
        description="`auto` runs made-up and recorded requests before a version serves; `none` runs nothing.",
    )
    prefer_tflite_model: bool | None = Field(
        default=None, description="Serve a version's `model.tflite`, if present, instead of the SavedModel."
    )
    run_timeout: float | None = Field(
        default=None, gt=0, description="Longest time of a run in seconds, even for callers with more patience."
    )
    num_tflite_pools: int | None = Field(
        default=None, ge=1, description="TensorFlow Lite interpreters of each version, the bound of concurrent runs."
    )
    logging_config: Annotated[LoggingOptions | None, SetBy("model_config_file")] = Field(
        default=None, description="The choice of logged requests; None logs no request."
    )
    storage_options: Annotated[
        Mapping[str, object], PythonOnly("`--remote_storage_options_file` has options for each scheme")
    ] = Field(
        default_factory=dict,
        repr=False,
        description="Arguments to fsspec for a remote `base_path`, merged over the registry's "
        "`remote_storage_options`.",
    )

    if TYPE_CHECKING:

        def __init__(self, **options: Unpack[ModelOptions]) -> None: ...

    @property
    def directory(self) -> Path:
        """The `base_path` of a model outside remote stores."""
        assert isinstance(self.base_path, Path), f"{self.base_path} is in a store"
        return self.base_path

    @field_serializer("version_policy", when_used="json")
    def _policy_under_its_name(self, policy: VersionPolicy) -> dict[str, object]:
        name = next(name for name, kind in _POLICIES.items() if isinstance(policy, kind))
        return {name: policy.model_dump(mode="json")}

    @field_validator("version_policy", mode="before")
    @classmethod
    def _policy_by_its_name(cls, value: object) -> object:
        if isinstance(value, Mapping) and len(value) == 1 and (kind := _POLICIES.get(next(iter(value)))) is not None:
            return kind(**next(iter(value.values())))
        return value


ModelLike: TypeAlias = "ModelConfig | ModelOptions | str | os.PathLike[str]"


def model_configs(models: object) -> list[ModelConfig]:
    """Return the configurations of listed models: `ModelConfig`s, dictionaries of options, or paths; none for None.

    Raises:
        ConfigError: `models` is no list, an entry is no model, or a name stands twice.
    """
    if models is None:
        return []
    if isinstance(models, str | os.PathLike | Mapping | ModelConfig) or not isinstance(models, Iterable):
        raise ConfigError(f"models is a list, one entry for each model; got {models!r}: write models=[...]")
    configs = [_config_of(model) for model in models]
    twice = [name for name, count in Counter(model.name for model in configs).items() if count > 1]
    if twice:
        raise ConfigError(f"Illegal to list model {twice[0]} multiple times in config list")
    return configs


def _config_of(model: object) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    if isinstance(model, Mapping):
        return validated(ModelConfig, model)
    if isinstance(model, str | os.PathLike | StoreUrl):
        path = location(model)
        name = path.name if isinstance(path, Path) else str(path).rstrip("/").rpartition("/")[2]
        return validated(ModelConfig, {"name": name, "base_path": path})
    raise ConfigError(f"a model is a ModelConfig, a dictionary of its options or a path; got {model!r}")
