"""`tensorflow.serving.ModelService`: GetModelStatus and HandleReloadConfigRequest over the registry.

The module knows the messages. The registry knows the versions and the effects of a configuration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2

from embedserve.config import Clients
from embedserve.errors import ConfigError, InvalidModelSpecError, ServableNotFoundError, one_line
from embedserve.events import acting_as
from embedserve.grpc.access import answering
from embedserve.grpc.calls import Methods, paths, unary

if TYPE_CHECKING:
    from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
    from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    from embedserve.grpc.calls import Context
    from embedserve.registry import ModelRegistry

__all__ = ["SERVICE", "MetricReader", "Reload", "methods"]

SERVICE = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name

logger = logging.getLogger("embedserve")

MetricReader: TypeAlias = Callable[[str], Awaitable[int]]
"""Value of a metric by TF Serving's name (`/tensorflow/serving/request_count`)."""

Reload: TypeAlias = "Callable[[ModelServerConfig], Awaitable[None]]"
"""Applies a `ModelServerConfig` message."""


def methods(
    registry: ModelRegistry,
    *,
    reload: Reload | None = None,
    metric: MetricReader | None = None,
    reloaded_by: Clients = "local",
) -> Methods:
    """The service's methods.

    Args:
        registry: The registry whose status is reported.
        reload: Applies the configuration of a reload; `registry.reconfigure` by default. A server that also polls a
            configuration file passes its own function, so that both agree on the configuration in force.
        metric: Reads a metric for a reload's `metric_names`; without a reader all metrics count as 0.
        reloaded_by: The clients whose reloads are applied.
    """
    apply = partial(_reload, reload or partial(_reconfigure, registry), metric or _no_metric)
    status = unary(registry, get_model_status_pb2.GetModelStatusRequest, partial(_status, registry))
    handled = unary(registry, model_management_pb2.ReloadConfigRequest, apply)
    reloads = paths(SERVICE, {"HandleReloadConfigRequest": handled})
    return {
        **paths(SERVICE, {"GetModelStatus": status}),
        **answering(reloaded_by, "HandleReloadConfigRequest", "reload_clients", reloads),
    }


async def _reconfigure(registry: ModelRegistry, config: ModelServerConfig) -> None:
    from embedserve.tfs.config import check_reload, models_from_proto

    models = models_from_proto(config)
    await registry.run_in_thread(check_reload, models, (), registry.options.request_log_root)
    await registry.reconfigure(models)


async def _no_metric(name: str) -> int:
    return 0


async def _status(registry: ModelRegistry, request: GetModelStatusRequest, context: Context, large: bool) -> bytes:
    if not request.HasField("model_spec"):
        raise InvalidModelSpecError("Missing ModelSpec")
    spec = request.model_spec
    versions = registry.status(spec.name).get(spec.name, ()) if spec.name else ()
    if spec.WhichOneof("version_choice") == "version":  # A label is ignored, as TF Serving does.
        wanted = spec.version.value
        versions = tuple(status for status in versions if status.version == wanted)
        if not versions:
            raise ServableNotFoundError(f"Could not find version {wanted} of model {spec.name}")
    if not versions:
        raise ServableNotFoundError(f"Could not find any versions of model {spec.name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in sorted(versions, key=lambda status: status.version, reverse=True):
        added = response.model_version_status.add(version=status.version, state=int(status.state))
        added.status.error_code = int(status.code)
        added.status.error_message = status.error_message
    data: bytes = response.SerializeToString()
    return data


async def _reload(
    reload: Reload, metric: MetricReader, request: ReloadConfigRequest, context: Context, large: bool
) -> bytes:
    if request.config.WhichOneof("config") != "model_config_list":
        raise ConfigError(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    names = sorted(set(request.metric_names))
    before = {name: await metric(name) for name in names}
    # The caller's deadline ends the call, not the work.
    with acting_as(address=context.peer, reason="HandleReloadConfigRequest"):
        work = asyncio.ensure_future(reload(request.config))
    work.add_done_callback(_log_failure)
    await asyncio.shield(work)
    response = model_management_pb2.ReloadConfigResponse()
    response.status.error_code = 0
    for name in names:
        response.metric.add(name=name, int64_value_increase=await metric(name) - before[name])
    data: bytes = response.SerializeToString()
    return data


def _log_failure(work: asyncio.Future[None]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        logger.error("ReloadConfig failed: %s", one_line(str(error)))
