"""What the format of a request costs: an image as JSON, as bytes over REST, and over gRPC, on one server.

The rounds take turns, so that a busy machine is busy for all. The bar of 0.95 is for the best format of bytes.

usage: python -m benchmarks.request_formats [--rounds=5] [--seconds=2] [--callers=8] [--model=mobilenet]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.ports import free_port
from benchmarks.suite import load
from benchmarks.suite.load import Target
from benchmarks.suite.processes import Processes
from benchmarks.suite.wire import TFS_GRPC, TFS_REST, Array, framed
from benchmarks.suite.workloads import ROOT, examples_of, models_directory

GRPC = "gRPC"
BAR = 0.95


def targets(model: str, rows: Array, rest: int, grpc: int) -> dict[str, Target]:
    """A request of equal rows in each format."""
    file = io.BytesIO()
    np.save(file, rows)
    url = f"http://127.0.0.1:{rest}{TFS_REST.path(model)}"
    shape = ",".join(map(str, rows.shape))
    return {
        "REST, JSON": Target(url, TFS_REST.encode(model, rows), False),
        "REST, application/x-npy": Target(url, file.getvalue(), False, content_type="application/x-npy"),
        "REST, application/octet-stream": Target(
            f"{url}?shape={shape}", rows.tobytes(), False, content_type="application/octet-stream"
        ),
        GRPC: Target(f"http://127.0.0.1:{grpc}{TFS_GRPC.path(model)}", framed(TFS_GRPC.encode(model, rows)), True),
    }


def check(target: Target, expected: Array) -> None:
    """A wrong answer ends the benchmark."""
    if target.grpc:
        return
    request = urllib.request.Request(target.url, target.body, {"content-type": target.content_type})
    with urllib.request.urlopen(request, timeout=60) as response:
        body = response.read()
    match target.content_type:
        case "application/json":
            rows = TFS_REST.decode(body)
        case "application/x-npy":
            rows = np.load(io.BytesIO(body))
        case _:
            rows = np.frombuffer(body, np.float32)
    np.testing.assert_allclose(rows.ravel(), expected.ravel(), rtol=1e-3, atol=1e-6)


def markdown(rates: Mapping[str, Sequence[float]]) -> str:
    """A table of the median rates, and of the medians of the rounds' ratios to gRPC."""
    lines = ["| format | requests/s | of gRPC |", "| --- | --- | --- |"]
    shares = {
        name: statistics.median(mine / other for mine, other in zip(found, rates[GRPC], strict=True))
        for name, found in rates.items()
    }
    lines += [f"| {name} | {statistics.median(found):,.0f} | {shares[name]:.2f} |" for name, found in rates.items()]
    best = max((name for name in rates if name not in (GRPC, "REST, JSON")), key=lambda name: shares[name])
    met = "met" if shares[best] >= BAR else "**missed**"
    return "\n".join([*lines, "", f"{best} / gRPC: {shares[best]:.2f}, wanted ≥ {BAR}: {met}"])


def main(arguments: Sequence[str]) -> None:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--seconds", type=float, default=2.0)
    found.add_argument("--callers", type=int, default=8)
    found.add_argument("--model", default="mobilenet", choices=("half", "mlp", "mobilenet"))
    given = found.parse_args(arguments)
    models = models_directory([given.model])
    examples = examples_of(models, given.model)
    rest, grpc = free_port(), free_port()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "embedserve", f"--model_name={given.model}"]
        command += [f"--model_base_path={models / given.model}", f"--rest_api_port={rest}", f"--port={grpc}"]
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        with Processes(command, environment, Path(directory, "log"), cores[-1]) as server:
            server.wait_until(lambda: answers(rest), 120)
            asked = targets(given.model, examples.x[:1], rest, grpc)
            for target in asked.values():
                check(target, examples.y[:1])
            rates: dict[str, list[float]] = {name: [] for name in asked}
            for number in range(given.rounds + 1):
                for name, target in asked.items():
                    result = load.run(target, given.callers, given.seconds, cores[0])
                    if result.failed or not result.answered:
                        raise SystemExit(f"{name}: {result.failed} failed, {result.answered} answered")
                    if number:  # The first round warms up.
                        rates[name].append(result.rate)
    print(markdown(rates))


def answers(port: int) -> bool:
    """Whether the server is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
