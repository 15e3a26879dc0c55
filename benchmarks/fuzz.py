"""Bad requests, by the thousand: whatever a client sends, the server answers, says whose fault it is, and lives.

python -m benchmarks.fuzz [--requests 10000] [--seed 1]
python -m benchmarks.fuzz --kernels [--ops IRFFT,adjust_hue] [--cases 20] [--seconds 240] [--seed 1]
                                    [--behind-server]

Half goes over REST and half over gRPC, to a Conv2D model, a text CNN and a Conv2D that declares no rank. Each request
starts out right and has one to three things broken: names, dtypes, shapes, values, JSON, bytes. Bars: the process
alive; no answer but success, 4xx, and the gRPC codes that blame the request.

With `--kernels`, values that no signature keeps out go to each kernel of TensorFlow that a request can reach, in
processes of their own; see `benchmarks/kernels`.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.callers import HttpConnection
from benchmarks.serving import Server, server_process

MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "conv2d": ("image", (1, 8, 8, 3)),
    "textcnn": ("tokens", (1, 12)),
    "unknown_rank": ("image", (1, 8, 8, 3)),
}
CLIENT_CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
}
CONCURRENCY = 16


def save_models(directory: Path) -> list[dict[str, object]]:
    from benchmarks.models import Conv2D, TextCNN, save

    save(Conv2D(), directory / "conv2d" / "1")
    save(TextCNN(), directory / "textcnn" / "1")
    save(Conv2D(rank_known=False), directory / "unknown_rank" / "1")
    configs: list[dict[str, object]] = [{"name": name, "base_path": str(directory / name)} for name in MODELS]
    configs[-1]["input_ranks"] = {"image": 4}
    return configs


def broken_shape(shape: tuple[int, ...], r: random.Random) -> tuple[int, ...]:
    """Other rows, another size, another rank, no size at all."""
    sizes = list(shape)
    for _ in range(r.randint(1, 2)):
        match r.randrange(8):
            case 0 if sizes:
                sizes[r.randrange(len(sizes))] = r.choice([0, 1, 2, 3, 7, 9])
            case 1 | 2 if sizes:
                sizes[0] = r.choice([0, 2, 3, 5])
            case 3 if len(sizes) > 1:
                sizes[1] = r.choice([0, 1, 2, 30])
            case 4 if sizes:
                del sizes[r.randrange(len(sizes))]
            case 5:
                sizes.insert(r.randint(0, len(sizes)), r.choice([0, 1, 2]))
            case 6:
                sizes = [r.choice([0, 1, 2, 3]) for _ in range(r.randrange(7))]
            case _:
                sizes = sizes[::-1]
    return tuple(sizes)


def nested(shape: tuple[int, ...], leaf: Callable[[], object]) -> object:
    return [nested(shape[1:], leaf) for _ in range(shape[0])] if shape else leaf()


ODD_VALUES: tuple[object, ...] = (
    *(None, True, "", "text", -1, 2**31, 2**63, 2**64, 1e38, 1e308, float("nan"), float("inf"), 0.5, {}, [], [[]]),
    *({"b64": "aGVsbG8="}, {"b64": "?"}, {"b64": 5}, {"a": {"b": [1]}}, "\x00", "\ud83d\ude00", [None]),
)


def odd_value(r: random.Random) -> object:
    return copy.deepcopy(r.choice(ODD_VALUES))


def break_json(document: dict[str, Any], r: random.Random) -> None:
    """Change one thing about a request document, in place."""
    key = r.choice(list(document)) if document else "instances"
    match r.randrange(8):
        case 0:
            document[r.choice(["instances", "inputs", "signature_name", "examples", ""])] = odd_value(r)
        case 1:
            document.pop(key, None)
        case 2 if isinstance(document.get(key), list) and document[key]:
            document[key][r.randrange(len(document[key]))] = odd_value(r)
        case 3 if isinstance(document.get(key), list):
            document[key].append(nested(tuple(r.choice([0, 1, 2, 3]) for _ in range(r.randrange(5))), lambda: 1))
        case 4:
            document["signature_name"] = r.choice(["", "other", "serving_default", "__saved_model_init_op", None, 3])
        case 5:
            document["inputs" if "instances" in document else "instances"] = document.pop(key, 1)
        case 6:
            document[key] = {r.choice(["image", "tokens", "x", ""]): document.get(key)}
        case _:
            document[key] = [{r.choice(["image", "tokens", "x"]): value} for value in ([1], [[1.5]], odd_value(r))]


def broken_bytes(body: bytes, r: random.Random) -> bytes:
    """Cut, repeat, overwrite or replace some of the bytes."""
    start, size = r.randrange(len(body) + 1), r.choice([1, 1, 2, 5, 40])
    match r.randrange(6):
        case 0:
            return body[:start]
        case 1:
            return body[:start] + body[start + size :]
        case 2:
            return body[:start] + r.randbytes(size) + body[start + size :]
        case 3:
            return (
                body[:start]
                + r.choice([b"NaN", b"[", b"]", b"{", b"}", b",", b'"', b"1e999", b"-", b"\\u"])
                + body[start:]
            )
        case 4:
            return body + r.choice([b"x", b"\0", b"{}", body])
        case _:
            return r.randbytes(r.randrange(60))


def rest_request(r: random.Random) -> tuple[str, str, bytes, str]:
    """Method, path, body and extra headers."""
    model = r.choice(list(MODELS))
    name, shape = MODELS[model]
    if r.random() < 0.5:
        shape = broken_shape(shape, r)
    odd = r.choice([0.0, 0.0, 0.0, 0.01, 0.3])
    value = nested(shape, lambda: odd_value(r) if r.random() < odd else r.randrange(-3, 120))
    document: dict[str, Any] = r.choice([{"instances": value}, {"inputs": value}, {"inputs": {name: value}}])
    for _ in range(r.choice([0, 0, 0, 0, 1, 2])):
        break_json(document, r)
    body = json.dumps(document).encode()
    for _ in range(r.choice([0] * 8 + [1, 2])):
        body = broken_bytes(body, r)
    odd_places = ["/versions/9", "/versions/x", "/labels/l", "/versions/" + "9" * 30]
    where = r.choice([""] * 30 + ["/versions/1"] * 6 + odd_places)
    verb = r.choice([":predict"] * 40 + [":classify", ":regress", ":other", "", "/metadata"])
    path = f"/v1/models/{r.choice([model] * 60 + ['none', '%20', '%ff', ''])}{where}{verb}"
    headers = r.choice([""] * 60 + ["Content-Encoding: gzip\r\n", "Content-Encoding: br\r\n", "Content-Type: x/y\r\n"])
    return r.choice(["POST"] * 60 + ["GET", "PUT", "OPTIONS", "DELETE"]), path, body, headers


def fill_tensor(tensor: Any, shape: tuple[int, ...], text: bool, r: random.Random) -> None:
    """Fill a TensorProto, rightly or with the wrong type, the wrong number of values, or an impossible shape."""
    count = 1
    for size in shape:
        count *= size
    tensor.dtype = (3 if text else 1) if r.random() < 0.9 else r.randrange(0, 130)
    if r.random() < 0.15:
        count = max(0, count + r.choice([-count, -1, 1, 5]))
    match r.randrange(12):
        case 0 | 1 | 2 | 3 | 4:
            tensor.tensor_content = r.randbytes(4 * count + r.choice([0] * 12 + [1, 4]))
        case 5 | 6 | 7 | 8 | 9 | 10:
            values = [r.randrange(-3, 200) for _ in range(count)]
            tensor.int_val.extend(values) if text else tensor.float_val.extend(values)
        case _:
            field = r.choice(
                ["half_val", "double_val", "int64_val", "bool_val", "uint32_val", "uint64_val", "string_val"]
            )
            values = [r.randrange(2) for _ in range(min(count, 9))]
            getattr(tensor, field).extend([b"%d" % value for value in values] if field == "string_val" else values)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    match r.randrange(30):
        case 0:
            tensor.tensor_shape.unknown_rank = True
        case 1:
            tensor.tensor_shape.dim.add(size=r.choice([-1, -(2**63), 2**63 - 1, 2**40, 2**31]))
        case 2:
            for _ in range(r.choice([3, 50, 260])):
                tensor.tensor_shape.dim.add(size=1)


def grpc_request(r: random.Random) -> tuple[str, bytes]:
    """Method and serialized request."""
    from tensorflow_serving.apis import predict_pb2

    model = r.choice(list(MODELS))
    name, shape = MODELS[model]
    request = predict_pb2.PredictRequest()
    request.model_spec.name = r.choice([model] * 60 + ["", "none"])
    if r.random() < 0.1:
        request.model_spec.version.value = r.choice([1, 1, 0, -1, 7, 2**62])
    elif r.random() < 0.05:
        request.model_spec.version_label = r.choice(["", "stable"])
    request.model_spec.signature_name = r.choice([""] * 30 + ["serving_default", "other", "__saved_model_init_op"])
    for key in r.choice([[name]] * 24 + [[], ["x"], [name, "x"], [""]]):
        given = broken_shape(shape, r) if r.random() < 0.5 else shape
        fill_tensor(request.inputs[key], given, model == "textcnn", r)
    request.output_filter.extend(r.choice([[]] * 24 + [["y"], ["y", "y"], ["none"], [""]]))
    body = request.SerializeToString()
    if r.random() < 0.1:
        body = broken_bytes(body, r)
    service = "/tensorflow.serving.PredictionService/"
    return service + r.choice(["Predict"] * 40 + ["Classify", "Regress", "MultiInference", "GetModelMetadata"]), body


class Fuzz:
    """Sends requests, counts answers and keeps one example of each that should not have been."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.answers: Counter[str] = Counter()
        self.bad: dict[str, str] = {}
        self.slowest = 0.0

    def count(self, answer: str, good: bool, request: object, detail: object, start: float) -> None:
        self.answers[answer] += 1
        self.slowest = max(self.slowest, time.perf_counter() - start)
        if not good:
            self.bad.setdefault(answer, f"{str(detail)[:300]}\n      {str(request)[:400]}")

    async def rest(self, requests: int) -> None:
        connection = HttpConnection("127.0.0.1", self.server.rest_port)
        for _ in range(requests):
            method, path, body, headers = request = rest_request(self.random)
            start = time.perf_counter()
            try:
                async with asyncio.timeout(30):
                    status, answer = await connection.request(method, path, body, headers)
            except Exception as error:
                self.count(f"REST {type(error).__name__}", False, request, error, start)
                if self.server.process.poll() is not None:
                    return
            else:
                good = 200 <= status < 500 or status == 501
                self.count(f"REST {status}", good, request, answer, start)
        connection.close()

    async def grpc(self, requests: int) -> None:
        import grpc

        async with grpc.aio.insecure_channel(self.server.grpc) as channel:
            for _ in range(requests):
                method, body = request = grpc_request(self.random)
                start = time.perf_counter()
                try:
                    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
                    await call(body, timeout=30)
                except grpc.aio.AioRpcError as error:
                    code, detail = error.code().name, error.details()
                else:
                    code, detail = "OK", ""
                self.count(f"gRPC {code}", code in CLIENT_CODES, request, detail, start)
                if code == "UNAVAILABLE" and self.server.process.poll() is not None:
                    return


async def run(requests: int, seed: int) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        configs = await asyncio.to_thread(save_models, Path(directory))
        async with server_process(configs) as server:
            fuzz = Fuzz(server, seed)
            each = -(-requests // (2 * CONCURRENCY))
            start = time.perf_counter()
            await asyncio.gather(*(send(each) for send in (fuzz.rest, fuzz.grpc) for _ in range(CONCURRENCY)))
            seconds = time.perf_counter() - start
            alive = server.process.poll() is None
    total = sum(fuzz.answers.values())
    print(f"{total:,} requests in {seconds:.0f} s (seed {seed}), slowest {fuzz.slowest:.2f} s, ", end="")
    print("process alive" if alive else f"PROCESS ENDED with {server.process.returncode}")
    for answer, count in sorted(fuzz.answers.items()):
        print(f"  {answer:28} {count:7,}" + ("   <- not to be" if answer in fuzz.bad else ""))
    for answer, example in fuzz.bad.items():
        print(f"  {answer}: {example}")
    return alive and not fuzz.bad


def run_kernels(arguments: argparse.Namespace) -> bool:
    """Hostile values for kernels, and then for a server; False where it has not recovered."""
    from benchmarks.kernels.fuzz import fuzz

    names = [name for name in arguments.ops.split(",") if name]
    found = fuzz(names, arguments.cases, arguments.seed, arguments.seconds)
    print(found.report(), flush=True)
    if not arguments.behind_server:
        return True
    from benchmarks.kernels.behind import send_to_server

    deadly = [bad for bad in found.bad if not bad.how.startswith("hang")]
    behind = send_to_server(deadly, arguments.seed, arguments.seconds)
    print(behind.report())
    return behind.unrecovered == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kernels", action="store_true", help="hostile values for TensorFlow's kernels")
    parser.add_argument("--ops", default="", metavar="NAMES", help="only these operations and programs")
    parser.add_argument("--cases", type=int, default=20, help="inputs for each operation")
    parser.add_argument(
        "--seconds", type=float, default=240, help="after which no operation is begun, and no input sent"
    )
    parser.add_argument("--behind-server", action="store_true", help="send what ended a process to a server, too")
    arguments = parser.parse_args()
    if arguments.kernels:
        raise SystemExit(not run_kernels(arguments))
    raise SystemExit(not asyncio.run(run(arguments.requests, arguments.seed)))
