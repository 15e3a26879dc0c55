"""TensorFlow Serving's messages in a descriptor pool of their own, under their own full names, without TensorFlow.

A pool of its own keeps the messages apart from the classes of TensorFlow and tensorflow-serving-api in one process.
Messages of the two sorts exchange bytes. The tables are compared with the official descriptors by a test.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["FILES", "SERVICES", "enums_of", "message_class", "messages_of", "pool"]

_TF, _TFS = "tensorflow", "tensorflow.serving"

# File → package and messages. A message is "field type number" by field: `*` marks a repeated field, `name/` before the
# type a oneof, `a>b` a map. A type is a scalar, a message's name within the package, or a full name after a dot.
FILES: dict[str, tuple[str, dict[str, str]]] = {
    "tensorflow/core/framework/tensor_shape.proto": (
        _TF,
        {
            "TensorShapeProto": "dim *TensorShapeProto.Dim 2, unknown_rank bool 3",
            "TensorShapeProto.Dim": "size int64 1, name string 2",
        },
    ),
    "tensorflow/core/framework/types.proto": (_TF, {}),
    "tensorflow/core/framework/resource_handle.proto": (
        _TF,
        {
            "ResourceHandleProto": (
                "device string 1, container string 2, name string 3, hash_code uint64 4, maybe_type_name string 5, "
                "dtypes_and_shapes *ResourceHandleProto.DtypeAndShape 6"
            ),
            "ResourceHandleProto.DtypeAndShape": "dtype DataType 1, shape TensorShapeProto 2",
        },
    ),
    "tensorflow/core/framework/tensor.proto": (
        _TF,
        {
            "TensorProto": (
                "dtype DataType 1, tensor_shape TensorShapeProto 2, version_number int32 3, tensor_content bytes 4, "
                "half_val *int32 13, float_val *float 5, double_val *double 6, int_val *int32 7, string_val *bytes 8, "
                "scomplex_val *float 9, int64_val *int64 10, bool_val *bool 11, dcomplex_val *double 12, "
                "resource_handle_val *ResourceHandleProto 14, variant_val *VariantTensorDataProto 15, "
                "uint32_val *uint32 16, uint64_val *uint64 17, float8_val bytes 18"
            ),
            "VariantTensorDataProto": "type_name string 1, metadata bytes 2, tensors *TensorProto 3",
        },
    ),
    "tensorflow/core/example/feature.proto": (
        _TF,
        {
            "BytesList": "value *bytes 1",
            "FloatList": "value *float 1",
            "Int64List": "value *int64 1",
            "Feature": "bytes_list kind/BytesList 1, float_list kind/FloatList 2, int64_list kind/Int64List 3",
            "Features": "feature string>Feature 1",
            "FeatureList": "feature *Feature 1",
            "FeatureLists": "feature_list string>FeatureList 1",
        },
    ),
    "tensorflow/core/example/example.proto": (
        _TF,
        {
            "Example": "features Features 1",
            "SequenceExample": "context Features 1, feature_lists FeatureLists 2",
        },
    ),
    # The composite tensors of TensorInfo stay unknown fields.
    "tensorflow/core/protobuf/meta_graph.proto": (
        _TF,
        {
            "TensorInfo": (
                "name encoding/string 1, coo_sparse encoding/TensorInfo.CooSparse 4, dtype DataType 2, "
                "tensor_shape TensorShapeProto 3"
            ),
            "TensorInfo.CooSparse": (
                "values_tensor_name string 1, indices_tensor_name string 2, dense_shape_tensor_name string 3"
            ),
            "SignatureDef": (
                "inputs string>TensorInfo 1, outputs string>TensorInfo 2, method_name string 3, "
                "defaults string>TensorProto 4"
            ),
        },
    ),
    "tensorflow_serving/apis/input.proto": (
        _TFS,
        {
            "ExampleList": "examples *.tensorflow.Example 1",
            "ExampleListWithContext": "examples *.tensorflow.Example 1, context .tensorflow.Example 2",
            "Input": "example_list kind/ExampleList 1, example_list_with_context kind/ExampleListWithContext 2",
        },
    ),
    "tensorflow_serving/apis/model.proto": (
        _TFS,
        {
            "ModelSpec": (
                "name string 1, version version_choice/.google.protobuf.Int64Value 2, "
                "version_label version_choice/string 4, signature_name string 3"
            )
        },
    ),
    # The options of streams are absent: the service has no such method, and the fields stay unknown.
    "tensorflow_serving/apis/predict.proto": (
        _TFS,
        {
            "PredictRequest": (
                "model_spec ModelSpec 1, inputs string>.tensorflow.TensorProto 2, output_filter *string 3"
            ),
            "PredictResponse": "model_spec ModelSpec 2, outputs string>.tensorflow.TensorProto 1",
        },
    ),
    "tensorflow_serving/apis/classification.proto": (
        _TFS,
        {
            "Class": "label string 1, score float 2",
            "Classifications": "classes *Class 1",
            "ClassificationResult": "classifications *Classifications 1",
            "ClassificationRequest": "model_spec ModelSpec 1, input Input 2",
            "ClassificationResponse": "model_spec ModelSpec 2, result ClassificationResult 1",
        },
    ),
    "tensorflow_serving/apis/regression.proto": (
        _TFS,
        {
            "Regression": "value float 1",
            "RegressionResult": "regressions *Regression 1",
            "RegressionRequest": "model_spec ModelSpec 1, input Input 2",
            "RegressionResponse": "model_spec ModelSpec 2, result RegressionResult 1",
        },
    ),
    "tensorflow_serving/apis/inference.proto": (
        _TFS,
        {
            "InferenceTask": "model_spec ModelSpec 1, method_name string 2",
            "InferenceResult": (
                "model_spec ModelSpec 1, classification_result result/ClassificationResult 2, "
                "regression_result result/RegressionResult 3"
            ),
            "MultiInferenceRequest": "tasks *InferenceTask 1, input Input 2",
            "MultiInferenceResponse": "results *InferenceResult 1",
        },
    ),
    "tensorflow_serving/apis/get_model_metadata.proto": (
        _TFS,
        {
            "SignatureDefMap": "signature_def string>.tensorflow.SignatureDef 1",
            "GetModelMetadataRequest": "model_spec ModelSpec 1, metadata_field *string 2",
            "GetModelMetadataResponse": "model_spec ModelSpec 1, metadata string>.google.protobuf.Any 2",
        },
    ),
    "tensorflow_serving/apis/status.proto": (
        _TFS,
        {"StatusProto": "error_code .tensorflow.error.Code 1, error_message string 2"},
    ),
    "tensorflow_serving/apis/get_model_status.proto": (
        _TFS,
        {
            "GetModelStatusRequest": "model_spec ModelSpec 1",
            "ModelVersionStatus": "version int64 1, state ModelVersionStatus.State 2, status StatusProto 3",
            "GetModelStatusResponse": "model_version_status *ModelVersionStatus 1",
        },
    ),
    "tensorflow_serving/config/file_system_storage_path_source.proto": (
        _TFS,
        {
            "FileSystemStoragePathSourceConfig": (
                "servables *FileSystemStoragePathSourceConfig.ServableToMonitor 5, "
                "file_system_poll_wait_seconds int64 3, fail_if_zero_versions_at_startup bool 4, "
                "servable_versions_always_present bool 6"
            ),
            "FileSystemStoragePathSourceConfig.ServableVersionPolicy": (
                "latest policy_choice/FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest 100, "
                "all policy_choice/FileSystemStoragePathSourceConfig.ServableVersionPolicy.All 101, "
                "specific policy_choice/FileSystemStoragePathSourceConfig.ServableVersionPolicy.Specific 102"
            ),
            "FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest": "num_versions uint32 1",
            "FileSystemStoragePathSourceConfig.ServableVersionPolicy.All": "",
            "FileSystemStoragePathSourceConfig.ServableVersionPolicy.Specific": "versions *int64 1",
            "FileSystemStoragePathSourceConfig.ServableToMonitor": (
                "servable_name string 1, base_path string 2, "
                "servable_version_policy FileSystemStoragePathSourceConfig.ServableVersionPolicy 4"
            ),
        },
    ),
    "tensorflow_serving/config/log_collector_config.proto": (
        _TFS,
        {"LogCollectorConfig": "type string 1, filename_prefix string 2"},
    ),
    "tensorflow_serving/config/logging_config.proto": (
        _TFS,
        {
            "SamplingConfig": "sampling_rate double 1",
            "LoggingConfig": "log_collector_config LogCollectorConfig 1, sampling_config SamplingConfig 2",
        },
    ),
    "tensorflow_serving/config/model_server_config.proto": (
        _TFS,
        {
            "ModelConfig": (
                "name string 1, base_path string 2, model_type ModelType 3, model_platform string 4, "
                "model_version_policy FileSystemStoragePathSourceConfig.ServableVersionPolicy 7, "
                "version_labels string>int64 8, logging_config LoggingConfig 6"
            ),
            "ModelConfigList": "config *ModelConfig 1",
            "ModelServerConfig": (
                "model_config_list config/ModelConfigList 1, custom_model_config config/.google.protobuf.Any 2"
            ),
        },
    ),
    "tensorflow_serving/apis/model_management.proto": (
        _TFS,
        {
            "ReloadConfigRequest": "config ModelServerConfig 1, metric_names *string 2",
            "ReloadConfigResponse": "status StatusProto 1, metric *Metric 2",
            "Metric": "name string 1, int64_value_increase value_increase/int64 2",
        },
    ),
}

_CODES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
)
_DATA_TYPES = (
    "INVALID FLOAT DOUBLE INT32 UINT8 INT16 INT8 STRING COMPLEX64 INT64 BOOL QINT8 QUINT8 QINT32 BFLOAT16 QINT16 "
    "QUINT16 UINT16 COMPLEX128 HALF RESOURCE VARIANT UINT32 UINT64 FLOAT8_E5M2 FLOAT8_E4M3FN FLOAT8_E4M3FNUZ "
    "FLOAT8_E4M3B11FNUZ FLOAT8_E5M2FNUZ INT4 UINT4 INT2 UINT2"
)
_ERROR_FILE = "xla/tsl/protobuf/error_codes.proto"


def _data_types() -> dict[str, int]:
    names = _DATA_TYPES.split()
    plain = {f"DT_{name}": number for number, name in enumerate(names)}
    return plain | {f"DT_{name}_REF": 100 + number for number, name in enumerate(names) if number}


# Enum by full name: its file, and the numbers of its values.
_ENUMS: dict[str, tuple[str, dict[str, int]]] = {
    "tensorflow.DataType": ("tensorflow/core/framework/types.proto", _data_types()),
    "tensorflow.error.Code": (_ERROR_FILE, {name: number for number, name in enumerate(_CODES.split())}),
    "tensorflow.serving.ModelVersionStatus.State": (
        "tensorflow_serving/apis/get_model_status.proto",
        {"UNKNOWN": 0, "START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50},
    ),
    "tensorflow.serving.ModelType": (
        "tensorflow_serving/config/model_server_config.proto",
        {"MODEL_TYPE_UNSPECIFIED": 0, "TENSORFLOW": 1, "OTHER": 2},
    ),
}

# Service → method → request and response, all in the package `tensorflow.serving`.
SERVICES: dict[str, dict[str, tuple[str, str]]] = {
    "PredictionService": {
        "Classify": ("ClassificationRequest", "ClassificationResponse"),
        "Regress": ("RegressionRequest", "RegressionResponse"),
        "Predict": ("PredictRequest", "PredictResponse"),
        "MultiInference": ("MultiInferenceRequest", "MultiInferenceResponse"),
        "GetModelMetadata": ("GetModelMetadataRequest", "GetModelMetadataResponse"),
    },
    "ModelService": {
        "GetModelStatus": ("GetModelStatusRequest", "GetModelStatusResponse"),
        "HandleReloadConfigRequest": ("ReloadConfigRequest", "ReloadConfigResponse"),
    },
}

_Field = FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


def _full(kind: str, package: str) -> str:
    return kind if kind.startswith(".") else f".{package}.{kind}"


def _set_type(field: FieldDescriptorProto, kind: str, package: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    field.type_name = _full(kind, package)
    field.type = _Field.TYPE_ENUM if field.type_name[1:] in _ENUMS else _Field.TYPE_MESSAGE


def _add_field(message: DescriptorProto, path: str, text: str, package: str) -> None:
    name, kind, number = text.split(" ")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.startswith("*"):
        field.label = _Field.LABEL_REPEATED
        kind = kind[1:]
    elif "/" in kind:
        oneof, _, kind = kind.partition("/")
        names = [one.name for one in message.oneof_decl]
        if oneof not in names:
            message.oneof_decl.add(name=oneof)
            names.append(oneof)
        field.oneof_index = names.index(oneof)
    elif ">" in kind:
        key, _, value = kind.partition(">")
        entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for number_of, (part, part_kind) in enumerate((("key", key), ("value", value)), start=1):
            _set_type(entry.field.add(name=part, number=number_of, label=_Field.LABEL_OPTIONAL), part_kind, package)
        field.label = _Field.LABEL_REPEATED
        kind = f"{path}.{entry.name}"
    _set_type(field, kind, package)


def _enum(name: str, values: dict[str, int]) -> EnumDescriptorProto:
    found = EnumDescriptorProto(name=name)
    for value, number in values.items():
        found.value.add(name=value, number=number)
    return found


def _file(name: str, package: str, messages: dict[str, str], dependencies: list[str]) -> FileDescriptorProto:
    file = FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=dependencies)
    made: dict[str, DescriptorProto] = {}
    for path, fields in messages.items():
        outer, _, short = path.rpartition(".")
        message = made[path] = made[outer].nested_type.add(name=short) if outer else file.message_type.add(name=short)
        for field in filter(None, fields.split(", ")):
            _add_field(message, path, field, package)
    for full, (of, values) in _ENUMS.items():
        if of == name:
            outer, _, short = full.removeprefix(f"{package}.").rpartition(".")
            (made[outer].enum_type if outer else file.enum_type).append(_enum(short, values))
    return file


@functools.cache
def pool() -> DescriptorPool:
    """The pool with every message; made at first use."""
    found = DescriptorPool()
    names = [any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name, _ERROR_FILE]
    for known in (any_pb2.DESCRIPTOR, wrappers_pb2.DESCRIPTOR):
        found.AddSerializedFile(known.serialized_pb)
    found.Add(_file(_ERROR_FILE, "tensorflow.error", {}, []))
    for name, (package, messages) in FILES.items():
        found.Add(_file(name, package, messages, names))
        names.append(name)
    return found


@functools.cache
def message_class(name: str) -> Any:
    """The class of a message by full name, for instance `tensorflow.serving.PredictRequest`.

    Raises:
        KeyError: The tables have no message of the name.
    """
    return GetMessageClass(pool().FindMessageTypeByName(name))


def messages_of(file: str) -> Iterator[tuple[str, Any]]:
    """The top-level messages of a file: short name and class."""
    package, messages = FILES[file]
    for path in messages:
        if "." not in path:
            yield path, message_class(f"{package}.{path}")


def enums_of(file: str) -> Iterator[tuple[str, dict[str, int]]]:
    """The top-level enums of a file: short name and values."""
    package, _ = FILES[file]
    for full, (of, values) in _ENUMS.items():
        short = full.removeprefix(f"{package}.")
        if of == file and "." not in short:
            yield short, values
