"""What is asked: three models, their inputs, the answers that count as right, and how many ask at once.

Models and answers are made once, in a process of their own, and kept in the suite's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.suite.wire import Array, Protocol

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Workload:
    """One model and how it is asked.

    Attributes:
        name: The model's name too.
        protocols: Over which it is measured.
        concurrency: How many requests are under way at once.
        seconds: How long one measurement takes, in multiples of `--seconds`: slow answers need longer to count.
    """

    name: str
    protocols: tuple[Protocol, ...]
    concurrency: tuple[int, ...]
    seconds: float = 1.0


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("half", ("in-process", "rest", "grpc"), (1, 16, 64)),
        Workload("mlp", ("in-process", "rest", "grpc"), (1, 16, 64)),
        Workload("mobilenet", ("in-process", "rest", "grpc"), (1, 8), 2.0),
    )
}


@dataclass(frozen=True)
class Examples:
    """A few rows and what a plain signature call answered to each of them."""

    x: Array
    y: Array

    def right(self, row: int, answer: Array) -> bool:
        """Whether `answer` is what row number `row` alone is worth: within float32 and another batch's rounding."""
        expected = self.y[row]
        return answer.size == expected.size and np.allclose(answer.ravel(), expected, rtol=1e-3, atol=1e-6)


def cache_directory() -> Path:
    """Where models and environments are kept: `$EMBEDSERVE_BENCHMARKS`, or below the user's cache."""
    own = os.environ.get("EMBEDSERVE_BENCHMARKS")
    return (
        Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "embedserve-benchmarks"
    )


def models_directory(names: Iterable[str]) -> Path:
    """A directory with the models of these names, made now where they never were, or not by this code."""
    code = (ROOT / "benchmarks" / "models.py").read_bytes()
    directory = cache_directory() / f"models-{hashlib.sha256(code).hexdigest()[:12]}"
    missing = [name for name in names if not (directory / f"{name}.npz").exists()]
    if missing:
        for name in missing:
            shutil.rmtree(directory / name, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.models", str(directory), *missing],
            check=True,
            cwd=ROOT,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            stderr=subprocess.DEVNULL,
        )
    return directory


def examples_of(models: Path, name: str) -> Examples:
    """The examples that were made with the model `name`."""
    with np.load(models / f"{name}.npz") as arrays:
        return Examples(arrays["x"], arrays["y"])
