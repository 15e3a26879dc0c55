"""Models with an operation that checks nothing itself, with inputs that TensorFlow answers and inputs that hurt.

As a program, `python -m tests.saved_model.judge.hostile_models DIRECTORY MODE [NAME ...]`: runs each in a process of
its own, forked before TensorFlow runs, and prints an outcome for each as JSON. Modes: `bare`, with TensorFlow alone;
`function`, `session` and `freeze`, as embedserve loads them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import ServingError
from embedserve.saved_model.loader import SavedModelLoader
from embedserve.servable import ServableId

_LIMIT = 20.0
"""Seconds for a load and two runs."""
_AT_ONCE = 3

raw = tf.raw_ops
_F, _I, _L = tf.float32, tf.int32, tf.int64
_DTYPES = {_F: np.float32, _I: np.int32, _L: np.int64, tf.complex64: np.complex64}


@dataclass(frozen=True)
class Hostile:
    """One model.

    Attributes:
        op: The operation of the table.
        specs: Its inputs: name → dtype and shape.
        build: From the inputs to the output.
        good: Inputs that TensorFlow answers.
        bad: Inputs that end or hang TensorFlow 2.21.
        random: The output differs from run to run.
    """

    op: str
    specs: Mapping[str, tuple[Any, Any]]
    build: Callable[..., Any]
    good: Mapping[str, Any]
    bad: Mapping[str, Any]
    random: bool = False

    def save(self, path: Path) -> None:
        specs = [tf.TensorSpec(shape, dtype, name=name) for name, (dtype, shape) in self.specs.items()]
        serve = tf.function(lambda *given: {"y": self.build(*given)}, input_signature=specs)
        tf.saved_model.save(tf.Module(), str(path), signatures=serve)

    def arrays(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.array(values[name], _DTYPES[dtype]) for name, (dtype, _) in self.specs.items()}


def _ones(*shape: int) -> Any:
    return np.ones(shape)


def _ragged(splits: Any, values: Any) -> Any:
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False).to_tensor()


def _in_a_loop(splits: Any, values: Any) -> Any:
    """The same in the body of a loop, and in a branch of it."""

    def step(index: Any, total: Any) -> Any:
        added = tf.cond(index >= 0, lambda: tf.reduce_sum(_ragged(splits, values)), lambda: 0.0)
        return index + 1, total + added

    return tf.while_loop(lambda index, _: index < 2, step, (tf.constant(0), tf.constant(0.0)))[1]


def _lstm(op: Any, steps: Any, x: Any) -> Any:
    given = {"seq_len_max": steps, "x": x, "w": tf.ones([5, 8]), "b": tf.zeros([8])}
    given |= dict.fromkeys(("wci", "wcf", "wco"), tf.zeros([2])) | dict.fromkeys(
        ("cs_prev", "h_prev"), tf.zeros([1, 2])
    )
    return op(**given).h


def _transposed(image: Any, size: Any) -> Any:
    return tf.nn.conv2d_transpose(image, tf.ones([2, 2, 1, 1]), size, 2, "SAME")


_SPLITS = {"splits": (_L, [None]), "values": (_F, [None])}
_GOOD_SPLITS = {"splits": [0, 2, 3], "values": [1, 2, 3]}
_BAD_SPLITS = {"splits": [-1, -1, 0, -1], "values": [1, 2, 3]}
_LENGTH = {"x": (_F, [None, None]), "n": (_I, [1])}
_SIZE = {"image": (_F, [None, None, None, 1]), "size": (_I, [4])}
_POOLED = {"size": (_I, [None]), "gradient": (_F, [None, None, None, 1])}

MODELS: Mapping[str, Hostile] = {
    "row_splits": Hostile("RaggedTensorToTensor", _SPLITS, _ragged, _GOOD_SPLITS, _BAD_SPLITS),
    "row_splits_in_a_loop": Hostile("RaggedTensorToTensor", _SPLITS, _in_a_loop, _GOOD_SPLITS, _BAD_SPLITS),
    "row_splits_made_of_an_input": Hostile(
        *("RaggedTensorToTensor", _SPLITS, lambda s, v: _ragged(tf.cast(s * 2, _I) // 2, v), _GOOD_SPLITS, _BAD_SPLITS)
    ),
    "irfft_of_a_shape": Hostile(
        *("IRFFT", {"x": (tf.complex64, [None, None])}, lambda x: tf.signal.irfft(x)),
        *({"x": _ones(2, 3)}, {"x": _ones(2, 1)}),
    ),
    "rfft": Hostile(
        *("RFFT", _LENGTH, lambda x, n: tf.abs(raw.RFFT(input=x, fft_length=n))),
        *({"x": _ones(2, 4), "n": [4]}, {"x": _ones(2, 4), "n": [0]}),
    ),
    "conv2d_transpose": Hostile(
        *("Conv2DBackpropInput", _SIZE, _transposed),
        *({"image": _ones(1, 3, 3, 1), "size": [1, 6, 6, 1]}, {"image": _ones(1, 3, 3, 1), "size": [1, -1, 6, 1]}),
    ),
    "conv3d_transpose": Hostile(
        *("Conv3DBackpropInputV2", {"image": (_F, [None, None, None, None, 1]), "size": (_I, [5])}),
        lambda image, size: tf.nn.conv3d_transpose(image, tf.ones([2, 2, 2, 1, 1]), size, 2, "SAME"),
        {"image": _ones(1, 2, 2, 2, 1), "size": [1, 4, 4, 4, 1]},
        {"image": _ones(1, 2, 2, 2, 1), "size": [1, -1, 4, 4, 1]},
    ),
    "depthwise": Hostile(
        *("DepthwiseConv2dNativeBackpropInput", _SIZE),
        lambda image, size: raw.DepthwiseConv2dNativeBackpropInput(
            input_sizes=size, filter=tf.ones([2, 2, 1, 1]), out_backprop=image, strides=[1, 2, 2, 1], padding="SAME"
        ),
        {"image": _ones(1, 3, 3, 1), "size": [1, 6, 6, 1]},
        {"image": _ones(1, 3, 3, 1), "size": [1, -1, 6, 1]},
    ),
    "block_lstm": Hostile(
        *("BlockLSTM", {"steps": (_L, []), "x": (_F, [None, 1, 3])}, lambda n, x: _lstm(raw.BlockLSTM, n, x)),
        *({"steps": 2, "x": _ones(2, 1, 3)}, {"steps": 5, "x": _ones(2, 1, 3)}),
    ),
    "block_lstm_v2": Hostile(
        *("BlockLSTMV2", {"steps": (_L, []), "x": (_F, [None, 1, 3])}, lambda n, x: _lstm(raw.BlockLSTMV2, n, x)),
        *({"steps": 2, "x": _ones(2, 1, 3)}, {"steps": -1, "x": _ones(2, 1, 3)}),
    ),
    "avg_pool_gradient": Hostile(
        *("AvgPoolGrad", _POOLED),
        lambda size, gradient: raw.AvgPoolGrad(
            orig_input_shape=size, grad=gradient, ksize=[1, 1, 1, 1], strides=[1, 2, 2, 1], padding="SAME"
        ),
        {"size": [1, 2, 2, 1], "gradient": _ones(1, 1, 1, 1)},
        {"size": [1, 2], "gradient": _ones(1, 1, 1, 1)},
    ),
    "avg_pool_3d_gradient": Hostile(
        *("AvgPool3DGrad", {"size": (_I, [None]), "gradient": (_F, [None, None, None, None, 1])}),
        lambda size, gradient: raw.AvgPool3DGrad(
            orig_input_shape=size, grad=gradient, ksize=[1, 1, 1, 1, 1], strides=[1, 2, 2, 2, 1], padding="SAME"
        ),
        {"size": [1, 2, 2, 2, 1], "gradient": _ones(1, 1, 1, 1, 1)},
        {"size": [1], "gradient": _ones(1, 1, 1, 1, 1)},
    ),
    "gather": Hostile(
        *("GatherV2", {"x": (_F, [None, None]), "axis": (_L, [])}),
        lambda x, axis: raw.GatherV2(params=x, indices=[0], axis=axis),
        {"x": _ones(2, 2), "axis": -1},
        {"x": _ones(2, 2), "axis": -(2**63)},
    ),
    "sparse_product": Hostile(
        *("SparseTensorDenseMatMul", {"at": (_L, [None, 2]), "values": (_F, [None]), "shape": (_L, [2])}),
        lambda at, values, shape: tf.sparse.sparse_dense_matmul(tf.SparseTensor(at, values, shape), tf.ones([2, 3])),
        {"at": [[0, 1]], "values": [5], "shape": [2, 2]},
        {"at": [[0, 1]], "values": [5], "shape": [-1, 2]},
    ),
    "hue": Hostile(
        *("AdjustHue", {"image": (_F, [None, None, None, 3]), "delta": (_F, [])}),
        lambda image, delta: raw.AdjustHue(images=image, delta=delta),
        {"image": _ones(1, 2, 2, 3) * 0.5, "delta": -3.25},
        {"image": _ones(1, 2, 2, 3), "delta": 1e38},
    ),
    "poisson": Hostile(
        *("RandomPoissonV2", {"rate": (_F, [None])}, lambda rate: tf.random.poisson([3], rate)),
        *({"rate": [1, math.inf]}, {"rate": [1, math.nan]}, True),
    ),
    "stateless_poisson": Hostile(
        *("StatelessRandomPoisson", {"rate": (_F, [])}),
        lambda rate: tf.random.stateless_poisson([3], [1, 2], rate),
        *({"rate": 4}, {"rate": math.nan}),
    ),
    "stateless_binomial": Hostile(
        *("StatelessRandomBinomial", {"counts": (_F, [])}),
        lambda counts: tf.random.stateless_binomial([3], [1, 2], counts, 0.5, output_dtype=_F),
        *({"counts": 9}, {"counts": math.nan}),
    ),
}


def _bare(model: Hostile, path: Path) -> Any:
    run = tf.saved_model.load(str(path)).signatures["serving_default"]
    try:
        run(**{name: tf.constant(array) for name, array in model.arrays(model.bad).items()})
    except tf.errors.OpError as error:
        return f"refused: {error.message}"
    return "answered"


def _served(model: Hostile, path: Path, kind: str) -> Any:
    lifted = tf.saved_model.load(str(path)).signatures["serving_default"]
    expected = lifted(**{name: tf.constant(array) for name, array in model.arrays(model.good).items()})["y"].numpy()
    way = {"optimize": kind} if kind == "freeze" else {"servable": kind}
    config = ModelConfig.model_validate({"name": "m", "base_path": str(path.parent)} | way)
    loader = SavedModelLoader(ServableId("m", 1), path, config, RegistryOptions())
    servable = loader.load()
    signature = servable.signatures["serving_default"]
    found = servable.run("serving_default", signature.bind(model.arrays(model.good)))["y"]
    same = found.shape == expected.shape and (model.random or np.array_equal(found, expected))
    try:
        servable.run("serving_default", signature.bind(model.arrays(model.bad)))
    except ServingError as error:
        outcome: Any = {"code": error.code.name, "message": str(error)}
    else:
        outcome = {"code": "OK", "message": ""}
    loader.unload(servable)
    return outcome | {"same": same, "kind": servable.kind, "note": loader.note}


def _child(model: Hostile, path: Path, mode: str, pipe: int) -> None:
    try:
        model.save(path)
        outcome = _bare(model, path) if mode == "bare" else _served(model, path, mode)
        os.write(pipe, json.dumps(outcome).encode())
    except BaseException as error:
        os.write(pipe, json.dumps(f"{type(error).__name__}: {error}").encode())
    os._exit(0)


def _ended(pid: int, pipe: int) -> Iterator[Any]:
    """The outcome of a child, once there is one; None until then."""
    end = time.monotonic() + _LIMIT
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            yield "hang"
        yield None
    data = os.read(pipe, 2**16)
    yield json.loads(data) if data else "death"


def main(directory: Path, mode: str, names: Sequence[str]) -> dict[str, Any]:
    """The outcome for each model; `death` and `hang` for what ended or hung its process."""
    todo = list(names)
    running: dict[str, Iterator[Any]] = {}
    outcomes: dict[str, Any] = {}
    while todo or running:
        while todo and len(running) < _AT_ONCE:
            name = todo.pop()
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                _child(MODELS[name], directory / f"{name}-{mode}" / "1", mode, write)
            os.close(write)
            running[name] = _ended(pid, read)
        for name in list(running):
            outcome = next(running[name])
            if outcome is not None:
                outcomes[name] = outcome
                del running[name]
        time.sleep(0.05)
    return outcomes


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(MODELS))))
