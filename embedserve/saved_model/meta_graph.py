"""What `saved_model.pb` says before TensorFlow loads it: the MetaGraph of a tag set, and its signatures.

Called by the loader. Error words are those of TensorFlow Serving's loader (`saved_model/loader.cc`, `reader.cc`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from embedserve.errors import Code, LoadError, ServingError
from embedserve.servable import Array
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors import dtypes, proto

__all__ = [
    "INTERNAL_SIGNATURES",
    "has_object_graph",
    "has_saved_model",
    "read_meta_graph",
    "read_signatures",
    "warmup_file",
]

logger = logging.getLogger("embedserve")

INTERNAL_SIGNATURES = frozenset({"__saved_model_init_op", "__saved_model_train_op"})
"""Keys TensorFlow uses for itself; listed in metadata, never callable."""

_UNFEEDABLE = frozenset({"resource", "variant"})


def warmup_file(path: Path) -> Path:
    """Where a version directory keeps recorded warm-up requests."""
    return path / "assets.extra" / "tf_serving_warmup_requests"


def read_meta_graph(path: Path, tags: Iterable[str]) -> Any:
    """The `MetaGraphDef` of exactly this tag set.

    Raises:
        LoadError: No SavedModel, not readable, or no such tag set.
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
    """Whether a version directory holds a SavedModel; one for TensorFlow Lite alone does not."""
    return any(file.is_file() for file in _files(path))


def _files(path: Path) -> tuple[Path, Path]:
    return path / "saved_model.pb", path / "saved_model.pbtxt"


def _read(path: Path) -> Any:
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


def has_object_graph(meta_graph: Any) -> bool:
    """Whether TF2 wrote the model; a TF1 one has a graph and nothing else."""
    return bool(meta_graph.HasField("object_graph_def"))


def read_signatures(meta_graph: Any) -> dict[str, Signature]:
    """Every signature that can be called, by name. What cannot be is left out and logged."""
    signatures: dict[str, Signature] = {}
    for name in sorted(meta_graph.signature_def):
        if name in INTERNAL_SIGNATURES:
            continue
        definition = meta_graph.signature_def[name]
        try:
            signatures[name] = Signature(
                name,
                _specs(definition.inputs),
                _specs(definition.outputs),
                definition.method_name,
                _defaults(definition),
            )
        except _NotCallableError as error:
            logger.warning("signature %r cannot be called: %s", name, error)
    return signatures


class _NotCallableError(Exception):
    """A signature takes or gives something that is no dense tensor."""


def _specs(tensors: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {alias: _spec(alias, tensors[alias]) for alias in sorted(tensors)}


def _spec(alias: str, info: Any) -> TensorSpec:
    encoding = info.WhichOneof("encoding")
    if encoding != "name":
        raise _NotCallableError(f"{alias!r} is no dense tensor ({encoding or 'it has no name'})")
    try:
        dtype = dtypes.by_number(info.dtype)
    except KeyError:
        raise _NotCallableError(f"{alias!r} has dtype number {info.dtype}, which is unknown here") from None
    if dtype.name in _UNFEEDABLE:
        raise _NotCallableError(f"{alias!r} is a {dtype.name}, which has no values")
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else int(dim.size) for dim in info.tensor_shape.dim)
    return TensorSpec(alias, dtype, shape, info.name)


def _defaults(definition: Any) -> dict[str, Array]:
    defaults: dict[str, Array] = {}
    for alias in sorted(definition.defaults):
        if alias not in definition.inputs:
            continue
        try:
            defaults[alias] = proto.decode(definition.defaults[alias], alias)
        except ServingError as error:
            raise _NotCallableError(f"the default of {alias!r} cannot be read: {error}") from None
    return defaults
