"""From models to a Serve application: which deployments there are, and with which options.

Called by users and, through `app`, by a Serve config file. Runs where the application is built, which has no model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedserve.config import ModelConfig, RegistryOptions, location, validated
from embedserve.errors import ConfigError
from embedserve.ray.deployments import IngressDeployment, ReplicaDeployment, build_rest_app
from embedserve.ray.settings import ReplicaSettings, largest_batch

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["DEPLOYMENT", "app", "build_app", "deployment_options"]

DEPLOYMENT = "embedserve"
"""Name of the deployment that the proxies call: the only one, or the ingress before one per model."""

# Ray Serve's own bound for `num_replicas="auto"`; what a cluster has bounds it before.
MAX_REPLICAS = 100
# Seconds that unloading may take on top of `drain_timeout`.
UNLOAD_GRACE = 10.0
# Requests that one ingress replica may have on their way: they wait there and cost it nothing.
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
    """A Serve application that answers TensorFlow Serving's REST and gRPC APIs: `serve.run(build_app("/models"))`.

    gRPC needs `add_services_to_server` among Serve's `grpc_servicer_functions`; one application per cluster then
    answers clients that send no `application` metadata.

    Args:
        models: A directory of models or the URL of one, or models one by one; every replica reads these.
        per_model: One deployment per model, named as it, behind an ingress, so that each model scales by itself.
            Otherwise every replica of one deployment has every model. Models must be given one by one.
        deployment: Options of `serve.deployment` for the replicas with models, over those made here.
        timeout, cors: As for `embedserve.rest.create_app`.
        tensor_content: As for `embedserve.grpc.serve`.
        session_run: Answer SessionRun, to every client: replicas do not see where a client is.
        options: Any field of `RegistryOptions`.

    Raises:
        ConfigError: Ray is not installed, no models, a name twice, an unknown option or a bad value.
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
        "graceful_shutdown_timeout_s": registry_options.drain_timeout + UNLOAD_GRACE,  # As long as what it waits for.
        "autoscaling_config": {"max_replicas": MAX_REPLICAS, "target_ongoing_requests": INGRESS_REQUESTS // 4},
    }
    return serve.deployment(name=DEPLOYMENT, **made)(ingress(IngressDeployment)).bind(
        replicas, registry_options.max_inflight_bytes, registry_options.max_request_bytes
    )


def app(args: Mapping[str, Any]) -> Application:
    """`build_app` for a Serve config file: `import_path: embedserve.ray:app`, with its arguments as `args`.

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
    """What Serve should know of replicas with these models, under what the user gave.

    Serve sends a replica 5 requests at a time unless told otherwise, and batches of 5 are what it would get. Here it
    takes two full batches, one that runs and one that forms, and is joined by another when it has one on average.
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
