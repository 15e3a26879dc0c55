"""embedserve-client: calls models of embedserve and TensorFlow Serving over gRPC, over REST or in process.

No TensorFlow is needed. `Client` blocks and `AsyncClient` awaits; `embedserve_client.apis` has TensorFlow Serving's
messages and stubs. The first client of REST imports httpx, and the first value that needs ml_dtypes imports that.
"""

from embedserve_client.calls import CallOptions
from embedserve_client.client import AsyncClient, Client, ClientOptions
from embedserve_client.errors import (
    Code,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    InvalidModelSpecError,
    NotReadyError,
    OverloadedError,
    QueueFullError,
    RegistryStateError,
    RequestTooLargeError,
    ServableNotFoundError,
    ServingError,
    SignatureNotFoundError,
    UnsupportedError,
)
from embedserve_client.exchange import Retry
from embedserve_client.model import ModelMetadata, Signature, State, TensorSpec, VersionStatus

__version__ = "0.2.0"

__all__ = [
    "AsyncClient",
    "CallOptions",
    "Client",
    "ClientOptions",
    "Code",
    "DeadlineExceededError",
    "InferenceError",
    "InvalidInputError",
    "InvalidModelSpecError",
    "ModelMetadata",
    "NotReadyError",
    "OverloadedError",
    "QueueFullError",
    "RegistryStateError",
    "RequestTooLargeError",
    "Retry",
    "ServableNotFoundError",
    "ServingError",
    "Signature",
    "SignatureNotFoundError",
    "State",
    "TensorSpec",
    "UnsupportedError",
    "VersionStatus",
    "__version__",
]
