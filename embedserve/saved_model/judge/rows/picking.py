"""Rules of operations that pick entries: slices with strides, gathers, tables, one-hot vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from embedserve.saved_model.judge.rows.call import Call, axis_of, constants, operand, shape_of
from embedserve.saved_model.judge.rows.sizes import ONE, Size
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

__all__ = ["gather", "strided_slice"]


@dataclass(frozen=True)
class _Cut:
    """Effect of a strided slice on a dimension: a bound of None means to the end."""

    begin: Size | None
    end: Size | None
    stride: int | None
    shrinks: bool = False
    known: bool = True

    def takes_all(self, size: Size) -> bool:
        if self.shrinks or self.stride != 1 or not self.known:
            return False
        return (self.begin is None or self.begin == Size(0)) and (self.end is None or self.end == size)


def strided_slice(call: Call) -> Value:
    """`StridedSlice`: keeps all rows and cuts the further dimensions.

    A vector of sizes keeps known elements, and row splits may lose the first or the last element.
    """
    value = call.inputs[0]
    special = _of_numbers(call, value)
    if special is not None:
        return special
    if value.kind in (Kind.CONST, Kind.COUNT) and value.contents is not None and value.rank == 1:
        picked = _of_vector(call, value)
        if picked is not None:
            return picked
    value = operand(value)
    if any(bounds.kind not in (Kind.CONST, Kind.COUNT) for bounds in call.inputs[1:]):
        raise MixedError("takes a place to cut at from the rows")
    if value.shape is None:
        return constant()
    return _cut(call, value, value.shape)


def _cut(call: Call, value: Value, before: Shape) -> Value:
    sizes: list[Size] = []
    axis, place = 0, 0
    for cut in _cuts(call, len(before)):
        if cut is None:
            sizes.append(ONE)
            continue
        size = before[place]
        is_rows = value.kind is Kind.ROWS and place == value.axis
        if is_rows and not cut.takes_all(size):
            raise MixedError("takes some of the rows")
        if not is_rows and any(bound is not None and bound.counter for bound in (cut.begin, cut.end)):
            raise MixedError("takes as many entries as the batch has rows")
        if is_rows:
            axis = len(sizes)
        if not cut.shrinks:
            sizes.append(_extent(call, cut, size, place))
        place += 1
    if value.kind is Kind.CONST:
        return constant(tuple(sizes))
    return rows(tuple(sizes), axis)


def _extent(call: Call, cut: _Cut, size: Size, place: int) -> Size:
    if cut.takes_all(size):
        return size
    if cut.known and cut.stride is not None:
        bounds = (cut.begin, cut.end)
        if not size.symbols and all(one is None or not one.symbols for one in bounds):
            begin, end = (None if one is None else one.factor for one in bounds)
            return Size(len(range(size.factor)[slice(begin, end, cut.stride)]))
    return call.fresh(f"slice{place}")


def _cuts(call: Call, rank: int) -> list[_Cut | None]:
    """Effect on each dimension in turn; None stands for a new dimension of size 1."""
    begins, ends, strides = (value.contents for value in call.inputs[1:4])
    length = len(begins or ends or strides or ())
    if not length:
        shape = call.inputs[1].shape
        if shape is None or len(shape) != 1 or shape[0].symbols:
            raise UnprovenError("takes places to cut at that the graph does not tell")
        length = shape[0].factor
    masks = {name: call.integer(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}

    def bit(name: str, place: int) -> bool:
        return bool(masks[name] >> place & 1)

    consumed = sum(not bit("ellipsis", place) and not bit("new_axis", place) for place in range(length))
    whole = _Cut(None, None, 1)
    cuts: list[_Cut | None] = []
    expanded = False
    for place in range(length):
        if bit("ellipsis", place):
            cuts += [whole] * (rank - consumed)
            expanded = True
        elif bit("new_axis", place):
            cuts.append(None)
        else:
            cuts.append(_bounds(begins, ends, strides, place, bit))
    return cuts if expanded else cuts + [whole] * (rank - consumed)


def _bounds(begins: object, ends: object, strides: object, place: int, bit: object) -> _Cut:
    def element(contents: object) -> Size | None:
        if not isinstance(contents, tuple):
            return None
        if isinstance(contents[place], Obstacle):
            raise MixedError("takes a place to cut at that depends on the batch")
        found: Size | None = contents[place]
        return found

    assert callable(bit)
    if bit("shrink_axis", place):
        return _Cut(element(begins), None, 1, shrinks=True)
    begin, end, stride = element(begins), element(ends), element(strides)
    open_begin, open_end = bit("begin", place), bit("end", place)
    known = (open_begin or begin is not None) and (open_end or end is not None)
    return _Cut(
        None if open_begin else begin,
        None if open_end else end,
        None if stride is None or stride.symbols else stride.factor,
        known=known,
    )


def _of_vector(call: Call, value: Value) -> Value | None:
    contents = value.contents
    assert contents is not None
    (cut, *more) = _cuts(call, 1)
    if cut is None or more or not cut.known or cut.stride is None:
        return None
    if cut.shrinks:
        if cut.begin is None or cut.begin.symbols or not -len(contents) <= cut.begin.factor < len(contents):
            return None
        one = contents[cut.begin.factor]
        if isinstance(one, Obstacle):
            return Value(Kind.MIXED, (), obstacle=one)
        return constant((), (one,))
    if any(bound is not None and bound.symbols for bound in (cut.begin, cut.end)):
        return None
    begin, end = (None if bound is None else bound.factor for bound in (cut.begin, cut.end))
    picked = contents[slice(begin, end, cut.stride)]
    return constant((Size(len(picked)),), picked)


def _of_numbers(call: Call, value: Value) -> Value | None:
    """Column 0 of indices, and row splits without the first or last element."""
    if value.kind is Kind.SPLITS:
        (cut, *more) = _cuts(call, 1)
        if cut is not None and not more and cut.known and cut.stride == 1 and not cut.shrinks:
            if cut.begin == Size(1) and cut.end is None:
                return replace(value, kind=Kind.ENDS, shape=None if value.space is None else (value.space,))
            if cut.begin in (None, Size(0)) and cut.end == Size(-1):
                return replace(value, kind=Kind.STARTS, shape=None if value.space is None else (value.space,))
    if value.kind is Kind.INDICES and value.shape is not None:
        cuts = _cuts(call, 2)
        first, second = (*cuts, None, None)[:2]
        if first is None or second is None or len(cuts) != 2 or not first.takes_all(value.shape[0]):
            return None
        if second.shrinks and second.begin is not None and not second.begin.symbols and second.begin.factor >= 0:
            if second.begin.factor:
                return rows(value.shape[:1])
            return Value(Kind.NUMBERS, value.shape[:1], space=value.space, full=value.full)
    return None


def gather(call: Call) -> Value:
    """`GatherV2` and `Gather`: entries of a constant by the rows, or the same entries of each row."""
    params, indices = call.inputs[0], call.inputs[1]
    if params.kind in (Kind.CONST, Kind.COUNT) and params.contents is not None and params.rank == 1:
        places = indices.numbers
        if places is not None and indices.rank in (0, 1) and all(-1 < place < len(params.contents) for place in places):
            if indices.rank == 1:
                picked = tuple(params.contents[place] for place in places)
                return constant((Size(len(picked)),), picked)
            one = params.contents[places[0]]
            if isinstance(one, Obstacle):
                return Value(Kind.MIXED, (), obstacle=one)
            return constant((), (one,))
    axis_input = call.inputs[2] if len(call.inputs) > 2 else constant((), (Size(0),))
    if indices.kind is Kind.PLACES or params.kind is Kind.DISTINCT:
        return _of_distinct(params, indices, axis_input)
    if indices.kind is Kind.NUMBERS:
        return _by_number(params, indices, axis_input)
    if indices.kind is Kind.DISTINCT:
        constants([params])
        if axis_input.number != 0 or call.integer("batch_dims"):
            raise UnprovenError("gathers along another dimension by distinct values")
        return replace(indices, shape=None if params.shape is None else params.shape[1:])
    params = operand(params)
    if indices.kind is Kind.TURN:
        if params.kind is Kind.ROWS and params.axis == 0 and axis_input.number == 0:
            return Value(Kind.ITEM, shape_of(params)[1:])
        raise UnprovenError("computes with the number of a row")
    indices = operand(indices)
    if params.shape is None or indices.shape is None:
        if {params.kind, indices.kind} == {Kind.CONST}:
            return constant()
        raise UnprovenError("takes a tensor of unknown rank")
    axis = axis_of(axis_input, len(params.shape))
    outer = call.integer("batch_dims")
    return _gathered(params, indices, axis, outer + len(indices.shape) if outer < 0 else outer)


def _gathered(params: Value, indices: Value, axis: int, outer: int) -> Value:
    before, chosen = shape_of(params), shape_of(indices)
    sizes = (*before[:axis], *chosen[outer:], *before[axis + 1 :])
    if params.kind is Kind.CONST and indices.kind is Kind.CONST:
        return constant(sizes)
    if params.kind is Kind.CONST:
        if indices.axis < outer:
            raise MixedError("needs as many rows as a constant has")
        return rows(sizes, axis + indices.axis - outer)
    if indices.kind is Kind.CONST:
        if params.axis == axis:
            raise MixedError("takes some of the rows")
        if params.axis < outer:
            raise MixedError("needs as many rows as a constant has")
        return rows(sizes, params.axis if params.axis < axis else params.axis - 1 + len(chosen) - outer)
    if params.axis != indices.axis or params.axis >= outer or before[params.axis] != chosen[indices.axis]:
        raise MixedError("takes entries of one row by another")
    return rows(sizes, params.axis)


def _of_distinct(params: Value, places: Value, axis: Value) -> Value:
    """Entries computed once per distinct value, put back to the places of the values."""
    if params.kind is not Kind.DISTINCT or places.kind is not Kind.PLACES or axis.number != 0:
        raise UnprovenError("picks entries by their distinct values")
    if params.token != places.token or places.shape is None or params.shape is None:
        raise UnprovenError("picks entries by their distinct values")
    return rows((*places.shape, *params.shape))


def _by_number(params: Value, numbers: Value, axis: Value) -> Value:
    if numbers.shape is None or axis.number != 0 or params.shape is None or params.shape[:1] != (numbers.space,):
        raise UnprovenError("picks entries by the number of a row")
    if params.kind is Kind.INDICES:
        return replace(params, shape=(numbers.shape[0], params.shape[1]), full=False)
    if params.kind is not Kind.ROWS or params.axis != 0:
        raise UnprovenError("picks entries by the number of a row")
    return rows((numbers.shape[0], *params.shape[1:]))


def resource_gather(call: Call) -> Value:
    """`ResourceGather`: entries of a variable by the rows."""
    constants(call.inputs[:1])
    if call.integer("batch_dims"):
        raise UnprovenError("gathers from a variable with batch dimensions")
    variable = call.inputs[0]
    if call.inputs[1].kind is Kind.DISTINCT:
        return replace(call.inputs[1], shape=None if variable.shape is None else variable.shape[1:])
    indices = operand(call.inputs[1])
    if variable.shape is None or indices.shape is None:
        if indices.kind is Kind.CONST:
            return constant()
        raise UnprovenError("takes a tensor of unknown rank")
    return _gathered(replace(variable, contents=None), indices, 0, 0)


def gather_nd(call: Call) -> Value:
    """`GatherNd`: entries of a constant by the rows, or each row's entry by indices that begin with row numbers."""
    params, indices = operand(call.inputs[0]), call.inputs[1]
    if indices.kind is not Kind.INDICES:
        indices = operand(indices)
    if params.kind is Kind.CONST and indices.kind is Kind.CONST:
        return constant()
    before, chosen = shape_of(params), shape_of(indices)
    if not chosen or chosen[-1].symbols:
        raise UnprovenError("picks entries by indices of unknown length")
    depth = chosen[-1].factor
    sizes = (*chosen[:-1], *before[depth:])
    if indices.kind is Kind.INDICES:
        if params.kind is not Kind.ROWS or params.axis != 0 or before[0] != indices.space:
            raise UnprovenError("picks entries by the number of a row")
        return rows(sizes)
    if params.kind is Kind.CONST:
        if indices.axis == len(chosen) - 1:
            raise MixedError("picks entries by several rows")
        return rows(sizes, indices.axis)
    if indices.kind is Kind.ROWS or params.axis < depth:
        raise MixedError("takes some of the rows")
    return rows(sizes, params.axis - depth + len(chosen) - 1)


def one_hot(call: Call) -> Value:
    """`OneHot`."""
    indices = operand(call.inputs[0])
    constants(call.inputs[1:])
    if indices.shape is None:
        return constant()
    depth = call.inputs[1].contents
    size = depth[0] if depth and isinstance(depth[0], Size) else call.fresh("depth")
    axis = call.integer("axis", -1)
    axis = len(indices.shape) if axis < 0 else axis
    sizes = (*indices.shape[:axis], size, *indices.shape[axis:])
    if indices.kind is Kind.CONST:
        return constant(sizes)
    return rows(sizes, indices.axis + (axis <= indices.axis))


def lookup(call: Call) -> Value:
    """`LookupTableFindV2`: the value of each key; only for a scalar default."""
    table, keys, default = call.inputs
    constants([table, default])
    keys = operand(keys)
    if keys.shape is None or default.shape is None:
        if keys.kind is Kind.CONST:
            return constant()
        raise UnprovenError("takes a tensor of unknown rank")
    if default.shape:
        raise UnprovenError("looks up tensors")
    return replace(keys, contents=None, total=None)


def top(call: Call) -> list[Value]:
    """`TopKV2`: the largest entries of the last dimension."""
    value = operand(call.inputs[0])
    constants(call.inputs[1:])
    if value.shape is None:
        return [constant()] * 2
    wanted = call.inputs[1].contents
    size = wanted[0] if wanted and isinstance(wanted[0], Size) else call.fresh("k")
    sizes = (*value.shape[:-1], size)
    if value.kind is Kind.CONST:
        return [constant(sizes)] * 2
    if value.axis == len(value.shape) - 1:
        raise MixedError("finds the largest of the rows")
    return [rows(sizes, value.axis)] * 2
