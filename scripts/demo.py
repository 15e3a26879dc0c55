"""What `scripts/demo` runs: train, serve, ask in three ways, swap, roll back, measure accuracy through the server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import uvicorn

from embedserve import ModelRegistry
from embedserve.rest import create_app
from examples.digits.train import Digits, Images, export, load_digits, train

SHADES = " .:-=+*#%@"


def say(title: str, *lines: str) -> None:
    print(f"\n{title}", *(f"  {line}" for line in lines), sep="\n", flush=True)


@contextlib.contextmanager
def native_log_in(path: Path) -> Iterator[None]:
    """TensorFlow writes about CPUs and missing GPUs to stderr before anyone can ask it not to."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with path.open("ab") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no free port")


def picture(pixels: Images) -> list[str]:
    return ["".join(SHADES[int(grey * 9 / 16)] * 2 for grey in row) for row in pixels.reshape(8, 8)]


@contextlib.asynccontextmanager
async def rest_server(registry: ModelRegistry, port: int) -> AsyncIterator[asyncio.Task[None]]:
    server = uvicorn.Server(
        uvicorn.Config(create_app(registry), port=port, lifespan="off", log_level="warning", access_log=False)
    )
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    try:
        yield running
    finally:
        server.should_exit = True
        await running


def ask_over_rest(url: str, images: Images) -> list[dict[str, float]]:
    body = json.dumps({"instances": images.astype(int).tolist()}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as response:
        answer: list[dict[str, float]] = json.load(response)["predictions"]
        return answer


def ask_over_grpc(address: str, images: Images) -> str:
    """What a client of TensorFlow Serving looks like: the official stub and nothing of ours."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "digits"
        request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(images))
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    return (
        f"digit {response.outputs['digit'].int64_val[0]}, "
        f"probability {response.outputs['probability'].float_val[0]:.3f}, "
        f"model version {response.model_spec.version.value}"
    )


async def accuracy_over_rest(url: str, digits: Digits) -> str:
    """Every held-out image in a request of its own, 16 at a time."""
    gate = asyncio.Semaphore(16)

    async def right(image: Images, label: int) -> bool:
        async with gate:
            (answer,) = await asyncio.to_thread(ask_over_rest, url, image[None])
            return answer["digit"] == label

    start = time.perf_counter()
    found = await asyncio.gather(*map(right, digits.held_out_images, digits.held_out_labels))
    seconds = time.perf_counter() - start
    return f"{sum(found)} of {len(found)} held-out digits right ({np.mean(found):.1%}), in {seconds:.1f} s over REST"


async def version_in_use(registry: ModelRegistry, wanted: int, within: float = 60) -> None:
    async with asyncio.timeout(within):
        while True:
            async with registry.acquire("digits") as handle:
                if handle.version == wanted:
                    return
            await asyncio.sleep(0.02)


async def show(registry: ModelRegistry, models: Path, digits: Digits, ports: tuple[int, int]) -> None:
    rest, grpc_address = f"http://localhost:{ports[0]}", f"localhost:{ports[1]}"
    url = f"{rest}/v1/models/digits:predict"
    first, label = digits.held_out_images[:1], digits.held_out_labels[0]
    say(f"Serving {models}/digits/1 on REST {rest} and gRPC {grpc_address}. The first held-out image, a {label}:")
    print(*picture(first[0]), sep="\n")

    out = await registry.predict("digits", {"pixels": first})
    say(
        'In process:  await registry.predict("digits", {"pixels": image})',
        f"digit {out['digit'][0]}, probability {out['probability'][0]:.3f}",
    )
    body = json.dumps({"instances": first.astype(int).tolist()}, separators=(",", ":"))
    (answer,) = await asyncio.to_thread(ask_over_rest, url, first)
    say("REST:", f"curl -d '{body}' {url}", f"digit {answer['digit']}, probability {answer['probability']:.3f}")
    say("gRPC, official stub:", await asyncio.to_thread(ask_over_grpc, grpc_address, first))
    say("Accuracy of version 1:", await accuracy_over_rest(url, digits))

    better = await asyncio.to_thread(train, 64, 30)
    dropped = time.perf_counter()
    await asyncio.to_thread(export, better, models / "digits" / "2")
    exported = time.perf_counter()
    await version_in_use(registry, 2)
    say(
        f"A larger network exported to {models}/digits/2, server untouched:",
        f"export took {exported - dropped:.1f} s; version 2 was live {time.perf_counter() - exported:.1f} s later",
        await accuracy_over_rest(url, digits),
    )

    await registry.pin("digits", 1)
    say(
        'Rolled back:  await registry.pin("digits", 1)',
        await asyncio.to_thread(ask_over_grpc, grpc_address, first),
    )
    await registry.unpin("digits")
    await version_in_use(registry, 2)
    say('And forward:  await registry.unpin("digits")', await asyncio.to_thread(ask_over_grpc, grpc_address, first))


async def main(arguments: argparse.Namespace) -> None:
    models: Path = arguments.models
    shutil.rmtree(models / "digits" / "2", ignore_errors=True)  # Version 2 is to be dropped in before your eyes.
    models.mkdir(parents=True, exist_ok=True)
    log = models.with_suffix(".log")
    digits = load_digits()
    start = time.perf_counter()
    with native_log_in(log):
        trained = not (models / "digits" / "1").exists()
        if trained:
            export(train(hidden=8, epochs=12), models / "digits" / "1")
    if trained:
        say(
            f"Trained a small network on {len(digits.images)} of scikit-learn's 1,797 handwritten digits "
            f"({time.perf_counter() - start:.1f} s with TensorFlow's start)."
        )
    ports = free_port(8501), free_port(8500)
    async with contextlib.AsyncExitStack() as stack:
        with native_log_in(log):
            from embedserve.grpc import serve

            registry = await stack.enter_async_context(ModelRegistry(models))
        stopped = await stack.enter_async_context(rest_server(registry, ports[0]))
        await stack.enter_async_context(serve(registry, port=ports[1]))
        await show(registry, models, digits, ports)
        if arguments.keep:
            say(f"Serving until Ctrl-C: http://localhost:{ports[0]}/v1/models/digits")
            await stopped


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="go on serving until Ctrl-C")
    parser.add_argument("--models", type=Path, default=Path("demo-models"), help="where the models are, or will be")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args()))
