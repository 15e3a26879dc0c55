"""Logs and traces of the standalone server: flags and OpenTelemetry's environment variables → observers.

OpenTelemetry's SDK reads most of its variables by itself. The module decides whether traces are wanted, where a span
goes, and the share of the calls: a share is a random number here, and far cheaper than a decision of the SDK.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from embedserve import __version__
from embedserve.config import validated
from embedserve.errors import Code, ConfigError
from embedserve.logs.access import AccessLog
from embedserve.observer import Observer
from embedserve.server.config import ObservingConfig, TracingConfig
from embedserve.server.flags import ParsedFlags
from embedserve.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["make_observers", "observing"]

logger = logging.getLogger("embedserve")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_TRACES_PATH = "/v1/traces"
_EXPORTERS = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}


def observing(flags: ParsedFlags, environment: Mapping[str, str]) -> ObservingConfig:
    """The configuration of logs and traces.

    Raises:
        ConfigError: A flag or a variable has an impossible value, or a package is missing.
    """
    slow = flags.real("access_log_slow")
    return validated(
        ObservingConfig,
        {
            "log_format": flags.text("log_format"),
            "access_log": flags.on("access_log"),
            "access_log_sampling": flags.real("access_log_sampling"),
            "access_log_slow": None if slow == math.inf else slow,
            "access_log_failed": flags.on("access_log_failed"),
            "tracing": _tracing(flags.text("otel_endpoint"), environment),
        },
    )


def _tracing(endpoint: str, environment: Mapping[str, str]) -> TracingConfig | None:
    """The settings of the traces; None where neither the flag nor a variable asks for traces."""
    chosen = environment.get("OTEL_TRACES_EXPORTER", "otlp") or "otlp"
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or (chosen == "none" and not endpoint)
    if disabled or not (endpoint or any(environment.get(name) for name in _ENDPOINTS)):
        return None
    if chosen not in ("otlp", "none"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER={chosen}: there is otlp and none")
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol not in _EXPORTERS:
        raise ConfigError(f"{_PROTOCOLS[1]}={protocol}: there is {', '.join(_EXPORTERS)}")
    _check_installed(protocol)
    if endpoint and "://" not in endpoint:
        raise ConfigError(f"--otel_endpoint={endpoint} is no URL; write http://localhost:4318")
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return TracingConfig(endpoint=endpoint or None, protocol=protocol, named=bool(named), sampling=_share(environment))


def _check_installed(protocol: str) -> None:
    for module in ("opentelemetry.sdk", _EXPORTERS[protocol].rpartition(".")[0]):
        try:
            found = find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            package = f"opentelemetry-exporter-otlp-proto-{protocol.partition('/')[0]}"
            raise ConfigError(
                f"traces over {protocol} need OpenTelemetry's SDK and exporter: pip install 'embedserve[otlp]'"
                + ("" if protocol != "grpc" else f" {package}"),
                code=Code.FAILED_PRECONDITION,
            )


def _share(environment: Mapping[str, str]) -> float | None:
    """The share of the root calls in `OTEL_TRACES_SAMPLER`; None leaves the decision to the SDK's sampler."""
    sampler = environment.get("OTEL_TRACES_SAMPLER", "parentbased_always_on") or "parentbased_always_on"
    fixed = {"parentbased_always_on": 1.0, "parentbased_always_off": 0.0}
    if sampler != "parentbased_traceidratio":
        return fixed.get(sampler)
    text = environment.get("OTEL_TRACES_SAMPLER_ARG", "1")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG={text} is no share from 0 to 1")
    return share


def make_observers(config: ObservingConfig) -> list[Observer]:
    """The observers of a process for its logs and traces."""
    observers: list[Observer] = []
    if config.access_log:
        sampling, slow, failed = config.access_log_sampling, config.access_log_slow, config.access_log_failed
        observers.append(AccessLog(sampling=sampling, slow=slow, failed=failed))
    if config.tracing is not None:
        observers.append(_make_tracing(config.tracing))
    return observers


def _make_tracing(config: TracingConfig) -> Tracing:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON

    resource = {"service.version": __version__}
    if not config.named:
        resource["service.name"] = "embedserve"
    sampler = None if config.sampling is None else DEFAULT_ON
    provider = TracerProvider(sampler=sampler, resource=Resource.create(resource))
    provider.add_span_processor(BatchSpanProcessor(_exporter(config)))
    logger.info("Sending traces to %s", config.endpoint or "the endpoint of OpenTelemetry's variables")
    return Tracing(provider, sampling=1.0 if config.sampling is None else config.sampling)


def _exporter(config: TracingConfig) -> SpanExporter:
    endpoint = config.endpoint
    if endpoint is not None and config.protocol != "grpc" and not endpoint.endswith(_TRACES_PATH):
        endpoint = endpoint.rstrip("/") + _TRACES_PATH  # As for OTEL_EXPORTER_OTLP_ENDPOINT.
    made: SpanExporter = import_module(_EXPORTERS[config.protocol]).OTLPSpanExporter(endpoint=endpoint)
    return made
