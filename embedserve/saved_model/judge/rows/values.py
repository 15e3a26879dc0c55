"""What is known of a tensor when requests are merged: the same in every batch, rows, a number of rows, or mixed up.

Values are immutable. `join` gives what holds for either of two values, for branches and loops. No rule is here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeAlias

from embedserve.saved_model.judge.rows.sizes import ROWS_SYMBOL, Size, named

__all__ = ["BOTTOM", "Kind", "MixedError", "Obstacle", "Shape", "UnprovenError", "Value", "constant", "join", "rows"]


class Kind(Enum):
    """How a tensor of a merged batch follows from those of its requests.

    Attributes:
        BOTTOM: Not computed yet: the value of a loop before its first turn.
        CONST: The same in every batch.
        COUNT: `contents` say it, in sizes of which some count rows.
        ROWS: The requests' tensors, one after the other along `axis`.
        NUMBERS: Row numbers, ascending; those of a later request begin after the earlier ones'. `space` counts rows.
        INDICES: Rank 2; column 0 holds NUMBERS, the other columns are a request's own.
        SPLITS, STARTS, ENDS: Row splits of `space` rows; all but the last; all but the first.
        BLOCKS: Blocks of the images in `space`, the first block of each, then the second of each; `token` says which.
        DISTINCT: An entry for each distinct value of rows, the entry's own; `shape` is an entry's.
        PLACES: Where in DISTINCT of the same `token` the value of each entry is.
        LIST: Tensors in a list of `length`, each like `element`. Element i is of row i where `length` counts.
        ITEM: Inside a loop over rows: something of the one row whose turn it is.
        TURN, NEXT, BELOW: Inside a loop over rows: the row's number, that plus 1, whether that is below their count.
        MIXED: Depends on other rows.
        UNPROVEN: An operation is not in the table, or its case is not.
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
    """The operation in the way: its type, its node, and what it does as the end of a sentence."""

    op: str
    node: str
    why: str


Shape: TypeAlias = tuple[Size, ...]
Contents: TypeAlias = tuple["Size | Obstacle | None", ...]


class MixedError(Exception):
    """An operation makes a row depend on others; the message says how."""


class UnprovenError(Exception):
    """The table does not cover what an operation does here; the message says what."""


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor.

    Attributes:
        kind: See `Kind`.
        shape: Sizes, None for an unknown rank; known for ROWS. Of MIXED: () where it is surely a scalar.
        axis: Where the rows are.
        contents: Elements in row-major order, where they are known; None for an element that is the same in every
            batch, an obstacle for one that is mixed. Of a MIXED scalar: what it at least is.
        space: What NUMBERS and SPLITS count, and of how many images BLOCKS are.
        total: For lengths of rows: the symbol that they add up to. For SPLITS likewise.
        full: For NUMBERS and INDICES: every row has an entry.
        token: Which DISTINCT and PLACES belong together; the block shape of BLOCKS.
        element, length: Of a LIST.
        obstacle: Of MIXED and UNPROVEN.
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
        """The one element, if it is a known number."""
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
    """A tensor that is the same in every batch, or a vector of sizes, of which some may count rows."""
    if contents is None:
        return Value(Kind.CONST, shape)
    counts = any(isinstance(one, Obstacle) or (one is not None and one.counter) for one in contents)
    return Value(Kind.COUNT if counts else Kind.CONST, shape, contents=contents)


def rows(shape: Shape, axis: int = 0, total: str | None = None) -> Value:
    """Rows along `axis`, where the shape counts; nowhere else may it."""
    counting = [place for place, size in enumerate(shape) if size.counter]
    if counting != [axis]:
        raise MixedError("has a number of rows in its shape where no rows are")
    return Value(Kind.ROWS, shape, axis, total=total)


def is_rows(value: Value) -> bool:
    """Whether a result can be cut apart between requests: rows along dimension 0, and nothing but rows."""
    return value.kind is Kind.ROWS and value.axis == 0 and value.shape is not None and value.shape[0] == _ROWS


_ROWS = Size(1, (ROWS_SYMBOL,))


def join(first: Value, second: Value, place: str, op: str = "", node: str = "") -> Value:
    """What holds whether a tensor is `first` or `second`; which one is the same in every batch.

    Args:
        first, second: The two.
        place: A name for sizes in which they differ.
        op, node: Where they meet.
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
    """The same without what its elements are."""
    return replace(value, contents=None) if value.kind is Kind.CONST and value.contents is not None else value
