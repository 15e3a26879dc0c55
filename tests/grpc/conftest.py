"""A gRPC server over fake versions, and what a client of it needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
import pytest
from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from embedserve.grpc import GrpcServer, serve
from embedserve.registry import ModelRegistry
from embedserve.tensors import proto
from embedserve.tensors.dtypes import by_numpy

UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass
class Client:
    """The official stubs on one channel to one server."""

    server: GrpcServer
    channel: Any
    registry: ModelRegistry

    def __post_init__(self) -> None:
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    async def raw(self, method: str, body: bytes = b"") -> bytes:
        """Call any unary method with bytes."""
        answer: bytes = await self.channel.unary_unary(method)(body)
        return answer


Start: TypeAlias = Callable[..., Awaitable[Client]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """`await start(registry, **options)` enters the registry, serves it on a free port and connects to it."""
    async with AsyncExitStack() as stack:

        async def run(registry: ModelRegistry, **options: Any) -> Client:
            if not registry.started:
                await stack.enter_async_context(registry)
            server = await stack.enter_async_context(serve(registry, host="127.0.0.1", **{"port": 0} | options))
            target = f"127.0.0.1:{server.port}" if server.port is not None else f"unix:{server.socket_path}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=UNLIMITED))
            return Client(server, channel, registry)

        yield run


def predict_request(name: str | None = "m", **inputs: Any) -> Any:
    """A PredictRequest whose inputs come from anything numpy reads; Python numbers are float32."""
    request = predict_pb2.PredictRequest()
    if name is not None:
        request.model_spec.name = name
    for alias, value in inputs.items():
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        proto.encode_into(request.inputs[alias], array, by_numpy(array.dtype))
    return request


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status code and message that a call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        await call
    error: Any = raised.value
    return error.code(), error.details()
