"""What the replicas of an application are told: once, when they are made, and by `user_config` at any time after.

Made by `application`, read by `replica`. Knows no Ray and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from embedserve.config import Location, ModelConfig, RegistryOptions, VersionPolicy, validated
from embedserve.errors import ConfigError

__all__ = ["ReplicaSettings", "UserConfig", "Versions"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Versions(_Settings):
    """Which versions of one model are served and what its labels mean, in place of what `ModelConfig` says.

    Attributes:
        version_policy: As in `ModelConfig`, under its name in JSON and YAML: `{specific: {versions: [3]}}`.
        version_labels: Label → version.
    """

    version_policy: VersionPolicy | None = None
    version_labels: Mapping[str, int] | None = None

    @field_validator("version_policy", mode="before")
    @classmethod
    def _policy_by_its_name(cls, value: Any) -> Any:
        if value is None:
            return None
        return ModelConfig(name="any", base_path="/", version_policy=value).version_policy


class UserConfig(_Settings):
    """What a deployment's `user_config` may say; a change of it reaches every replica without a restart.

    Attributes:
        models: By model name. A model that is not listed is served as its `ModelConfig` says.
    """

    models: Mapping[str, Versions] = Field(default_factory=dict)


class ReplicaSettings(_Settings):
    """What a replica serves and how.

    Attributes:
        root: Directory or URL of models that are found by themselves, or None.
        models: Models given one by one.
        options: Options of the registry that were given. The rest gets its defaults on the replica's machine.
        timeout: Seconds that a REST request's run may take, or None.
        cors: Answer CORS requests.
        tensor_content: Answer gRPC with `tensor_content`.
        session_run: Answer SessionRun.
    """

    root: Location | None = None
    models: tuple[ModelConfig, ...] = ()
    options: Mapping[str, Any] = Field(default_factory=dict)
    timeout: float | None = 30.0
    cors: bool = False
    tensor_content: bool = False
    session_run: bool = False

    @property
    def registry_options(self) -> RegistryOptions:
        """The options with defaults.

        Raises:
            ConfigError: An unknown option or a bad value.
        """
        return validated(RegistryOptions, self.options)

    def configured(self, user_config: Mapping[str, Any] | None) -> tuple[ModelConfig, ...]:
        """The models to give to the registry under this `user_config`.

        Raises:
            ConfigError: It is not a `UserConfig`, or names a model that this replica has not.
        """
        versions = validated(UserConfig, user_config or {}).models
        models = {model.name: model for model in self.models}
        for name, chosen in versions.items():
            if name in models:
                model = models[name]
            elif self.root is not None:
                model = ModelConfig(name=name, base_path=self.root / name)
            else:
                raise ConfigError(f"user_config names model {name!r}; models of this deployment: {', '.join(models)}")
            given = {key: value for key, value in chosen if value is not None}
            models[name] = model.model_copy(update=given)
        return tuple(models.values())


def largest_batch(options: RegistryOptions, models: Sequence[ModelConfig]) -> int:
    """Rows of the largest batch that a replica may run."""
    own = [model.batching_options.max_batch_size for model in models if model.batching_options is not None]
    return max([options.batching_options.max_batch_size, *own])
