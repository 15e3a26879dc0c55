"""Builders of small TFLite models as bytes, converted by TensorFlow; `write` makes a version directory of one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import tensorflow as tf
from flatbuffers import flexbuffers
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

v1 = tf.compat.v1


def write(path: Path, data: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.tflite").write_bytes(data)
    return path


def convert(function: Callable[..., Any], *specs: Any, custom: bool = False) -> bytes:
    """A function of the tensors `specs`, as the converter of TensorFlow 2 writes it."""
    concrete = tf.function(function, input_signature=list(specs), autograph=False).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.allow_custom_ops = custom
    data: bytes = converter.convert()
    return data


def half_plus_two(shape: tuple[int, ...] = (1, 1)) -> bytes:
    """`y = 0.5 * x + 2` with plain tensor names, as the converter of TensorFlow 1 writes it."""
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, shape, name="x")
        y = tf.add(0.5 * x, 2.0, name="y")
        data: bytes = v1.lite.TFLiteConverter.from_session(session, [x], [y]).convert()
        return data


def signature_def(inputs: Mapping[str, str], outputs: Mapping[str, str], method: str = "predict") -> Any:
    """A SignatureDef of float tensors: alias → tensor name."""
    definition = SignatureDef(method_name=f"tensorflow/serving/{method}")
    for infos, names in ((definition.inputs, inputs), (definition.outputs, outputs)):
        for alias, name in names.items():
            infos[alias].name = name
            infos[alias].dtype = 1
            infos[alias].tensor_shape.dim.add(size=1)
    return definition


def with_signature_defs(data: bytes, definitions: Mapping[str, Any] | bytes) -> bytes:
    """The model with `SignatureDef`s in its metadata, as TensorFlow's (former) `tensorflow.lite.tools.signature` does;
    or with any bytes in their place."""
    schema = importlib.import_module("tensorflow.lite.python.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = definitions if isinstance(definitions, bytes) else _flexbuffer(definitions)
    entry.name, entry.buffer = b"signature_defs_metadata", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _flexbuffer(definitions: Mapping[str, Any]) -> bytes:
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, definition in definitions.items():
            builder.Key(key)
            builder.String(definition.SerializeToString().decode())  # Of ASCII lengths and names.
    return bytes(builder.Finish())
