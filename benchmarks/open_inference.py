"""The Open Inference Protocol beside TensorFlow Serving's APIs: processor time of the standalone server a request.

`python -m benchmarks.open_inference` saves a model, starts a server, and asks it the same question over each protocol
in turn, for several rounds, so that all see the same machine. Times are the server's alone: a client in Python would
hide the difference. The bar: the protocol costs at most 10 % more than TensorFlow Serving's API.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.callers import HttpConnection
from benchmarks.ports import free_port

SIZES = {"tiny": 4, "600 kB": 150_000}
PAIRS = (
    ("REST, JSON", "REST, JSON (V2)"),
    ("REST, JSON", "REST, binary (V2)"),
    ("REST, raw numbers", "REST, binary (V2)"),
    ("gRPC", "gRPC, raw (V2)"),
)
BAR = 1.1
Call = Callable[[], Awaitable[None]]


def save_model(directory: Path) -> None:
    import tensorflow as tf

    class Mean(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x")])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"y": tf.reduce_mean(x, axis=1)}

    module = Mean()
    tf.saved_model.save(module, str(directory / "m" / "1"), signatures={"serving_default": module.serve})


def rest_call(port: int, path: str, body: bytes, headers: str = "") -> Call:
    connection = HttpConnection("127.0.0.1", port)

    async def call() -> None:
        status, answer = await connection.request("POST", path, body, headers)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {answer[:300]!r}")

    return call


def grpc_call(channel: Any, path: str, body: bytes) -> Call:
    method = channel.unary_unary(path)

    async def call() -> None:
        await method(body)

    return call


def calls_of(port: int, channel: Any, array: np.ndarray[Any, Any]) -> dict[str, Call]:
    from tensorflow_serving.apis import predict_pb2

    from embedserve.oip.messages import message_class

    predict, infer = "/v1/models/m:predict", "/v2/models/m/infer"
    shape, raw = list(array.shape), array.tobytes()
    tensor: dict[str, Any] = {"name": "x", "shape": shape, "datatype": "FP32"}
    document = {"inputs": [tensor | {"data": array.ravel().tolist()}]}
    described = tensor | {"parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_content = raw
    for size in shape:
        request.inputs["x"].tensor_shape.dim.add(size=size)
    message: Any = message_class("ModelInferRequest")(model_name="m", raw_input_contents=[raw])
    message.inputs.add(name="x", datatype="FP32", shape=shape)
    binary = f"Inference-Header-Content-Length: {len(head)}\r\n"
    numbers = f"Content-Type: application/octet-stream\r\nx-tensor-shape: {','.join(map(str, shape))}\r\n"
    return {
        "REST, JSON": rest_call(port, predict, json.dumps({"instances": array.tolist()}).encode()),
        "REST, raw numbers": rest_call(port, predict, raw, numbers),
        "REST, JSON (V2)": rest_call(port, infer, json.dumps(document).encode()),
        "REST, binary (V2)": rest_call(port, infer, head + raw, binary),
        "gRPC": grpc_call(channel, "/tensorflow.serving.PredictionService/Predict", request.SerializeToString()),
        "gRPC, raw (V2)": grpc_call(channel, "/inference.GRPCInferenceService/ModelInfer", message.SerializeToString()),
    }


def server_seconds(pid: int) -> float:
    """Processor time of a process so far, over all threads."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


async def measured(call: Call, pid: int, seconds: float, callers: int) -> float:
    """Microseconds of the server's processor time for each request."""
    loop = asyncio.get_running_loop()
    ends, done = loop.time() + seconds, 0

    async def ask() -> None:
        nonlocal done
        while loop.time() < ends:
            await call()
            done += 1

    began = server_seconds(pid)
    await asyncio.gather(*(ask() for _ in range(callers)))
    return (server_seconds(pid) - began) / done * 1e6


async def run(port: int, pid: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    import grpc

    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    results: dict[str, dict[str, float]] = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        for name, size in SIZES.items():
            calls = calls_of(port, channel, np.linspace(0, 1, size, dtype=np.float32)[None])
            rounds: dict[str, list[float]] = {way: [] for way in calls}
            for call in calls.values():
                await measured(call, pid, 0.3, 1)
            for _ in range(arguments.rounds):
                for way, call in calls.items():
                    rounds[way].append(await measured(call, pid, arguments.seconds, 1))
            results[name] = {way: statistics.median(found) for way, found in rounds.items()}
    return results


def markdown(results: dict[str, dict[str, float]]) -> str:
    lines = ["| way | " + " | ".join(f"{name}, µs" for name in results) + " |", "| --- |" + " --- |" * len(results)]
    for way in next(iter(results.values())):
        lines.append(f"| {way} | " + " | ".join(f"{found[way]:.0f}" for found in results.values()) + " |")
    lines += ["", "| V2 : TensorFlow Serving's API | " + " | ".join(results) + f" | bar {BAR} |"]
    lines.append("| --- |" + " --- |" * (len(results) + 1))
    for theirs, ours in PAIRS:
        ratios = [found[ours] / found[theirs] for found in results.values()]
        told = "met" if max(ratios) <= BAR else "missed"
        lines.append(f"| {ours} : {theirs} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + f" | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        save_model(Path(directory))
        port, rest = free_port(), free_port()
        command = [
            sys.executable,
            "-m",
            "embedserve",
            directory,
            f"--port={port}",
            f"--rest_api_port={rest}",
            "--workers=0",
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if "Entering the event loop" in line:
                    break
            else:
                raise RuntimeError("the server did not start")
            print(markdown(asyncio.run(run(port, server.pid, arguments))))
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
