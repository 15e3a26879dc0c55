"""Reads a `model.tflite` before an interpreter loads the file: inputs and outputs, signatures, operations.

Signatures follow TensorFlow Serving (`tflite_session.cc`): `SignatureDef`s in the metadata entry
`signature_defs_metadata`, or a signature made up from the tensors. Error messages follow TensorFlow Serving too.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef

from embedserve.errors import Code, LoadError
from embedserve.saved_model.files.flatbuffer import PastEndError, Table, root
from embedserve.saved_model.files.graph import CALLS_PYTHON, Operations
from embedserve.saved_model.files.meta_graph import read_signatures
from embedserve.signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from embedserve.tensors import dtypes

__all__ = ["FILE_NAME", "TfliteModel", "TfliteTensor", "read_model"]

FILE_NAME = "model.tflite"

_SIGNATURES_ENTRY = b"signature_defs_metadata"
_PREDICT_METHOD = "tensorflow/serving/predict"

# Field numbers of tflite/schema.fbs.
_MODEL_OPERATOR_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS, _MODEL_METADATA = 1, 2, 4, 6
_SUBGRAPH_TENSORS, _SUBGRAPH_INPUTS, _SUBGRAPH_OUTPUTS, _SUBGRAPH_OPERATORS = 0, 1, 2, 3
_CODE_OLD_NUMBER, _CODE_CUSTOM_NAME, _CODE_NUMBER = 0, 1, 3
_OPERATOR_CODE = 0
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME = 0, 1, 2, 3
_TENSOR_IS_VARIABLE, _TENSOR_SHAPE_SIGNATURE, _TENSOR_HAS_RANK = 5, 7, 8
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_BUFFER_DATA = 0

# TensorType of the schema. Resources, variants and numbers of less than a byte are left out, as they have no values
# here.
_DTYPES = dict(enumerate(("float", "half", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8")))
_DTYPES |= {10: "double", 11: "complex128", 12: "uint64", 15: "uint32", 16: "uint16"}


def _operators(text: str) -> dict[int, str]:
    """BuiltinOperator of the schema: number → name."""
    pairs = (entry.split() for entry in text.split(","))
    return {int(number): name for name, number in pairs}


# These operators take any shape, and give an element for an element (design rule 9).
_ELEMENT_WISE = _operators("""
    ADD 0, DEQUANTIZE 6, FLOOR 8, LOGISTIC 14, MUL 18, RELU 19, RELU_N1_TO_1 20, RELU6 21, TANH 28, SUB 41, DIV 42,
    EXP 47, CAST 53, MAXIMUM 55, MINIMUM 57, LESS 58, NEG 59, GREATER 61, GREATER_EQUAL 62, LESS_EQUAL 63, SIN 66,
    EQUAL 71, NOT_EQUAL 72, LOG 73, SQRT 75, RSQRT 76, POW 78, LOGICAL_OR 84, LOGICAL_AND 86, LOGICAL_NOT 87,
    FLOOR_DIV 90, SQUARE 92, FLOOR_MOD 95, LEAKY_RELU 98, SQUARED_DIFFERENCE 99, ABS 101, CEIL 104, COS 108, ELU 111,
    QUANTIZE 114, ROUND 116, HARD_SWISH 117, SELECT_V2 123, GELU 150, RELU_0_TO_1 152, ATAN2 156, SIGN 158
    """)
_RANDOM = _operators("RANDOM_STANDARD_NORMAL 146, RANDOM_UNIFORM 148, MULTINOMIAL 149, STABLEHLO_RNG_BIT_GENERATOR 204")
_WRITES = _operators("ASSIGN_VARIABLE 144")
_LOOPS = _operators("WHILE 119, STABLEHLO_WHILE 200")
_CUSTOM = 32
_STATELESS_CUSTOM = frozenset(("ParseExample", "ParseExampleV2"))


@dataclass(frozen=True, slots=True)
class TfliteTensor:
    """An input or output tensor of a model.

    Attributes:
        index: Index for interpreters.
        name: Name with the suffix `:0` that converters leave.
        dtype: Row of the dtype table.
        shape: Sizes, -1 for an unknown size; None for an unknown rank.
    """

    index: int
    name: str
    dtype: dtypes.DType
    shape: tuple[int, ...] | None

    @property
    def alias(self) -> str:
        """The tensor's name in a made-up signature."""
        return self.name.partition(":")[0]

    def spec(self, alias: str) -> TensorSpec:
        """The tensor in a signature. Inputs are resized along dimension 0, so dimension 0 becomes unknown."""
        shape: tuple[int | None, ...] | None = None
        if self.shape is not None:
            shape = tuple(None if size < 0 or i == 0 else size for i, size in enumerate(self.shape))
        return TensorSpec(alias, self.dtype, shape, self.name)


@dataclass(frozen=True)
class TfliteModel:
    """The contents of a TFLite file.

    Attributes:
        inputs, outputs: Tensors of the first subgraph, in the file's order.
        signature_defs: Every `SignatureDef` by name, stored or made up.
        signatures: The callable signatures, with the dtypes and shapes of the tensors.
        operations: Effects of a run.
        has_variables: Whether some tensor keeps values between runs.
    """

    inputs: tuple[TfliteTensor, ...]
    outputs: tuple[TfliteTensor, ...]
    signature_defs: Mapping[str, SignatureDef]
    signatures: Mapping[str, Signature]
    operations: Operations
    has_variables: bool


def read_model(data: bytes) -> TfliteModel:
    """Read the bytes of a `model.tflite`.

    Raises:
        LoadError: The bytes are no TFLite model, a tensor has an unknown type, or signatures do not fit the tensors.
    """
    try:
        model = root(data)
        graph = next(model.tables(_MODEL_SUBGRAPHS))
        tensors = list(graph.tables(_SUBGRAPH_TENSORS))
        inputs = tuple(_tensor(tensors, index) for index in graph.integers(_SUBGRAPH_INPUTS))
        outputs = tuple(_tensor(tensors, index) for index in graph.integers(_SUBGRAPH_OUTPUTS))
        stored = _stored_signatures(model)
        operations = _operations(model)
        has_variables = any(tensor.number(_TENSOR_IS_VARIABLE, "b") for tensor in tensors)
    except (PastEndError, struct.error, IndexError, StopIteration, UnicodeDecodeError) as error:
        raise LoadError(
            f"Cannot build FlatBufferModel from buffer. {type(error).__name__} while reading its {len(data)} bytes",
            code=Code.INVALID_ARGUMENT,
        ) from None
    definitions = {DEFAULT_SIGNATURE: _made_up_signature(inputs, outputs)} if stored is None else stored
    signatures = {
        name: dataclasses.replace(
            signature,
            inputs=_resolved(signature.inputs, inputs, "input"),
            outputs=_resolved(signature.outputs, outputs, "output"),
        )
        for name, signature in read_signatures(MetaGraphDef(signature_def=definitions)).items()
    }
    return TfliteModel(inputs, outputs, definitions, signatures, operations, has_variables)


def _tensor(tensors: Sequence[Table], index: int) -> TfliteTensor:
    tensor = tensors[index]
    number = tensor.number(_TENSOR_TYPE, "b")
    if number not in _DTYPES:
        raise LoadError(f"Unknown TfLite type: {number}", code=Code.INTERNAL)
    # Tensors of unknown size have -1 in their shape signature, if any, and 1 in their shape.
    shape = tensor.integers(_TENSOR_SHAPE_SIGNATURE) or tensor.integers(_TENSOR_SHAPE)
    ranked = bool(shape) or bool(tensor.number(_TENSOR_HAS_RANK, "b"))
    name = tensor.octets(_TENSOR_NAME).decode()
    return TfliteTensor(index, name, dtypes.by_name(_DTYPES[number]), shape if ranked else None)


def _operations(model: Table) -> Operations:
    """Effects of the operators of all subgraphs; every subgraph counts as called."""
    codes = list(model.tables(_MODEL_OPERATOR_CODES))
    found = Operations()
    for graph in model.tables(_MODEL_SUBGRAPHS):
        for operator in graph.tables(_SUBGRAPH_OPERATORS):
            _look_at(codes[operator.number(_OPERATOR_CODE, "I")], found)
        if found.element_wise:
            buffers = list(model.tables(_MODEL_BUFFERS))
            found.element_wise = not any(_is_large_constant(t, buffers) for t in graph.tables(_SUBGRAPH_TENSORS))
    return found


def _look_at(code: Table, found: Operations) -> None:
    # Numbers over 127 do not fit into the old field; the old field then holds 127.
    number = max(code.number(_CODE_OLD_NUMBER, "b"), code.number(_CODE_NUMBER))
    name = code.octets(_CODE_CUSTOM_NAME).decode("utf-8", "replace")
    if number == _CUSTOM and name not in _STATELESS_CUSTOM:
        found.writes = found.writes or f"custom operation {name} perhaps"
    if number == _CUSTOM and name.removeprefix("Flex") in CALLS_PYTHON:
        found.calls_python = found.calls_python or name.removeprefix("Flex")
    found.writes = found.writes or _WRITES.get(number)
    found.random = found.random or _RANDOM.get(number)
    found.loops = found.loops or number in _LOOPS
    found.element_wise = found.element_wise and number in _ELEMENT_WISE


def _is_large_constant(tensor: Table, buffers: Sequence[Table]) -> bool:
    """Whether a tensor is a constant of several elements, and so can enlarge an input by broadcasting."""
    if math.prod(tensor.integers(_TENSOR_SHAPE)) == 1:
        return False
    return bool(buffers[tensor.number(_TENSOR_BUFFER, "I")].octets(_BUFFER_DATA))


# Signatures.


def _stored_signatures(model: Table) -> dict[str, SignatureDef] | None:
    """The `SignatureDef`s in the file's metadata, or None for a file without the metadata entry."""
    for entry in model.tables(_MODEL_METADATA):
        if entry.octets(_METADATA_NAME) == _SIGNATURES_ENTRY:
            buffer = list(model.tables(_MODEL_BUFFERS))[entry.number(_METADATA_BUFFER, "I")]
            return _signature_defs(buffer.octets(_BUFFER_DATA))
    return None


def _signature_defs(data: bytes) -> dict[str, SignatureDef]:
    from flatbuffers import flexbuffers

    definitions = {}
    try:
        entries = flexbuffers.GetRoot(bytearray(data)).AsMap
        for key, value in zip(entries.Keys, entries.Values, strict=True):
            # The string holds bytes, not text.
            definitions[key.AsKey] = SignatureDef.FromString(bytes(value.AsStringBytes))
    except (DecodeError, TypeError, ValueError, IndexError, struct.error, AttributeError) as error:
        raise LoadError(
            f"Invalid SignatureDefs found in TfLite model: {type(error).__name__}: {error}", code=Code.INVALID_ARGUMENT
        ) from None
    return definitions


def _made_up_signature(inputs: Sequence[TfliteTensor], outputs: Sequence[TfliteTensor]) -> SignatureDef:
    definition = SignatureDef(method_name=_PREDICT_METHOD)
    for tensors, infos in ((inputs, definition.inputs), (outputs, definition.outputs)):
        aliases = Counter(tensor.alias for tensor in tensors)
        for tensor in tensors:
            # `call:0` and `call:1` are two outputs of a function: a common alias would hide an output.
            info = infos[tensor.alias if aliases[tensor.alias] == 1 else tensor.name]
            info.name = tensor.name
            info.dtype = tensor.dtype.number
            info.tensor_shape.unknown_rank = tensor.shape is None
            for size in tensor.shape or ():
                info.tensor_shape.dim.add(size=size)
    return definition


def _resolved(specs: Mapping[str, TensorSpec], tensors: Sequence[TfliteTensor], kind: str) -> dict[str, TensorSpec]:
    """A signature's specs with the dtypes and shapes of the named tensors."""
    by_name = {tensor.name: tensor for tensor in tensors}
    resolved = {}
    for alias, spec in specs.items():
        tensor = by_name.get(spec.tensor_name) or by_name.get(spec.tensor_name.partition(":")[0])
        if tensor is None:
            raise LoadError(
                f"Signature {kind} {alias} references an unknown tensor: Unknown tensor '{spec.tensor_name}'. The "
                f"model's {kind}s are {', '.join(sorted(by_name)) or 'none'}",
                code=Code.INTERNAL,
            )
        resolved[alias] = tensor.spec(alias)
    return resolved
