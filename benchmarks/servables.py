"""What one run of a loaded version costs, numpy to numpy in one thread: our servables beside TensorFlow's own calls.

python -m benchmarks.servables [--seconds 1]

Columns, in µs per run (each way's fastest of several rounds in turns): a signature call as users write it, `tf.raw_ops`
on the signature's function, and the servables' `run` as the loader sets them up: functions, a session, a frozen graph.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf

from benchmarks.models import Mlp, Tiny, export_mobilenet, save
from embedserve.config import ModelConfig, RegistryOptions
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.saved_model.tensorflow_private import PublicFunctionCall
from embedserve.servable import Array, ServableId

SIGNATURE = "serving_default"
ROUNDS = 5


def microseconds(ways: list[Callable[[], object]], seconds: float) -> list[float]:
    """The mean of the fastest round of each."""
    best = [float("inf")] * len(ways)
    for call in ways:
        call()
    for _ in range(ROUNDS):
        for index, call in enumerate(ways):
            end = time.perf_counter() + seconds / ROUNDS
            started, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() < end:
                call()
                calls += 1
            best[index] = min(best[index], (time.perf_counter() - started) / calls)
    return [found * 1e6 for found in best]


def by_signature(path: Path, inputs: dict[str, Array]) -> Callable[[], object]:
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures[SIGNATURE]

    def call() -> object:
        outputs = function(**{name: tf.constant(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}, loaded

    return call


def by_raw_op(path: Path, inputs: dict[str, Array]) -> Callable[[], object]:
    loaded = tf.saved_model.load(str(path))
    function = PublicFunctionCall(loaded.signatures[SIGNATURE])
    return lambda: (function(list(inputs.values()), None), loaded)


def by_servable(
    path: Path, inputs: dict[str, Array], kind: Literal["function", "session", "frozen"]
) -> Callable[[], object]:
    if kind == "frozen":
        config = ModelConfig(name="m", base_path=path.parent, optimize="freeze")
    else:
        config = ModelConfig(name="m", base_path=path.parent, servable=kind)
    servable = SavedModelLoader(ServableId("m", 1), path, config, RegistryOptions()).load()
    return lambda: servable.run(SIGNATURE, inputs)


def main(seconds: float) -> None:
    random = np.random.default_rng(1)
    images = random.random((1, 224, 224, 3), np.float32)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        save(Tiny(1), root / "tiny" / "1")
        save(Mlp(), root / "dense" / "1")
        export_mobilenet(images, root / "mobilenet" / "1")
        cases: list[tuple[str, str, dict[str, Array]]] = [
            ("tiny, 1 row", "tiny", {"x": random.random((1, 4), np.float32)}),
            ("dense, 1 row", "dense", {"x": random.random((1, 784), np.float32)}),
            ("dense, 64 rows", "dense", {"x": random.random((64, 784), np.float32)}),
            ("mobilenet, 1 row", "mobilenet", {"x": images}),
            ("mobilenet, 8 rows", "mobilenet", {"x": images.repeat(8, axis=0)}),
        ]
        print(f"{'µs per run':20} {'signature':>12} {'raw op':>12} {'function':>12} {'session':>12} {'frozen':>12}")
        for title, name, inputs in cases:
            path = root / name / "1"
            calls = [
                by_signature(path, inputs),
                by_raw_op(path, inputs),
                by_servable(path, inputs, "function"),
                by_servable(path, inputs, "session"),
                by_servable(path, inputs, "frozen"),
            ]
            print(f"{title:20} " + " ".join(f"{found:12.1f}" for found in microseconds(calls, seconds)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each number")
    main(parser.parse_args().seconds)
