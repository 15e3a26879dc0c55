"""embedserve-client beside the official stubs of tensorflow-serving-api, in one run.

python -m benchmarks.client [--calls N] [--imports N]

Start: wall seconds, processor seconds and memory of an import in a process of its own; the least of several counts.
Calls: processor time of the client's process for a call over gRPC to a server in another process, in turns; the least
of several rounds counts. The official client makes its request by `tf.make_tensor_proto` and reads the answer by
`tf.make_ndarray`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.ports import free_port
from embedserve.servable import Array

ROUNDS = 7
IMPORTS = {
    "nothing": "pass",
    "numpy": "import numpy",
    "embedserve_client, a client made": "import embedserve_client; embedserve_client.Client('grpc://localhost:1')",
    "embedserve_client, REST": "import embedserve_client; embedserve_client.Client('http://localhost:1')",
    "embedserve_client.apis and grpcio": "import grpc, embedserve_client.apis",
    "official stubs with make_tensor_proto": (
        "import grpc, tensorflow; from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc"
    ),
}
MEASURED = """
import time
began = time.perf_counter(), time.process_time()
{code}
took = time.perf_counter() - began[0], time.process_time() - began[1]
resident = int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
print(*took, resident)
"""


def start(code: str, times: int) -> tuple[float, ...]:
    """The least wall and processor seconds of a piece of code in a process of its own, and the process's megabytes."""
    found = []
    for _ in range(times):
        # Without embedserve beside it, as in a process that only asks.
        hide = "import sys; sys.modules['embedserve'] = None" if "embedserve_client" in code else ""
        command = [sys.executable, "-c", f"{hide}\n{MEASURED.format(code=code)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(tuple(map(float, done.stdout.split())))
    return tuple(map(min, zip(*found, strict=True)))


def starts(times: int) -> None:
    rows = {name: start(code, times) for name, code in IMPORTS.items()}
    bare, with_numpy = rows["nothing"], rows["numpy"]
    print(f"{'import':<40} {'s':>6} {'over numpy':>11} {'cpu s':>6} {'over numpy':>11} {'MB':>5} {'over nothing':>13}")
    for name, (wall, processor, size) in rows.items():
        print(
            f"{name:<40} {wall:>6.2f} {wall - with_numpy[0]:>11.2f} {processor:>6.2f} "
            f"{processor - with_numpy[1]:>11.2f} {size:>5.0f} {size - bare[2]:>13.0f}"
        )


async def serve(port: int) -> None:
    from embedserve.grpc import serve as serve_grpc
    from embedserve.testing import FakeLoader, FakeRegistry, fake_signature

    def echo(dtype: str) -> FakeLoader:
        signature = fake_signature(inputs={"x": (dtype, None)}, outputs={"y": (dtype, None)})
        return FakeLoader(lambda version, inputs: {"y": inputs["x"]}, signatures=[signature])

    registry = FakeRegistry({"float": {1: echo("float")}, "string": {1: echo("string")}})
    async with registry, serve_grpc(registry, host="127.0.0.1", port=port):
        print("serving", flush=True)
        await asyncio.to_thread(sys.stdin.read)  # Until the client's process closes the pipe.


@contextlib.contextmanager
def server() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.client", "--serve", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "serving\n"
            yield port
        finally:
            process.stdin.close()


def processor_time(call: Callable[[], object], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - began) / count


def calls(port: int, count: int) -> None:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from embedserve_client import Client

    random = np.random.default_rng(1)
    texts = np.array([f"a text of some length, number {each}".encode() for each in range(1000)], object)
    payloads = {
        "tiny, 4 floats": ("float", random.random((1, 4), np.float32), count),
        "600 kB of floats": ("float", random.random((1, 150_528), np.float32), count // 10),
        "1,000 strings": ("string", texts, count // 10),
    }
    unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}", options=unlimited) as channel,
        Client(f"grpc://127.0.0.1:{port}") as client,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        print(f"\n{'processor time of a call, us':<40} {'official':>9} {'client':>9} {'client/official':>16}")
        for name, (model, array, number) in payloads.items():

            def official(model: str = model, array: Array = array) -> object:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model
                request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
                answer = stub.Predict(request, timeout=60)
                return {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}

            def ours(model: str = model, array: Array = array) -> object:
                return client.predict(model, {"x": array}, timeout=60)

            theirs, own = [], []
            for _ in range(ROUNDS):
                theirs.append(processor_time(official, number))
                own.append(processor_time(ours, number))
            slow, fast = min(theirs) * 1e6, min(own) * 1e6
            print(f"{name:<40} {slow:>9.0f} {fast:>9.0f} {fast / slow:>16.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("--calls", type=int, default=500, help="calls of a round with the smallest request")
    parser.add_argument("--imports", type=int, default=5, help="processes that import each package")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve))
        return
    starts(max(arguments.imports, 1))
    with server() as port:
        calls(port, max(arguments.calls, 10))


if __name__ == "__main__":
    main()
