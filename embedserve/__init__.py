"""embedserve: an embeddable serving runtime for TensorFlow SavedModels.

`ModelRegistry` is the runtime; `embedserve.rest.create_app` and `embedserve.grpc.serve` put it on the wire. Importing
this package imports no TensorFlow, grpc or starlette and has no side effects.
"""

from __future__ import annotations

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
from embedserve.handle import ModelHandle
from embedserve.lifecycle.monitor import VersionStatus
from embedserve.observer import Observer
from embedserve.registry import ModelRegistry
from embedserve.remote.follower import StoreStatistics
from embedserve.runtime import RegistryStatistics
from embedserve.servable import ServableId, State
from embedserve.signature import Signature, TensorSpec
from embedserve.store_url import StoreUrl
from embedserve.tf_example import InferenceTask

__version__ = "0.1.0"

__all__ = [
    "AllVersions",
    "BatchingOptions",
    "Code",
    "ConfigError",
    "DeadlineExceededError",
    "InferenceError",
    "InferenceTask",
    "InvalidInputError",
    "InvalidModelSpecError",
    "LatestVersions",
    "LoadError",
    "LoggingOptions",
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
    "UnsupportedError",
    "VersionStatus",
    "__version__",
]
