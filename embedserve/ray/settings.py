"""The settings of an application's replicas: fixed settings of the deployment, and changes by `user_config`.

The module knows no Ray and does nothing.
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
    """Served versions and labels of a model; override the model's `ModelConfig`.

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
    """The format of a deployment's `user_config`; changes reach every replica without a restart.

    Attributes:
        models: Overrides by model name. An absent model is served by its `ModelConfig`.
    """

    models: Mapping[str, Versions] = Field(default_factory=dict)


class ReplicaSettings(_Settings):
    """The models and options of a replica.

    Attributes:
        root: Directory or URL of models to discover, or None.
        models: Models given singly.
        options: Given options of the registry. Absent options get defaults on the replica's machine.
        timeout: Seconds for the run of a REST request, or None.
        cors: Whether to answer CORS requests.
        tensor_content: Whether to answer gRPC with `tensor_content`.
        session_run: Whether to answer SessionRun.
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

    def configured(self, user_config: Mapping[str, object] | None) -> tuple[ModelConfig, ...]:
        """The registry's models under the given `user_config`.

        Raises:
            ConfigError: The value is not a `UserConfig`, or names a model unknown to the replica.
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
    """Rows of a replica's largest possible batch."""
    own = [model.batching_options.max_batch_size for model in models if model.batching_options is not None]
    return max([options.batching_options.max_batch_size, *own])
