"""An operation on abstract values, as input of a table's rule: the values, the attributes, and readers for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from embedserve.saved_model.judge.rows.sizes import Size, named
from embedserve.saved_model.judge.rows.values import Kind, MixedError, Obstacle, Shape, UnprovenError, Value

if TYPE_CHECKING:
    from tensorflow.core.framework.attr_value_pb2 import AttrValue

__all__ = ["Call", "Rule", "axis_of", "dimensions", "operand"]

NUMBER_OF_ROWS = "uses the number of rows of the batch"


class Call:
    """A node with the values of its inputs.

    Attributes:
        op, name: Type and name of the node.
        inputs: Values of the data inputs, in order.
        outputs: Number of the node's outputs.
    """

    __slots__ = ("_attr", "_place", "inputs", "name", "op", "outputs")

    def __init__(
        self,
        op: str,
        name: str,
        inputs: Sequence[Value],
        attr: Mapping[str, AttrValue],
        outputs: int = 1,
        place: str = "",
    ) -> None:
        self.op = op
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = outputs
        self._attr = attr
        self._place = f"{place}/{name}"

    def with_inputs(self, inputs: Sequence[Value]) -> Call:
        """The same node on other values."""
        call = Call(self.op, self.name, inputs, self._attr, self.outputs)
        call._place = self._place
        return call

    def attr(self, name: str) -> AttrValue | None:
        """The `AttrValue`, None where the node omits the attribute."""
        return self._attr.get(name)

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        found = self.attr(name)
        return default if found is None else int(found.i)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean attribute."""
        found = self.attr(name)
        return default if found is None else bool(found.b)

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        found = self.attr(name)
        return default if found is None else found.s.decode()

    def integers(self, name: str) -> list[int]:
        """A list attribute of integers."""
        found = self.attr(name)
        return [] if found is None else list(found.list.i)

    def fresh(self, tag: object) -> Size:
        """A size named after the node and `tag`, the same in every batch."""
        return named(f"{self._place}:{tag}")

    def count(self, tag: object) -> Size:
        """A size named after the node and `tag` that adds up over the requests of a batch."""
        return named(f"#{self._place}:{tag}")

    def obstacle(self, why: str) -> Obstacle:
        """The operation as an obstacle."""
        return Obstacle(self.op, self.name, why)


Rule: TypeAlias = Callable[[Call], "Value | Sequence[Value]"]


def operand(value: Value) -> Value:
    """Return a value that an operation can compute with: rows or a constant.

    Raises:
        MixedError: The value is a number of rows, or mixed.
        UnprovenError: The value is a part of a ragged or sparse structure, a list, or the row number of a loop.
    """
    if value.kind in (Kind.CONST, Kind.ROWS):
        return value
    if value.kind is Kind.COUNT:
        raise MixedError(NUMBER_OF_ROWS)
    if value.kind is Kind.MIXED:
        raise MixedError("takes what depends on other rows")
    if value.kind is Kind.LIST:
        raise UnprovenError("takes a list of tensors")
    if value.kind in (Kind.TURN, Kind.NEXT, Kind.BELOW):
        raise UnprovenError("computes with the number of a row")
    raise UnprovenError("computes with row numbers or row splits")


def constants(values: Sequence[Value]) -> None:
    """Require values that are the same in every batch.

    Raises:
        MixedError: A value is rows.
    """
    for value in values:
        if operand(value).kind is Kind.ROWS:
            raise MixedError("takes one value for the whole batch from the rows")


def shape_of(value: Value) -> Shape:
    """The shape of an operand.

    Raises:
        UnprovenError: The rank is unknown.
    """
    if value.shape is None:
        raise UnprovenError("takes a tensor of unknown rank")
    return value.shape


def dimensions(value: Value, call: Call) -> Shape:
    """A vector of sizes as a shape; an unknown element becomes a fresh size."""
    if value.kind not in (Kind.CONST, Kind.COUNT):
        raise MixedError("takes a shape from the rows")
    if value.contents is None:
        if (
            value.kind is Kind.CONST
            and value.shape is not None
            and len(value.shape) == 1
            and not value.shape[0].symbols
        ):
            return tuple(call.fresh(f"d{index}") for index in range(value.shape[0].factor))
        raise UnprovenError("takes a shape that the graph does not tell")
    sizes = []
    for index, size in enumerate(value.contents):
        if isinstance(size, Obstacle):
            raise MixedError("takes a shape that depends on the batch")
        sizes.append(call.fresh(f"d{index}") if size is None else size)
    return tuple(sizes)


def axis_of(value: Value, rank: int) -> int:
    """A constant axis, counted from the front."""
    constants([value])
    axis = value.number
    if axis is None:
        raise UnprovenError("takes an axis that the graph does not tell")
    return axis + rank if axis < 0 else axis


def axes_of(value: Value, rank: int) -> tuple[int, ...]:
    """Constant axes, counted from the front."""
    constants([value])
    axes = value.numbers
    if axes is None:
        if value.shape is not None and value.shape and value.shape[0] == Size(0):
            return ()
        raise UnprovenError("takes axes that the graph does not tell")
    return tuple(axis + rank if axis < 0 else axis for axis in axes)
