"""`grpc.health.v1.Health` from the registry's readiness: per server, per service and per model.

A model's name is a service name here. TF Serving's short names are known beside the qualified names. Unlike TF
Serving's, the answers follow the loaded versions, and turn to NOT_SERVING when draining begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2

from embedserve.errors import ServableNotFoundError
from embedserve.grpc.calls import Context, Methods, one_of, paths, streaming, unary

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["SERVICE", "Health"]

SERVICE = "grpc.health.v1.Health"

# Names for the server as a whole.
OVERALL = frozenset(
    {
        "",
        "ModelService",
        "PredictionService",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    }
)

LOOK_INTERVAL = 0.2
"""Seconds between two checks of a watch. An observer would hear of a change at once, but would cost every request."""

_Status = health_pb2.HealthCheckResponse


class Health:
    """Answers Check and Watch for a server; `close` ends the watches, because a watch would outlive any grace."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._closing = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Health {_Status.ServingStatus.Name(self.status(''))}{' (closed)' if self._closing.is_set() else ''}>"

    def methods(self) -> Methods:
        """The service's methods."""
        return paths(
            SERVICE,
            {
                "Check": unary(self._registry, health_pb2.HealthCheckRequest, self._check),
                "Watch": streaming(self._watch),
            },
        )

    def status(self, service: str) -> int:
        """The serving status of the server (`""`), a service or a model."""
        readiness = self._registry.readiness()
        if service in OVERALL:
            ready = self._registry.unready() is None
        elif service in readiness:
            ready = readiness[service] is None
        else:
            return int(_Status.SERVICE_UNKNOWN)
        if self._closing.is_set() or self._registry.draining:
            ready = False
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)

    def close(self) -> None:
        """Turn to NOT_SERVING for good, and end each watch after its last message."""
        self._closing.set()

    async def _check(self, request: health_pb2.HealthCheckRequest, context: Context, large: bool) -> bytes:
        status = self.status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise ServableNotFoundError(f"unknown service: {request.service}")
        data: bytes = _Status(status=status).SerializeToString()
        return data

    async def _watch(self, requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes, None]:
        request = await one_of(requests, health_pb2.HealthCheckRequest)
        said: int | None = None
        while True:
            # A draining registry ends the watch too: an ASGI host sends its applications no word before they are idle.
            # `closing` is read before the status: a server that closes during the message still sends a last status.
            closing = self._closing.is_set() or self._registry.draining
            status = self.status(request.service)
            if status != said:
                said = status
                yield _Status(status=status).SerializeToString()
            if closing:
                return
            try:
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._closing.wait()
            except TimeoutError:
                continue
