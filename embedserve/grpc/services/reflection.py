"""Server reflection (`grpc.reflection.v1alpha`) over the default descriptor pool, for grpcurl and similar clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from embedserve.grpc.calls import Context, Methods, parse, paths, streaming

__all__ = ["SERVICE", "methods"]

SERVICE = reflection.SERVICE_NAME


def methods(names: Sequence[str]) -> Methods:
    """The service's method; the reflection describes the services called `names`, and itself."""
    servicer = reflection.aio.ReflectionServicer((*names, SERVICE))

    async def info(requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes, None]:
        parsed = (parse(reflection_pb2.ServerReflectionRequest, body) async for body in requests)
        response: Any
        async for response in servicer.ServerReflectionInfo(parsed, context):
            yield response.SerializeToString()

    return paths(SERVICE, {"ServerReflectionInfo": streaming(info)})
