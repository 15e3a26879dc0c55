"""Follows a graph from the fed inputs to the outputs and judges each tensor by the table; see `values` for the kinds.

The walk enters nested functions, branches and loops until a loop's values are stable. The module reads protos only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.files.graph import VARIABLES
from embedserve.saved_model.judge.rows.call import Call
from embedserve.saved_model.judge.rows.sizes import ROWS_SYMBOL, Size, named
from embedserve.saved_model.judge.rows.table import BY_ELEMENT, GROUPED_BY, PADS, REDUCTIONS, TABLE, TAKE_MIXED
from embedserve.saved_model.judge.rows.values import (
    BOTTOM,
    Kind,
    MixedError,
    Obstacle,
    UnprovenError,
    Value,
    constant,
    is_rows,
    join,
    rows,
)

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.op_def_pb2 import OpDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

__all__ = ["Findings", "RowAnalysis"]

_CALLS = frozenset(("PartitionedCall", "StatefulPartitionedCall"))
_BRANCHES = frozenset(("If", "StatelessIf", "Case", "StatelessCase"))
_LOOPS = frozenset(("While", "StatelessWhile"))
# Most elements of a known constant (shapes and axes are shorter), nested calls, and rounds to a fixed point.
_MAX_ELEMENTS = 64
_MAX_DEPTH = 60
_MAX_TURNS = 12
BY_KEY = "combines entries by a number that rows may share"
PERHAPS_ROWS = "combines what may be the rows"
WHOLE_BATCH = "depends on a condition over the whole batch"


@dataclasses.dataclass(frozen=True)
class Findings:
    """The graph's answer about a signature's outputs.

    Attributes:
        proven: Each output is rows, and each row depends only on the same row of the inputs.
        mixed: The first operation that makes a row depend on further rows.
        unproven: The first operation without a rule, where no operation mixes rows.
    """

    proven: bool
    mixed: Obstacle | None = None
    unproven: Obstacle | None = None


class RowAnalysis:
    """The row analysis of one MetaGraph; keeps the MetaGraph for the duration of the load."""

    def __init__(self, meta_graph: MetaGraphDef) -> None:
        self._graph = meta_graph.graph_def
        self._functions = {function.signature.name: function for function in self._graph.library.function}
        self._stored = {op.name: op for op in meta_graph.meta_info_def.stripped_op_list.op}

    def judge(
        self, inputs: Mapping[str, Sequence[int | None]], outputs: Sequence[str], *, free_batch: bool = False
    ) -> Findings:
        """Judge the tensors `outputs` for the fed tensors `inputs`.

        Args:
            inputs: Tensor names and shapes, None for unknown sizes; each input is rows along dimension 0.
            outputs: Tensor names.
            free_batch: Take dimension 0 of the inputs for the rows, even where a size is declared.
        """
        fed = {}
        for name, shape in inputs.items():
            if not shape or (shape[0] is not None and not free_batch):
                return Findings(False, unproven=Obstacle("Placeholder", _node_of(name), "has no dimension of rows"))
            inner = [named(f"{name}.{place}") if size is None else Size(size) for place, size in enumerate(shape)]
            fed[_normal(name)] = rows((Size(1, (ROWS_SYMBOL,)), *inner[1:]))
        scope = _GraphScope(self, fed)
        obstacles: list[Value] = []
        for name in outputs:
            value = scope.tensor(_normal(name))
            if not is_rows(value):
                obstacles.append(_as_obstacle(value, scope, name))
        mixed = next((value.obstacle for value in obstacles if value.kind is Kind.MIXED), None)
        unproven = next((value.obstacle for value in obstacles if value.kind is Kind.UNPROVEN), None)
        return Findings(not obstacles, mixed, None if mixed else unproven)

    def outputs_of(self, node: NodeDef) -> list[tuple[str, int]] | None:
        """Names of a node's outputs with the number of tensors in each; None for an unknown operation."""
        definition = tensorflow_private.op_definition(node.op, self._stored.get(node.op))
        return None if definition is None else [(one.name, _length(one, node)) for one in definition.output_arg]

    def function(self, name: str) -> FunctionDef | None:
        """A function of the library, None for an unknown name."""
        return self._functions.get(name)


def _as_obstacle(value: Value, scope: _Scope, name: str) -> Value:
    if value.kind in (Kind.MIXED, Kind.UNPROVEN):
        return value
    op, node = scope.producer(_node_of(name))
    why = "gives no rows"
    if value.kind is Kind.ROWS:
        why = "gives rows along another dimension" if value.axis else "gives more or fewer entries than there are rows"
    return Value(Kind.MIXED, obstacle=Obstacle(op, node, why))


def _normal(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


def _node_of(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _length(argument: OpDef.ArgDef, node: NodeDef) -> int:
    if argument.number_attr:
        return int(node.attr[argument.number_attr].i)
    return len(node.attr[argument.type_list_attr].list.type) if argument.type_list_attr else 1


class _Scope:
    """The nodes of a graph or of a function's body, with the computed values."""

    def __init__(self, analysis: RowAnalysis, nodes: Iterable[NodeDef], place: str, depth: int = 0) -> None:
        self.analysis = analysis
        self.place = place
        self.depth = depth
        self.nodes: dict[str, NodeDef] = {node.name: node for node in nodes}
        self._values: dict[str, Sequence[Value]] = {}
        self._carried: dict[str, Value] = {}

    def tensor(self, reference: str) -> Value:
        """The value of a tensor; loops of TensorFlow 1 turn until no value changes."""
        for _ in range(_MAX_TURNS):
            value = self._computed(reference)
            if not self._turn():
                return value
        if value.kind is Kind.MIXED:
            return value
        return Value(Kind.UNPROVEN, obstacle=Obstacle("NextIteration", reference, "does not come to rest"))

    def _turn(self) -> bool:
        """Carry results of the loops' bodies to the next turn; return whether a value changed."""
        changed = False
        for name in list(self._carried):
            node = self.nodes[name]
            given = self._computed(node.input[0])
            known = self._carried[name]
            if given != known:
                value = join(known, given, f"{self.place}/{name}", node.op, name)
                if value != known:
                    self._carried[name] = value
                    changed = True
        if changed:
            self._values.clear()
        return changed

    def _computed(self, reference: str) -> Value:
        found = self.given(reference)
        if found is not None:
            return found
        todo = [_node_of(reference)]
        while todo:
            name = todo[-1]
            if name in self._values:
                todo.pop()
                continue
            node = self.nodes.get(name)
            if node is None:
                self._values[name] = [_unproven(Obstacle("", name, "is not in the graph"))]
                continue
            if node.op in ("NextIteration", "RefNextIteration"):
                self._values[name] = [self._carried.setdefault(name, BOTTOM)]
                continue
            sources = [one for one in node.input if not one.startswith("^")]
            missing = [
                _node_of(one) for one in sources if self.given(one) is None and _node_of(one) not in self._values
            ]
            if missing:
                if len(todo) > 2 * len(self.nodes) + 2:
                    self._values[name] = [_unproven(Obstacle(node.op, name, "is part of a cycle"))]
                todo += missing
                continue
            self._values[name] = self._node(node, [self.found(one) for one in sources])
        return self.found(reference)

    def given(self, reference: str) -> Value | None:
        """A fed tensor or an argument."""
        raise NotImplementedError

    def found(self, reference: str) -> Value:
        """A given tensor, or a tensor of a computed node."""
        given = self.given(reference)
        if given is not None:
            return given
        values = self._values[_node_of(reference)]
        return values[min(self.index(reference), len(values) - 1)] if values else constant()

    def index(self, reference: str) -> int:
        """The index of the node's output that a reference means."""
        raise NotImplementedError

    def producer(self, name: str) -> tuple[str, str]:
        """Operation and node behind identities and calls."""
        node = self.nodes.get(name)
        if node is None:
            return "", name
        if node.op == "Identity" and node.input and _node_of(node.input[0]) in self.nodes:
            return self.producer(_node_of(node.input[0]))
        return node.op, node.name

    def _node(self, node: NodeDef, inputs: Sequence[Value]) -> Sequence[Value]:
        return _Evaluation(self, node, inputs).values()


class _GraphScope(_Scope):
    """The main graph, with some fed tensors."""

    def __init__(self, analysis: RowAnalysis, fed: Mapping[str, Value]) -> None:
        super().__init__(analysis, analysis._graph.node, "")
        self._fed = fed

    def given(self, reference: str) -> Value | None:
        return self._fed.get(_normal(reference))

    def index(self, reference: str) -> int:
        return int(reference.partition(":")[2] or 0)


class _FunctionScope(_Scope):
    """A function's body, called with arguments."""

    def __init__(
        self, analysis: RowAnalysis, function: FunctionDef, arguments: Sequence[Value], place: str, depth: int
    ) -> None:
        super().__init__(analysis, function.node_def, place, depth)
        names = [argument.name for argument in function.signature.input_arg]
        self._arguments = dict(zip(names, arguments, strict=False))
        self._results = [function.ret[argument.name] for argument in function.signature.output_arg]

    def results(self) -> list[Value]:
        """The values that the function returns."""
        return [self.tensor(reference) for reference in self._results]

    def passed_on(self, index: int) -> str | None:
        """The argument that result `index` equals, or None."""
        reference = self._results[index]
        while True:
            name = _node_of(reference)
            if name in self._arguments:
                return name
            node = self.nodes.get(name)
            if node is None or node.op != "Identity":
                return None
            reference = node.input[0]

    def given(self, reference: str) -> Value | None:
        return self._arguments.get(_node_of(reference))

    def index(self, reference: str) -> int:
        name, _, rest = reference.partition(":")
        wanted, _, number = rest.partition(":")
        offset = 0
        for output, length in self.analysis.outputs_of(self.nodes[name]) or ():
            if output == wanted:
                return offset + int(number or 0)
            offset += length
        return int(number or 0)


def _unproven(obstacle: Obstacle) -> Value:
    return Value(Kind.UNPROVEN, obstacle=obstacle)


class _Evaluation:
    """The evaluation of a node on the values of its inputs."""

    def __init__(self, scope: _Scope, node: NodeDef, inputs: Sequence[Value]) -> None:
        self._scope = scope
        self._node = node
        self._inputs = inputs
        self._place = f"{scope.place}/{node.name}"

    def values(self) -> Sequence[Value]:
        """The node's outputs."""
        op = self._node.op
        if op == "Const":
            return [_const(self._node)]
        if op in VARIABLES:
            return [constant(_declared(self._node))]
        if op in ("ReadVariableOp", "Enter", "RefEnter", "Exit", "RefExit", "LoopCond", "RefIdentity"):
            return self._inputs[:1]
        if op in ("Switch", "RefSwitch"):
            return [self._switched()] * 2
        if op in ("Merge", "RefMerge"):
            return [self._merged(), constant(())]
        try:
            if op in _LOOPS:
                return _Loop(self._scope, self._node, self._inputs).values()
            if op in _BRANCHES:
                return self._branches()
            if op in _CALLS or self._scope.analysis.function(op) is not None:
                called = self._node.attr["f"].func.name if op in _CALLS else op
                return self._called(called, self._inputs, "")
        except UnprovenError as error:
            mixed = _mixed(self._inputs)
            return [_unproven(Obstacle(op, self._node.name, str(error))) if mixed is None else mixed]
        return self._by_table()

    def _called(self, name: str, arguments: Sequence[Value], tag: str) -> list[Value]:
        return _call(self._scope, name, arguments, self._place + tag)

    def _switched(self) -> Value:
        data, condition = self._inputs
        problem = _condition_problem(condition, Obstacle(self._node.op, self._node.name, WHOLE_BATCH))
        return data if problem is None else problem

    def _merged(self) -> Value:
        value = BOTTOM
        for one in self._inputs:
            value = join(value, one, self._place, self._node.op, self._node.name)
        return value

    def _branches(self) -> Sequence[Value]:
        condition, *arguments = self._inputs
        node = self._node
        if condition.kind is Kind.ITEM:
            return _own(self._inputs, self._outputs(), Obstacle(node.op, node.name, "mixes one row with all of them"))
        problem = _condition_problem(condition, Obstacle(node.op, node.name, WHOLE_BATCH))
        if problem is not None:
            return [problem]
        branches = (
            [function.name for function in node.attr["branches"].list.func]
            if "branches" in node.attr
            else [node.attr["then_branch"].func.name, node.attr["else_branch"].func.name]
        )
        results = [self._called(name, arguments, f".{index}") for index, name in enumerate(branches)]
        found = results[0]
        for other in results[1:]:
            found = [
                join(a, b, f"{self._place}.{index}", node.op, node.name)
                for index, (a, b) in enumerate(zip(found, other, strict=True))
            ]
        # Known elements of a branch are unknown after the choice.
        return found

    def _outputs(self) -> int:
        outputs = self._scope.analysis.outputs_of(self._node)
        return 1 if outputs is None else max(sum(length for _, length in outputs), 1)

    def _by_table(self) -> Sequence[Value]:
        node, inputs = self._node, self._inputs
        kinds = {value.kind for value in inputs}
        if Kind.BOTTOM in kinds:
            return [BOTTOM] * self._outputs()
        call = Call(node.op, node.name, inputs, node.attr, self._outputs(), self._scope.place)
        if Kind.MIXED not in kinds and _groups_rows(call):
            return [Value(Kind.MIXED, obstacle=call.obstacle(BY_KEY))] * call.outputs
        if Kind.MIXED not in kinds and _reduces_unknown(call):
            return [Value(Kind.MIXED, obstacle=call.obstacle(PERHAPS_ROWS))] * call.outputs
        takes = {Kind.MIXED: frozenset() if Kind.UNPROVEN in kinds else TAKE_MIXED, Kind.UNPROVEN: PADS}
        for kind, passed in takes.items():
            if kind in kinds and node.op not in passed:
                first = next(value for value in inputs if value.kind is kind)
                are_scalars = node.op in BY_ELEMENT and all(value.shape == () for value in inputs)
                return [Value(kind, () if are_scalars else None, obstacle=first.obstacle)]
        if Kind.ITEM in kinds and Kind.LIST not in kinds:
            return self._of_item(call)
        return _apply(call)

    def _of_item(self, call: Call) -> Sequence[Value]:
        """A row's own value: the result of a deterministic operation belongs to the same row."""
        own = _own(call.inputs, call.outputs, call.obstacle("mixes one row with all of them"))
        if own[0].kind is not Kind.ITEM:
            return own
        plain = call.with_inputs([Value(Kind.CONST, v.shape) if v.kind is Kind.ITEM else v for v in call.inputs])
        return [Value(Kind.ITEM, value.shape if value.kind is Kind.CONST else None) for value in _apply(plain)]


def _own(inputs: Sequence[Value], outputs: int, otherwise: Obstacle) -> Sequence[Value]:
    for kind in (Kind.MIXED, Kind.UNPROVEN):
        for value in inputs:
            if value.kind is kind:
                return [value]
    for value in inputs:
        if value.kind not in (Kind.ITEM, Kind.CONST) and not _is_own_list(value):
            return [Value(Kind.MIXED, obstacle=otherwise)]
    return [Value(Kind.ITEM)] * outputs


def _is_own_list(value: Value) -> bool:
    """Whether a list holds no value of further rows."""
    if value.kind is not Kind.LIST or value.length is None or value.length.counter is not None or value.element is None:
        return False
    return value.element.kind in (Kind.BOTTOM, Kind.CONST, Kind.ITEM)


def _apply(call: Call) -> Sequence[Value]:
    is_constant = all(value.kind is Kind.CONST for value in call.inputs)
    rule = TABLE.get(call.op)
    if rule is None:
        if is_constant:
            return [constant()] * call.outputs
        return [_unproven(call.obstacle("is not known to keep rows apart"))] * call.outputs
    try:
        found = rule(call)
    except MixedError as error:
        value = Value(Kind.MIXED, obstacle=call.obstacle(str(error)))
    except UnprovenError as error:
        value = _unproven(call.obstacle(str(error)))
    else:
        return [found] if isinstance(found, Value) else found
    return [constant() if is_constant else value] * call.outputs


def _mixed(values: Sequence[Value]) -> Value | None:
    """The first mixed value."""
    return next((value for value in values if value.kind is Kind.MIXED), None)


def _groups_rows(call: Call) -> bool:
    """Whether data of the requests combines entries; a run can only tell if the rows share a number."""
    numbers = call.inputs[GROUPED_BY.get(call.op, slice(0))]
    return any(value.kind in (Kind.ROWS, Kind.PLACES) for value in numbers)


def _reduces_unknown(call: Call) -> bool:
    """Whether a reduction drops dimension 0 of an unproven value; a run may miss effects that only large rows show."""
    if call.op == "MatMul":
        summed = call.flag("transpose_a"), not call.flag("transpose_b")
        return any(value.kind is Kind.UNPROVEN and one for value, one in zip(call.inputs, summed, strict=True))
    if call.op not in REDUCTIONS or call.inputs[0].kind is not Kind.UNPROVEN:
        return False
    axes = call.inputs[1].numbers if len(call.inputs) > 1 else None
    return axes is None or 0 in axes


def _condition_problem(condition: Value, whole_batch: Obstacle) -> Value | None:
    """The result of a branch whose condition varies between batches; None for a condition equal in every batch."""
    equal = condition.kind in (Kind.CONST, Kind.BOTTOM)
    return None if equal else Value(Kind.MIXED, obstacle=whole_batch)


def _call(scope: _Scope, name: str, arguments: Sequence[Value], place: str) -> list[Value]:
    return _scope_of(scope, name, arguments, place).results()


def _scope_of(scope: _Scope, name: str, arguments: Sequence[Value], place: str) -> _FunctionScope:
    function = scope.analysis.function(name)
    if function is None:
        raise UnprovenError("calls a function that is not in the graph")
    if scope.depth > _MAX_DEPTH:
        raise UnprovenError("calls functions too deep")
    return _FunctionScope(scope.analysis, function, arguments, place, scope.depth + 1)


class _Loop:
    """A `While`: along time, with equally many turns in every batch, or over the rows, with a turn for each row."""

    def __init__(self, scope: _Scope, node: NodeDef, inputs: Sequence[Value]) -> None:
        self._scope = scope
        self._node = node
        self._inputs = list(inputs)
        self._place = f"{scope.place}/{node.name}"
        self._condition = node.attr["cond"].func.name
        self._body = node.attr["body"].func.name

    def values(self) -> Sequence[Value]:
        """The values after the loop."""
        over_rows = self._over_rows()
        if over_rows is not None:
            return over_rows
        state = list(self._inputs)
        for _ in range(_MAX_TURNS):
            condition = self._called(self._condition, state)[0]
            if condition.kind is Kind.ITEM:
                node = self._node
                return _own(self._inputs, len(state), Obstacle(node.op, node.name, "mixes one row with all of them"))
            problem = _condition_problem(condition, Obstacle(self._node.op, self._node.name, WHOLE_BATCH))
            if problem is not None:
                return [problem]
            new = self._joined(state, self._called(self._body, state))
            if new == state:
                return state
            state = new
        return self._restless(state)

    def _restless(self, state: Sequence[Value]) -> Sequence[Value]:
        mixed = _mixed(state)
        if mixed is None:
            raise UnprovenError("does not come to rest")
        return [mixed] * len(state)

    def _called(self, name: str, state: Sequence[Value]) -> list[Value]:
        return _call(self._scope, name, state, self._place)

    def _joined(self, state: Sequence[Value], given: Sequence[Value]) -> list[Value]:
        return [
            join(a, b, f"{self._place}.{index}", self._node.op, self._node.name)
            for index, (a, b) in enumerate(zip(state, given, strict=True))
        ]

    def _over_rows(self) -> Sequence[Value] | None:
        """The values after a loop with one row per turn, like `tf.map_fn`; None for any loop of another kind."""
        counters = [i for i, value in enumerate(self._inputs) if value.kind is Kind.CONST and value.number == 0]
        lengths = {value.length for value in self._inputs if value.kind is Kind.LIST and value.length is not None}
        spaces = [length for length in lengths if length.counter is not None]
        if not counters or len(spaces) != 1:
            return None
        space = spaces[0]
        turn = Value(Kind.TURN, (), space=space)
        state = self._inputs
        while True:
            state = [turn if i in counters else self._inside(i, value) for i, value in enumerate(self._inputs)]
            body = _scope_of(self._scope, self._body, state, self._place)
            given = body.results()
            counting = [i for i in counters if given[i].kind is Kind.NEXT]
            if counting == counters:
                break
            counters = counting
            if not counters:
                return None
        condition = self._called(self._condition, state)[0]
        if condition.kind is not Kind.BELOW or condition.space != space:
            return None
        return self._left(state, given, counters, space)

    def _inside(self, index: int, value: Value) -> Value:
        """A carried value inside the body: a list, or a value that no turn changes."""
        if value.kind is Kind.LIST:
            return value
        body = self._scope.analysis.function(self._body)
        if (
            body is not None
            and _FunctionScope(self._scope.analysis, body, self._inputs, "", 0).passed_on(index)
            == body.signature.input_arg[index].name
        ):
            return value
        return self._carrying()

    def _kept(self, index: int, before: Value, after: Value) -> Value:
        """A carried value after a turn; only a list with a place for each row may change."""
        if before.kind is Kind.LIST and before.length is not None and before.length.counter is None and before != after:
            return self._carrying()
        return join(before, after, f"{self._place}.{index}", self._node.op, self._node.name)

    def _carrying(self) -> Value:
        why = "carries something from row to row"
        return Value(Kind.MIXED, obstacle=Obstacle(self._node.op, self._node.name, why))

    def _left(
        self, state: Sequence[Value], given: Sequence[Value], counters: Sequence[int], space: Size
    ) -> Sequence[Value]:
        for _ in range(_MAX_TURNS):
            new = [
                a if i in counters else self._kept(i, a, b) for i, (a, b) in enumerate(zip(state, given, strict=True))
            ]
            if new == list(state):
                return [constant((), (space,)) if i in counters else value for i, value in enumerate(state)]
            state = new
            given = self._called(self._body, state)
        return self._restless(state)


def _const(node: NodeDef) -> Value:
    proto = node.attr["value"].tensor
    shape = tuple(Size(dim.size) for dim in proto.tensor_shape.dim)
    elements = math.prod(size.factor for size in shape)
    if proto.dtype not in (3, 9) or elements > _MAX_ELEMENTS:
        return constant(shape)
    import numpy as np

    dtype = np.dtype("<i4" if proto.dtype == 3 else "<i8")
    if proto.tensor_content:
        numbers = np.frombuffer(proto.tensor_content, dtype).tolist()
    else:
        numbers = list(proto.int_val if proto.dtype == 3 else proto.int64_val) or [0] * bool(elements)
        numbers += numbers[-1:] * (elements - len(numbers))
    return constant(shape, tuple(map(Size, numbers[:elements])))


def _declared(node: NodeDef) -> tuple[Size, ...] | None:
    shape = node.attr["shape"].shape
    if shape.unknown_rank or any(dim.size < 0 for dim in shape.dim):
        return None
    return tuple(Size(dim.size) for dim in shape.dim)
