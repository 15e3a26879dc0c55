"""Builds a Serve application from models: decides the deployments and their options.

The module runs on the building machine, without any model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedserve.config import ModelConfig, RegistryOptions, location, validated
from embedserve.errors import ConfigError
from embedserve.ray.deployments import IngressDeployment, ReplicaDeployment, build_rest_app
from embedserve.ray.settings import ReplicaSettings, largest_batch
from embedserve.server.standalone import UNLOAD_GRACE

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["DEPLOYMENT", "app", "build_app", "deployment_options"]

DEPLOYMENT = "embedserve"
"""Name of the deployment called by the proxies: the only deployment, or the ingress with `per_model`."""

# Ray Serve's bound for `num_replicas="auto"`. The cluster's resources usually bound the number earlier.
MAX_REPLICAS = 100
# Requests in flight per ingress replica. A waiting request costs the ingress next to no CPU time.
INGRESS_REQUESTS = 1000


def build_app(
    models: str | os.PathLike[str] | Sequence[ModelConfig | Mapping[str, Any]],
    *,
    per_model: bool = False,
    deployment: Mapping[str, Any] | None = None,
    timeout: float | None = 30.0,
    cors: bool = False,
    tensor_content: bool = False,
    session_run: bool = False,
    **options: Any,
) -> Application:
    """A Serve application with TensorFlow Serving's REST and gRPC APIs: `serve.run(build_app("/models"))`.

    gRPC needs `add_services_to_server` among Serve's `grpc_servicer_functions`. A single application per cluster then
    answers clients without `application` metadata.

    Args:
        models: A directory of models or its URL, or a list of models; every replica reads the models from there.
        per_model: Whether to make a deployment per model, named like the model, behind an ingress, so that each model
            scales separately. Otherwise every replica has every model. Requires a list of models.
        deployment: Options of `serve.deployment` for the replicas with models; override the computed options.
        timeout, cors: As for `embedserve.rest.create_app`.
        tensor_content: As for `embedserve.grpc.serve`.
        session_run: Whether to answer SessionRun, to every client: replicas do not see the client's address.
        options: Any field of `RegistryOptions`.

    Raises:
        ConfigError: Ray is not installed, no models, a repeated name, an unknown option or a bad value.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(f"Ray Serve needs the package ray: pip install 'embedserve[ray]' ({error})") from error
    registry_options = validated(RegistryOptions, options)
    settings = ReplicaSettings(
        **_chosen(models),
        options=registry_options.model_dump(mode="json", exclude_unset=True),
        timeout=timeout,
        cors=cors,
        tensor_content=tensor_content,
        session_run=session_run,
    )
    ingress = serve.ingress(build_rest_app)
    if not per_model:
        made = deployment_options(registry_options, settings.models, deployment)
        return serve.deployment(name=DEPLOYMENT, **made)(ingress(ReplicaDeployment)).bind(settings.model_dump_json())
    if not settings.models or any(model.name == DEPLOYMENT for model in settings.models):
        raise ConfigError(f"per_model needs models given one by one, none of them named {DEPLOYMENT!r}")
    replicas = {}
    for model in settings.models:
        made = deployment_options(registry_options, [model], deployment)
        own = settings.model_copy(update={"models": (model,)})
        replicas[model.name] = serve.deployment(name=model.name, **made)(ReplicaDeployment).bind(own.model_dump_json())
    made = {
        "max_ongoing_requests": INGRESS_REQUESTS,
        # As long as the replicas behind the ingress need.
        "graceful_shutdown_timeout_s": registry_options.drain_timeout + UNLOAD_GRACE,
        "autoscaling_config": {"max_replicas": MAX_REPLICAS, "target_ongoing_requests": INGRESS_REQUESTS // 4},
    }
    return serve.deployment(name=DEPLOYMENT, **made)(ingress(IngressDeployment)).bind(
        replicas, registry_options.max_inflight_bytes, registry_options.max_request_bytes
    )


def app(args: Mapping[str, Any]) -> Application:
    """`build_app` for a Serve config file: `import_path: embedserve.ray:app`, with arguments as `args`.

    Raises:
        ConfigError: As `build_app`; also without `models`.
    """
    arguments = dict(args)
    if "models" not in arguments:
        raise ConfigError("args of embedserve.ray:app need `models`: a directory, or a list of models")
    return build_app(arguments.pop("models"), **arguments)


def _chosen(models: str | os.PathLike[str] | Sequence[ModelConfig | Mapping[str, Any]]) -> dict[str, Any]:
    if isinstance(models, str | os.PathLike):
        return {"root": location(models)}
    chosen = [model if isinstance(model, ModelConfig) else validated(ModelConfig, model) for model in models]
    names = [model.name for model in chosen]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"models must be a directory or a list of models, each name once; found {names}")
    return {"models": tuple(chosen)}


def deployment_options(
    options: RegistryOptions, models: Sequence[ModelConfig], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The options of a deployment with the given models; user options override.

    By default Serve sends a replica 5 requests at a time, too few to fill batches. Here a replica takes two full
    batches, a running batch and a forming batch. Serve adds a replica when each replica has a full batch on average.
    """
    batch = largest_batch(options, models)
    scaling = {"min_replicas": 1, "max_replicas": MAX_REPLICAS, "target_ongoing_requests": batch}
    made: dict[str, Any] = {
        "max_ongoing_requests": 2 * batch,
        "graceful_shutdown_timeout_s": options.drain_timeout + UNLOAD_GRACE,
        "user_config": {},
    } | dict(given or {})
    if isinstance(made.get("num_replicas"), int):
        return made
    return made | {"autoscaling_config": scaling | dict(made.get("autoscaling_config") or {})}
