"""Rules of operations that treat every element, or every entry of the inner dimensions, separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from embedserve.saved_model.judge.rows.call import NUMBER_OF_ROWS, Call, Rule, constants, operand, shape_of
from embedserve.saved_model.judge.rows.sizes import ONE, ROWS_SYMBOL, Size, added, named, product, quotient
from embedserve.saved_model.judge.rows.values import (
    Kind,
    MixedError,
    Obstacle,
    UnprovenError,
    Value,
    constant,
)

__all__ = ["arithmetic", "broadcast", "element_wise", "first_only", "inner", "negated", "real_transform", "same"]


# `DataType` numbers that hold sizes: float32, float64, int32, int64; the integers are int32 and int64.
_HOLDS_SIZES = frozenset((1, 2, 3, 9))
_INTEGERS = frozenset((3, 9))
# Kinds that know the very numbers, beyond the owning rows.
_NUMBERED = frozenset(
    (Kind.NUMBERS, Kind.INDICES, Kind.PLACES, Kind.SPLITS, Kind.STARTS, Kind.ENDS, Kind.TURN, Kind.NEXT, Kind.BELOW)
)


def same(call: Call) -> Value:
    """The tensor, perhaps with another dtype: all known facts stay."""
    return call.inputs[0]


def all_same(call: Call) -> list[Value]:
    """`IdentityN`."""
    return list(call.inputs)


def cast(call: Call) -> Value:
    """`Cast`: sizes stay known where the new dtype holds sizes; row numbers stay known only as int32 and int64."""
    value, wanted = call.inputs[0], call.attr("DstT")
    if value.kind in _NUMBERED and (wanted is None or wanted.type not in _INTEGERS or value.kind is Kind.BELOW):
        return operand(value)
    if value.contents is not None and (wanted is None or wanted.type not in _HOLDS_SIZES):
        value = replace(operand(value), contents=None)
    # A length cast to another dtype than an integer may lose its value, so the known sum is dropped.
    return value if wanted is not None and wanted.type in _INTEGERS else replace(value, total=None)


def quantized(call: Call) -> Value:
    """`QuantizeAndDequantize...`: with a given range."""
    if not call.flag("range_given", call.op == "QuantizeAndDequantizeV3") and call.inputs[0].kind is Kind.ROWS:
        raise MixedError("scales by the range of the whole batch")
    return first_only(call)


def element_wise(call: Call) -> Value:
    """An element of the result from the elements at the same place, with numpy's broadcasting."""
    return broadcast([operand(value) for value in call.inputs])


def first_only(call: Call) -> Value:
    """Element-wise in the first input; further inputs are single values for the whole batch."""
    constants(call.inputs[1:])
    return replace(operand(call.inputs[0]), contents=None, total=None)


def broadcast(values: Sequence[Value]) -> Value:
    """The result of broadcasting operands.

    Raises:
        MixedError: Rows meet along different dimensions, or meet a constant of several entries.
        UnprovenError: Sizes or ranks are unknown.
    """
    rows = [value for value in values if value.kind is Kind.ROWS]
    if len(values) == 1:
        return replace(values[0], contents=None, total=None)
    if any(value.shape is None for value in values):
        if rows:
            raise UnprovenError("broadcasts rows with a constant of unknown rank")
        return constant()
    shapes = [shape_of(value) for value in values]
    rank = max(map(len, shapes))
    padded = [(ONE,) * (rank - len(shape)) + shape for shape in shapes]
    if not rows:
        return constant(tuple(_together([shape[place] for shape in padded]) for place in range(rank)))
    axes = {value.axis + rank - len(shape_of(value)) for value in rows}
    if len(axes) > 1:
        raise MixedError("broadcasts the rows of one operand against those of another")
    axis = axes.pop()
    size = shape_of(rows[0])[rows[0].axis]
    for value, shape in zip(values, padded, strict=True):
        if value.kind is Kind.ROWS and shape[axis] != size:
            raise UnprovenError("combines rows of different sizes")
        if value.kind is Kind.CONST and not shape[axis].is_one:
            if shape[axis].symbols:
                raise UnprovenError("combines rows with a constant that may have several entries for them")
            raise MixedError("combines rows with a constant that has several entries for them")
    sizes = [size if place == axis else _together([shape[place] for shape in padded]) for place in range(rank)]
    return Value(Kind.ROWS, tuple(sizes), axis)


def _together(sizes: Sequence[Size]) -> Size:
    different = sorted({size for size in sizes if not size.is_one})
    if len(different) < 2:
        return different[0] if different else ONE
    numbers = [size for size in different if not size.symbols]
    if numbers:
        return numbers[0]
    return named("broadcast(" + ",".join(map(str, different)) + ")")


def arithmetic(call: Call) -> Value:
    """Element-wise; results on sizes and shapes stay known element by element."""
    kinds = {value.kind for value in call.inputs}
    if Kind.MIXED in kinds:
        return _bounded(call)
    if kinds & {Kind.TURN, Kind.NEXT, Kind.BELOW}:
        return _turn(call)
    if kinds == {Kind.STARTS, Kind.ENDS} and call.op == "Sub" and call.inputs[0].kind is Kind.ENDS:
        ends, starts = call.inputs
        if (ends.space, ends.total) == (starts.space, starts.total) and ends.space is not None:
            return Value(Kind.ROWS, (ends.space,), total=ends.total)
    if kinds <= {Kind.CONST, Kind.COUNT} and all(value.contents is not None for value in call.inputs):
        known = _computed(call)
        if known is not None:
            return known
    return element_wise(call)


def negated(call: Call) -> Value:
    """`Neg`: the result of plain numbers stays known."""
    (value,) = call.inputs
    numbers = value.numbers
    if value.kind is not Kind.CONST or numbers is None:
        return element_wise(call)
    return constant(value.shape, tuple(Size(-each) for each in numbers))


def _bounded(call: Call) -> Value:
    """For scalars, `Minimum(a, Maximum(a, mixed))` is a; any further operation on a mixed value stays mixed."""
    mixed = next(value for value in call.inputs if value.kind is Kind.MIXED)
    other = next((value for value in call.inputs if value is not mixed), mixed)
    are_scalars = mixed.shape == () and other.shape == ()
    if are_scalars and other.kind in (Kind.CONST, Kind.COUNT) and other.contents is not None:
        if call.op == "Maximum":
            return replace(mixed, contents=other.contents)
        if mixed.contents == other.contents and isinstance(other.contents[0], Size):
            return other
    return Value(Kind.MIXED, () if are_scalars else None, obstacle=mixed.obstacle)


def _computed(call: Call) -> Value | None:
    contents = [value.contents or () for value in call.inputs]
    length = max(map(len, contents))
    if any(len(one) not in (1, length) for one in contents) or any((value.rank or 0) > 1 for value in call.inputs):
        return None
    first, *rest = [one if len(one) == length else one * length for one in contents]
    found: list[Size | Obstacle | None] = list(first)
    for other in rest:
        found = [_combined(call, a, b) for a, b in zip(found, other, strict=True)]
    shape = max((value.shape or () for value in call.inputs), key=len)
    if len(found) == 1 and isinstance(found[0], Obstacle):
        return Value(Kind.MIXED, shape, obstacle=found[0])
    return constant(shape, tuple(found))


def _combined(call: Call, a: Size | Obstacle | None, b: Size | Obstacle | None) -> Size | Obstacle | None:
    for one in (a, b):
        if isinstance(one, Obstacle):
            return one
    assert not isinstance(a, Obstacle)
    assert not isinstance(b, Obstacle)
    counts = (a is not None and a.counter is not None) or (b is not None and b.counter is not None)
    if a is not None and b is not None:
        known = _of_sizes(call.op, a, b)
        if known is not None:
            return known
        if counts and _is_settled(call.op, a, b):
            return None
    return call.obstacle(NUMBER_OF_ROWS) if counts else None


def _of_sizes(op: str, a: Size, b: Size) -> Size | None:
    if op == "Mul":
        return product([a, b])
    if op in ("Add", "AddV2"):
        return added([a, b])
    if op == "Sub":
        if b.symbols:
            return Size(0) if a == b else None
        return a if b.factor == 0 else added([a, Size(-b.factor)])
    if op in ("FloorDiv", "TruncateDiv") and b.factor > 0 and (a.factor >= 0 or (op == "FloorDiv" and not a.symbols)):
        return quotient(a, b) if a.symbols or a.factor % b.factor == 0 else Size(a.factor // b.factor)
    if op in ("Maximum", "Minimum"):
        if not a.symbols and not b.symbols:
            return Size((max if op == "Maximum" else min)(a.factor, b.factor))
        if a == b:
            return a
        # The number of rows is always 1 or more.
        many, few = (a, b) if a.symbols else (b, a)
        if many.symbols == (ROWS_SYMBOL,) and not few.symbols and few.factor <= max(many.factor, 0):
            return many if op == "Maximum" else few
    return None


def _is_settled(op: str, a: Size, b: Size) -> bool:
    """Whether a comparison with a number of rows has the same result in every batch."""
    if op not in ("Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"):
        return False
    if a == b:
        return True
    many, few = (a, b) if a.counter else (b, a)
    if many.counter != ROWS_SYMBOL or many.factor < 1 or few.symbols:
        return False
    if few.factor == 0:  # The number of rows is at least 1, so only the further factors decide.
        return True
    if many.symbols != (ROWS_SYMBOL,):
        return False
    at_least = ("GreaterEqual", "Less") if many is a else ("LessEqual", "Greater")
    return few.factor < many.factor or (few.factor == many.factor and op in at_least)


def _turn(call: Call) -> Value:
    kinds = [value.kind for value in call.inputs]
    if call.op in ("Add", "AddV2") and sorted(kinds, key=lambda kind: kind.value) == [Kind.CONST, Kind.TURN]:
        step = next(value for value in call.inputs if value.kind is Kind.CONST)
        if step.number == 1:
            return Value(Kind.NEXT, ())
    if call.op == "Less" and kinds == [Kind.TURN, Kind.COUNT]:
        contents = call.inputs[1].contents or ()
        if len(contents) == 1 and isinstance(contents[0], Size):
            return Value(Kind.BELOW, (), space=contents[0])
    below = call.op == "LogicalAnd" and kinds == [Kind.BELOW, Kind.BELOW]
    if below and call.inputs[0].space == call.inputs[1].space:
        return call.inputs[0]
    raise UnprovenError("computes with the number of a row")


def inner(dimensions: int) -> Rule:
    """A rule for the last `dimensions` dimensions of the first input, with a separate result for each outer entry."""

    def rule(call: Call) -> Value:
        value, rest = operand(call.inputs[0]), call.inputs[1:]
        constants(rest)
        if value.kind is Kind.CONST:
            return constant(value.shape)
        shape = shape_of(value)
        if value.axis >= len(shape) - dimensions:
            raise MixedError("works across the rows")
        return Value(Kind.ROWS, shape, value.axis)

    return rule


def real_transform(dimensions: int, inverse: bool = False) -> Rule:
    """`RFFT`, `IRFFT` and variants: over the last `dimensions` dimensions, with lengths equal in every batch."""

    def rule(call: Call) -> Value:
        value = inner(dimensions)(call)
        assert isinstance(value, Value)
        if value.shape is None:
            return value
        lengths = call.inputs[1].numbers
        if lengths is None or len(lengths) != dimensions:
            sizes = [call.fresh(f"length{place}") for place in range(dimensions)]
        else:
            sizes = [Size(length) for length in (*lengths[:-1], lengths[-1] if inverse else lengths[-1] // 2 + 1)]
        return replace(value, shape=(*value.shape[:-dimensions], *sizes), contents=None)

    return rule


def select(call: Call) -> Value:
    """`Select`: element-wise on equal shapes; a condition of rank 1 chooses entries of dimension 0."""
    condition, first, second = map(operand, call.inputs)
    chosen = _same_shape([first, second])
    if condition.shape is None or chosen.shape is None:
        raise UnprovenError("chooses between tensors of unknown rank")
    if len(condition.shape) == 1 and len(chosen.shape) > 1:
        wide = condition.shape + (ONE,) * (len(chosen.shape) - 1)
        return broadcast([replace(condition, shape=wide, contents=None), chosen])
    return broadcast([condition, chosen])


def same_shape(call: Call) -> Value:
    """Element-wise without broadcasting: all operands have the same shape."""
    return _same_shape([operand(value) for value in call.inputs])


def _same_shape(values: Sequence[Value]) -> Value:
    if len({value.rank for value in values}) > 1 and any(value.kind is Kind.ROWS for value in values):
        raise UnprovenError("takes tensors whose ranks are not known to be the same")
    kinds = {value.kind for value in values}
    if kinds == {Kind.CONST, Kind.ROWS}:
        raise MixedError("needs as many rows as a constant has")
    return broadcast(values)


def joined_texts(call: Call) -> Value:
    """`StringJoin`: element-wise; scalars join every element."""
    values = [operand(value) for value in call.inputs]
    return broadcast([value for value in values if value.shape != ()] or values)
