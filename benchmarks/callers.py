"""Callers for the benchmarks: the same question put in process, over REST and over gRPC, as cheaply as each allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Ask: TypeAlias = Callable[[], Awaitable[dict[str, Array]]]
"""Puts one question and returns its outputs; raises when it was not answered."""


class HttpConnection:
    """One keep-alive HTTP/1.1 connection; knows just enough of the protocol to measure a server and not itself."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=2**24)
        reader, writer = self._streams
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            start = head.index(b"content-length:") + len(b"content-length:")
            answer = await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
        except BaseException:
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ", 2)[1]), answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def rest_caller(port: int, model: str, inputs: dict[str, Array]) -> Ask:
    connection = HttpConnection("127.0.0.1", port)
    (name, array), *others = inputs.items()
    assert not others
    body = json.dumps({"inputs": {name: array.tolist()}}, separators=(",", ":")).encode()

    async def ask() -> dict[str, Array]:
        status, answer = await connection.request("POST", f"/v1/models/{model}:predict", body)
        if status != 200:
            raise RuntimeError(f"{status} {answer[:200]!r}")
        outputs = json.loads(answer)["outputs"]
        named = outputs if isinstance(outputs, dict) else {"": outputs}
        return {key: np.asarray(value, np.float32) for key, value in named.items()}

    return ask


def grpc_caller(channel: Any, model: str, inputs: dict[str, Array]) -> Ask:
    """`channel` is a `grpc.aio` channel."""
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, array in inputs.items():
        tensor = request.inputs[name]
        tensor.dtype = 1  # DT_FLOAT
        tensor.tensor_content = array.astype(np.float32).tobytes()
        for size in array.shape:
            tensor.tensor_shape.dim.add(size=size)
    predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict

    async def ask() -> dict[str, Array]:
        response = await predict(request)
        return {
            name: np.array(tensor.float_val, np.float32).reshape([dim.size for dim in tensor.tensor_shape.dim])
            for name, tensor in response.outputs.items()
        }

    return ask
