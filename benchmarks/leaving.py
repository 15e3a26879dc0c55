"""How long a registry takes to leave, by the number of tiny models that it serves.

`python -m benchmarks.leaving --models 1 40 200`. The cost of one full garbage collection is shown beside.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

import tensorflow as tf

from embedserve import ModelRegistry


def save_tiny(path: Path) -> None:
    """A model with one signature, `y = 2 x`."""
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": 2.0 * x}, input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    tf.saved_model.save(module, str(path), signatures=module.f)


def seconds_to_leave(root: Path) -> float:
    """Enter, answer once per model, and leave; only the last is timed."""
    registry = ModelRegistry(root, settle=0.0, watch=False, warmup="none")
    with registry:
        names = registry.models()
        for name in names:
            registry.predict_sync(name, [[1.0]])
        began = time.perf_counter()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 40, 200])
    wanted = parser.parse_args().models
    with tempfile.TemporaryDirectory() as directory:
        first = Path(directory) / "first"
        save_tiny(first)
        for count in wanted:
            root = Path(directory) / str(count)
            for number in range(count):
                (root / f"m{number}").mkdir(parents=True)
                (root / f"m{number}" / "1").symlink_to(first)
            leaving = seconds_to_leave(root)
            began = time.perf_counter()
            gc.collect()
            print(f"{count:4} models: left in {leaving:.2f} s; one collection {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
