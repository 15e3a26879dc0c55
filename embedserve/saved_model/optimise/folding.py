"""Makes a frozen graph smaller after grappler: folds scales into convolutions' weights, and merges equal constants.

The module works on `GraphDef`s alone, and knows no session.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from embedserve.servable import Array

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

__all__ = ["fold_channel_scales", "share_constants"]

_CONVOLUTIONS = frozenset(("Conv2D", "DepthwiseConv2dNative"))
_NORMALISATIONS = frozenset(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"))
_FLOAT = 1  # DT_FLOAT
_WORTH_SHARING = 1024
"""Bytes of a serialized constant from which equal constants are merged."""


def fold_channel_scales(graph_def: GraphDef, kept: Iterable[str]) -> GraphDef:
    """Multiply constant scales of a convolution's output channels into the convolution's weights.

    A `Mul` by a constant after a convolution disappears. A normalisation in inference becomes the addition of a
    constant, which TensorFlow then fuses with the convolution and the following activation.

    Args:
        graph_def: The graph with constants in place of variables; not changed.
        kept: Fetched tensors: their nodes stay unchanged.
    """
    folded: GraphDef = tf.compat.v1.GraphDef()
    folded.CopyFrom(graph_def)
    graph = _Graph(folded, kept)
    for node in list(folded.node):
        if node.op == "Mul":
            graph.fold_product(node)
        elif node.op in _NORMALISATIONS:
            graph.fold_normalisation(node)
    return folded


def share_constants(graph_def: GraphDef, kept: Iterable[str]) -> None:
    """Merge equal constants of at least `_WORTH_SHARING` bytes; changes `graph_def`.

    Folding makes separate weights for each signature.
    """
    names = {name.partition(":")[0] for name in kept}
    first: dict[bytes, str] = {}
    replaced: dict[str, str] = {}
    for node in graph_def.node:
        if node.op == "Const" and node.name not in names and not node.input:
            held = node.attr["value"].tensor.SerializeToString(deterministic=True)
            if len(held) >= _WORTH_SHARING:
                shared = first.setdefault(hashlib.sha256(held).digest(), node.name)
                if shared != node.name:
                    replaced[node.name] = shared
    for node in graph_def.node:
        for index, source in enumerate(node.input):
            name = source.lstrip("^").removesuffix(":0")
            if name in replaced:
                node.input[index] = f"^{replaced[name]}" if source.startswith("^") else replaced[name]


class _Graph:
    """The graph during the changes."""

    def __init__(self, graph_def: GraphDef, kept: Iterable[str]) -> None:
        self._graph_def = graph_def
        self._nodes = {node.name: node for node in graph_def.node}
        self._uses = Counter(source.removesuffix(":0") for node in graph_def.node for source in node.input)
        self._kept = {name.partition(":")[0] for name in kept}

    def fold_product(self, node: NodeDef) -> None:
        """Fold `convolution * constant`, in either order."""
        for product, factor in (tuple(node.input[:2]), tuple(node.input[1::-1])):
            convolution, scale = self._nodes.get(product), self._constant(factor)
            if convolution is None or scale is None or not self._scales(convolution):
                continue
            channels = self._channels(convolution)
            # The scale has a value per channel or a single value; any further shape would enlarge the output.
            if scale.size in (1, channels) and scale.ndim <= 4 and (scale.size == 1 or scale.shape[-1] == channels):
                self._scale_weights(convolution, np.broadcast_to(scale.reshape(-1), [channels]))
                others = [source for source in node.input if source.startswith("^")]
                node.op = "Identity"
                self._set_inputs(node, [product, *others])
                return

    def fold_normalisation(self, node: NodeDef) -> None:
        """Fold `FusedBatchNorm*` of a convolution, in inference and with constants throughout."""
        convolution = self._nodes.get(node.input[0])
        parameters = [found for found in map(self._constant, node.input[1:5]) if found is not None]
        if convolution is None or len(parameters) < 4 or not (self._in_inference(node) and self._scales(convolution)):
            return
        gamma, beta, mean, variance = (parameter.astype(np.float64) for parameter in parameters)
        scale = gamma / np.sqrt(variance + node.attr["epsilon"].f)
        offset = self._graph_def.node.add(name=f"{node.name}/offset", op="Const")
        offset.attr["dtype"].type = _FLOAT
        offset.attr["value"].tensor.CopyFrom(tf.make_tensor_proto((beta - mean * scale).astype(np.float32)))
        self._scale_weights(convolution, scale)
        inputs = [node.input[0], offset.name, *(source for source in node.input if source.startswith("^"))]
        node.op = "AddV2"
        for name in list(node.attr):
            del node.attr[name]
        node.attr["T"].type = _FLOAT
        self._set_inputs(node, inputs)

    def _in_inference(self, normalisation: NodeDef) -> bool:
        """Whether a normalisation uses given moments, and only its first output is used."""
        return (
            not normalisation.attr["is_training"].b
            and normalisation.attr["data_format"].s in (b"", b"NHWC")
            and normalisation.name not in self._kept
            and not any(self._uses[f"{normalisation.name}:{index}"] for index in range(1, 6))
        )

    def _scales(self, convolution: NodeDef) -> bool:
        """Whether a convolution may take over the following scale."""
        return (
            convolution.op in _CONVOLUTIONS
            and convolution.attr["T"].type == _FLOAT
            and convolution.attr["data_format"].s in (b"", b"NHWC")
            and self._uses[convolution.name] == 1
            and self._uses[f"^{convolution.name}"] == 0
            and convolution.name not in self._kept
            and self._constant(convolution.input[1]) is not None
        )

    def _channels(self, convolution: NodeDef) -> int:
        weights = self._constant(convolution.input[1])
        assert weights is not None
        return int(weights.shape[3] if convolution.op == "Conv2D" else weights.shape[2] * weights.shape[3])

    def _scale_weights(self, convolution: NodeDef, scale: Array) -> None:
        """Give a convolution weights of its own, as further convolutions may share the old weights."""
        weights = self._constant(convolution.input[1])
        assert weights is not None
        factors = scale if convolution.op == "Conv2D" else scale.reshape(weights.shape[2:])
        scaled = self._graph_def.node.add(name=f"{convolution.name}/scaled_weights", op="Const")
        scaled.attr["dtype"].type = _FLOAT
        scaled.attr["value"].tensor.CopyFrom(tf.make_tensor_proto((weights * factors).astype(np.float32)))
        self._nodes[scaled.name] = scaled
        self._set_inputs(convolution, [convolution.input[0], scaled.name, *convolution.input[2:]])

    def _constant(self, name: str) -> Array | None:
        node = self._nodes.get(name)
        if node is None or node.op != "Const" or node.attr["dtype"].type != _FLOAT:
            return None
        array: Array = tf.make_ndarray(node.attr["value"].tensor)
        return array

    def _set_inputs(self, node: NodeDef, inputs: list[str]) -> None:
        self._uses.subtract(source.removesuffix(":0") for source in node.input)
        del node.input[:]
        node.input.extend(inputs)
        self._uses.update(source.removesuffix(":0") for source in inputs)
