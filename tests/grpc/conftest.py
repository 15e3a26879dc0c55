"""A gRPC server over fake versions, and what a client of it needs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
import hypercorn.asyncio
import hypercorn.config
import numpy as np
import pytest
from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from embedserve.grpc import GrpcApp, GrpcServer, serve
from embedserve.registry import ModelRegistry
from embedserve.tensors import proto
from embedserve.tensors.dtypes import by_numpy
from embedserve.testing import FakeLoader, FakeRegistry, Gate

UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class AsgiServer:
    """The ASGI application on hypercorn, in the test's own loop; has what tests ask of a `GrpcServer`."""

    socket_path = None

    def __init__(self, app: GrpcApp) -> None:
        self.app = app
        self._stop = asyncio.Event()

    async def start(self) -> None:
        config = hypercorn.config.Config()
        config.accesslog = config.errorlog = None
        config.graceful_timeout = 3  # It waits as long for the connection of a client that has cancelled a stream.
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config.bind = [f"fd://{listener.detach()}"]
        config.h2_max_inbound_frame_size = 1 << 20
        app: Any = self.app
        self._task = asyncio.create_task(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=self._stop.wait, mode="asgi")
        )

    async def aclose(self, grace: float | None = None) -> None:
        self._stop.set()
        await self._task


@dataclass
class Client:
    """The official stubs on one channel to one server."""

    server: GrpcServer | AsgiServer
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


TRANSPORTS = ("embedserve", "asgi", "grpcio")


@pytest.fixture(params=TRANSPORTS[:2])
def transport(request: pytest.FixtureRequest) -> str:
    """What serves: every test of the services runs on each.

    A module about one of them, or about what grpcio's fallback does by itself, overrides this.
    """
    return str(request.param)


@pytest.fixture
async def start(transport: str) -> AsyncIterator[Start]:
    """`await start(registry, **options)` enters the registry, serves it on a free port and connects to it."""
    async with AsyncExitStack() as stack:

        async def run(registry: ModelRegistry, **options: Any) -> Client:
            if registry.loop is None:
                await stack.enter_async_context(registry)
            server: GrpcServer | AsgiServer
            if transport != "asgi":
                chosen: Any = transport
                serving = serve(registry, transport=chosen, host="127.0.0.1", **{"port": 0} | options)
                server = await stack.enter_async_context(serving)
            else:
                server = AsgiServer(GrpcApp(registry, **options))
                await server.start()
                stack.push_async_callback(server.aclose)
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


def registry(**options: Any) -> FakeRegistry:
    return FakeRegistry({"m": {1: FakeLoader()}}, **options)


def gated(**options: Any) -> tuple[FakeRegistry, FakeLoader, Gate]:
    """A model whose runs wait for the gate. Without batching, so that each request is a run of its own."""
    gate = Gate(opened=True)
    loader = FakeLoader(gate=gate)
    return FakeRegistry({"m": {1: loader}}, batching=False, **options), loader, gate


async def until_running(gate: Gate) -> None:
    while not gate.waiting:
        await asyncio.sleep(0.001)


async def until_given_back(registry: ModelRegistry) -> None:
    """Return when no call holds bytes any more: a client may have its answer before the server knows that."""
    while registry.inflight.reserved:
        await asyncio.sleep(0.001)


async def until_idle(gate: Gate) -> None:
    while gate.waiting:
        await asyncio.sleep(0.001)


async def answers(client: Client) -> bool:
    response = await client.prediction.Predict(predict_request(x=[1]))
    return list(response.outputs["y"].float_val) == [11]
