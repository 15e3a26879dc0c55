"""Rules of tensor lists, the arrays of TensorFlow 2's loops: a list runs along time, or has one element per row."""

from __future__ import annotations

from dataclasses import replace

from embedserve.saved_model.judge.rows.call import Call, constants, operand
from embedserve.saved_model.judge.rows.sizes import Size
from embedserve.saved_model.judge.rows.values import (
    BOTTOM,
    Kind,
    MixedError,
    Obstacle,
    Shape,
    UnprovenError,
    Value,
    constant,
    join,
    rows,
)

__all__ = ["from_tensor", "get_item", "reserve", "set_item", "stack"]


def reserve(call: Call) -> Value:
    """`TensorListReserve`: a list without content."""
    wanted = call.inputs[-1]
    if wanted.kind not in (Kind.CONST, Kind.COUNT):
        raise MixedError("makes a list as long as the rows say")
    only = wanted.contents[0] if wanted.contents else None
    if isinstance(only, Obstacle):
        raise MixedError("makes a list as long as the batch says")
    return Value(Kind.LIST, element=BOTTOM, length=only or call.fresh("length"))


def empty(call: Call) -> Value:
    """`EmptyTensorList`: a list without content."""
    return Value(Kind.LIST, element=BOTTOM, length=Size(0))


def from_tensor(call: Call) -> Value:
    """`TensorListFromTensor`: the entries of dimension 0 as elements."""
    value = operand(call.inputs[0])
    if value.shape is None or not value.shape:
        return Value(Kind.LIST, element=constant(), length=call.fresh("length"))
    if value.kind is Kind.CONST:
        return Value(Kind.LIST, element=constant(value.shape[1:]), length=value.shape[0])
    if value.axis == 0:
        return Value(Kind.LIST, element=Value(Kind.ITEM, value.shape[1:]), length=value.shape[0])
    return Value(Kind.LIST, element=rows(value.shape[1:], value.axis - 1), length=value.shape[0])


def _list(value: Value) -> tuple[Value, Size]:
    if value.kind is not Kind.LIST or value.element is None or value.length is None:
        raise UnprovenError("takes a list that is not known")
    return value.element, value.length


def get_item(call: Call) -> Value:
    """`TensorListGetItem`."""
    element, length = _list(call.inputs[0])
    index = call.inputs[1]
    if length.counter is not None:
        if index.kind is not Kind.TURN or index.space != length:
            raise MixedError("takes an element of a list by another number than that of its row")
    else:
        constants([index])
    return _renamed(element, call)


def _renamed(element: Value, call: Call) -> Value:
    """The element with new symbols: elements of different turns may differ in size."""
    if element.shape is None:
        return element
    sizes = tuple(
        call.fresh(place) if size.symbols and size.counter is None else size for place, size in enumerate(element.shape)
    )
    return replace(element, shape=sizes, contents=None, total=None)


def set_item(call: Call) -> Value:
    """`TensorListSetItem`; the list's length becomes unknown where the operation may resize the list."""
    element, length = _list(call.inputs[0])
    index, item = call.inputs[1], call.inputs[2]
    if length.counter is not None:
        if index.kind is not Kind.TURN or index.space != length:
            raise MixedError("sets an element of a list by another number than that of its row")
        if item.kind not in (Kind.ITEM, Kind.CONST):
            operand(item)
            raise MixedError("keeps the rows once for every row")
    else:
        constants([index])
        operand(item) if item.kind is not Kind.ITEM else None
        if call.flag("resize_if_index_out_of_bounds"):
            length = call.fresh("length")
    joined = join(element, replace(item, contents=None, total=None), call.name, call.op, call.name)
    if joined.kind in (Kind.UNPROVEN, Kind.MIXED):
        return joined
    return Value(Kind.LIST, element=joined, length=length)


def push_back(call: Call) -> Value:
    """`TensorListPushBack`: a longer list."""
    element, length = _list(call.inputs[0])
    item = call.inputs[1]
    if length.counter is not None:
        raise UnprovenError("adds to a list of the rows")
    if item.kind is Kind.ITEM:
        raise UnprovenError("adds a row's own to a list")
    joined = join(element, replace(operand(item), contents=None, total=None), call.name, call.op, call.name)
    if joined.kind in (Kind.UNPROVEN, Kind.MIXED):
        return joined
    return Value(Kind.LIST, element=joined, length=call.fresh("length"))


def stack(call: Call) -> Value:
    """`TensorListStack`: the elements along a new dimension 0."""
    element, length = _list(call.inputs[0])
    shape = _element_shape(call, element)
    if element.kind is Kind.BOTTOM:
        raise UnprovenError("stacks a list that nothing was put into")
    if length.counter is not None:
        if shape is None:
            raise UnprovenError("stacks elements of unknown rank")
        return rows((length, *shape))
    if element.kind is Kind.ITEM:
        return Value(Kind.ITEM, None if shape is None else (length, *shape))
    if element.kind is Kind.CONST:
        return constant(None if shape is None else (length, *shape))
    if element.kind is not Kind.ROWS or shape is None:
        raise UnprovenError("stacks elements of unknown rank")
    return rows((length, *shape), element.axis + 1)


def _element_shape(call: Call, element: Value) -> Shape | None:
    if element.shape is not None:
        return _renamed(element, call).shape
    wanted = call.inputs[1].contents if len(call.inputs) > 1 else None
    if wanted is None or call.inputs[1].shape == ():
        return None
    return tuple(
        size if isinstance(size, Size) and size.factor >= 0 else call.fresh(place) for place, size in enumerate(wanted)
    )


def length(call: Call) -> Value:
    """`TensorListLength`."""
    return constant((), (_list(call.inputs[0])[1],))
