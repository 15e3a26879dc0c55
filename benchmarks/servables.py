"""What one run of a loaded version costs, numpy to numpy in one thread: our servables beside TensorFlow's own calls.

python -m benchmarks.servables [--seconds 1]

Columns, in µs per run (the fastest of several rounds): a signature call as users write it, `tf.raw_ops` on the
signature's function, `FunctionServable.run` and `SessionServable.run`, the latter two as the loader sets them up.
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
from embedserve.saved_model.loader import SavedModelLoader
from embedserve.saved_model.tensorflow_private import PublicFunctionCall
from embedserve.servable import Array, ServableId

SIGNATURE = "serving_default"
ROUNDS = 5


def microseconds(call: Callable[[], object], seconds: float) -> float:
    """The mean of the fastest round."""
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        end = time.perf_counter() + seconds / ROUNDS
        started, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() < end:
            call()
            calls += 1
        best = min(best, (time.perf_counter() - started) / calls)
    return best * 1e6


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


def by_servable(path: Path, inputs: dict[str, Array], kind: Literal["function", "session"]) -> Callable[[], object]:
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
        ]
        print(f"{'µs per run':20} {'signature':>12} {'raw op':>12} {'function':>12} {'session':>12}")
        for title, name, inputs in cases:
            path = root / name / "1"
            calls = [
                by_signature(path, inputs),
                by_raw_op(path, inputs),
                by_servable(path, inputs, "function"),
                by_servable(path, inputs, "session"),
            ]
            print(f"{title:20} " + " ".join(f"{microseconds(call, seconds):12.1f}" for call in calls))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each number")
    main(parser.parse_args().seconds)
