"""A PredictResponse as bytes, put together around the arrays' own memory: each value is copied once.

Called by `prediction_service`. What precedes the values depends on names and shapes only, and is remembered.
"""

from __future__ import annotations

import functools

from tensorflow_serving.apis import model_pb2

from embedserve.servable import Tensors
from embedserve.signature import Signature
from embedserve.tensors import proto

__all__ = ["predict_response"]

# Field numbers of PredictResponse and of its map entries.
_OUTPUTS, _MODEL_SPEC = 1, 2
_KEY, _VALUE = 1, 2


def predict_response(
    name: str, version: int, signature: Signature, outputs: Tensors, tensor_content: bool = False
) -> bytes:
    """The message.

    Args:
        name, version: The model that answered.
        signature: Whose outputs these are.
        outputs: Arrays by output name, of any shape; cast where they are not of the signature's dtype.
        tensor_content: Write numeric tensors as `tensor_content` instead of typed fields.
    """
    parts: list[bytes | memoryview] = []
    for alias, array in outputs.items():
        head, values = proto.serialized(array, signature.outputs[alias].dtype, as_content=tensor_content)
        parts.append(_up_to_values(alias, head, len(values)))
        parts.append(values)
    parts.append(_model_spec(name, version, signature.name))
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _up_to_values(alias: str, head: bytes, size: int) -> bytes:
    """One entry of `outputs` up to the tensor's values, of which there are `size` bytes."""
    key = proto.delimited(_KEY, alias.encode())
    tensor = proto.varint(_VALUE << 3 | 2) + proto.varint(len(head) + size) + head
    return b"".join((proto.varint(_OUTPUTS << 3 | 2), proto.varint(len(key) + len(tensor) + size), key, tensor))


@functools.lru_cache(maxsize=256)
def _model_spec(name: str, version: int, signature_name: str) -> bytes:
    spec = model_pb2.ModelSpec(name=name, signature_name=signature_name)
    spec.version.value = version
    return proto.delimited(_MODEL_SPEC, spec.SerializeToString())
