"""Signatures out of nothing but dtypes and shapes."""

from __future__ import annotations

from embedserve.signature import Signature, TensorSpec
from embedserve.tensors import dtypes


def signature(**inputs: tuple[str, tuple[int | None, ...] | None]) -> Signature:
    specs = {name: TensorSpec(name, dtypes.by_name(dtype), shape) for name, (dtype, shape) in inputs.items()}
    return Signature("serving_default", specs, {"y": TensorSpec("y", dtypes.by_name("float"), (None,))})
