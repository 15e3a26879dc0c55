"""Finds the effects of a signature's operations in the graph: writes of state, random numbers, loops, file access.

The reader follows the graph backwards from the outputs, into every nested function (calls, branches, loop bodies). The
module runs no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedserve.saved_model import tensorflow_private

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.op_def_pb2 import OpDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

__all__ = [
    "CALLS_PYTHON",
    "INIT_SIGNATURE",
    "LARGE_CONSTANTS",
    "PER_RUN",
    "VARIABLES",
    "Body",
    "GraphReader",
    "Operations",
    "called",
    "node_name",
    "words",
]

LARGE_CONSTANTS = 2**20
"""Bytes of constants from which copies of the constants matter: each way of running a graph makes a copy."""


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables of names."""
    return frozenset(text.split())


# Stateful in TensorFlow's registry, but a run leaves no trace for further runs.
_ONLY_READS = words("""
    VarHandleOp ReadVariableOp ResourceGather ResourceGatherNd VarIsInitializedOp Variable VariableV2
    IsVariableInitialized HashTable HashTableV2 MutableHashTable MutableHashTableV2 MutableHashTableOfTensorsV2
    MutableDenseHashTableV2 LookupTableFind LookupTableFindV2 LookupTableSize LookupTableSizeV2 LookupTableExportV2
    Placeholder PlaceholderV2 PlaceholderWithDefault Assert Print PrintV2 If While Case For PartitionedCall
    StatefulPartitionedCall RemoteCall XlaLaunch XlaCallModule BoostedTreesEnsembleResourceHandleOp SentencepieceOp
    SimpleMLInferenceOp SimpleMLInferenceOpWithHandle SimpleMLInferenceLeafIndexOpWithHandle
    """)
PER_RUN = ("TensorArray", "Stack", "TensorList")
"""Beginnings of operations on state that a run makes and drops, such as the arrays and stacks of TF1's loops."""
VARIABLES = frozenset(("VarHandleOp", "Variable", "VariableV2"))
"""Operations that hold a variable: a resource, or a reference as in TF1."""
# References pass through these operations without a write.
_PASS_REFERENCES = words(
    "Identity RefIdentity RefSwitch RefMerge RefEnter RefExit RefNextIteration RefSelect IsVariableInitialized"
)
_RANDOM_WORDS = ("Random", "Multinomial", "CandidateSampler", "SampleDistortedBoundingBox", "TruncatedNormal", "Rng")
_RANDOM = words("StatefulUniform StatefulUniformInt StatefulUniformFullInt StatefulStandardNormal")
_LOOPS = words("While StatelessWhile For Enter RefEnter MapDefun ParallelMapDataset")
_READS_FILES = words("""
    ReadFile WholeFileReader WholeFileReaderV2 MatchingFiles TextLineReader TextLineReaderV2 TFRecordReader
    TFRecordReaderV2 FixedLengthRecordReader FixedLengthRecordReaderV2 InitializeTableFromTextFile
    InitializeTableFromTextFileV2 TextLineDataset TFRecordDataset FixedLengthRecordDataset Restore RestoreV2
    """)
# Operations with a string input of such a name open files or contact further machines, although TensorFlow's registry
# calls the operations stateless: ReadFile, MatchingFiles, SnapshotDataset and similar custom ops.
_OPENS = re.compile(r"file|path|prefix|dir|address|host|url|uri|pattern|endpoint|bucket")
_OPENS_NOTHING = words("RegexReplace RegexFullMatch")
CALLS_PYTHON = words("PyFunc PyFuncStateless EagerPyFunc")
"""Ops that call a function of the Python process that built the graph."""
# Operations that replace a value. `AssignAdd` is a single step without interleaving, and so not in the table.
_OVERWRITES = words("""
    Assign AssignVariableOp ScatterUpdate ScatterNdUpdate ResourceScatterUpdate ResourceScatterNdUpdate
    StridedSliceAssign ResourceStridedSliceAssign
    """)
# Edges of the object graph to the functions that run at the load or unload of a SavedModel.
_RESOURCE_FUNCTIONS = words("_create_resource _initialize _destroy_resource")
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
INIT_SIGNATURE = "__saved_model_init_op"
"""Key under which TensorFlow stores the initialisation of a model."""

# These operations take any shape and give an element for an element, so no kernel can abort on a shape (design rule 9).
_ELEMENT_WISE = words("""
    Const Identity IdentityN Cast ReadVariableOp VarHandleOp Variable VariableV2 Placeholder PlaceholderWithDefault NoOp
    Add AddV2 Sub Mul Div RealDiv DivNoNan MulNoNan FloorDiv TruncateDiv FloorMod Mod Maximum Minimum Pow
    SquaredDifference Neg Abs Sign Square Sqrt Rsqrt Exp Expm1 Log Log1p Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh
    Acosh Atanh Sigmoid Relu Relu6 Elu Selu Softplus Softsign LeakyRelu Floor Ceil Round Rint Reciprocal Inv Erf Erfc
    Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr LogicalNot SelectV2 ClipByValue IsNan IsInf
    IsFinite StopGradient PreventGradient Snapshot PartitionedCall StatefulPartitionedCall StringLower StringUpper
    StringLength StringStrip StringToNumber AsString
    """)
_CONSTANTS = VARIABLES | {"Const"}
_PLACEHOLDERS = frozenset(("Placeholder", "PlaceholderV2"))
_PARSERS = frozenset(("ParseExample", "ParseExampleV2"))


@dataclass
class Operations:
    """Effects of a run of a signature. A string names the first operation with the effect.

    Attributes:
        writes: Changes state that further runs could see.
        random: Draws random numbers.
        loops: May run for any time.
        reads_files: Opens files in every run.
        unsafe: Harmful with arbitrary fed values: writes state or files, opens files that a tensor names, contacts
            further machines, or runs Python.
        constant_bytes: Size of the constants in the graph, in bytes.
        overwrites: Replaces the value of a variable by a value of the request; concurrent runs would mix the values up.
        calls_python: Calls a Python function of the process that made the model.
        element_wise: Every operation takes any shape and gives an element for an element.
        features: Parsed features of tf.Examples: name → (`DataType` number, number of values or None for any).
    """

    writes: str | None = None
    random: str | None = None
    loops: bool = False
    reads_files: bool = False
    unsafe: str | None = None
    overwrites: bool = False
    calls_python: str | None = None
    constant_bytes: int = 0
    element_wise: bool = True
    features: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    @property
    def stateless(self) -> bool:
        """Whether a run neither writes state nor draws random numbers."""
        return self.writes is None and self.random is None

    def add(self, other: Operations) -> None:
        """Include the effects of a nested function."""
        self.writes = self.writes or other.writes
        self.random = self.random or other.random
        self.loops = self.loops or other.loops
        self.reads_files = self.reads_files or other.reads_files
        self.unsafe = self.unsafe or other.unsafe
        self.overwrites = self.overwrites or other.overwrites
        self.calls_python = self.calls_python or other.calls_python
        self.constant_bytes += other.constant_bytes
        self.element_wise = self.element_wise and other.element_wise
        self.features |= other.features


@dataclass(frozen=True)
class Body:
    """The nodes of the graph that a run reaches, or the nodes of a called function.

    Attributes:
        function: Name of the function; empty for the graph.
        nodes: Nodes by name, without fed tensors and arguments.
        arguments: Names of the function's arguments, in order.
    """

    function: str
    nodes: Mapping[str, NodeDef]
    arguments: Sequence[str] = ()


class GraphReader:
    """Reads one MetaGraph; keeps the MetaGraph for the duration of the load."""

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        graph = meta_graph.graph_def
        self._nodes: Mapping[str, NodeDef] = {node.name: node for node in graph.node}
        self._functions: Mapping[str, FunctionDef] = {f.signature.name: f for f in graph.library.function}
        self._stored_ops: Mapping[str, OpDef] = {op.name: op for op in meta_graph.meta_info_def.stripped_op_list.op}
        self._summaries: dict[str, Operations] = {}
        self._startup = _startup_fetches(meta_graph), _startup_functions(meta_graph)

    def startup(self) -> Operations:
        """Effects of the load and unload of the model: restore, initialise, create and destroy resources."""
        fetches, functions = self._startup
        result = self.operations(fetches)
        for name in functions:
            if name in self._functions:
                result.add(self._summary(name))
        return result

    def operations(self, fetched: Iterable[str], fed: Iterable[str] = ()) -> Operations:
        """Effects of computing the tensors or ops `fetched` from the given tensors `fed`.

        An op is written `^name`. A bare `name` also means the op, unless the op's first output is fed.
        """
        result = Operations()
        for node in self._reached(fetched, fed):
            self._look_at(node, result, self._nodes.values())
            if node.op in _OVERWRITES and self._depends_on(node, fed):
                result.overwrites = True
        return result

    def reached(self, fetched: Iterable[str], fed: Iterable[str] = ()) -> frozenset[str]:
        """Names of the nodes that run; arguments as for `operations`."""
        return frozenset(node.name for node in self._reached(fetched, fed))

    def bodies(self, fetched: Iterable[str], fed: Iterable[str] = ()) -> list[Body]:
        """The graph and every function that a computation of `fetched` may run, callers before called functions."""
        found = [Body("", {node.name: node for node in self._reached(fetched, fed)})]
        seen: set[str] = set()
        for body in found:
            for node in body.nodes.values():
                for name in (node.op, *called(node)):
                    if name in self._functions and name not in seen:
                        seen.add(name)
                        function = self._functions[name]
                        arguments = [argument.name for argument in function.signature.input_arg]
                        found.append(Body(name, {inner.name: inner for inner in function.node_def}, arguments))
        return found

    def definition(self, op: str) -> OpDef | None:
        """The `OpDef` of an op type, or None."""
        return tensorflow_private.op_definition(op, self._stored_ops.get(op))

    def _depends_on(self, node: NodeDef, fed: Iterable[str]) -> bool:
        """Whether a node of the graph computes with a tensor of `fed`."""
        given = {node_name(name) for name in fed}
        return any(
            node_name(source) in given for earlier in self._reached([f"^{node.name}"], ()) for source in earlier.input
        )

    def _reached(self, fetched: Iterable[str], fed: Iterable[str]) -> Iterable[NodeDef]:
        """The nodes that run.

        A feed replaces a single tensor: the tensor's op still runs for a further output or for an effect.
        """
        given = {_tensor_name(name) for name in fed}
        todo, seen = list(fetched), set[str]()
        while todo:
            source = todo.pop()
            name = node_name(source)
            node = self._nodes.get(name)
            if node is None or name in seen:
                continue
            # TensorFlow replaces a fed placeholder op by the feed.
            if (f"{name}:0" if node.op in _PLACEHOLDERS else _tensor_name(source)) in given:
                continue
            seen.add(name)
            yield node
            todo += node.input

    def _look_at(self, node: NodeDef, result: Operations, body: Iterable[NodeDef]) -> None:
        op = node.op
        nested = [name for name in called(node) if name in self._functions]
        for name in nested:
            result.add(self._summary(name))
        if op in self._functions:  # Old style: the op of the node is the function.
            result.add(self._summary(op))
            return
        stored = self._stored_ops.get(op)
        if _draws(op):
            result.random = result.random or op
        elif self._may_write(op, stored):
            result.writes = result.writes or op
        result.loops = result.loops or op in _LOOPS
        result.reads_files = result.reads_files or op in _READS_FILES
        if self._is_unsafe(op, stored):
            result.unsafe = result.unsafe or op
        if op in CALLS_PYTHON:
            result.calls_python = result.calls_python or op
        if op == "Const":
            result.constant_bytes += node.attr["value"].tensor.ByteSize()
        if op not in _ELEMENT_WISE or (op in _CONSTANTS and not _is_single(node)):
            result.element_wise = False
        if op in _PARSERS:
            result.features |= _features(node, body)

    def _may_write(self, op: str, stored: OpDef | None) -> bool:
        if op in _ONLY_READS or op.startswith(PER_RUN):
            return False
        if tensorflow_private.is_stateful(op, stored):
            return True
        return op not in _PASS_REFERENCES and tensorflow_private.takes_references(op, stored)

    def _is_unsafe(self, op: str, stored: OpDef | None) -> bool:
        """Whether an op may do harm with values of a client's choice; an op is unsafe unless known as harmless."""
        if op in CALLS_PYTHON:
            return True
        if op in _ONLY_READS or op.startswith(PER_RUN):
            return False
        if tensorflow_private.is_stateful(op, stored):
            # Random numbers of a kernel's own generator are safe; random numbers out of a variable write the variable.
            return tensorflow_private.takes_resources(op, stored) or not _draws(op)
        if op not in _PASS_REFERENCES and tensorflow_private.takes_references(op, stored):
            return True
        texts = tensorflow_private.string_inputs(op, stored)
        return op not in _OPENS_NOTHING and any(_OPENS.search(name) for name in texts)

    def _summary(self, function: str) -> Operations:
        known = self._summaries.get(function)
        if known is None:
            self._summaries[function] = Operations()  # The empty summary ends recursion.
            known = Operations()
            body = self._functions[function].node_def
            for node in body:
                self._look_at(node, known, body)
                known.overwrites = known.overwrites or node.op in _OVERWRITES
            self._summaries[function] = known
        return known

    def is_parsed(self, tensor: str) -> bool:
        """Whether only parsers of tf.Examples, with inputs of rank 1, use a tensor of the graph."""
        users = self._users(self._nodes.values(), node_name(tensor), 0)
        return bool(users) and users <= _PARSERS

    def _users(self, nodes: Iterable[NodeDef], name: str, depth: int) -> set[str]:
        """Op types that use a tensor, looking through identities and into called functions."""
        found: set[str] = set()
        body = list(nodes)
        for node in body:
            for index, source in enumerate(node.input):
                if source.startswith("^") or node_name(source) != name:
                    continue
                functions = [f for f in called(node) if f in self._functions]
                if depth > 50:
                    found.add(node.op)
                elif node.op in ("PartitionedCall", "StatefulPartitionedCall") and len(functions) == 1:
                    function = self._functions[functions[0]]
                    argument = function.signature.input_arg[index].name
                    found |= self._users(function.node_def, argument, depth + 1)
                elif node.op == "Identity":
                    found |= self._users(body, node.name, depth + 1)
                else:
                    found.add(node.op)
        return found


def _draws(op: str) -> bool:
    return op in _RANDOM or any(word in op for word in _RANDOM_WORDS)


def _tensor_name(source: str) -> str:
    """A tensor's name with its index; an op's name unchanged."""
    return source if ":" in source or source.startswith("^") else f"{source}:0"


def _startup_fetches(meta_graph: MetaGraphDef) -> list[str]:
    """Operations and tensors of the graph that a session runs before the first request."""
    fetches = [meta_graph.saver_def.restore_op_name] if meta_graph.saver_def.restore_op_name else []
    for collection in _INIT_COLLECTIONS:
        if collection in meta_graph.collection_def:
            fetches += meta_graph.collection_def[collection].node_list.value
    if INIT_SIGNATURE in meta_graph.signature_def:
        fetches += [info.name for info in meta_graph.signature_def[INIT_SIGNATURE].outputs.values()]
    return fetches


def _startup_functions(meta_graph: MetaGraphDef) -> list[str]:
    """Functions that `tf.saved_model.load` runs, at the load and at the end of the model."""
    nodes = meta_graph.object_graph_def.nodes
    found: list[str] = []
    for node in nodes:
        wanted = [child.node_id for child in node.children if child.local_name in _RESOURCE_FUNCTIONS]
        wanted += [saveable.restore_function for saveable in node.saveable_objects.values()]
        for index in wanted:
            found += nodes[index].function.concrete_functions
            if nodes[index].bare_concrete_function.concrete_function_name:
                found.append(nodes[index].bare_concrete_function.concrete_function_name)
    return found


def node_name(tensor: str) -> str:
    """The node of a tensor or of a control input."""
    return tensor.lstrip("^").partition(":")[0]


def called(node: NodeDef) -> list[str]:
    """Names of the functions in a node's attributes."""
    names: list[str] = []
    for value in node.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        elif value.HasField("list"):
            names += [function.name for function in value.list.func]
    return names


def _is_single(node: NodeDef) -> bool:
    """Whether a constant or variable holds a single element, and so cannot enlarge an input by broadcasting."""
    shape = node.attr["value"].tensor.tensor_shape if node.op == "Const" else node.attr["shape"].shape
    return not shape.unknown_rank and all(dim.size == 1 for dim in shape.dim)


def _features(parser: NodeDef, body: Iterable[NodeDef]) -> dict[str, tuple[int, int | None]]:
    """Features of a ParseExample node, as far as the names are constants in `body`."""
    constants = {node.name: node.attr["value"].tensor for node in body if node.op == "Const"}
    keys = [list(constants[name].string_val) if name in constants else [] for name in map(node_name, parser.input)]
    dense_types, sparse_types = parser.attr["Tdense"].list.type, parser.attr["sparse_types"].list.type
    ragged: list[bytes] = []
    if parser.op == "ParseExampleV2":
        sparse, dense, ragged = keys[2:5]
    else:
        sparse = [key for some in keys[2 : 2 + len(sparse_types)] for key in some]
        dense = [key for some in keys[2 + len(sparse_types) : 2 + len(sparse_types) + len(dense_types)] for key in some]
    shapes = parser.attr["dense_shapes"].list.shape
    found: dict[str, tuple[int, int | None]] = {}
    for names, types in ((sparse, sparse_types), (ragged, parser.attr["ragged_value_types"].list.type)):
        found |= {key.decode(): (int(dtype), None) for key, dtype in zip(names, types, strict=False)}
    for key, dtype, shape in zip(dense, dense_types, shapes, strict=False):
        sizes = [dim.size for dim in shape.dim]
        found[key.decode()] = (int(dtype), None if sizes == [-1] else math.prod(max(size, 1) for size in sizes))
    return found
