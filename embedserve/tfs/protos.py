"""TensorFlow Serving's configuration messages missing from the tensorflow-serving-api package, built at run time.

A separate descriptor pool holds the messages under the original names (package `tensorflow.serving`). The messages
therefore never clash with another package's, and parse errors show the names that users know. The module knows no
meaning of any message.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import TypeVar

from google.protobuf import any_pb2, text_format, wrappers_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from embedserve.errors import Code, ConfigError

__all__ = ["message_class", "message_pool", "read_text_proto"]

logger = logging.getLogger("embedserve")

M = TypeVar("M", bound=Message)

PACKAGE = "tensorflow.serving"

# Message → "name type number" per field; `*` marks a repeated field. A type is a scalar, a message of the table, a
# well-known message (`Any`, `Int64Value`...) or a full name with a leading dot.
_LIGHT = {
    "PrometheusConfig": "enable bool 1, path string 2",
    "MonitoringConfig": "prometheus_config PrometheusConfig 1",
    "SSLConfig": "server_key string 1, server_cert string 2, custom_ca string 3, client_verify bool 4",
    "BatchingParameters": (
        "max_batch_size Int64Value 1, batch_timeout_micros Int64Value 2, max_enqueued_batches Int64Value 3, "
        "num_batch_threads Int64Value 4, thread_pool_name StringValue 5, allowed_batch_sizes *int64 6, "
        "pad_variable_length_inputs bool 7, enable_large_batch_splitting BoolValue 8, "
        "max_execution_batch_size Int64Value 9"
    ),
    "ModelWarmupOptions": (
        "num_request_iterations Int32Value 1, num_model_warmup_threads Int32Value 2, model_name string 3, "
        "model_version int64 4, enable_all_batch_sizes_warmup bool 5"
    ),
    "ThreadPoolFactoryConfig": "thread_pool_factory_config Any 1",
    # The fields belong to graph rewriters of TensorFlow Serving's own build; the fields stay unknown here.
    "RemoteOpRemapConfig": "",
    "BatchOpRewriteConfig": "",
    "RuntimeConfigProto": "",
    "SessionOverrides": (
        "remote_op_remap_config RemoteOpRemapConfig 1, batch_op_rewriter_config BatchOpRewriteConfig 2, "
        "disable_meta_optimizer bool 3"
    ),
    "SavedModelConfig": (
        "session_overrides SessionOverrides 1, tfrt_runtime_config RuntimeConfigProto 2, critical bool 3"
    ),
}

# Messages with parts from TensorFlow's modules; the modules import TensorFlow, so the messages are built on demand.
_HEAVY = {
    "BatchingOptions": "",
    "SessionBundleConfig": (
        "session_target string 1, session_config .tensorflow.ConfigProto 2, batching_parameters BatchingParameters 3, "
        "session_run_load_threadpool_index Int32Value 4, experimental_transient_ram_bytes_during_load uint64 5, "
        "saved_model_tags *string 6, in_graph_batching_parameters BatchingOptions 7, "
        "experimental_fixed_input_tensors *.tensorflow.NamedTensorProto 778, enable_model_warmup bool 779, "
        "model_warmup_options ModelWarmupOptions 780, enable_session_metadata bool 781, "
        "remove_unused_fields_from_bundle_metagraph bool 782, prefer_tflite_model bool 783, "
        "resource_estimation_uses_validation_result bool 784, num_tflite_interpreters int32 785, "
        "num_tflite_interpreters_per_pool int32 786, num_tflite_pools int32 787, "
        "wrap_session_with_no_threading_params bool 788, enable_per_model_batching_params bool 789, "
        "enable_saved_model_config bool 790, mixed_precision string 791"
    ),
    "SavedModelBundleSourceAdapterConfig": "legacy_config SessionBundleConfig 1000",
}

_LIGHT_FILE = "embedserve/tensorflow_serving_config.proto"
_HEAVY_FILE = "embedserve/tensorflow_serving_session.proto"
_WELL_KNOWN = {"Any", "BoolValue", "Int32Value", "Int64Value", "StringValue"}
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}
_PARSE_ERROR = re.compile(r"(\d+):(\d+) : (.*)", re.DOTALL)
_ERRNO_CODES = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.EISDIR: Code.FAILED_PRECONDITION,
    errno.ENOTDIR: Code.FAILED_PRECONDITION,
}


def _file(name: str, messages: dict[str, str], dependencies: list[str]) -> FileDescriptorProto:
    file = FileDescriptorProto(name=name, package=PACKAGE, syntax="proto3", dependency=dependencies)
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for field in filter(None, fields.split(", ")):
            field_name, kind, number = field.split(" ")
            added = message.field.add(name=field_name, number=int(number))
            added.label = FieldDescriptorProto.LABEL_REPEATED if kind[0] == "*" else FieldDescriptorProto.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
                continue
            added.type = FieldDescriptorProto.TYPE_MESSAGE
            if kind.startswith("."):
                added.type_name = kind
            else:
                added.type_name = f".google.protobuf.{kind}" if kind in _WELL_KNOWN else f".{PACKAGE}.{kind}"
    return file


def _add_with_dependencies(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """Copy a compiled file and all imported files into `pool`."""
    if file.name in added:
        return
    for dependency in file.dependencies:
        _add_with_dependencies(pool, dependency, added)
    pool.AddSerializedFile(file.serialized_pb)
    added.add(file.name)


@cache
def _light_pool() -> tuple[DescriptorPool, set[str]]:
    pool, added = DescriptorPool(), set[str]()
    for well_known in (any_pb2.DESCRIPTOR, wrappers_pb2.DESCRIPTOR):
        _add_with_dependencies(pool, well_known, added)
    pool.Add(_file(_LIGHT_FILE, _LIGHT, [any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name]))
    return pool, added


@cache
def message_pool() -> DescriptorPool:
    """The pool with every message; imports TensorFlow. The text-format parser needs the pool to expand an `Any`."""
    from tensorflow.core.protobuf import config_pb2, named_tensor_pb2

    pool, added = _light_pool()
    tensorflow_files = (config_pb2.DESCRIPTOR, named_tensor_pb2.DESCRIPTOR)
    for file in tensorflow_files:
        _add_with_dependencies(pool, file, added)
    dependencies = [wrappers_pb2.DESCRIPTOR.name, _LIGHT_FILE, *(file.name for file in tensorflow_files)]
    pool.Add(_file(_HEAVY_FILE, _HEAVY, dependencies))
    return pool


@cache
def message_class(name: str) -> type[Message]:
    """The message class with the given short name, for instance `BatchingParameters`.

    Raises:
        KeyError: The module has no message of the name.
    """
    pool = _light_pool()[0] if name in _LIGHT else message_pool()
    return GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def read_text_proto(path: str | os.PathLike[str], message: M, *, expand_any: bool = False) -> M:
    """Parse the text-format file at `path` into `message` and return `message`.

    Args:
        path: The file.
        message: An empty message; the full name appears in the log of a parse error.
        expand_any: Let `[type.googleapis.com/...] { }` name any message of the module; imports TensorFlow.

    Raises:
        ConfigError: The file cannot be read (the file system's code), or does not parse (INVALID_ARGUMENT; the place
            and the reason are logged).
    """
    try:
        text = Path(path).read_bytes().decode()
        text_format.Parse(text, message, descriptor_pool=message_pool() if expand_any else None)
    except OSError as error:
        code = _ERRNO_CODES.get(error.errno or 0, Code.UNKNOWN)
        raise ConfigError(f"{os.fspath(path)}; {error.strerror}", code=code) from None
    except (text_format.ParseError, DecodeError, UnicodeDecodeError) as error:
        found = _PARSE_ERROR.match(str(error))
        detail = f"{found[1]}:{found[2]}: {found[3]}" if found else f"1:1: {error}"
        logger.error("Error parsing text-format %s: %s", message.DESCRIPTOR.full_name, detail)
        raise ConfigError(f"Invalid protobuf file: '{os.fspath(path)}'") from None
    return message
