"""The messages of `inference.GRPCInferenceService`, built at run time from a table of their fields.

A separate descriptor pool holds the messages under the original names, so that a client's generated classes in the
same process never clash. Only fields that are read or written are in the table: further fields are ignored, as protobuf
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

__all__ = ["PACKAGE", "SERVICE", "message_class", "message_pool"]

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_FILE = "embedserve/open_inference.proto"

# Message → "name type number" per field. `*` marks a repeated field, `{}` a map from strings, and fields after `|` are
# the choices of a oneof. A dot in a message's name nests the message.
_PARAMETER = "bool_param bool 1, int64_param int64 2, string_param string 3"
_TENSOR = "name string 1, datatype string 2, shape *int64 3"
_INDEX = "name string 1, version string 2"
_CHANGE = "repository_name string 1, model_name string 2, parameters {}ModelRepositoryParameter 3"
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live bool 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready bool 1",
    "ModelReadyRequest": _INDEX,
    "ModelReadyResponse": "ready bool 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_INDEX}, extensions *string 3",
    "ModelMetadataRequest": _INDEX,
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelMetadataResponse": (
        "name string 1, versions *string 2, platform string 3, inputs *ModelMetadataResponse.TensorMetadata 4, "
        "outputs *ModelMetadataResponse.TensorMetadata 5"
    ),
    "InferParameter": f"| {_PARAMETER}, double_param double 4, uint64_param uint64 5",
    "InferTensorContents": (
        "bool_contents *bool 1, int_contents *int32 2, int64_contents *int64 3, uint_contents *uint32 4, "
        "uint64_contents *uint64 5, fp32_contents *float 6, fp64_contents *double 7, bytes_contents *bytes 8"
    ),
    "ModelInferRequest.InferInputTensor": f"{_TENSOR}, parameters {{}}InferParameter 4, contents InferTensorContents 5",
    "ModelInferRequest.InferRequestedOutputTensor": "name string 1, parameters {}InferParameter 2",
    "ModelInferRequest": (
        "model_name string 1, model_version string 2, id string 3, parameters {}InferParameter 4, "
        "inputs *ModelInferRequest.InferInputTensor 5, outputs *ModelInferRequest.InferRequestedOutputTensor 6, "
        "raw_input_contents *bytes 7"
    ),
    "ModelInferResponse.InferOutputTensor": (
        f"{_TENSOR}, parameters {{}}InferParameter 4, contents InferTensorContents 5"
    ),
    "ModelInferResponse": (
        "model_name string 1, model_version string 2, id string 3, parameters {}InferParameter 4, "
        "outputs *ModelInferResponse.InferOutputTensor 5, raw_output_contents *bytes 6"
    ),
    "ModelStreamInferResponse": "error_message string 1, infer_response ModelInferResponse 2",
    "ModelConfigRequest": _INDEX,
    "ModelConfigResponse": "config ModelConfig 1",
    "ModelInput": "name string 1, data_type DataType 2, dims *int64 4, optional bool 8",
    "ModelOutput": "name string 1, data_type DataType 2, dims *int64 3",
    "ModelDynamicBatching": "preferred_batch_size *int32 1, max_queue_delay_microseconds uint64 2",
    "ModelConfig": (
        "name string 1, platform string 2, backend string 17, max_batch_size int32 4, input *ModelInput 5, "
        "output *ModelOutput 6, | dynamic_batching ModelDynamicBatching 11"
    ),
    "ModelStatisticsRequest": _INDEX,
    "StatisticDuration": "count uint64 1, ns uint64 2",
    "InferStatistics": (
        "success StatisticDuration 1, fail StatisticDuration 2, queue StatisticDuration 3, "
        "compute_input StatisticDuration 4, compute_infer StatisticDuration 5, compute_output StatisticDuration 6, "
        "cache_hit StatisticDuration 7, cache_miss StatisticDuration 8"
    ),
    "InferResponseStatistics": (
        "compute_infer StatisticDuration 1, compute_output StatisticDuration 2, success StatisticDuration 3, "
        "fail StatisticDuration 4, empty_response StatisticDuration 5, cancel StatisticDuration 6"
    ),
    "InferBatchStatistics": (
        "batch_size uint64 1, compute_input StatisticDuration 2, compute_infer StatisticDuration 3, "
        "compute_output StatisticDuration 4"
    ),
    "MemoryUsage": "type string 1, id int64 2, byte_size uint64 3",
    "ModelStatistics": (
        f"{_INDEX}, last_inference uint64 3, inference_count uint64 4, execution_count uint64 5, "
        "inference_stats InferStatistics 6, batch_stats *InferBatchStatistics 7, memory_usage *MemoryUsage 8, "
        "response_stats {}InferResponseStatistics 9"
    ),
    "ModelStatisticsResponse": "model_stats *ModelStatistics 1",
    "ModelRepositoryParameter": f"| {_PARAMETER}, bytes_param bytes 4",
    "RepositoryIndexRequest": "repository_name string 1, ready bool 2",
    "RepositoryIndexResponse.ModelIndex": f"{_INDEX}, state string 3, reason string 4",
    "RepositoryIndexResponse": "models *RepositoryIndexResponse.ModelIndex 1",
    "RepositoryModelLoadRequest": _CHANGE,
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": _CHANGE,
    "RepositoryModelUnloadResponse": "",
}
_DATA_TYPES = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"

RPCS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelStreamInfer"),
    *("ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)
_STREAMING = "ModelStreamInfer"

_SCALARS: Mapping[str, FieldDescriptorProto.Type.ValueType] = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name=_FILE, package=PACKAGE, syntax="proto3")
    data_type = file.enum_type.add(name="DataType")
    for number, name in enumerate(_DATA_TYPES.split()):
        data_type.value.add(name=f"TYPE_{name}", number=number)
    made: dict[str, DescriptorProto] = {}
    for name in sorted(_MESSAGES):  # A message comes before the messages inside.
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        _add_fields(made[name], f".{PACKAGE}.{name}", _MESSAGES[name])
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for rpc in RPCS:
        request = "ModelInfer" if rpc == _STREAMING else rpc
        method = service.method.add(name=rpc, input_type=f".{PACKAGE}.{request}Request")
        method.output_type = f".{PACKAGE}.{rpc}Response"
        method.client_streaming = method.server_streaming = rpc == _STREAMING
    return file


def _add_fields(message: DescriptorProto, full_name: str, fields: str) -> None:
    plain, _, choices = fields.partition("| ")
    for text in filter(None, plain.split(", ")):
        _add_field(message, full_name, text)
    if choices:
        message.oneof_decl.add(name="choice")
        for text in choices.split(", "):
            _add_field(message, full_name, text).oneof_index = 0


def _add_field(message: DescriptorProto, full_name: str, text: str) -> FieldDescriptorProto:
    name, kind, number = text.split()
    if kind.startswith("{}"):
        entry = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        nested = message.nested_type.add(name=entry)
        nested.options.map_entry = True
        _add_field(nested, "", "key string 1")
        _add_field(nested, "", f"value {kind[2:]} 2")
        added = message.field.add(name=name, number=int(number), type=FieldDescriptorProto.TYPE_MESSAGE)
        added.label, added.type_name = FieldDescriptorProto.LABEL_REPEATED, f"{full_name}.{entry}"
        return added
    repeated = kind.startswith("*")
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    added = message.field.add(name=name, number=int(number), label=label)
    kind = kind.removeprefix("*")
    if kind in _SCALARS:
        added.type = _SCALARS[kind]
    else:
        added.type = FieldDescriptorProto.TYPE_ENUM if kind == "DataType" else FieldDescriptorProto.TYPE_MESSAGE
        added.type_name = f".{PACKAGE}.{kind}"
    return added


@cache
def message_pool() -> DescriptorPool:
    """The pool with every message and the service."""
    pool = DescriptorPool()
    pool.AddSerializedFile(_file().SerializeToString())
    return pool


@cache
def message_class(name: str) -> type[Message]:
    """The message class of a name in the package.

    Raises:
        KeyError: The protocol has no message of the name.
    """
    return GetMessageClass(message_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
