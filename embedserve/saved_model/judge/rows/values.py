"""Abstract values of tensors in a merged batch: the same in every batch, rows, a number of rows, or mixed up.

Values are immutable. `join` gives the facts that hold for both of two values, for branches and loops. The module has no
rule of an operation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeAlias

from embedserve.saved_model.judge.rows.sizes import ROWS_SYMBOL, Size, named

__all__ = ["BOTTOM", "Kind", "MixedError", "Obstacle", "Shape", "UnprovenError", "Value", "constant", "join", "rows"]


class Kind(Enum):
    """Relation between a tensor of a merged batch and the tensors of the batch's requests.

    Attributes:
        BOTTOM: Not computed yet: the value of a loop before the first turn.
        CONST: The same in every batch.
        COUNT: A vector of sizes in `contents`; some sizes count rows.
        ROWS: The requests' tensors, concatenated along `axis`.
        NUMBERS: Row numbers, ascending; the numbers of a later request begin after the earlier requests'. `space`
            counts rows.
        INDICES: Rank 2; column 0 holds NUMBERS, further columns are a request's own.
        SPLITS, STARTS, ENDS: Row splits of `space` rows; all splits but the last; all splits but the first.
        BLOCKS: Blocks of the images in `space`: the first block of each image, then the second of each. `token` holds
            the block shape.
        DISTINCT: An entry for each distinct value of rows; `shape` is the shape of an entry.
        PLACES: For each entry, the place of the entry's value in DISTINCT of the same `token`.
        LIST: Tensors in a list of `length`, each like `element`. Element i belongs to row i where `length` counts.
        ITEM: Inside a loop over rows: a value of the current row.
        TURN, NEXT, BELOW: Inside a loop over rows: the current row's number, the number plus 1, whether the number is
            below the count of rows.
        MIXED: Depends on more than a single row.
        UNPROVEN: The table has no rule for the operation, or for the operation's case.
    """

    BOTTOM = auto()
    CONST = auto()
    COUNT = auto()
    ROWS = auto()
    NUMBERS = auto()
    INDICES = auto()
    SPLITS = auto()
    STARTS = auto()
    ENDS = auto()
    BLOCKS = auto()
    DISTINCT = auto()
    PLACES = auto()
    LIST = auto()
    ITEM = auto()
    TURN = auto()
    NEXT = auto()
    BELOW = auto()
    MIXED = auto()
    UNPROVEN = auto()


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The operation that prevents a proof: type, node, and the operation's effect as the end of a sentence."""

    op: str
    node: str
    why: str


Shape: TypeAlias = tuple[Size, ...]
Contents: TypeAlias = tuple["Size | Obstacle | None", ...]


class MixedError(Exception):
    """An operation makes a row depend on further rows; the message names the effect."""


class UnprovenError(Exception):
    """The table does not cover the effect of an operation; the message names the effect."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor.

    Attributes:
        kind: See `Kind`.
        shape: Sizes, None for an unknown rank; known for ROWS. For MIXED: () for a proven scalar.
        axis: Dimension of the rows.
        contents: Elements in row-major order, if known. None stands for an unknown element with the same value in every
            batch, an obstacle for a mixed element. For a MIXED scalar: a lower bound.
        space: Number of the rows that NUMBERS and SPLITS count, or of the images in BLOCKS.
        total: For lengths of rows and for SPLITS: the symbol of the sum.
        full: For NUMBERS and INDICES: every row has an entry.
        token: Connects DISTINCT with PLACES; the block shape of BLOCKS.
        element, length: Element and length of a LIST.
        obstacle: Reason of MIXED and UNPROVEN.
    """

    kind: Kind
    shape: Shape | None = None
    axis: int = 0
    contents: Contents | None = None
    space: Size | None = None
    total: str | None = None
    full: bool = False
    token: str = ""
    element: Value | None = None
    length: Size | None = None
    obstacle: Obstacle | None = None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, if known."""
        return None if self.shape is None else len(self.shape)

    @property
    def number(self) -> int | None:
        """The single element, if the element is a known number."""
        if self.contents is None or len(self.contents) != 1:
            return None
        only = self.contents[0]
        return only.factor if isinstance(only, Size) and not only.symbols else None

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The elements, if all are known numbers."""
        if self.contents is None:
            return None
        found = [one.factor for one in self.contents if isinstance(one, Size) and not one.symbols]
        return tuple(found) if len(found) == len(self.contents) else None


BOTTOM = Value(Kind.BOTTOM)


def constant(shape: Shape | None = None, contents: Contents | None = None) -> Value:
    """A tensor that is the same in every batch, or a vector of sizes that may count rows."""
    if contents is None:
        return Value(Kind.CONST, shape)
    counts = any(isinstance(one, Obstacle) or (one is not None and one.counter) for one in contents)
    return Value(Kind.COUNT if counts else Kind.CONST, shape, contents=contents)


def rows(shape: Shape, axis: int = 0, total: str | None = None) -> Value:
    """Rows along `axis`.

    Raises:
        MixedError: A size counts along another dimension, or `axis` does not count.
    """
    counting = [place for place, size in enumerate(shape) if size.counter]
    if counting != [axis]:
        raise MixedError("has a number of rows in its shape where no rows are")
    return Value(Kind.ROWS, shape, axis, total=total)


def is_rows(value: Value) -> bool:
    """Whether a result splits into requests: the entries of dimension 0 are exactly the rows."""
    return value.kind is Kind.ROWS and value.axis == 0 and value.shape is not None and value.shape[0] == _ROWS


_ROWS = Size(1, (ROWS_SYMBOL,))


def join(first: Value, second: Value, place: str, op: str = "", node: str = "") -> Value:
    """The facts that hold for both `first` and `second`; the choice between both values is the same in every batch.

    Args:
        first, second: The values to join.
        place: Prefix of names for sizes that differ.
        op, node: Operation and node of the choice.
    """
    if first == second or second.kind is Kind.BOTTOM:
        return first
    if first.kind is Kind.BOTTOM:
        return second
    for kind in (Kind.MIXED, Kind.UNPROVEN):
        for one in (first, second):
            if one.kind is kind:
                return one
    kinds = {first.kind, second.kind}
    if kinds <= {Kind.CONST, Kind.ITEM}:
        kind = Kind.ITEM if Kind.ITEM in kinds else Kind.CONST
        return Value(kind, _joined_shape(first.shape, second.shape, place))
    if kinds == {Kind.LIST}:
        assert first.element is not None
        assert first.length is not None
        assert second.element is not None
        assert second.length is not None
        counts = first.length.counter or second.length.counter
        if first.length != second.length and counts:
            return Value(Kind.UNPROVEN, obstacle=Obstacle(op, node, "has lists of different lengths to choose from"))
        length = first.length if first.length == second.length else named(place + ".length")
        element = join(first.element, second.element, place + ".e", op, node)
        if element.kind in (Kind.MIXED, Kind.UNPROVEN):
            return element
        return Value(Kind.LIST, element=element, length=length)
    if kinds == {Kind.ROWS} and first.axis == second.axis:
        shape = _joined_shape(first.shape, second.shape, place)
        if shape is not None and _row_size(first) == _row_size(second):
            return Value(Kind.ROWS, shape, first.axis)
    why = "has values of different kinds to choose from"
    return Value(Kind.UNPROVEN, obstacle=Obstacle(op, node, why))


def _row_size(value: Value) -> Size | None:
    return None if value.shape is None else value.shape[value.axis]


def _joined_shape(first: Shape | None, second: Shape | None, place: str) -> Shape | None:
    if first is None or second is None or len(first) != len(second):
        return None
    return tuple(
        one if one == other else named(f"{place}.{index}")
        for index, (one, other) in enumerate(zip(first, second, strict=True))
    )


def without_contents(value: Value) -> Value:
    """The value without known elements."""
    return replace(value, contents=None) if value.kind is Kind.CONST and value.contents is not None else value
