"""Rules of operations that take texts and examples apart, and of the resulting ragged and sparse structures.

Values, row numbers and row splits of a structure are pieces: entries of all rows, with a number that varies by row.
Pieces become rows again where a width is fixed or where an operation combines the entries of each row.
"""

from __future__ import annotations

from dataclasses import replace

from embedserve.saved_model.judge.rows.call import Call, constants, operand, shape_of
from embedserve.saved_model.judge.rows.sizes import Size, product
from embedserve.saved_model.judge.rows.values import Kind, MixedError, UnprovenError, Value, constant, rows

__all__ = ["parse_example", "ragged_to_dense", "sparse_to_dense"]

LONGEST = "pads to the longest row of the batch"


def _sparse(call: Call, space: Size, tag: object, columns: int = 2, why: str = LONGEST) -> tuple[Value, Value, Value]:
    """Indices, values and dense shape of a sparse tensor with `space` rows."""
    many = call.count(tag)
    indices = Value(Kind.INDICES, (many, Size(columns)), space=space)
    widths = (call.obstacle(why),) * (columns - 1)
    return indices, rows((many,)), constant((Size(columns),), (space, *widths))


def _splits(space: Size, total: Size) -> Value:
    return Value(Kind.SPLITS, space=space, total=str(total))


def _row_count(value: Value) -> Size:
    """The number of rows of a vector of texts."""
    shape = shape_of(operand(value))
    if value.kind is not Kind.ROWS or len(shape) != 1:
        raise UnprovenError("takes texts that are not one per row")
    return shape[0]


def parse_example(call: Call) -> list[Value]:
    """`ParseExample`: dense features of a fixed shape are rows, sparse features are pieces."""
    space = _row_count(call.inputs[0])
    constants(call.inputs[1:])
    many = call.integer("Nsparse")
    return [*_parsed_sparse(call, space, many), *_parsed_dense(call, space)]


def parse_example_again(call: Call) -> list[Value]:
    """`ParseExampleV2`: like `ParseExample`, with ragged features as pieces."""
    space = _row_count(call.inputs[0])
    constants(call.inputs[1:])
    sparse = _parsed_sparse(call, space, call.integer("num_sparse"))
    ragged = call.attr("ragged_value_types")
    counts = [call.count(f"ragged{index}") for index in range(len(ragged.list.type) if ragged is not None else 0)]
    splits = [_splits(space, count) for count in counts]
    return [*sparse, *_parsed_dense(call, space), *(rows((count,)) for count in counts), *splits]


def _parsed_sparse(call: Call, space: Size, many: int) -> list[Value]:
    parts = [_sparse(call, space, f"sparse{index}") for index in range(many)]
    return [part[place] for place in range(3) for part in parts]


def _parsed_dense(call: Call, space: Size) -> list[Value]:
    shapes = call.attr("dense_shapes")
    dense = []
    for shape in shapes.list.shape if shapes is not None else ():
        if shape.unknown_rank or any(dim.size < 0 for dim in shape.dim):
            dense.append(Value(Kind.MIXED, obstacle=call.obstacle(LONGEST)))
        else:
            dense.append(rows((space, *(Size(dim.size) for dim in shape.dim))))
    return dense


def string_split(call: Call) -> list[Value]:
    """`StringSplitV2` and `StringSplit`: the words of each text."""
    constants(call.inputs[1:])
    if call.inputs[0].kind is Kind.CONST:
        return [constant()] * 3
    return list(_sparse(call, _row_count(call.inputs[0]), "words"))


def unicode_decode(call: Call) -> list[Value]:
    """`UnicodeDecode` and `UnicodeDecodeWithOffsets`: the characters of each text."""
    if call.inputs[0].kind is Kind.CONST:
        return [constant()] * call.outputs
    space, many = _row_count(call.inputs[0]), call.count("characters")
    return [_splits(space, many), *[rows((many,))] * (call.outputs - 1)]


def _of_splits(values: Value, splits: Value) -> tuple[Size, Size]:
    """The number of rows and of entries, where splits and values agree."""
    if splits.kind is not Kind.SPLITS or splits.space is None:
        raise UnprovenError("takes row splits that are not those of the rows")
    many = shape_of(operand(values))[0]
    if values.kind is not Kind.ROWS or values.axis != 0 or str(many) != splits.total:
        raise UnprovenError("takes row splits that are not those of the values")
    return splits.space, many


def unicode_encode(call: Call) -> Value:
    """`UnicodeEncode`: a text from the characters of each row."""
    return rows((_of_splits(*call.inputs)[0],))


def ngrams(call: Call) -> list[Value]:
    """`StringNGrams`: the n-grams of each row."""
    space, _ = _of_splits(*call.inputs)
    many = call.count("ngrams")
    return [rows((many,)), _splits(space, many)]


def ragged_bincount(call: Call) -> Value:
    """`RaggedBincount`: counts within each row."""
    splits, values, wanted, weights = call.inputs
    constants([wanted, weights])
    only = wanted.contents[0] if wanted.contents else None
    return rows((_of_splits(values, splits)[0], only if isinstance(only, Size) else call.fresh("size")))


def ragged_to_dense(call: Call) -> Value:
    """`RaggedTensorToTensor`: rows, where the width is fixed."""
    shape, values, default = call.inputs[:3]
    partitions = call.inputs[3:]
    attr = call.attr("row_partition_types")
    types = [one.decode() for one in attr.list.s] if attr is not None else []
    first = shape.contents[0] if shape.contents else None
    ragged = len(types) - (types[:1] == ["FIRST_DIM_SIZE"])
    widths = shape.contents[1 : 1 + ragged] if shape.contents is not None else ()
    fixed = [one for one in widths if isinstance(one, Size) and not one.counter and one.factor >= 0]
    if len(fixed) != ragged:
        raise MixedError(LONGEST)
    _known(call.inputs)
    constants([default])
    if values.kind is Kind.CONST and all(one.kind is Kind.CONST for one in partitions):
        return constant()
    space = _row_space(types, partitions, shape_of(operand(values))[0])
    if first != Size(-1) and first != space:
        raise MixedError("makes a fixed number of rows")
    inner = shape_of(values)[1:]
    return rows((space, *fixed, *inner))


def _known(values: tuple[Value, ...]) -> None:
    for value in values:
        if value.kind is Kind.UNPROVEN:
            raise UnprovenError("takes what an operation gives that is not known")


def _row_space(types: list[str], partitions: tuple[Value, ...], entries: Size) -> Size:
    """The number of rows of nested partitions, outermost first; the partitions must chain and end with `entries`."""
    given: Size | None = None
    chain: list[tuple[Size, str]] = []
    for kind, partition in zip(types, partitions, strict=True):
        if kind == "FIRST_DIM_SIZE":
            only = partition.contents[0] if partition.contents else None
            given = only if isinstance(only, Size) else None
            continue
        total = None
        if kind == "VALUE_ROWIDS" and partition.kind is Kind.NUMBERS and partition.shape is not None:
            total = str(partition.shape[0])
        elif kind == "ROW_SPLITS" and partition.kind is Kind.SPLITS:
            total = partition.total
        if total is None or partition.space is None:
            raise UnprovenError("takes row splits that are not those of the rows")
        chain.append((partition.space, total))
    inner = [str(space) for space, _ in chain[1:]] + [str(entries)]
    if not chain or [total for _, total in chain] != inner or given not in (None, chain[0][0]):
        raise UnprovenError("takes row splits that are not those of the values")
    # Row numbers alone would miss empty rows at the end.
    if types[0] == "FIRST_DIM_SIZE" and given is None:
        raise UnprovenError("takes a number of rows that is not known")
    return chain[0][0]


def sparse_to_dense(call: Call) -> Value:
    """`SparseToDense`: rows, where the width is fixed."""
    indices, shape, values, default = call.inputs
    contents = shape.contents
    if shape.kind is Kind.CONST and indices.kind is Kind.CONST:
        return _constant_places(contents, values)
    if contents is None or not all(isinstance(one, Size) and not one.counter for one in contents[1:]):
        raise MixedError(LONGEST)
    _known(call.inputs)
    constants([default])
    if indices.kind is not Kind.INDICES or indices.shape is None or indices.space is None:
        raise UnprovenError("takes places that are not those of the rows")
    if contents[0] != indices.space:
        raise MixedError("makes a fixed number of rows")
    if operand(values).kind is Kind.ROWS and shape_of(values) != indices.shape[:1]:
        raise UnprovenError("combines rows of different sizes")
    if values.kind is Kind.CONST and values.shape != ():
        raise UnprovenError("combines rows of different sizes")
    return rows(tuple(one for one in contents if isinstance(one, Size)))


def _constant_places(contents: object, values: Value) -> Value:
    constants([values])
    if isinstance(contents, tuple) and all(isinstance(one, Size) for one in contents):
        return constant(contents)
    return constant()


def fill_empty_rows(call: Call) -> list[Value]:
    """`SparseFillEmptyRows`: every row of the result has an entry."""
    indices, values, shape, default = call.inputs
    constants([default])
    if indices.kind is not Kind.INDICES or indices.shape is None or indices.space is None or shape.contents is None:
        raise UnprovenError("takes places that are not those of the rows")
    if shape.contents[0] != indices.space or shape_of(operand(values)) != indices.shape[:1]:
        raise UnprovenError("takes places that are not those of the rows")
    many = call.count("filled")
    full = replace(indices, shape=(many, indices.shape[1]), full=True)
    moved = Value(Kind.UNPROVEN, obstacle=call.obstacle("counts entries over the rows"))
    return [full, rows((many,)), rows((indices.space,)), moved]


def sparse_reorder(call: Call) -> list[Value]:
    """`SparseReorder`: places in ascending order, with the row number first."""
    indices, values, shape = call.inputs
    if all(value.kind is Kind.CONST for value in call.inputs):
        return [constant()] * 2
    if indices.kind is not Kind.INDICES or indices.shape is None or indices.space is None or shape.contents is None:
        raise UnprovenError("takes places that are not those of the rows")
    if shape.contents[0] != indices.space or shape_of(operand(values)) != indices.shape[:1]:
        raise UnprovenError("takes places that are not those of the rows")
    return [indices, replace(operand(values), total=None)]


def sparse_cross(call: Call) -> list[Value]:
    """`SparseCross` and its variants: each combination of a row's entries, as wide as the longest row.

    Dense inputs alone give every row the same number of combinations.
    """
    many = call.integer("N")
    indices, values, shapes = (call.inputs[many * place : many * (place + 1)] for place in range(3))
    types = call.attr("dense_types")
    if types is None:
        raise UnprovenError("has no types of its dense inputs")
    rest = len(types.list.type)
    dense = call.inputs[3 * many : 3 * many + rest]
    constants(call.inputs[3 * many + rest :])
    spaces = set()
    for places, entries, whole in zip(indices, values, shapes, strict=True):
        if places.kind is not Kind.INDICES or places.shape is None or places.shape[1] != Size(2):
            raise UnprovenError("takes places that are not those of the rows")
        if whole.contents is None or whole.contents[0] != places.space or operand(entries).kind is not Kind.ROWS:
            raise UnprovenError("takes places that are not those of the rows")
        if shape_of(entries) != places.shape[:1]:
            raise UnprovenError("takes places that are not those of the rows")
        spaces.add(places.space)
    widths = []
    for one in map(operand, dense):
        if one.kind is Kind.CONST:
            raise MixedError("needs as many rows as a constant has")
        if one.axis != 0 or len(shape_of(one)) != 2:
            raise MixedError("crosses the rows")
        spaces.add(shape_of(one)[0])
        widths.append(shape_of(one)[1])
    space = next(iter(spaces), None)
    if space is None or len(spaces) > 1:
        raise UnprovenError("combines rows of different sizes")
    crossed, entries, whole = _sparse(call, space, "crosses")
    width = product(widths)
    if not many and width is not None:
        whole = constant((Size(2),), (space, width))
    return [crossed, entries, whole]


def sparse_reshape(call: Call) -> list[Value]:
    """`SparseReshape` of a matrix to a matrix with as many rows."""
    indices, shape, wanted = call.inputs
    before, after = shape.contents, wanted.contents
    if indices.kind is not Kind.INDICES or before is None or after is None or len(before) != 2 or len(after) != 2:
        raise UnprovenError("reshapes a sparse tensor")
    if before[0] != after[0] or before[0] != indices.space:
        raise UnprovenError("reshapes a sparse tensor")
    return [indices, shape]


def sparse_matmul(call: Call) -> Value:
    """`SparseTensorDenseMatMul`: a sparse matrix of the rows times a constant matrix."""
    indices, values, shape, right = call.inputs
    constants([right])
    if call.flag("adjoint_a") or shape.contents is None or indices.kind is not Kind.INDICES or indices.space is None:
        raise UnprovenError("takes a sparse matrix that is not of the rows")
    if indices.shape is None or shape.contents[0] != indices.space or shape_of(operand(values)) != indices.shape[:1]:
        raise UnprovenError("takes a sparse matrix that is not of the rows")
    width = shape_of(right)[0 if call.flag("adjoint_b") else 1]
    return rows((indices.space, width))


def _entries(data: Value, indices: Value | None) -> tuple[Size, tuple[Size, ...]]:
    """The number of combined entries, and the shape of each entry."""
    if indices is None:
        shape = shape_of(operand(data))
        if data.kind is not Kind.ROWS or data.axis != 0:
            raise UnprovenError("combines entries that are not those of the rows")
        return shape[0], shape[1:]
    if data.kind is Kind.DISTINCT and indices.kind is Kind.PLACES and data.token == indices.token:
        if indices.shape is None or data.shape is None:
            raise UnprovenError("takes a tensor of unknown rank")
        return indices.shape[0], data.shape
    constants([data])
    places = shape_of(operand(indices))
    if indices.kind is not Kind.ROWS or len(places) != 1:
        raise UnprovenError("combines entries that are not those of the rows")
    return places[0], shape_of(data)[1:]


def _segments(call: Call, data: Value, indices: Value | None, numbers: Value, wanted: Value | None) -> Value:
    if numbers.kind is not Kind.NUMBERS or numbers.space is None or numbers.shape is None:
        if numbers.kind is Kind.CONST and operand(data).kind is Kind.ROWS:
            raise MixedError("combines rows")
        raise UnprovenError("combines entries by numbers that are not those of the rows")
    many, inner = _entries(data, indices)
    if numbers.shape[0] != many:
        raise UnprovenError("combines rows of different sizes")
    if wanted is None and not numbers.full:
        raise MixedError("has no entry for empty rows after the last that is not")
    if wanted is not None and (wanted.contents is None or wanted.contents[0] != numbers.space):
        raise UnprovenError("combines entries into a number of rows that is not known")
    return rows((numbers.space, *inner))


def segments(call: Call) -> Value:
    """`SegmentSum` and its variants: the entries of each row combined."""
    if all(value.kind is Kind.CONST for value in call.inputs):
        return constant()
    return _segments(call, call.inputs[0], None, call.inputs[1], call.inputs[2] if len(call.inputs) > 2 else None)


def sparse_segments(call: Call) -> Value:
    """`SparseSegmentSum` and its variants: entries of a constant combined for each row."""
    if all(value.kind is Kind.CONST for value in call.inputs):
        return constant()
    data, indices, numbers = call.inputs[:3]
    return _segments(call, data, indices, numbers, call.inputs[3] if len(call.inputs) > 3 else None)


def unique(call: Call) -> list[Value]:
    """`Unique` and its variants: each distinct value once.

    A result per distinct value can return to the places of the value.
    """
    value = operand(call.inputs[0])
    constants(call.inputs[1:])
    if value.kind is Kind.CONST:
        return [constant()] * call.outputs
    if len(shape_of(value)) != 1:
        raise UnprovenError("takes distinct values of several dimensions")
    token = str(call.fresh("distinct"))
    counts = Value(Kind.MIXED, obstacle=call.obstacle("counts equal values of the rows"))
    return [Value(Kind.DISTINCT, (), token=token), Value(Kind.PLACES, value.shape, token=token), counts][: call.outputs]


def where(call: Call) -> Value:
    """`Where`: the places, with the row number first."""
    value = operand(call.inputs[0])
    if value.kind is Kind.CONST:
        return constant()
    shape = shape_of(value)
    if value.axis != 0:
        raise MixedError("gives the places of all rows one after the other")
    return Value(Kind.INDICES, (call.count("places"), Size(len(shape))), space=shape[0])


def dynamic_partition(call: Call) -> list[Value]:
    """`DynamicPartition`: for each part, the entries of the rows, or the row numbers, with the number of the part."""
    data, parts = call.inputs[0], operand(call.inputs[1])
    if data.kind is Kind.CONST and parts.kind is Kind.CONST:
        return [constant()] * call.outputs
    chosen = shape_of(parts)
    if parts.kind is not Kind.ROWS or parts.axis:
        raise MixedError("needs as many rows as a constant has")
    counts = [call.count(index) for index in range(call.outputs)]
    if data.kind is Kind.NUMBERS and data.shape == chosen:
        return [Value(Kind.NUMBERS, (count,), space=data.space) for count in counts]
    before = shape_of(operand(data))
    if data.kind is not Kind.ROWS or data.axis or before[: len(chosen)] != chosen:
        raise UnprovenError("takes entries that are not those of the numbers of their parts")
    return [rows((count, *before[len(chosen) :])) for count in counts]


def decode_raw(call: Call) -> Value:
    """`DecodeRaw` and `DecodePaddedRaw`: the bytes of each text as numbers along a new dimension."""
    constants(call.inputs[1:])
    value = operand(call.inputs[0])
    if value.kind is Kind.CONST:
        return constant()
    return rows((*shape_of(value), call.fresh("numbers")), value.axis)


def decode_csv(call: Call) -> list[Value]:
    """`DecodeCSV`: the fields of each text."""
    value = operand(call.inputs[0])
    constants(call.inputs[1:])
    return [replace(value, contents=None)] * call.outputs


def detections(call: Call) -> list[Value]:
    """`CombinedNonMaxSuppression`: the best boxes of each image, up to the given number."""
    boxes, scores, *rest = map(operand, call.inputs)
    constants(rest)
    if boxes.kind is Kind.CONST and scores.kind is Kind.CONST:
        return [constant()] * 4
    if boxes.kind is not Kind.ROWS or scores.kind is not Kind.ROWS or boxes.axis or scores.axis:
        raise MixedError("needs as many rows as a constant has")
    space = shape_of(boxes)[0]
    if shape_of(scores)[0] != space:
        raise UnprovenError("combines rows of different sizes")
    most = call.fresh("boxes")
    return [rows((space, most, Size(4))), rows((space, most)), rows((space, most)), rows((space,))]
