"""How much does the server's process grow by one small request? The largest growth, by transport and size.

python -m benchmarks.request_memory

Every request is one that tries: a declared tensor, a flood of fields, a context before each example, nested lists,
gzip. A server of its own answers all of them, one after the other, over REST, gRPC (grpcio) and gRPC-Web (ASGI). The
growth is the peak of the resident memory during the request less that before it.
"""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.serving import Server, server_process

PREDICT = "/v1/models/dense:predict"
METHOD = "/tensorflow.serving.PredictionService/"


class Attempt(NamedTuple):
    """A request that tries to become large.

    Attributes:
        name: What it tries.
        rpc: The method's name; empty for REST.
        body: As it is, before it is compressed.
    """

    name: str
    rpc: str
    body: bytes


def documents(zipped: bool) -> Iterator[Attempt]:
    """JSON that fits 1 kB, or 100 kB of gzip."""
    size = 60_000_000 if zipped else 900
    for name, unit in (
        ("lists inside lists", b"["),
        ("objects inside objects", b'{"a":'),
        ("empty lists", b"[],"),
        ("nested lists", b"[[[[[[[[]]]]]]]],"),
        ("empty objects", b"{},"),
        ("numbers", b"0,"),
        ("strings", b'"ab",'),
    ):
        yield Attempt(name, "", b'{"instances": [' + unit * (size // len(unit)))


def messages(zipped: bool) -> Iterator[Attempt]:
    """Protobuf messages that fit 1 kB, or 100 kB of gzip."""
    from tensorflow.core.example.example_pb2 import Example
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    from embedserve.tensors.wire_format import delimited

    size = 60_000_000 if zipped else 900
    spec = delimited(1, delimited(1, b"dense"))
    for rows in (1 << 16, 1 << 20, 1 << 30, 1 << 40):
        request = predict_pb2.PredictRequest.FromString(spec)
        request.inputs["x"].dtype = 1
        request.inputs["x"].float_val.append(1)
        for dimension in (rows, 784):
            request.inputs["x"].tensor_shape.dim.add(size=dimension)
        yield Attempt(f"one value for {rows} rows", "Predict", request.SerializeToString())
    for name, unit in (("inputs", b"\x12\x00"), ("filters", b"\x1a\x00")):
        yield Attempt(name, "Predict", spec + unit * (size // 2))
    for name, unit in (("strings", b"\x42\x00"), ("handles", b"\x72\x00")):
        tensor = delimited(2, delimited(1, b"x") + delimited(2, unit * (size // 2)))
        yield Attempt(name, "Predict", spec + tensor)
    classify = classification_pb2.ClassificationRequest.FromString(spec)
    chosen = classify.input.example_list_with_context
    example = Example()
    example.features.feature["a"].bytes_list.value.append(b"a" * (size // 2))
    chosen.context.CopyFrom(example)
    body = classify.SerializeToString()
    examples = delimited(2, delimited(2, b"\x0a\x00" * (size // 4)))
    yield Attempt("a context before each example", "Classify", body + examples)


def peak(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


async def growth(pid: int, call: Awaitable[str]) -> tuple[int, str]:
    """Bytes by which the process grew during a call, and how the call ended."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # The peak counts from now on.
    before = peak(pid, "VmRSS")
    answer = await call
    return peak(pid, "VmHWM") - before, answer


class Callers:
    """The three transports of one server."""

    def __init__(self, server: Server) -> None:
        import grpc.aio
        import httpx

        self._http = httpx.AsyncClient(base_url=server.rest, timeout=120)
        self._channel = grpc.aio.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)])

    async def rest(self, attempt: Attempt, zipped: bool) -> str:
        body = gzip.compress(attempt.body) if zipped else attempt.body
        answer = await self._http.post(PREDICT, content=body, headers={"content-encoding": "gzip"} if zipped else {})
        return str(answer.status_code)

    async def grpcio(self, attempt: Attempt, zipped: bool) -> str:
        import grpc

        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(METHOD + attempt.rpc)
        try:
            await call(attempt.body, compression=grpc.Compression.Gzip if zipped else None)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def web(self, attempt: Attempt, zipped: bool) -> str:
        from embedserve.errors import Code

        body = gzip.compress(attempt.body) if zipped else attempt.body
        frame = bytes([zipped]) + len(body).to_bytes(4, "big") + body
        headers = {"content-type": "application/grpc-web"} | ({"grpc-encoding": "gzip"} if zipped else {})
        answer = await self._http.post(METHOD + attempt.rpc, content=frame, headers=headers)
        return Code(int(answer.content.rpartition(b"grpc-status: ")[2].split(b"\r")[0])).name

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._channel.close()


async def run() -> bool:
    """Print the growth of each attempt, and the largest by transport; False if the process ended."""
    from benchmarks.models import Mlp, save

    with tempfile.TemporaryDirectory() as directory:
        save(Mlp(), Path(directory) / "dense" / "1")
        model: dict[str, object] = {"name": "dense", "base_path": f"{directory}/dense"}
        async with server_process([model], web=True) as server:
            callers = Callers(server)
            largest: dict[tuple[str, bool], int] = {}
            for zipped in (False, True):
                for transport, call, attempts in (
                    ("REST", callers.rest, documents),
                    ("gRPC", callers.grpcio, messages),
                    ("gRPC-Web", callers.web, messages),
                ):
                    for attempt in attempts(zipped):
                        grown, answer = await growth(server.process.pid, call(attempt, zipped))
                        key = transport, zipped
                        largest[key] = max(largest.get(key, 0), grown)
                        size = "gzip " if zipped else "plain"
                        print(f"  {transport:9} {size} {attempt.name:32} {grown / 1e6:8.1f} MB  {answer}", flush=True)
            await callers.aclose()
            for (transport, zipped), grown in largest.items():
                print(f"{transport}, under {'100 kB of gzip' if zipped else '1 kB'}: at most {grown / 1e6:.1f} MB")
            alive = server.process.poll() is None
    return alive


if __name__ == "__main__":
    raise SystemExit(not asyncio.run(run()))
