"""Reads `saved_model.pb` before TensorFlow loads the file: the MetaGraph of a tag set, and its signatures.

Error messages follow TensorFlow Serving's loader (`saved_model/loader.cc`, `reader.cc`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.core.protobuf.struct_pb2 import TypeSpecProto

from embedserve.errors import Code, LoadError, ServingError
from embedserve.saved_model.files.graph import INIT_SIGNATURE
from embedserve.servable import Array
from embedserve.signature import Composite, Signature, TensorSpec
from embedserve.tensors import dtypes, proto

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef

__all__ = [
    "INTERNAL_SIGNATURES",
    "has_object_graph",
    "has_saved_model",
    "read_meta_graph",
    "read_signatures",
    "warmup_file",
    "why_not_callable",
]

logger = logging.getLogger("embedserve")

INTERNAL_SIGNATURES = frozenset({INIT_SIGNATURE, "__saved_model_train_op"})
"""Keys of TensorFlow's internal signatures: listed in metadata, never callable."""

_UNFEEDABLE = frozenset({"resource", "variant"})
_INT64 = dtypes.by_name("int64").number


def warmup_file(path: Path) -> Path:
    """The file with recorded warm-up requests in a version directory."""
    return path / "assets.extra" / "tf_serving_warmup_requests"


def read_meta_graph(path: Path, tags: Iterable[str]) -> MetaGraphDef:
    """The `MetaGraphDef` of exactly the given tag set.

    Raises:
        LoadError: No SavedModel, not readable, or no MetaGraph with the tag set.
    """
    saved_model = _read(path)
    wanted = frozenset(tags)
    for meta_graph in saved_model.meta_graphs:
        if frozenset(meta_graph.meta_info_def.tags) == wanted:
            return meta_graph
    found = "; ".join(f"{{ {' '.join(sorted(graph.meta_info_def.tags))} }}" for graph in saved_model.meta_graphs)
    raise LoadError(
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(sorted(wanted))} }}. To inspect available "
        f"tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`. {path} has {found or 'none'}: "
        "set saved_model_tags",
        code=Code.NOT_FOUND,
    )


def has_saved_model(path: Path) -> bool:
    """Whether a version directory holds a SavedModel; a directory with a TFLite model alone does not."""
    return any(file.is_file() for file in _files(path))


def _files(path: Path) -> tuple[Path, Path]:
    return path / "saved_model.pb", path / "saved_model.pbtxt"


def _read(path: Path) -> SavedModel:
    saved_model = SavedModel()
    binary, text = _files(path)
    try:
        if binary.is_file():
            saved_model.ParseFromString(binary.read_bytes())
        elif text.is_file():
            text_format.Parse(text.read_text(), saved_model)
        else:
            raise _absent(path)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise LoadError(
            f"{binary if binary.is_file() else text} is not a SavedModel, or only a part of one: {error}. "
            "Copy it again, or export the model again",
            code=Code.DATA_LOSS,
        ) from None
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error}", code=Code.FAILED_PRECONDITION) from None
    return saved_model


def _absent(path: Path) -> LoadError:
    if (path / "export.meta").exists():
        return LoadError(
            f"Session Bundle is deprecated and removed. {path} holds an export.meta: export the model as a SavedModel",
            code=Code.UNIMPLEMENTED,
        )
    hint = ": set prefer_tflite_model to serve its model.tflite" if (path / "model.tflite").exists() else ""
    found = "is not a directory" if path.exists() and not path.is_dir() else "does not exist"
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        found = f"holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "is empty"
    return LoadError(
        "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
        f"`saved_model.pb`)\nSpecified file path: {path} {found}{hint}",
        code=Code.NOT_FOUND,
    )


def has_object_graph(meta_graph: MetaGraphDef) -> bool:
    """Whether TF2 wrote the model; a TF1 model has only a graph."""
    return bool(meta_graph.HasField("object_graph_def"))


def read_signatures(meta_graph: MetaGraphDef) -> dict[str, Signature]:
    """Every callable signature, by name. The log names each uncallable signature."""
    signatures: dict[str, Signature] = {}
    for name in sorted(meta_graph.signature_def):
        if name in INTERNAL_SIGNATURES:
            continue
        try:
            signatures[name] = _signature(name, meta_graph.signature_def[name])
        except _NotCallableError as error:
            logger.warning("signature %r cannot be called: %s", name, error)
    return signatures


def why_not_callable(name: str, definition: SignatureDef) -> str | None:
    """Why `read_signatures` leaves a `SignatureDef` out; None for a callable signature."""
    if name in INTERNAL_SIGNATURES:
        return "TensorFlow keeps it for itself"
    try:
        _signature(name, definition)
    except _NotCallableError as error:
        return str(error)
    return None


class _NotCallableError(Exception):
    """A signature has an input that is no dense tensor, or has no dense output."""


class _NotDenseError(Exception):
    """An input or output is no dense tensor; the only argument describes the input or output."""


def _signature(name: str, definition: SignatureDef) -> Signature:
    outputs, composites = _outputs(definition.outputs)
    if composites and not outputs:
        raise _NotCallableError("; ".join(f"output {alias!r} is {what}" for alias, what in composites.items()))
    return Signature(
        *(name, _inputs(definition.inputs), outputs, definition.method_name, _defaults(definition)),
        composites=composites,
    )


def _inputs(infos: Mapping[str, TensorInfo]) -> dict[str, TensorSpec]:
    inputs: dict[str, TensorSpec] = {}
    aliases: dict[str, str] = {}
    for alias in sorted(infos):
        try:
            spec = inputs[alias] = _spec(alias, infos[alias])
        except _NotDenseError as error:
            raise _NotCallableError(f"input {alias!r} is {error}, and only dense tensors can be sent") from None
        first = aliases.setdefault(spec.tensor_name, alias)
        if first != alias:
            raise _NotCallableError(
                f"inputs {first!r} and {alias!r} are the same tensor {spec.tensor_name!r}, which takes one value"
            )
    return inputs


def _outputs(infos: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorSpec], dict[str, Composite]]:
    """Dense outputs by alias with the parts of composite outputs by tensor name, and the composite outputs by alias."""
    dense: dict[str, TensorSpec] = {}
    parts: dict[str, TensorSpec] = {}
    composites: dict[str, Composite] = {}
    for alias in sorted(infos):
        info = infos[alias]
        try:
            if info.WhichOneof("encoding") in ("coo_sparse", "composite_tensor"):
                found = [(word, _spec(part.name, part)) for word, part in _parts(info)]
                parts |= {spec.tensor_name: dataclasses.replace(spec, name=spec.tensor_name) for _, spec in found}
                composites[alias] = Composite(_kind(info), tuple((word, spec.tensor_name) for word, spec in found))
            else:
                dense[alias] = _spec(alias, info)
        except _NotDenseError as error:
            composites[alias] = Composite(str(error))
    return dict(sorted((parts | dense).items())), composites


def _parts(info: TensorInfo) -> list[tuple[str, TensorInfo]]:
    """The dense tensors of a composite tensor as `TensorInfo`s, in the order of TensorFlow's flattening."""
    if info.WhichOneof("encoding") == "coo_sparse":
        sparse, shape = info.coo_sparse, info.tensor_shape
        rank = -1 if shape.unknown_rank else len(shape.dim)
        return [
            ("indices", _info(sparse.indices_tensor_name, _INT64, [-1, rank])),
            ("values", _info(sparse.values_tensor_name, info.dtype, [-1])),
            ("dense_shape", _info(sparse.dense_shape_tensor_name, _INT64, [rank])),
        ]
    components = info.composite_tensor.components
    words = [f"component {i}" for i in range(len(components))]
    if info.composite_tensor.type_spec.type_spec_class == TypeSpecProto.RAGGED_TENSOR_SPEC:
        splits = [f"row_splits_{i}" for i in range(len(components) - 1)]
        words = ["flat_values", *(splits if len(splits) > 1 else ["row_splits"])][: len(components)]
    return list(zip(words, components, strict=True))


def _info(name: str, dtype: int, sizes: Iterable[int]) -> TensorInfo:
    info = TensorInfo(name=name, dtype=dtype)
    for size in sizes:
        info.tensor_shape.dim.add(size=size)
    return info


def _kind(info: TensorInfo) -> str:
    """The kind of a composite tensor, in words."""
    if info.WhichOneof("encoding") == "coo_sparse":
        return "a sparse tensor"
    spec = info.composite_tensor.type_spec
    if spec.type_spec_class == TypeSpecProto.RAGGED_TENSOR_SPEC:
        return "a ragged tensor"
    return f"a composite tensor ({spec.type_spec_class_name or 'of unknown class'})"


def _spec(alias: str, info: TensorInfo) -> TensorSpec:
    encoding = info.WhichOneof("encoding")
    if encoding != "name":
        raise _NotDenseError(_kind(info) if encoding else "a tensor without a name")
    try:
        dtype = dtypes.by_number(info.dtype)
    except KeyError:
        raise _NotDenseError(f"a tensor of dtype number {info.dtype}, which is unknown here") from None
    if dtype.name in _UNFEEDABLE:
        raise _NotDenseError(f"a {dtype.name}, which has no values")
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else int(dim.size) for dim in info.tensor_shape.dim)
    # TensorFlow's C++ reads a name without an index as the first output of the operation.
    return TensorSpec(alias, dtype, shape, info.name if ":" in info.name else f"{info.name}:0")


def _defaults(definition: SignatureDef) -> dict[str, Array]:
    defaults: dict[str, Array] = {}
    for alias in sorted(definition.defaults):
        if alias not in definition.inputs:
            continue
        try:
            defaults[alias] = proto.decode(definition.defaults[alias], alias)
        except ServingError as error:
            raise _NotCallableError(f"the default of {alias!r} cannot be read: {error}") from None
    return defaults
