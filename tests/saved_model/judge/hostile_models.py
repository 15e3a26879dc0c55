"""Models with an operation that checks nothing itself, with inputs that TensorFlow answers and inputs that hurt.

As a program, `python -m tests.saved_model.judge.hostile_models DIRECTORY`: runs all in processes that may end, and
prints the outcomes by mode and model as JSON. Modes: `bare`, with TensorFlow alone; those of `SERVED`, as embedserve
loads them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import ServingError
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.servable import ServableId

SERVED = ("function", "session", "freeze")

_LIMIT = 90.0
"""Seconds for a load and two runs."""
_RUN_LIMIT = 2
"""Seconds of processor time for one run of TensorFlow alone; a run that ends takes milliseconds."""
_AT_ONCE = 4

raw = tf.raw_ops
_F, _I, _L = tf.float32, tf.int32, tf.int64
_DTYPES = {_F: np.float32, _I: np.int32, _L: np.int64, tf.complex64: np.complex64, tf.float16: np.float16}


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
    # From TensorFlow 2.22 on, `tf.nn.conv2d_transpose` puts a check of the sizes into the graph.
    kernel = {"filter": tf.ones([2, 2, 1, 1]), "strides": [1, 2, 2, 1], "padding": "SAME"}
    return raw.Conv2DBackpropInput(input_sizes=size, out_backprop=image, **kernel)


_SPLITS = {"splits": (_L, [None]), "values": (_F, [None])}
_GOOD_SPLITS = {"splits": [0, 2, 3], "values": [1, 2, 3]}
_BAD_SPLITS = {"splits": [-1, -1, 0, -1], "values": [1, 2, 3]}
_LENGTH = {"x": (_F, [None, None]), "n": (_I, [1])}
_SIZE = {"image": (_F, [None, None, None, 1]), "size": (_I, [4])}


def _quantized(x: Any, dtype: Any) -> Any:
    """The same numbers, as far as a byte holds them."""
    return tf.bitcast(tf.cast(x, tf.uint8 if dtype == tf.quint8 else tf.int8), dtype)


def _normalised(x: Any) -> Any:
    return tf.cast(raw.QuantizedInstanceNorm(x=_quantized(x, tf.quint8), x_min=0.0, x_max=9.0).y, _F)


def _hybrid(x: Any, kernel: Any) -> Any:
    return raw.UniformQuantizedConvolutionHybrid(
        lhs=x,
        rhs=_quantized(kernel, tf.qint8),
        rhs_scales=1.0,
        rhs_zero_points=0,
        Tout=_F,
        padding="SAME",
        rhs_quantization_min_val=-128,
        rhs_quantization_max_val=127,
    )


def _filter_gradient(op: Any, dimensions: int) -> Any:
    ones = [1] * dimensions
    sizes = [2] * (dimensions - 2) + [1, 1]
    return lambda x: op(
        input=x,
        filter_sizes=sizes,
        out_backprop=tf.ones([1, *([2] * (dimensions - 2)), 1]),
        strides=ones,
        padding="VALID",
    )


def _pieces(values: Any, shape: Any) -> Any:
    pieces = raw.TensorListSplit(tensor=values, element_shape=shape, lengths=tf.constant([2, 1], _L))
    return raw.TensorListGetItem(input_handle=pieces, index=0, element_shape=tf.constant([2]), element_dtype=_F)


def _scattered(op: Any) -> Any:
    return lambda at, updates: op(tensor=tf.zeros([2, 2, 2]), indices=at, updates=updates)


_ANY = (_F, None)
_UPDATES = {"at": (_L, [None, None, None]), "updates": (_F, None)}
_POOLED = {"size": (_I, [None]), "gradient": (_F, [None, None, None, 1])}


def _list(count: Any) -> Any:
    return raw.TensorListReserve(element_shape=[3], num_elements=count, element_dtype=_F)


def _listed(op: str) -> Callable[..., Any]:
    more: dict[str, dict[str, Any]] = {
        "TensorListScatter": {"element_shape": [3]},
        "TensorListScatterV2": {"element_shape": [3], "num_elements": -1},
    }

    def build(x: Any, at: Any) -> Any:
        given = more.get(op) or {"input_handle": _list(2)}
        return raw.TensorListLength(input_handle=getattr(raw, op)(tensor=x, indices=at, **given))

    return build


def _cell_gradient(x: Any, before: Any) -> Any:
    rows, width = tf.shape(x)[0], tf.shape(x)[1]
    given = dict.fromkeys(("cs_prev", "i", "cs", "f", "o", "ci", "co", "cs_grad", "h_grad"), tf.zeros([rows, 2]))
    given |= dict.fromkeys(("wci", "wcf", "wco"), tf.zeros([2])) | {"w": tf.zeros([width + 2, 8]), "b": tf.zeros([8])}
    return raw.LSTMBlockCellGrad(x=x, h_prev=before, use_peephole=False, **given).dicfo


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
    "conv2d_transpose_of_three_sizes": Hostile(
        *("Conv2DBackpropInput", {"image": (_F, [None, None, None, 1]), "size": (_I, [None])}, _transposed),
        *({"image": _ones(1, 3, 3, 1), "size": [1, 6, 6, 1]}, {"image": _ones(1, 3, 3, 1), "size": [1, 6, 6]}),
    ),
    "conv2d_filter": Hostile(
        *("Conv2DBackpropFilter", {"x": _ANY}, _filter_gradient(raw.Conv2DBackpropFilter, 4)),
        *({"x": _ones(1, 3, 3, 1)}, {"x": _ones(3, 3)}),
    ),
    "depthwise_filter": Hostile(
        "DepthwiseConv2dNativeBackpropFilter",
        *({"x": _ANY}, _filter_gradient(raw.DepthwiseConv2dNativeBackpropFilter, 4)),
        *({"x": _ones(1, 3, 3, 1)}, {"x": _ones(3, 3)}),
    ),
    "conv3d_filter": Hostile(
        *("Conv3DBackpropFilterV2", {"x": _ANY}, _filter_gradient(raw.Conv3DBackpropFilterV2, 5)),
        *({"x": _ones(1, 3, 3, 3, 1)}, {"x": _ones(3, 3)}),
    ),
    "scatter": Hostile(
        *("ScatterNd", {"at": (_L, [None, None, None, None]), "updates": _ANY}),
        lambda at, updates: raw.ScatterNd(indices=at, updates=updates, shape=tf.constant([3], _L)),
        {"at": np.zeros([1, 1, 1, 1]), "updates": _ones(1, 1, 1)},
        {"at": np.zeros([1, 1, 1, 1]), "updates": _ones(1, 1)},
    ),
    **{
        f"scatter_{kind}": Hostile(
            *(f"TensorScatter{kind}", _UPDATES, _scattered(getattr(raw, f"TensorScatter{kind}"))),
            {"at": np.zeros([2, 7, 3]), "updates": _ones(2, 7)},
            {"at": np.zeros([2, 7, 2]), "updates": _ones(2)},
        )
        for kind in ("Update", "Max")
    },
    "segments": Hostile(
        *("UnsortedSegmentMax", {"x": (tf.float16, [None, None]), "ids": (_L, [None, None]), "count": (_L, [])}),
        lambda x, ids, count: raw.UnsortedSegmentMax(data=x, segment_ids=ids, num_segments=count),
        {"x": _ones(1, 2), "ids": [[1, 0]], "count": 2},
        {"x": _ones(1, 1), "ids": [[-1]], "count": 2**63 - 1},
    ),
    "instance_norm": Hostile(
        *("QuantizedInstanceNorm", {"x": (_F, [None, None, None, None])}, _normalised),
        *({"x": _ones(1, 2, 2, 1)}, {"x": _ones(1, 2, 2, 0)}),
    ),
    "quantized_convolution": Hostile(
        *("UniformQuantizedConvolutionHybrid", {"x": (_F, [None, None, None]), "kernel": (_F, [None] * 3)}, _hybrid),
        {"x": _ones(1, 3, 1), "kernel": _ones(1, 3, 1)},
        {"x": _ones(1, 3, 1), "kernel": _ones(1, 0, 3)},
    ),
    "list_of_pieces": Hostile(
        *("TensorListSplit", {"values": (_F, [None]), "shape": (_L, [None])}, _pieces),
        {"values": [1, 2, 3], "shape": [-1]},
        {"values": [1, 2, 3], "shape": [-1, 2**63 - 1, 7]},
    ),
    "list_of_many": Hostile(
        *("TensorListReserve", {"count": (_I, [])}, lambda count: raw.TensorListLength(input_handle=_list(count))),
        *({"count": 5}, {"count": 2**31 - 1}),
    ),
    "list_that_grows": Hostile(
        *("TensorListResize", {"count": (_I, [])}),
        lambda count: raw.TensorListLength(input_handle=raw.TensorListResize(input_handle=_list(2), size=count)),
        *({"count": 5}, {"count": 2**31 - 1}),
    ),
    "array_of_many": Hostile(
        *("TensorArrayV3", {"count": (_I, [])}),
        lambda count: raw.TensorArraySizeV3(
            handle=(made := raw.TensorArrayV3(size=count, dtype=_F))[0], flow_in=made[1]
        ),
        *({"count": 5}, {"count": 2**31 - 1}),
    ),
    **{
        f"scattered {op}": Hostile(
            *(op, {"x": (_F, [None, 3]), "at": (_I, [None])}, _listed(op)),
            {"x": _ones(2, 3), "at": [1, 0]},
            {"x": _ones(1, 3), "at": [2**31 - 2]},
        )
        for op in ("TensorListScatter", "TensorListScatterV2", "TensorListScatterIntoExistingList")
    },
    "scattered to a length": Hostile(
        *("TensorListScatterV2", {"x": (_F, [None, 3]), "count": (_I, [])}),
        lambda x, count: raw.TensorListLength(
            input_handle=raw.TensorListScatterV2(tensor=x, indices=[0], element_shape=[3], num_elements=count)
        ),
        *({"x": _ones(1, 3), "count": 5}, {"x": _ones(1, 3), "count": 2**31 - 1}),
    ),
    "cell_gradient": Hostile(
        *("LSTMBlockCellGrad", {"x": (_F, [None, None]), "before": (_F, None)}, _cell_gradient),
        {"x": _ones(2, 3), "before": _ones(2, 2)},
        {"x": _ones(2, 3), "before": _ones(2)},
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
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + _RUN_LIMIT, resource.RLIM_INFINITY))
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


class _Child:
    """A process, forked before TensorFlow has run, that does something with each of some models.

    Attributes:
        mode: What it does: `save`, `bare`, or a mode of `_served`.
        outcomes: By model; `death` or `hang` where it ended.
    """

    def __init__(self, directory: Path, mode: str, names: Sequence[str]) -> None:
        self.mode = mode
        self.outcomes: dict[str, Any] = {}
        self._pipe, write = os.pipe()
        os.set_blocking(self._pipe, False)
        self._at, self._heard = "", b""
        self._since = time.monotonic()
        self._pid = os.fork()
        if self._pid == 0:
            for name in names:
                _tell(write, name, None)
                _tell(write, name, self._outcome(name, directory / name / "1"))
            os._exit(0)
        os.close(write)

    def _outcome(self, name: str, path: Path) -> Any:
        model = MODELS[name]
        try:
            if self.mode == "save":
                model.save(path)
                return "saved"
            if self.mode == "bare":
                return _bare(model, path)
            return _served(model, path, self.mode)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"

    def has_ended(self) -> bool:
        """Hear what it says; kill it where it is late."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        ended = pid != 0
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, 2**16):
                self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._at, said = json.loads(line)
            self._since = time.monotonic()
            if said is not None:
                self.outcomes[self._at], self._at = said, ""
        late = ended and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        if not ended and time.monotonic() > self._since + _LIMIT:
            late = True
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        if (ended or late) and self._at:
            self.outcomes[self._at] = "hang" if late else "death"
        return ended or late


def _tell(pipe: int, name: str, said: Any) -> None:
    os.write(pipe, json.dumps([name, said]).encode() + b"\n")


def main(directory: Path) -> dict[str, dict[str, Any]]:
    """The outcome by mode and model. Only a run of TensorFlow alone has a process for itself: it does not survive."""
    outcomes: dict[str, dict[str, Any]] = {mode: {} for mode in ("save", "bare", *SERVED)}
    saving = _Child(directory, "save", list(MODELS))
    while not saving.has_ended():
        time.sleep(0.05)
    todo = [("bare", [name]) for name in MODELS] + [(mode, list(MODELS)) for mode in SERVED]
    running: list[_Child] = []
    while todo or running:
        while todo and len(running) < _AT_ONCE:
            running.append(_Child(directory, *todo.pop()))
        for child in list(running):
            if child.has_ended():
                outcomes[child.mode] |= child.outcomes
                running.remove(child)
        time.sleep(0.05)
    return outcomes


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
