"""The table of rules: how each operation carries row independence over. An operation outside the table proves no claim.

A rule may raise MixedError where the operation makes rows depend on each other, and UnprovenError for an unclear case.
Tests hold every rule against the real operation, with rows together and with each row alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from embedserve.saved_model.judge.rows import contracting, elements, layout, lists, picking, pieces
from embedserve.saved_model.judge.rows.call import Rule

__all__ = ["BY_ELEMENT", "GROUPED_BY", "PADS", "REDUCTIONS", "TABLE", "TAKE_MIXED"]

PADS = frozenset(("RaggedTensorToTensor", "SparseToDense"))
"""Operations whose width decides the verdict, even where an input is unproven."""
TAKE_MIXED = frozenset(("Pack", "Maximum", "Minimum"))
"""Operations whose result may be known although an input is mixed."""

_SAME = "Identity Snapshot StopGradient PreventGradient CheckNumerics EnsureShape DeepCopy PlaceholderWithDefault"
_ARITHMETIC = """
    Add AddV2 Sub Mul FloorDiv TruncateDiv Div Maximum Minimum Equal NotEqual Less LessEqual Greater GreaterEqual
    LogicalAnd
    """
_ELEMENT_WISE = """
    RealDiv DivNoNan MulNoNan FloorMod Mod TruncateMod Pow SquaredDifference Atan2 Xdivy Xlogy Xlog1py Igamma Igammac
    Zeta Polygamma Betainc NextAfter Complex LogicalOr LogicalNot ApproximateEqual
    BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift Invert PopulationCount
    Abs ComplexAbs Sign Square Sqrt Rsqrt Exp Expm1 Log Log1p Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh
    Atanh Sigmoid Relu Relu6 Elu Selu Softplus Softsign LeakyRelu Floor Ceil Round Rint Reciprocal Inv Erf Erfc Erfinv
    Ndtri Lgamma Digamma BesselI0e BesselI1e BesselI0 BesselI1 IsNan IsInf IsFinite Real Imag Conj Angle
    ZerosLike OnesLike SelectV2 ClipByValue Bucketize
    StringLower StringUpper StringStrip StringLength StringToNumber AsString StringToHashBucket StringToHashBucketFast
    StringToHashBucketStrong StaticRegexReplace StaticRegexFullMatch EncodeBase64 DecodeBase64 UnicodeTranscode
    UnicodeScript DecodeCompressed ReadFile Substr FakeQuantWithMinMaxVarsPerChannel
    """
BY_ELEMENT = frozenset(("Cast", *_SAME.split(), *_ARITHMETIC.split()))
"""Operations whose result is a scalar where all inputs are."""
# Inputs after the first are single values for the whole batch.
_FIRST_ONLY = """
    RegexReplace RegexFullMatch FakeQuantWithMinMaxVars FakeQuantWithMinMaxArgs
    """
_SEGMENTS = ["Sum", "Mean", "Max", "Min", "Prod"]
_SCATTERED = ["Update", "Add", "Sub", "Max", "Min"]
_SPARSE = ("Sum", "Mean", "SqrtN")
GROUPED_BY: Mapping[str, slice] = {
    **{
        f"{kind}Segment{how}{version}": slice(1, 2)
        for kind in ("", "Unsorted")
        for how in _SEGMENTS
        for version in ("", "V2")
    },
    **{f"SparseSegment{how}{more}": slice(2, 3) for how in _SPARSE for more in ("", "WithNumSegments")},
    **{f"TensorScatter{how}": slice(1, 2) for how in _SCATTERED},
    "ScatterNd": slice(0, 1),
    "ScatterNdNonAliasingAdd": slice(1, 2),
    "Bincount": slice(0, 1),
    **dict.fromkeys(["SparseToDense", "SparseTensorDenseMatMul", "SparseTensorDenseAdd"], slice(0, 1)),
    **dict.fromkeys([f"SparseReduce{how}{kind}" for how in ("Sum", "Max") for kind in ("", "Sparse")], slice(0, 1)),
    "RaggedTensorToTensor": slice(3, None),
}
"""Operations that combine entries by numbers, and the inputs with the numbers: two rows may bring the same number."""

REDUCTIONS = frozenset(
    (
        *("Sum", "Mean", "Max", "Min", "All", "Any", "EuclideanNorm", "ReduceJoin", "ArgMax", "ArgMin", "L2Loss"),
        *("Cumsum", "Cumprod", "CumulativeLogsumexp"),
    )
)
"""Operations that combine entries along the dimensions in the second input, or along all dimensions.

`Prod` is left out: a product mostly reduces a shape.
"""


def _rows(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


TABLE: Mapping[str, Rule] = {
    **_rows(_SAME, elements.same),
    "Cast": elements.cast,
    "IdentityN": elements.all_same,
    **_rows(_ARITHMETIC, elements.arithmetic),
    **_rows(_ELEMENT_WISE, elements.element_wise),
    **_rows(_FIRST_ONLY, elements.first_only),
    "Neg": elements.negated,
    "Select": elements.select,
    "StringJoin": elements.joined_texts,
    "AddN": elements.same_shape,
    # These operations treat the entries of the outer dimensions separately.
    **_rows("Softmax LogSoftmax FFT IFFT RGBToHSV HSVToRGB LRN", elements.inner(1)),
    **_rows("FFT2D IFFT2D MatrixBandPart", elements.inner(2)),
    "RFFT": elements.real_transform(1),
    "RFFT2D": elements.real_transform(2),
    "RFFT3D": elements.real_transform(3),
    "IRFFT": elements.real_transform(1, inverse=True),
    "IRFFT2D": elements.real_transform(2, inverse=True),
    "IRFFT3D": elements.real_transform(3, inverse=True),
    **_rows("AdjustContrastv2 AdjustHue AdjustSaturation FFT3D IFFT3D", elements.inner(3)),
    # Layout.
    "Shape": layout.shape,
    "ShapeN": layout.shapes,
    "Size": layout.size,
    "Rank": layout.rank,
    "Reshape": layout.reshape,
    "Transpose": layout.transpose,
    "ExpandDims": contracting.by_entry(layout.expand),
    "Squeeze": contracting.by_entry(layout.squeeze),
    "QuantizeAndDequantizeV2": elements.quantized,
    "QuantizeAndDequantizeV3": elements.quantized,
    "QuantizeAndDequantizeV4": elements.quantized,
    "ConcatV2": layout.concat,
    "Concat": layout.old_concat,
    "Pack": layout.pack,
    "Unpack": layout.unpack,
    "Split": layout.split,
    "SplitV": layout.split_sizes,
    "Slice": layout.slices,
    "StridedSlice": picking.strided_slice,
    "Tile": layout.tile,
    "BroadcastTo": layout.broadcast_to,
    "Fill": layout.fill,
    "Range": layout.count_up,
    **_rows("Pad PadV2 MirrorPad", layout.pad),
    "ReverseV2": layout.reverse,
    "ReverseSequence": layout.reverse_sequence,
    "Roll": layout.roll,
    # Picking.
    **_rows("Gather GatherV2", picking.gather),
    "ResourceGather": picking.resource_gather,
    "GatherNd": picking.gather_nd,
    "OneHot": picking.one_hot,
    "LookupTableFindV2": picking.lookup,
    "TopKV2": picking.top,
    # Contracting.
    **_rows("Sum Mean Prod Max Min All Any EuclideanNorm ReduceJoin", contracting.reduction),
    "L2Loss": contracting.whole,
    **_rows("ArgMax ArgMin", contracting.arg_reduction),
    **_rows("Cumsum Cumprod CumulativeLogsumexp", contracting.cumulative),
    "MatMul": contracting.matmul,
    **_rows("BatchMatMul BatchMatMulV2 BatchMatMulV3", contracting.batch_matmul),
    "Einsum": contracting.einsum,
    **_rows("Conv2D Conv3D", contracting.by_entry(contracting.convolution())),
    "DepthwiseConv2dNative": contracting.by_entry(contracting.convolution(depthwise=True)),
    "SpaceToBatchND": contracting.space_to_batch,
    "BatchToSpaceND": contracting.batch_to_space,
    **_rows("Conv2DBackpropInput Conv3DBackpropInputV2", contracting.transposed_convolution),
    **_rows("MaxPool MaxPoolV2 AvgPool MaxPool3D AvgPool3D", contracting.pooling),
    "MaxPoolWithArgmax": contracting.pooling_with_places,
    **_rows("BiasAdd BiasAddV1", contracting.by_entry(contracting.bias)),
    **_rows("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3", contracting.batch_norm),
    **_rows("ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea", contracting.images),
    **_rows("DepthToSpace SpaceToDepth", contracting.depth_to_space),
    "DenseBincount": contracting.bincount,
    "CombinedNonMaxSuppression": pieces.detections,
    # Texts, examples, ragged and sparse structures.
    "ParseExample": pieces.parse_example,
    "ParseExampleV2": pieces.parse_example_again,
    **_rows("StringSplit StringSplitV2", pieces.string_split),
    **_rows("UnicodeDecode UnicodeDecodeWithOffsets", pieces.unicode_decode),
    "UnicodeEncode": pieces.unicode_encode,
    "StringNGrams": pieces.ngrams,
    "RaggedBincount": pieces.ragged_bincount,
    "RaggedTensorToTensor": pieces.ragged_to_dense,
    "SparseToDense": pieces.sparse_to_dense,
    "SparseFillEmptyRows": pieces.fill_empty_rows,
    "SparseReorder": pieces.sparse_reorder,
    **_rows("SparseCross SparseCrossV2 SparseCrossHashed", pieces.sparse_cross),
    "SparseReshape": pieces.sparse_reshape,
    "SparseTensorDenseMatMul": pieces.sparse_matmul,
    **_rows("SegmentSum SegmentMean SegmentMax SegmentMin SegmentProd", pieces.segments),
    **_rows("UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd", pieces.segments),
    **_rows("SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN", pieces.sparse_segments),
    **_rows(
        "SparseSegmentSumWithNumSegments SparseSegmentMeanWithNumSegments SparseSegmentSqrtNWithNumSegments",
        pieces.sparse_segments,
    ),
    **_rows("Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2", pieces.unique),
    "Where": pieces.where,
    "DynamicPartition": pieces.dynamic_partition,
    **_rows("DecodeRaw DecodePaddedRaw", pieces.decode_raw),
    "DecodeCSV": pieces.decode_csv,
    # Lists.
    "TensorListReserve": lists.reserve,
    "EmptyTensorList": lists.empty,
    "TensorListFromTensor": lists.from_tensor,
    "TensorListGetItem": lists.get_item,
    "TensorListSetItem": lists.set_item,
    "TensorListPushBack": lists.push_back,
    "TensorListStack": lists.stack,
    "TensorListLength": lists.length,
}
