"""Rules of operations that sum or slide over dimensions: reductions, products of matrices, convolutions, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from embedserve.saved_model.judge.rows.call import (
    NUMBER_OF_ROWS,
    Call,
    Rule,
    axes_of,
    axis_of,
    constants,
    dimensions,
    operand,
    shape_of,
)
from embedserve.saved_model.judge.rows.elements import broadcast
from embedserve.saved_model.judge.rows.sizes import ONE, Size, named, product
from embedserve.saved_model.judge.rows.values import (
    Kind,
    MixedError,
    Shape,
    UnprovenError,
    Value,
    constant,
    rows,
)

__all__ = ["batch_matmul", "by_entry", "convolution", "einsum", "matmul", "pooling", "reduction"]


def reduction(call: Call) -> Value:
    """`Sum`, `Max`...: over any dimension except the rows' dimension."""
    value = call.inputs[0]
    if call.op == "Prod" and value.contents is not None and value.rank == 1 and not call.flag("keep_dims"):
        sizes = [one for one in value.contents if isinstance(one, Size)]
        if len(sizes) == len(value.contents):
            found = product(sizes)
            if found is None:
                raise MixedError(NUMBER_OF_ROWS)
            return constant((), (found,))
    if value.kind is Kind.NUMBERS:
        return _reduced(call, value, "reduces the rows")
    value = operand(value)
    constants(call.inputs[1:])
    before = value.shape
    if before is None:
        return constant()
    axes = axes_of(call.inputs[1], len(before)) if value.kind is Kind.ROWS or call.inputs[1].numbers else None
    if axes is None:
        return constant()
    if value.kind is Kind.ROWS and value.axis in axes:
        return _reduced(call, value, "reduces the rows to one value")
    if call.flag("keep_dims"):
        return replace(
            value,
            shape=tuple(ONE if place in axes else size for place, size in enumerate(before)),
            contents=None,
            total=None,
        )
    kept = tuple(size for place, size in enumerate(before) if place not in axes)
    if value.kind is Kind.CONST:
        return constant(kept)
    return rows(kept, value.axis - sum(place < value.axis for place in axes))


def _reduced(call: Call, value: Value, why: str) -> Value:
    """A mixed value; a scalar where the reduction drops every dimension."""
    rank = value.rank or 0
    axes = call.inputs[1].numbers or ()
    is_scalar = len({axis % rank for axis in axes if rank}) == rank > 0 and not call.flag("keep_dims")
    return Value(Kind.MIXED, () if is_scalar else None, obstacle=call.obstacle(why))


def whole(call: Call) -> Value:
    """`L2Loss`: a single number for all entries."""
    if operand(call.inputs[0]).kind is Kind.ROWS:
        return Value(Kind.MIXED, (), obstacle=call.obstacle("reduces the rows to one value"))
    return constant(())


def arg_reduction(call: Call) -> Value:
    """`ArgMax` and `ArgMin`: along any dimension except the rows' dimension."""
    value = operand(call.inputs[0])
    if value.shape is None:
        return constant()
    axis = axis_of(call.inputs[1], len(value.shape))
    kept = (*value.shape[:axis], *value.shape[axis + 1 :])
    if value.kind is Kind.CONST:
        return constant(kept)
    if axis == value.axis:
        raise MixedError("finds the largest of the rows")
    return rows(kept, value.axis - (axis < value.axis))


def cumulative(call: Call) -> Value:
    """`Cumsum` and `Cumprod`: along any dimension except the rows'; lengths of rows add up to the rows' ends."""
    value = operand(call.inputs[0])
    constants(call.inputs[1:])
    plain = call.op == "Cumsum" and not call.flag("exclusive") and not call.flag("reverse")
    if plain and value.total is not None and value.shape is not None and len(value.shape) == 1:
        return Value(Kind.ENDS, value.shape, space=value.shape[0], total=value.total)
    if value.kind is Kind.ROWS and axis_of(call.inputs[1], len(shape_of(value))) == value.axis:
        raise MixedError("adds the rows up one after the other")
    return replace(value, contents=None, total=None)


def matmul(call: Call) -> Value:
    """`MatMul`: rows on a single side, a constant opposite."""
    flipped = call.flag("transpose_a"), call.flag("transpose_b")
    return _matmul(call, [operand(value) for value in call.inputs[:2]], flipped)


def batch_matmul(call: Call) -> Value:
    """`BatchMatMul`: rows along the outer dimensions of both sides, or along a matrix dimension opposite a constant."""
    flipped = call.flag("adj_x"), call.flag("adj_y")
    return _matmul(call, [operand(value) for value in call.inputs[:2]], flipped)


def _matmul(call: Call, values: Sequence[Value], flipped: tuple[bool, bool]) -> Value:
    if any(value.shape is None for value in values):
        if {value.kind for value in values} == {Kind.CONST}:
            return constant()
        raise UnprovenError("multiplies with a constant of unknown rank")
    shapes = [shape_of(value) for value in values]
    if any(len(one) < 2 for one in shapes):
        raise UnprovenError("multiplies tensors of rank below 2")
    left, right = shapes
    sizes = (left[-1] if flipped[0] else left[-2], right[-2] if flipped[1] else right[-1])
    outer = []
    matrix_axis = None
    for side, value in enumerate(values):
        before = shapes[side]
        if value.kind is Kind.ROWS and value.axis >= len(before) - 2:
            contracted = (
                len(before) - (2 if flipped[side] else 1) if side == 0 else (len(before) - (1 if flipped[side] else 2))
            )
            if value.axis == contracted or values[1 - side].kind is Kind.ROWS:
                raise MixedError("multiplies the rows with each other")
            matrix_axis = side - 2
        outer.append(
            constant(before[:-2])
            if value.kind is Kind.CONST or value.axis >= len(before) - 2
            else Value(Kind.ROWS, before[:-2], value.axis)
        )
    together = broadcast(outer)
    whole = (*shape_of(together), *sizes)
    if matrix_axis is not None:
        return rows(whole, len(whole) + matrix_axis)
    if together.kind is Kind.ROWS:
        return rows(whole, together.axis)
    return constant(whole)


def einsum(call: Call) -> Value:
    """`Einsum`: the rows have a single letter, in every non-constant operand and in the result."""
    values = [operand(value) for value in call.inputs]
    if all(value.kind is Kind.CONST for value in values):
        return constant()
    terms, _, result = call.text("equation").replace(" ", "").partition("->")
    shapes = [shape_of(value) for value in values]
    labelled = [_labels(term, len(one)) for term, one in zip(terms.split(","), shapes, strict=True)]
    dots = max(sum(label[0] == "." for label in labels) for labels in labelled)
    wanted = _labels(result, len(result.replace("...", "")) + (dots if "..." in result else 0))
    sizes: dict[str, Size] = {}
    rows_label = None
    for value, labels, before in zip(values, labelled, shapes, strict=True):
        if len(set(labels)) < len(labels):
            raise UnprovenError("takes a diagonal")
        if value.kind is Kind.ROWS:
            if rows_label not in (None, labels[value.axis]):
                raise MixedError("multiplies the rows with each other")
            rows_label = labels[value.axis]
        for label, size in zip(labels, before, strict=True):
            if label not in sizes or sizes[label].is_one:
                sizes[label] = size
    assert rows_label is not None
    for value, labels, before in zip(values, labelled, shapes, strict=True):
        if value.kind is Kind.ROWS and before[labels.index(rows_label)] != sizes[rows_label]:
            raise UnprovenError("combines rows of different sizes")
        if value.kind is Kind.CONST and rows_label in labels and not before[labels.index(rows_label)].is_one:
            raise MixedError("needs as many rows as a constant has")
    if rows_label not in wanted:
        raise MixedError("sums over the rows")
    return rows(tuple(sizes[label] for label in wanted), wanted.index(rows_label))


def _labels(term: str, rank: int) -> list[str]:
    """A label per dimension; labels of an ellipsis are counted from the end of the ellipsis."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    many = rank - len(before) - len(after)
    return [*before, *(f".{place}" for place in range(many, 0, -1)), *after]


def _window(size: Size, window: Size, stride: int, padding: str, dilation: int, around: int | None) -> Size:
    if stride == 1 and window.is_one:
        return size
    if padding == "SAME":
        if stride == 1:
            return size
        return Size(-(-size.factor // stride)) if not size.symbols else named(f"(({size})/{stride})")
    if size.symbols or window.symbols:
        return named(f"window({size},{window},{stride},{dilation},{around})")
    covered = (window.factor - 1) * dilation + 1
    return Size(max((size.factor + (around or 0) - covered) // stride + 1, 0))


def _spatial(call: Call, rank: int) -> tuple[list[int], int]:
    """The sliding dimensions and the channels dimension of an image."""
    first = call.text("data_format", "NHWC").startswith("NC")
    return (list(range(2, rank)), 1) if first else (list(range(1, rank - 1)), rank - 1)


def _slid(call: Call, before: Shape, windows: Sequence[Size], strides: Sequence[int]) -> list[Size]:
    places, _ = _spatial(call, len(before))
    dilations = call.integers("dilations") or [1] * len(before)
    explicit = call.integers("explicit_paddings")
    padding = call.text("padding")
    found = list(before)
    for place, window in zip(places, windows, strict=True):
        around = explicit[2 * place] + explicit[2 * place + 1] if padding == "EXPLICIT" and explicit else None
        found[place] = _window(before[place], window, strides[place], padding, dilations[place], around)
    return found


def convolution(depthwise: bool = False) -> Rule:
    """A convolution of images with a constant filter."""

    def rule(call: Call) -> Value:
        image, filters = operand(call.inputs[0]), operand(call.inputs[1])
        constants([filters])
        if image.kind is Kind.CONST:
            return constant()
        before = shape_of(image)
        if image.axis != 0:
            raise MixedError("slides over the rows")
        windows = filters.shape
        _, channels = _spatial(call, len(before))
        if windows is None:
            sizes = [before[0], *(call.fresh(place) for place in range(1, len(before)))]
        else:
            sizes = _slid(call, before, windows[: len(before) - 2], call.integers("strides"))
            out = product(windows[-2:]) if depthwise else windows[-1]
            sizes[channels] = out if out is not None else call.fresh("channels")
        return rows(tuple(sizes))

    return rule


def space_to_batch(call: Call) -> Value:
    """`SpaceToBatchND`: images in blocks of a constant shape, as at the start of a dilated convolution."""
    image, blocks = operand(call.inputs[0]), call.inputs[1].numbers
    constants(call.inputs[1:])
    if image.kind is Kind.CONST:
        return constant()
    before = shape_of(image)
    if blocks is None:
        raise UnprovenError("makes blocks of a shape that the graph does not tell")
    if image.axis != 0:
        raise MixedError("works across the rows")
    many = product([before[0], *map(Size, blocks)])
    assert many is not None
    inner = [call.fresh(f"block{place}") for place in range(len(blocks))]
    return Value(Kind.BLOCKS, (many, *inner, *before[1 + len(blocks) :]), space=before[0], token=f"blocks {blocks}")


def by_entry(rule: Rule) -> Rule:
    """A rule that treats each entry of dimension 0 separately, and so also serves blocks of images, in any order."""

    def on_blocks(call: Call) -> Value | Sequence[Value]:
        blocks, *rest = call.inputs
        if blocks.kind is not Kind.BLOCKS or blocks.shape is None:
            return rule(call)
        constants(rest)
        found = rule(call.with_inputs([Value(Kind.ROWS, blocks.shape), *rest]))
        assert isinstance(found, Value)
        if found.axis or found.shape is None or found.shape[0] != blocks.shape[0]:
            raise UnprovenError("moves the blocks of images")
        return replace(blocks, shape=found.shape)

    return on_blocks


def batch_to_space(call: Call) -> Value:
    """`BatchToSpaceND`: the images of the given blocks."""
    given, blocks = call.inputs[0], call.inputs[1].numbers
    constants(call.inputs[1:])
    if given.kind is not Kind.BLOCKS:
        if operand(given).kind is Kind.CONST:
            return constant()
        raise MixedError("makes one row of several")
    if given.shape is None or given.space is None or given.token != f"blocks {blocks}" or blocks is None:
        raise UnprovenError("puts blocks together that were not taken apart so")
    inner = [call.fresh(f"space{place}") for place in range(len(blocks))]
    return rows((given.space, *inner, *given.shape[1 + len(blocks) :]))


def transposed_convolution(call: Call) -> Value:
    """`Conv2DBackpropInput`: images that grow; the wanted size must contain the number of images."""
    wanted, filters, image = call.inputs
    constants([filters])
    image = operand(image)
    if image.kind is Kind.CONST:
        return constant()
    before, sizes = shape_of(image), dimensions(wanted, call)
    if image.axis != 0:
        raise MixedError("slides over the rows")
    if len(sizes) == len(before) and sizes[0] != before[0]:
        raise MixedError("makes a fixed number of images")
    if len(sizes) != len(before):
        raise UnprovenError("makes images of a size without their number")
    return rows(sizes)


def pooling(call: Call) -> Value:
    """`MaxPool`, `AvgPool`: windows inside an image."""
    image = operand(call.inputs[0])
    constants(call.inputs[1:])
    if image.kind is Kind.CONST:
        return constant()
    before = shape_of(image)
    windows, strides = call.integers("ksize"), call.integers("strides")
    if len(call.inputs) == 3:  # MaxPoolV2
        windows, strides = list(call.inputs[1].numbers or ()), list(call.inputs[2].numbers or ())
    if len(windows) != len(before) or len(strides) != len(before):
        raise UnprovenError("slides windows whose size the graph does not tell")
    if image.axis != 0 or windows[0] != 1 or strides[0] != 1:
        raise MixedError("slides over the rows")
    sizes = list(before)
    explicit = call.integers("explicit_paddings")
    for place in range(1, len(before)):
        around = explicit[2 * place] + explicit[2 * place + 1] if explicit else None
        sizes[place] = _window(before[place], Size(windows[place]), strides[place], call.text("padding"), 1, around)
    return rows(tuple(sizes))


def pooling_with_places(call: Call) -> list[Value]:
    """`MaxPoolWithArgmax`: the places are counted within an image."""
    if call.flag("include_batch_in_index"):
        raise MixedError("counts places from the first row of the batch")
    return [pooling(call)] * 2


def bias(call: Call) -> Value:
    """`BiasAdd`: a constant per channel."""
    value, added = map(operand, call.inputs)
    constants([added])
    if value.kind is Kind.CONST:
        return constant(value.shape)
    channels = 1 if call.text("data_format").startswith("NC") else len(shape_of(value)) - 1
    if value.axis == channels:
        raise MixedError("needs as many rows as a constant has")
    return replace(value, total=None)


def batch_norm(call: Call) -> list[Value]:
    """`FusedBatchNorm`: by constant statistics, or by the statistics of a channel where channels are rows."""
    value, scale, offset = (operand(one) for one in call.inputs[:3])
    constants(call.inputs[3:])
    plain = constant()
    if value.kind is Kind.CONST:
        constants([scale, offset])
        return [plain] * call.outputs
    before = shape_of(value)
    channels = 1 if call.text("data_format").startswith("NC") else len(before) - 1
    if value.axis != channels:
        constants([scale, offset])
        if call.flag("is_training", True):
            raise MixedError("normalises by the statistics of the whole batch")
        return [replace(value, total=None), *[plain] * (call.outputs - 1)]
    if not call.flag("is_training", True):
        raise MixedError("needs as many rows as a constant has")
    for one in (scale, offset):
        if one.kind is not Kind.ROWS or one.shape != (before[channels],):
            raise MixedError("needs as many rows as a constant has")
    factor = call.attr("exponential_avg_factor")
    if factor is not None and factor.f not in (0.0, 1.0):
        raise UnprovenError("averages statistics")
    return [replace(value, total=None), *[rows((before[channels],))] * (call.outputs - 1)]


def images(call: Call) -> Value:
    """`Resize...`: each image to a constant size."""
    image = operand(call.inputs[0])
    constants(call.inputs[1:])
    if image.kind is Kind.CONST:
        return constant()
    before = shape_of(image)
    if image.axis != 0:
        raise MixedError("works across the rows")
    wanted = dimensions(call.inputs[1], call)
    return rows((before[0], *wanted, before[-1]))


def depth_to_space(call: Call) -> Value:
    """`DepthToSpace` and `SpaceToDepth`."""
    image = operand(call.inputs[0])
    if image.kind is Kind.CONST:
        return constant()
    before = shape_of(image)
    if image.axis != 0:
        raise MixedError("works across the rows")
    return rows((before[0], *(call.fresh(place) for place in range(1, len(before)))))


def bincount(call: Call) -> Value:
    """`DenseBincount`: counts within each row of a matrix."""
    values, wanted = call.inputs[0], call.inputs[1]
    if values.kind is Kind.NUMBERS and values.space is not None and wanted.contents == (values.space,):
        constants(call.inputs[2:])
        if call.inputs[2].shape != (Size(0),) or values.shape is None:
            raise UnprovenError("weighs by a constant")
        return rows((values.space,), total=None if call.flag("binary_output") else str(values.shape[0]))
    values = operand(values)
    constants([wanted])
    weights = operand(call.inputs[2])
    if values.kind is Kind.CONST:
        constants([weights])
        return constant()
    before = shape_of(values)
    if len(before) != 2 or values.axis != 0:
        raise MixedError("counts over the rows")
    if weights.kind is Kind.ROWS and weights.shape != before:
        raise UnprovenError("combines rows of different sizes")
    if weights.kind is Kind.CONST and weights.shape is not None and product(weights.shape) != Size(0):
        raise UnprovenError("weighs by a constant")
    only = wanted.contents[0] if wanted.contents else None
    return rows((before[0], only if isinstance(only, Size) else call.fresh("size")))
