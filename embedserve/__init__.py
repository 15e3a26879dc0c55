"""embedserve: an embeddable serving runtime for TensorFlow SavedModels.

`ModelRegistry` is the runtime. `embedserve.rest.create_app` and `embedserve.grpc.serve` put a registry on the wire, and
`embedserve.testing` has fakes for the tests of a host. Names are imported at first use. The import of the package loads
no TensorFlow, grpc or starlette; the only effect is to note forks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import embedserve.concurrency.forks  # noqa: F401 (notes the forks of the host from here on)

if TYPE_CHECKING:
    from embedserve.call_record import CallRecord, CallTiming
    from embedserve.config import (
        AllVersions,
        BatchingOptions,
        LatestVersions,
        LoggingOptions,
        ModelConfig,
        RegistryOptions,
        RetryPolicy,
        SpecificVersions,
    )
    from embedserve.errors import (
        Code,
        ConfigError,
        DeadlineExceededError,
        InferenceError,
        InvalidInputError,
        InvalidModelSpecError,
        LoadError,
        NotReadyError,
        OverloadedError,
        QueueFullError,
        RegistryStateError,
        RequestTooLargeError,
        ServableNotFoundError,
        ServingError,
        SignatureNotFoundError,
        StartError,
        UnsupportedError,
    )
    from embedserve.events import Actor, Event, acting_as
    from embedserve.handle import ModelHandle
    from embedserve.lifecycle.monitor import VersionStatus
    from embedserve.lifecycle.source_protocol import StoreStatistics
    from embedserve.logs.access import AccessLog
    from embedserve.logs.json_lines import JsonFormatter
    from embedserve.metrics import Metrics
    from embedserve.observer import Observer
    from embedserve.registry import ModelRegistry
    from embedserve.runtime.runtime import RegistryStatistics
    from embedserve.servable import ServableId, State
    from embedserve.signature import Signature, TensorSpec
    from embedserve.store_url import StoreUrl
    from embedserve.tensors.json_text import to_json
    from embedserve.tfs.examples import InferenceTask
    from embedserve.tracing import Tracing

__version__ = "0.2.0"

__all__ = [
    "AccessLog",
    "Actor",
    "AllVersions",
    "BatchingOptions",
    "CallRecord",
    "CallTiming",
    "Code",
    "ConfigError",
    "DeadlineExceededError",
    "Event",
    "InferenceError",
    "InferenceTask",
    "InvalidInputError",
    "InvalidModelSpecError",
    "JsonFormatter",
    "LatestVersions",
    "LoadError",
    "LoggingOptions",
    "Metrics",
    "ModelConfig",
    "ModelHandle",
    "ModelRegistry",
    "NotReadyError",
    "Observer",
    "OverloadedError",
    "QueueFullError",
    "RegistryOptions",
    "RegistryStateError",
    "RegistryStatistics",
    "RequestTooLargeError",
    "RetryPolicy",
    "ServableId",
    "ServableNotFoundError",
    "ServingError",
    "Signature",
    "SignatureNotFoundError",
    "SpecificVersions",
    "StartError",
    "State",
    "StoreStatistics",
    "StoreUrl",
    "TensorSpec",
    "Tracing",
    "UnsupportedError",
    "VersionStatus",
    "__version__",
    "acting_as",
    "to_json",
]

_MODULES = {
    "call_record": "CallRecord CallTiming",
    "config": (
        "AllVersions BatchingOptions LatestVersions LoggingOptions ModelConfig RegistryOptions RetryPolicy "
        "SpecificVersions"
    ),
    "errors": (
        "Code ConfigError DeadlineExceededError InferenceError InvalidInputError InvalidModelSpecError LoadError "
        "NotReadyError OverloadedError QueueFullError RegistryStateError RequestTooLargeError ServableNotFoundError "
        "ServingError SignatureNotFoundError StartError UnsupportedError"
    ),
    "events": "Actor Event acting_as",
    "handle": "ModelHandle",
    "lifecycle.monitor": "VersionStatus",
    "logs.access": "AccessLog",
    "logs.json_lines": "JsonFormatter",
    "metrics": "Metrics",
    "observer": "Observer",
    "registry": "ModelRegistry",
    "remote.follower": "StoreStatistics",
    "runtime.runtime": "RegistryStatistics",
    "servable": "ServableId State",
    "signature": "Signature TensorSpec",
    "store_url": "StoreUrl",
    "tensors.json_text": "to_json",
    "tfs.examples": "InferenceTask",
    "tracing": "Tracing",
}
_HOMES = {name: f"embedserve.{module}" for module, names in _MODULES.items() for name in names.split()}
_PUBLIC_MODULES = frozenset(("grpc", "http", "ray", "rest", "testing"))


def __getattr__(name: str) -> Any:
    """Import a public name or a public module at first use."""
    if name in _PUBLIC_MODULES:
        return import_module(f"embedserve.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'embedserve' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PUBLIC_MODULES])
