"""Rules of operations that move, cut, repeat and join entries, and of operations that compute shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from embedserve.saved_model.judge.rows.call import (
    Call,
    axes_of,
    axis_of,
    constants,
    dimensions,
    operand,
    shape_of,
)
from embedserve.saved_model.judge.rows.sizes import ONE, Size, added, product, quotient
from embedserve.saved_model.judge.rows.values import (
    Kind,
    MixedError,
    Obstacle,
    Shape,
    UnprovenError,
    Value,
    constant,
    rows,
)

__all__ = ["reshape"]


def _is_known_vector(value: Value) -> bool:
    return value.kind in (Kind.CONST, Kind.COUNT) and value.contents is not None


def shape(call: Call) -> Value:
    """`Shape`: the sizes."""
    return _shape(call.inputs[0])


def _shape(value: Value) -> Value:
    if value.kind in (Kind.NUMBERS, Kind.INDICES, Kind.STARTS, Kind.ENDS) and value.shape is not None:
        return constant((Size(len(value.shape)),), value.shape)
    if value.kind is Kind.COUNT:
        value = constant(value.shape)
    value = operand(value)
    if value.shape is None:
        return constant()
    return constant((Size(len(value.shape)),), value.shape)


def shapes(call: Call) -> list[Value]:
    """`ShapeN`."""
    return [_shape(value) for value in call.inputs]


def size(call: Call) -> Value:
    """`Size`: the product of the sizes."""
    found = _shape(call.inputs[0]).contents
    total = None if found is None else product([one for one in found if isinstance(one, Size)])
    return constant((), (total,))


def rank(call: Call) -> Value:
    """`Rank`."""
    value = call.inputs[0]
    return constant((), None if value.rank is None else (Size(value.rank),))


def reshape(call: Call) -> Value:
    """`Reshape`: rows stay together where the number of rows stays within a single size.

    The product of the sizes before the rows must stay equal.
    """
    value, wanted = call.inputs[0], call.inputs[1]
    if value.kind in (Kind.NUMBERS, Kind.STARTS, Kind.ENDS, Kind.SPLITS) and wanted.numbers == (-1,):
        return value
    if value.kind is Kind.INDICES and value.shape is not None and value.shape[1].is_one and wanted.numbers == (-1,):
        return _first_column(value)
    if _is_known_vector(value):
        return _reshaped_vector(call, value, wanted)
    value = operand(value)
    if value.kind is Kind.CONST:
        return _reshaped_constant(call, value, wanted)
    before = shape_of(value)
    if value.axis == 0 and _keeps_rows_first(wanted, before[0]):
        return rows(
            (before[0], *(_inner(call, place, one) for place, one in enumerate(wanted.contents or ()) if place))
        )
    target = list(_target(wanted))
    total = product(before)
    assert total is not None
    if Size(-1) in target:
        place = target.index(Size(-1))
        rest = product([one for one in target if one != Size(-1)])
        missing = None if rest is None else quotient(total, rest)
        if rest is not None and rest.counter is None and missing is None and total.counter:
            raise UnprovenError("reshapes rows to a size that the graph does not tell")
        if missing is None:
            missing = call.fresh("rest")
        target[place] = missing
    elif product(target) != total and not any(one.counter for one in target):
        raise MixedError("reshapes the rows to a fixed number of them")
    axis = next((place for place, one in enumerate(target) if one.counter), None)
    if axis is None:
        raise MixedError("reshapes the rows to a fixed number of them")
    if product(target[:axis]) != product(before[: value.axis]):
        raise MixedError("reshapes across the rows")
    if target[axis].counter != before[value.axis].counter:
        raise MixedError("reshapes across the rows")
    return rows(tuple(target), axis)


def _keeps_rows_first(wanted: Value, many: Size) -> bool:
    """Whether a shape begins with the rows, and has an unknown element that is the same in every batch."""
    if wanted.kind is not Kind.COUNT or wanted.contents is None or wanted.contents[0] != many:
        return False
    inner = wanted.contents[1:]
    if not all(one is None or (isinstance(one, Size) and not one.counter) for one in inner):
        return False
    return None in inner and not any(one == Size(0) for one in inner)


def _inner(call: Call, place: int, one: Size | Obstacle | None) -> Size:
    return one if isinstance(one, Size) and one != Size(-1) else call.fresh(f"d{place}")


def _first_column(indices: Value) -> Value:
    assert indices.shape is not None
    return Value(Kind.NUMBERS, indices.shape[:1], space=indices.space, full=indices.full)


def _target(wanted: Value) -> Shape:
    if wanted.kind not in (Kind.CONST, Kind.COUNT):
        raise MixedError("takes a shape from the rows")
    if wanted.contents is None or any(one is None for one in wanted.contents):
        raise UnprovenError("takes a shape that the graph does not tell")
    if not all(isinstance(one, Size) for one in wanted.contents):
        raise MixedError("takes a shape that depends on the batch")
    return tuple(one for one in wanted.contents if isinstance(one, Size))


def _reshaped_vector(call: Call, value: Value, wanted: Value) -> Value:
    constants([wanted])
    assert value.contents is not None
    if wanted.numbers == (-1,):
        return constant((Size(len(value.contents)),), value.contents)
    if wanted.numbers is None or -1 in wanted.numbers:
        return constant() if value.kind is Kind.CONST else operand(value)
    return constant(tuple(map(Size, wanted.numbers)), value.contents)


def _reshaped_constant(call: Call, value: Value, wanted: Value) -> Value:
    if wanted.kind is Kind.CONST and (wanted.contents is None or None in wanted.contents):
        known_rank = wanted.shape is not None and len(wanted.shape) == 1 and not wanted.shape[0].symbols
        if not known_rank:
            return constant()
        places = wanted.contents or (None,) * shape_of(wanted)[0].factor
        return constant(tuple(_inner(call, place, one) for place, one in enumerate(places)))
    target = _target(wanted)
    if any(one.counter for one in target):
        raise MixedError("gives a constant as many rows as the batch has")
    if Size(-1) not in target:
        return constant(target)
    known = None if value.shape is None else product(value.shape)
    rest = product([one for one in target if one != Size(-1)])
    missing = None if known is None or rest is None else quotient(known, rest)
    return constant(
        tuple(
            call.fresh("rest")
            if one == Size(-1) and missing is None
            else (missing if one == Size(-1) and missing is not None else one)
            for one in target
        )
    )


def transpose(call: Call) -> Value:
    """`Transpose` with a constant permutation."""
    value = operand(call.inputs[0])
    if value.shape is None:
        return constant() if value.kind is Kind.CONST else operand(value)
    order = axes_of(call.inputs[1], len(value.shape))
    moved = tuple(value.shape[place] for place in order)
    if value.kind is Kind.CONST:
        return constant(moved)
    return Value(Kind.ROWS, moved, order.index(value.axis))


def expand(call: Call) -> Value:
    """`ExpandDims`."""
    value = call.inputs[0]
    if value.kind is Kind.COUNT and value.shape == ():
        return constant((ONE,), value.contents)
    value = operand(value)
    if value.shape is None:
        return constant()
    axis = axis_of(call.inputs[1], len(value.shape) + 1)
    wider = (*value.shape[:axis], ONE, *value.shape[axis:])
    if value.kind is Kind.CONST:
        return constant(wider, value.contents if value.shape == () else None)
    return Value(Kind.ROWS, wider, value.axis + (axis <= value.axis))


def squeeze(call: Call) -> Value:
    """`Squeeze`: of named dimensions; without names the operation would also squeeze a single row."""
    value = call.inputs[0]
    if value.kind is Kind.COUNT and value.contents is not None and len(value.contents) == 1:
        return constant((), value.contents)
    dims = call.integers("squeeze_dims")
    if value.kind is Kind.INDICES and value.shape is not None and value.shape[1].is_one and dims in ([1], [-1]):
        return _first_column(value)
    value = operand(value)
    if value.kind is Kind.CONST and (value.shape is None or not dims):
        return constant()
    before = shape_of(value)
    if not dims:
        raise MixedError("drops the dimension of the rows where there is one row")
    gone = {place + len(before) if place < 0 else place for place in dims}
    kept = tuple(one for place, one in enumerate(before) if place not in gone)
    if value.kind is Kind.CONST:
        return constant(kept, value.contents if kept == () else None)
    if value.axis in gone:
        raise MixedError("drops the dimension of the rows")
    return Value(Kind.ROWS, kept, value.axis - sum(place < value.axis for place in gone))


def concat(call: Call) -> Value:
    """`ConcatV2`: along any dimension except the rows' dimension."""
    return _concat(call, call.inputs[:-1], call.inputs[-1])


def old_concat(call: Call) -> Value:
    """`Concat`, with the axis as first input."""
    return _concat(call, call.inputs[1:], call.inputs[0])


def _concat(call: Call, values: Sequence[Value], along: Value) -> Value:
    if all(_is_known_vector(value) and value.rank == 1 for value in values):
        contents = tuple(one for value in values for one in value.contents or ())
        return constant((Size(len(contents)),), contents)
    if all(_is_known_vector(value) and value.rank == 2 for value in values) and along.number == 0:
        return _lines([(shape_of(value)[0].factor, value) for value in values])
    if len(values) == 2 and values[1].kind is Kind.ENDS and values[0].numbers == (0,) and values[0].rank == 1:
        return Value(Kind.SPLITS, space=values[1].space, total=values[1].total)
    values = [operand(value) for value in values]
    shaped = [value for value in values if value.kind is Kind.ROWS]
    if any(value.shape is None for value in values):
        if shaped:
            raise UnprovenError("joins rows with a constant of unknown rank")
        return constant()
    lead = shaped[0] if shaped else values[0]
    sizes = list(shape_of(lead))
    axis = axis_of(along, len(sizes))
    total = added([shape_of(value)[axis] for value in values])
    if not shaped:
        sizes[axis] = call.fresh("sum") if total is None else total
        return constant(tuple(sizes))
    if axis == lead.axis:
        if len(values) == 1:
            return lead
        raise MixedError("puts tensors one after the other along the rows")
    for value in values:
        if value.kind is Kind.CONST:
            raise MixedError("needs as many rows as a constant has")
        if value.axis != lead.axis or shape_of(value)[lead.axis] != sizes[lead.axis]:
            raise UnprovenError("joins rows of different sizes")
    assert total is not None
    sizes[axis] = total
    return Value(Kind.ROWS, tuple(sizes), lead.axis)


def _lines(parts: Sequence[tuple[int, Value]]) -> Value:
    """A matrix of known numbers, joined from values with some lines each: for example the widths of a padding."""
    contents = tuple(one for _, value in parts for one in value.contents or ())
    return constant((Size(sum(many for many, _ in parts)), shape_of(parts[0][1])[-1]), contents)


def pack(call: Call) -> Value:
    """`Pack`: tensors of one shape along a new dimension."""
    if all(_is_known_vector(value) and value.rank == 1 for value in call.inputs) and not call.integer("axis"):
        return _lines([(1, value) for value in call.inputs])
    if all(_is_known_vector(value) and value.rank == 0 for value in call.inputs):
        contents = tuple(value.contents[0] for value in call.inputs if value.contents)
        return constant((Size(len(contents)),), contents)
    if all(value.kind in (Kind.CONST, Kind.COUNT, Kind.MIXED) for value in call.inputs) and (
        all(value.kind is Kind.MIXED or value.shape == () for value in call.inputs)
        and not all(value.kind is Kind.MIXED for value in call.inputs)
    ):
        return constant(
            (Size(len(call.inputs)),),
            tuple(value.obstacle if value.obstacle else (value.contents or (None,))[0] for value in call.inputs),
        )
    for value in call.inputs:
        if value.kind is Kind.MIXED:
            return value
    if call.inputs[0].kind is Kind.NUMBERS:
        return _numbered(call)
    values = [operand(value) for value in call.inputs]
    kinds = {value.kind for value in values}
    if kinds == {Kind.CONST}:
        first = values[0].shape
        if first is None:
            return constant()
        axis = call.integer("axis") % (len(first) + 1)
        return constant((*first[:axis], Size(len(values)), *first[axis:]))
    if len(kinds) > 1:
        raise MixedError("needs as many rows as a constant has")
    lead = values[0]
    first = shape_of(lead)
    axis = call.integer("axis") % (len(first) + 1)
    if any(value.axis != lead.axis or shape_of(value)[value.axis] != first[lead.axis] for value in values):
        raise UnprovenError("joins rows of different sizes")
    return Value(Kind.ROWS, (*first[:axis], Size(len(values)), *first[axis:]), lead.axis + (axis <= lead.axis))


def _numbered(call: Call) -> Value:
    """Row numbers beside entries of the same rows: each index begins with the row."""
    numbers, *rest = call.inputs
    if call.integer("axis") not in (1, -1) or any(operand(one).shape != numbers.shape for one in rest):
        raise UnprovenError("computes with row numbers or row splits")
    assert numbers.shape is not None
    return Value(Kind.INDICES, (numbers.shape[0], Size(len(call.inputs))), space=numbers.space, full=numbers.full)


def unpack(call: Call) -> Value | list[Value]:
    """`Unpack`: along any dimension except the rows' dimension."""
    value = call.inputs[0]
    if _is_known_vector(value) and value.rank == 1 and value.contents is not None:
        return [constant((), (one,)) for one in value.contents]
    value = operand(value)
    if value.shape is None:
        return [constant()] * call.outputs
    axis = call.integer("axis") % max(len(value.shape), 1)
    kept = (*value.shape[:axis], *value.shape[axis + 1 :])
    if value.kind is Kind.CONST:
        return [constant(kept)] * call.outputs
    if axis == value.axis:
        raise MixedError("takes the rows apart")
    return [Value(Kind.ROWS, kept, value.axis - (axis < value.axis))] * call.outputs


def split(call: Call) -> list[Value]:
    """`Split` into equal parts; a vector of sizes keeps known elements."""
    value = call.inputs[1]
    if _is_known_vector(value) and value.rank == 1 and value.contents is not None:
        constants(call.inputs[:1])
        each, left = divmod(len(value.contents), call.outputs)
        if not left:
            return _parts(value, [each] * call.outputs)
    value = operand(value)
    if value.shape is None:
        return [constant()] * call.outputs
    axis = axis_of(call.inputs[0], len(value.shape))
    part = quotient(value.shape[axis], Size(call.outputs)) or call.fresh("part")
    return [_cut(value, axis, part)] * call.outputs


def split_sizes(call: Call) -> list[Value]:
    """`SplitV` into parts of constant sizes; a vector of sizes keeps known elements."""
    value, sizes = call.inputs[0], call.inputs[1].numbers
    constants(call.inputs[1:])
    if _is_known_vector(value) and value.rank == 1 and value.contents is not None and sizes is not None:
        rest = len(value.contents) - sum(size for size in sizes if size >= 0)
        return _parts(value, [rest if size < 0 else size for size in sizes])
    value = operand(value)
    if value.shape is None:
        return [constant()] * call.outputs
    axis = axis_of(call.inputs[2], len(value.shape))
    parts = [
        Size(sizes[index]) if sizes is not None and sizes[index] >= 0 else call.fresh(f"part{index}")
        for index in range(call.outputs)
    ]
    return [_cut(value, axis, part) for part in parts]


def _parts(vector: Value, lengths: Sequence[int]) -> list[Value]:
    """A vector of sizes in parts."""
    contents = iter(vector.contents or ())
    return [constant((Size(length),), tuple(itertools.islice(contents, length))) for length in lengths]


def _cut(value: Value, axis: int, part: Size) -> Value:
    assert value.shape is not None
    sizes = (*value.shape[:axis], part, *value.shape[axis + 1 :])
    if value.kind is Kind.CONST:
        return constant(sizes)
    if axis == value.axis:
        raise MixedError("cuts the rows apart")
    return Value(Kind.ROWS, sizes, value.axis)


def slices(call: Call) -> Value:
    """`Slice`: all rows are kept."""
    value, begin, extent = call.inputs
    if _is_known_vector(value) and value.rank == 1 and value.contents is not None:
        start, count = begin.number, extent.number
        if start is not None and count is not None:
            picked = value.contents[start : None if count == -1 else start + count]
            return constant((Size(len(picked)),), picked)
    value = operand(value)
    if value.shape is None:
        return constant()
    sizes = []
    for place, before in enumerate(value.shape):
        first, many = _element(begin, place), _element(extent, place)
        whole = first == Size(0) and many in (Size(-1), before)
        if value.kind is Kind.ROWS and place == value.axis and not whole:
            raise MixedError("takes some of the rows")
        if whole:
            sizes.append(before)
        elif many is not None and not many.counter and many.factor >= 0:
            sizes.append(many)
        else:
            sizes.append(call.fresh(f"slice{place}"))
    if value.kind is Kind.CONST:
        if begin.kind is not Kind.CONST or extent.kind is not Kind.CONST:
            raise MixedError("takes as much of a constant as the batch has rows")
        return constant(tuple(sizes))
    _no_counts(begin, extent, value.axis)
    return Value(Kind.ROWS, tuple(sizes), value.axis)


def _element(vector: Value, place: int) -> Size | None:
    if vector.kind not in (Kind.CONST, Kind.COUNT):
        raise MixedError("takes a place to cut at from the rows")
    found = None if vector.contents is None else vector.contents[place]
    return found if isinstance(found, Size) else None


def _no_counts(first: Value, second: Value, axis: int) -> None:
    """Require that no number of rows decides the extent along further dimensions."""
    for vector in (first, second):
        if vector.kind is Kind.COUNT and vector.contents is not None:
            for place, one in enumerate(vector.contents):
                if place != axis and one is not None and not (isinstance(one, Size) and one.counter is None):
                    raise MixedError("takes as many entries as the batch has rows")


def tile(call: Call) -> Value:
    """`Tile`: rows repeated along further dimensions only, or a constant entry repeated for each row."""
    value = operand(call.inputs[0])
    times = dimensions(call.inputs[1], call)
    if value.shape is None:
        if any(one.counter for one in times):
            raise UnprovenError("repeats a constant of unknown rank")
        return constant()
    sizes = tuple(product([before, many]) for before, many in zip(value.shape, times, strict=True))
    if None in sizes:
        raise MixedError("repeats the rows as often as there are rows")
    repeated = tuple(one for one in sizes if one is not None)
    if value.kind is Kind.ROWS:
        if not times[value.axis].is_one:
            raise MixedError("repeats the rows one batch after the other")
        return rows(repeated, value.axis)
    return _grown(value.shape, repeated)


def _grown(before: Shape, after: Shape) -> Value:
    """A constant repeated to the shape `after`: rows, where a single entry is repeated for each row."""
    counting = [place for place, one in enumerate(after) if one.counter]
    if not counting:
        return constant(after)
    lead = len(after) - len(before)
    axis = counting[0]
    if axis >= lead and not before[axis - lead].is_one:
        raise MixedError("repeats several entries as often as there are rows")
    return rows(after, axis)


def broadcast_to(call: Call) -> Value:
    """`BroadcastTo`."""
    value = operand(call.inputs[0])
    target = dimensions(call.inputs[1], call)
    if value.shape is None:
        if any(one.counter for one in target):
            raise UnprovenError("repeats a constant of unknown rank")
        return constant(target)
    if value.kind is Kind.CONST:
        return _grown(value.shape, target)
    axis = value.axis + len(target) - len(value.shape)
    if target[axis] != value.shape[value.axis]:
        raise MixedError("gives the batch another number of rows")
    return rows(target, axis)


def fill(call: Call) -> Value:
    """`Fill`: a constant in a shape that may contain the number of rows."""
    constants(call.inputs[1:])
    if call.inputs[0].kind is Kind.CONST and call.inputs[0].contents is None:
        return constant()
    target = dimensions(call.inputs[0], call)
    value = call.inputs[1]
    length = product(target)
    if value.contents is not None and length is not None and not length.symbols and 0 <= length.factor <= 64:
        return constant(target, value.contents * length.factor)
    return _grown((), target)


def count_up(call: Call) -> Value:
    """`Range`: the row numbers, where the range goes from 0 to the number of rows."""
    start, limit, step = call.inputs
    if limit.kind is Kind.COUNT and start.number == 0 and step.number == 1 and limit.contents is not None:
        size = limit.contents[0]
        if isinstance(size, Size):
            return Value(Kind.NUMBERS, (size,), space=size, full=True)
    constants(call.inputs)
    bounds = [value.number for value in call.inputs]
    if None not in bounds:
        found = range(*(bound for bound in bounds if bound is not None)) if bounds[2] else range(0)
        if len(found) <= 64:
            return constant((Size(len(found)),), tuple(map(Size, found)))
        return constant((Size(len(found)),))
    length = limit.contents[0] if limit.contents and start.number == 0 and step.number == 1 else None
    return constant((length if isinstance(length, Size) else call.fresh("range"),))


def pad(call: Call) -> Value:
    """`Pad` and its variants: the padding adds no rows."""
    value = operand(call.inputs[0])
    constants(call.inputs[1:])
    if value.shape is None:
        return constant()
    widths = call.inputs[1].contents
    sizes = []
    for place, before in enumerate(value.shape):
        around = None if widths is None else widths[2 * place : 2 * place + 2]
        if value.kind is Kind.ROWS and place == value.axis:
            if around is None:
                raise UnprovenError("pads by sizes that the graph does not tell")
            if around != (Size(0), Size(0)):
                raise MixedError("adds rows")
            sizes.append(before)
            continue
        known = [one for one in around or () if isinstance(one, Size)]
        total = added([before, *known]) if len(known) == 2 else None
        sizes.append(call.fresh(f"pad{place}") if total is None else total)
    return replace(value, shape=tuple(sizes), contents=None, total=None)


def reverse(call: Call) -> Value:
    """`ReverseV2`: along any dimension except the rows' dimension."""
    value = operand(call.inputs[0])
    if value.kind is Kind.ROWS and value.axis in axes_of(call.inputs[1], len(shape_of(value))):
        raise MixedError("reverses the rows")
    constants(call.inputs[1:])
    return replace(value, contents=None, total=None)


def reverse_sequence(call: Call) -> Value:
    """`ReverseSequence`: along a dimension, up to a length for each entry of another dimension."""
    value, lengths = operand(call.inputs[0]), operand(call.inputs[1])
    along, entries = call.integer("seq_dim"), call.integer("batch_dim")
    if value.kind is Kind.CONST and lengths.kind is Kind.CONST:
        return constant(value.shape)
    if value.kind is Kind.CONST or along == value.axis:
        raise MixedError("reverses the rows")
    if lengths.kind is Kind.ROWS:
        if entries != value.axis or shape_of(lengths)[0] != shape_of(value)[value.axis]:
            raise MixedError("reverses the rows as others say")
    elif entries == value.axis:
        raise MixedError("needs as many rows as a constant has")
    return replace(value, total=None)


def roll(call: Call) -> Value:
    """`Roll`: along any dimension except the rows' dimension."""
    value = operand(call.inputs[0])
    constants(call.inputs[1:])
    if value.kind is Kind.ROWS and value.axis in axes_of(call.inputs[2], len(shape_of(value))):
        raise MixedError("moves the rows")
    return replace(value, contents=None, total=None)
