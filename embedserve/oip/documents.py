"""What the Open Inference Protocol tells of the server and its models, as plain documents for JSON and for messages.

The registry's public API has all of it. The module knows no route and no RPC.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from embedserve.asgi.hosting import NOT_ENTERED
from embedserve.errors import NotReadyError, ServableNotFoundError
from embedserve.oip.datatypes import DATATYPES, datatype_of
from embedserve.servable import State

if TYPE_CHECKING:
    from embedserve.handle import ModelHandle
    from embedserve.oip.statistics import InferenceStatistics
    from embedserve.registry import ModelRegistry
    from embedserve.signature import Signature, TensorSpec

__all__ = [
    "EXTENSIONS",
    "acquire",
    "check_model_ready",
    "check_server_ready",
    "index_entries",
    "model_config",
    "model_metadata",
    "model_statistics",
    "server_metadata",
]

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""Triton's names of the supported extensions."""

PLATFORM = "tensorflow_savedmodel"

# States of a version by Triton's names; each further state is UNAVAILABLE.
_STATES = {State.AVAILABLE: "READY", State.LOADING: "LOADING", State.UNLOADING: "UNLOADING"}
_DATA_TYPES = {"BYTES": "TYPE_STRING"}


def server_metadata() -> dict[str, Any]:
    """The server's name and extensions. The version is the protocol's: strangers would look up the server's faults."""
    return {"name": "embedserve", "version": "2", "extensions": list(EXTENSIONS)}


def acquire(registry: ModelRegistry, name: str, version: str) -> ModelHandle:
    """A handle on a version by the protocol's text: empty for the latest, digits for a number, else a label.

    Raises:
        ServingError: As `ModelRegistry.acquire_now`.
    """
    if not version:
        return registry.acquire_now(name)
    number = _number(version)
    return registry.acquire_now(name, label=version) if number is None else registry.acquire_now(name, version=number)


def _number(version: str) -> int | None:
    return int(version) if version.isascii() and version.isdigit() and len(version) < 20 else None


def check_server_ready(registry: ModelRegistry) -> None:
    """Whether the process answers, as `/-/ready` has it.

    Raises:
        NotReadyError: With the reason.
    """
    reason = NOT_ENTERED if registry.loop is None else registry.unready()
    if reason is not None:
        raise NotReadyError(reason)


def check_model_ready(registry: ModelRegistry, name: str, version: str) -> None:
    """Whether a version answers now.

    Raises:
        NotReadyError: The model is known, and does not answer.
        ServingError: The model is unknown; as `acquire`.
    """
    if registry.loop is None or registry.draining:
        check_server_ready(registry)
    reasons = registry.readiness()
    try:
        acquire(registry, name, version).release()
    except ServableNotFoundError as error:
        if name not in reasons:
            raise
        raise NotReadyError(reasons[name] or error.message) from None
    reason = reasons.get(name)
    if reason is not None:
        raise NotReadyError(reason)


def model_metadata(registry: ModelRegistry, handle: ModelHandle, signature: Signature) -> dict[str, Any]:
    """The tensors of a signature, and the versions that answer."""
    statuses = registry.status(handle.name).get(handle.name, ())
    versions = [str(status.version) for status in statuses if status.state is State.AVAILABLE]
    return {
        "name": handle.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in signature.inputs.values()],
        "outputs": [_tensor(spec) for spec in signature.outputs.values()],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": _sizes(spec)}


def _sizes(spec: TensorSpec) -> list[int]:
    """Sizes, -1 where unknown; of a tensor of unknown rank a single -1."""
    return [-1] if spec.shape is None else [-1 if size is None else size for size in spec.shape]


def model_config(handle: ModelHandle, signature: Signature) -> dict[str, Any]:
    """The parts of Triton's `ModelConfig` that have a meaning here.

    `max_batch_size` is the largest batch in rows, and 0 where requests are not batched. With batching the tensors are
    described without dimension 0.
    """
    rows = handle.max_batch_rows(signature)
    document: dict[str, Any] = {
        "name": handle.name,
        "platform": PLATFORM,
        "backend": "tensorflow",
        "max_batch_size": rows,
        "input": [_configured(spec, rows, name in signature.defaults) for name, spec in signature.inputs.items()],
        "output": [_configured(spec, rows, False) for spec in signature.outputs.values()],
    }
    if rows:
        document["dynamic_batching"] = {}
    return document


def _configured(spec: TensorSpec, rows: int, optional: bool) -> dict[str, Any]:
    datatype = datatype_of(spec.dtype)
    data_type = _DATA_TYPES.get(datatype) or (f"TYPE_{datatype}" if datatype in DATATYPES else "TYPE_INVALID")
    dims = _sizes(spec)[1:] if rows and spec.shape is not None else _sizes(spec)
    tensor: dict[str, Any] = {"name": spec.name, "data_type": data_type, "dims": dims}
    return tensor | {"optional": True} if optional else tensor


def index_entries(registry: ModelRegistry, ready: bool = False) -> list[dict[str, str]]:
    """The models with their versions, states and reasons; with `ready` only what answers."""
    reasons = registry.readiness()
    known = registry.status()
    entries = []
    for name in sorted(reasons.keys() | known.keys()):
        of_model = [
            {
                "name": name,
                "version": str(status.version),
                "state": _STATES.get(status.state, "UNAVAILABLE"),
                "reason": status.error_message or ("unloaded" if status.state is State.END else ""),
            }
            for status in known.get(name, ())
        ]
        entries += of_model or [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": reasons.get(name) or "not loaded"}
        ]
    return [entry for entry in entries if entry["state"] == "READY"] if ready else entries


def model_statistics(
    registry: ModelRegistry, statistics: InferenceStatistics, name: str = "", version: str = ""
) -> dict[str, Any]:
    """The counts of the versions that answer: of all models, of a model, or of a version.

    Raises:
        ServingError: The named model or version is not available.
    """
    served = registry.statistics().queues
    keys: Iterable[tuple[str, int]] = sorted(served)
    if name:
        with acquire(registry, name, version) as handle:
            chosen = handle.version if version else None
        keys = [key for key in keys if key[0] == name and chosen in (None, key[1])]
    return {"model_stats": [_counts(key, served[key], statistics) for key in keys]}


def _counts(key: tuple[str, int], queue: Any, statistics: InferenceStatistics) -> dict[str, Any]:
    found = statistics.of(*key)
    runs: int = queue.runs
    return {
        "name": key[0],
        "version": str(key[1]),
        "last_inference": found.last_inference,
        "inference_count": max(queue.rows, queue.requests),
        "execution_count": runs,
        "inference_stats": found.durations(),
        "batch_stats": [],
        "memory_usage": [],
        "response_stats": {},
    }
