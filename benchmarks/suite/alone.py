"""What is measured without load: reading and writing an image's JSON, the time to start, the memory held.

python -m benchmarks.suite.alone codec|bare MODELS        (the parts that run in a process of their own)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ports import free_port
from benchmarks.serving import rss_megabytes
from benchmarks.suite.client import Client, Refused
from benchmarks.suite.processes import Processes
from benchmarks.suite.wire import TFS_REST
from benchmarks.suite.workloads import ROOT, examples_of

MODEL = "mobilenet"
REQUESTS = 20
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Alone:
    """Medians of a few rounds.

    Attributes:
        codec: Time of decode + encode of a mobilenet request, over that of json.loads + np.asarray + json.dumps.
        start_seconds: From `python -m embedserve` to readiness, less what `import tensorflow` and the load take.
        memory: Resident size over that of a process that did no more than load and run the same model.
    """

    codec: float
    start_seconds: float
    memory: float


def measure(models: Path, repeats: int, core: int) -> Alone:
    """Measure all three on processor `core`."""
    codec = subprocess.run(
        ["taskset", "--cpu-list", str(core), sys.executable, "-m", "benchmarks.suite.alone", "codec", str(models)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    starts, memory = [], []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(repeats):
            bare = start_bare(models, Path(directory), core)
            served = start_served(models, Path(directory), core)
            starts.append(served[0] - bare[0])
            memory.append(served[1] / bare[1])
    return Alone(float(codec.stdout), statistics.median(starts), statistics.median(memory))


def start_bare(models: Path, work: Path, core: int) -> tuple[float, float]:
    """Seconds until the model is loaded, and megabytes after it has run a few times."""
    command = [sys.executable, "-m", "benchmarks.suite.alone", "bare", str(models)]
    with Processes(command, ENVIRONMENT, work / "bare", core, piped=True) as bare:
        assert bare.root.stdout is not None
        bare.root.stdout.readline()
        seconds = time.perf_counter() - bare.started
        bare.root.stdout.readline()
        return seconds, rss_megabytes(bare.root.pid)


def start_served(models: Path, work: Path, core: int) -> tuple[float, float]:
    """The same of `python -m embedserve`, over REST."""
    port = free_port()
    command = [sys.executable, "-m", "embedserve", f"--model_base_path={models / MODEL}", f"--model_name={MODEL}"]
    command += [f"--rest_api_port={port}", f"--port={free_port()}"]
    client = Client(TFS_REST, port, MODEL)
    with Processes(command, ENVIRONMENT, work / "served", core) as served:
        served.wait_until(lambda: is_ready(port), 120)
        seconds = time.perf_counter() - served.started
        x = examples_of(models, MODEL).x[:1]
        for _ in range(REQUESTS):
            client.ask(x)
        return seconds, sum(rss_megabytes(each.pid) for each in served.tree())


def is_ready(port: int) -> bool:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/-/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException, Refused):
        return False
    finally:
        connection.close()


def bare(models: Path) -> None:
    """A process that loads and runs the model by TensorFlow's own means, and nothing else."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(models / MODEL / "1"))
    print("loaded", flush=True)
    x = tf.constant(examples_of(models, MODEL).x[:1])
    for _ in range(REQUESTS):
        loaded.signatures["serving_default"](x=x)
    print("ran", flush=True)
    sys.stdin.read()


def codec(models: Path) -> float:
    """Time of our decode and encode over the plain way's, on one body and one answer."""
    from embedserve.rest.payload import encode_predict, parse_predict
    from embedserve.signature import Signature, TensorSpec
    from embedserve.tensors.dtypes import by_name

    examples = examples_of(models, MODEL)
    body = TFS_REST.encode(MODEL, examples.x[:1])
    y = examples.y[:1]
    spec = TensorSpec("x", by_name("float"), (None, *examples.x.shape[1:]))
    signature = Signature("serving_default", {"x": spec}, {"y": TensorSpec("y", by_name("float"), (None, y.shape[1]))})

    def plain() -> Any:
        x = np.asarray(json.loads(body)["instances"], np.float32)
        return x, json.dumps({"predictions": y.tolist()}).encode()

    def ours() -> Any:
        inputs, row_format = parse_predict(body).decode(signature)
        return inputs["x"], encode_predict({"y": y}, signature, row_format)

    assert np.array_equal(plain()[0], ours()[0])
    return best(ours) / best(plain)


def best(call: Callable[[], object], rounds: int = 15) -> float:
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


if __name__ == "__main__":
    if sys.argv[1] == "codec":
        print(codec(Path(sys.argv[2])))
    else:
        bare(Path(sys.argv[2]))
