"""Small graphs of several operations: as models hold them, and for operations that take no request's value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

__all__ = ["PROGRAMS"]

raw = tf.raw_ops
Specs: TypeAlias = Sequence[tuple[Any, Any]]
_F, _I, _L, _B = tf.float32, tf.int32, tf.int64, tf.bool


def _no_size() -> Any:
    return tf.constant([], tf.int32)


def _list(values: Any, index: Any, size: Any) -> Any:
    handle = raw.TensorListReserve(element_shape=_no_size(), num_elements=size, element_dtype=_F)
    handle = raw.TensorListSetItem(input_handle=handle, index=index, item=values[0])
    item = raw.TensorListGetItem(input_handle=handle, index=index, element_shape=_no_size(), element_dtype=_F)
    return [item, raw.TensorListLength(input_handle=handle)]


def _list_of(values: Any, indices: Any, size: Any, lengths: Any) -> Any:
    scattered = raw.TensorListScatterV2(tensor=values, indices=indices, element_shape=_no_size(), num_elements=size)
    split = raw.TensorListSplit(tensor=values, element_shape=tf.constant([-1]), lengths=lengths)
    return [
        raw.TensorListStack(input_handle=scattered, element_shape=_no_size(), element_dtype=_F),
        raw.TensorListGather(input_handle=scattered, indices=indices, element_shape=_no_size(), element_dtype=_F),
        raw.TensorListConcatV2(
            input_handle=split, element_shape=tf.constant([-1]), leading_dims=lengths, element_dtype=_F
        )[0],
        raw.TensorListStack(
            input_handle=raw.TensorListResize(input_handle=scattered, size=size),
            element_shape=_no_size(),
            element_dtype=_F,
        ),
    ]


def _ragged_variant(splits: Any, values: Any) -> Any:
    encoded = raw.RaggedTensorToVariant(rt_nested_splits=[splits], rt_dense_values=values, batched_input=True)
    return raw.RaggedTensorFromVariant(
        encoded_ragged=encoded, input_ragged_rank=0, output_ragged_rank=1, Tvalues=_F, Tsplits=_L
    )


def _csr(dense: Any, indices: Any) -> Any:
    matrix = raw.DenseToCSRSparseMatrix(dense_input=dense, indices=indices)
    return raw.CSRSparseMatrixToDense(sparse_input=matrix, type=_F)


def _csr_sparse(indices: Any, values: Any, shape: Any, right: Any) -> Any:
    matrix = raw.SparseTensorToCSRSparseMatrix(indices=indices, values=values, dense_shape=shape)
    return [
        raw.SparseMatrixMatMul(a=matrix, b=right),
        raw.SparseMatrixNNZ(sparse_matrix=matrix),
        raw.CSRSparseMatrixComponents(csr_sparse_matrix=matrix, index=0, type=_F),
    ]


def _ragged(splits: Any, values: Any) -> Any:
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


def _block_lstm(time: Any, x: Any, state: Any, weights: Any, bias: Any) -> Any:
    peephole = tf.zeros([2])
    return raw.BlockLSTMV2(
        seq_len_max=time, x=x, cs_prev=state, h_prev=state, w=weights, wci=peephole, wcf=peephole, wco=peephole, b=bias
    )


def _lstm_gradient(x: Any, state: Any) -> Any:
    """The state before ought to be a matrix, which the operation does not ask for."""
    rows, width = tf.shape(x)[0], tf.shape(x)[1]
    given = dict.fromkeys(("cs_prev", "i", "cs", "f", "o", "ci", "co", "cs_grad", "h_grad"), tf.zeros([rows, 2]))
    given |= dict.fromkeys(("wci", "wcf", "wco"), tf.zeros([2])) | {"w": tf.zeros([width + 2, 8]), "b": tf.zeros([8])}
    before = tf.fill([rows], tf.reduce_sum(state))
    return raw.LSTMBlockCellGrad(x=x, h_prev=before, use_peephole=False, **given).dicfo


def _hidden_spectrum(x: Any) -> Any:
    """An inverse FFT of length 0, which no request chooses, behind a condition that a large value meets: no guard."""

    def spectrum() -> Any:
        row = tf.fill([2, 1], tf.reduce_sum(x) * 0.0)
        return tf.reduce_sum(tf.signal.irfft(tf.complex(row, row)))

    return x + tf.cond(tf.reduce_any(tf.abs(x) > 1e20), spectrum, lambda: 0.0)


PROGRAMS: Mapping[str, tuple[Specs, Callable[..., Any]]] = {
    "tensor_list": (((_F, 1), (_I, 0), (_I, 0)), _list),
    "tensor_list_scatter": (((_F, 1), (_I, 1), (_I, 0), (_L, 1)), _list_of),
    "ragged_variant": (((_L, 1), (_F, 1)), _ragged_variant),
    "csr_dense": (((_F, 2), (_L, [None, 2])), _csr),
    "csr_sparse": (((_L, [None, 2]), (_F, 1), (_L, [2]), (_F, 2)), _csr_sparse),
    "ragged_to_tensor": (((_L, 1), (_F, 1)), lambda s, v: _ragged(s, v).to_tensor()),
    "ragged_to_tensor_shape": (((_L, 1), (_F, 1), (_L, [2])), lambda s, v, n: _ragged(s, v).to_tensor(shape=n)),
    "ragged_to_sparse": (((_L, 1), (_F, 1)), lambda s, v: _ragged(s, v).to_sparse().values),
    "ragged_reduce": (((_L, 1), (_F, 1)), lambda s, v: tf.reduce_sum(_ragged(s, v), axis=1)),
    "ragged_gather": (((_L, 1), (_F, 1), (_I, 1)), lambda s, v, i: tf.gather(_ragged(s, v), i).values),
    "ragged_row_ids": (((_L, 1), (_F, 1)), lambda s, v: _ragged(s, v).value_rowids()),
    "ragged_lengths": (
        ((_L, 1), (_F, 1)),
        lambda n, v: tf.RaggedTensor.from_row_lengths(v, n, validate=False).to_tensor(),
    ),
    "irfft": (((tf.complex64, 2),), lambda x: tf.signal.irfft(x)),
    "irfft2d": (((tf.complex64, 3),), lambda x: tf.signal.irfft2d(x)),
    "hidden_spectrum": (((_F, 1),), _hidden_spectrum),
    "irfft_length": (((tf.complex64, 2), (_I, [1])), lambda x, n: tf.signal.irfft(x, n)),
    "irfft2d_length": (((tf.complex64, 3), (_I, [2])), lambda x, n: tf.signal.irfft2d(x, n)),
    "rfft_length": (((_F, 2), (_I, [1])), lambda x, n: tf.signal.rfft(x, n)),
    "stft": (((_F, 1), (_I, 0), (_I, 0)), lambda x, n, m: tf.signal.stft(x, n, m)),
    "conv2d_transpose": (
        ((_F, [None, None, None, 1]), (_I, [4])),
        lambda x, n: tf.nn.conv2d_transpose(x, tf.ones([2, 2, 1, 1]), n, 2, "SAME"),
    ),
    "conv3d_transpose": (
        ((_F, [None, None, None, None, 1]), (_I, [5])),
        lambda x, n: tf.nn.conv3d_transpose(x, tf.ones([2, 2, 2, 1, 1]), n, 2, "SAME"),
    ),
    "depthwise_input_gradient": (
        ((_F, [None, None, None, 1]), (_I, [4])),
        lambda x, n: raw.DepthwiseConv2dNativeBackpropInput(
            input_sizes=n, filter=tf.ones([2, 2, 1, 1]), out_backprop=x, strides=[1, 2, 2, 1], padding="SAME"
        ),
    ),
    "adjust_hue": (((_F, [None, None, None, 3]), (_F, 0)), lambda x, d: raw.AdjustHue(images=x, delta=d)),
    "adjust_saturation": (((_F, [None, None, None, 3]), (_F, 0)), lambda x, d: raw.AdjustSaturation(images=x, scale=d)),
    "adjust_contrast": (((_F, 4), (_F, 0)), lambda x, d: raw.AdjustContrastv2(images=x, contrast_factor=d)),
    "poisson": (((_I, 1), (_F, 1)), lambda n, rate: raw.RandomPoissonV2(shape=n, rate=rate)),
    "gamma": (((_I, 1), (_F, 1)), lambda n, alpha: raw.RandomGamma(shape=n, alpha=alpha)),
    "truncated": (
        ((_I, [1]), (_F, 0), (_F, 0), (_F, 0), (_F, 0)),
        lambda n, a, b, c, d: raw.ParameterizedTruncatedNormal(shape=n, means=a, stdevs=b, minvals=c, maxvals=d),
    ),
    "block_lstm": (((_L, 0), (_F, [None, None, 3]), (_F, [None, 2]), (_F, [5, 8]), (_F, [8])), _block_lstm),
    "lstm_gradient": (((_F, 2), (_F, 1)), _lstm_gradient),
    "resize": (((_F, [None, None, None, 3]), (_I, [2])), lambda x, n: tf.image.resize(x, n)),
    "crop_and_resize": (
        ((_F, [None, None, None, 1]), (_F, [None, 4]), (_I, 1), (_I, [2])),
        lambda x, b, i, n: tf.image.crop_and_resize(x, b, i, n),
    ),
    "batch_to_space": (
        ((_F, [None, None, None, 1]), (_I, [2]), (_I, [2, 2])),
        lambda x, b, c: raw.BatchToSpaceND(input=x, block_shape=b, crops=c),
    ),
    "embedding_lookup_sparse": (
        ((_L, [None, 2]), (_L, 1), (_L, [2])),
        lambda i, v, n: tf.nn.safe_embedding_lookup_sparse(tf.ones([5, 2]), tf.SparseTensor(i, v, n)),
    ),
    "sparse_to_dense": (
        ((_L, [None, 2]), (_F, 1), (_L, [2])),
        lambda i, v, n: tf.sparse.to_dense(tf.SparseTensor(i, v, n), validate_indices=False),
    ),
    "sparse_matmul": (
        ((_L, [None, 2]), (_F, 1), (_L, [2]), (_F, 2)),
        lambda i, v, n, b: tf.sparse.sparse_dense_matmul(tf.SparseTensor(i, v, n), b),
    ),
    "ctc_greedy": (((_F, 3), (_I, 1)), lambda x, n: tf.nn.ctc_greedy_decoder(x, n)[0][0].values),
    "gru_block": (
        ((_F, [None, 3]), (_F, [None, 2]), (_F, [5, 4]), (_F, [5, 2])),
        lambda x, h, w, c: raw.GRUBlockCell(x=x, h_prev=h, w_ru=w, w_c=c, b_ru=tf.zeros([4]), b_c=tf.zeros([2])),
    ),
    "while": (((_I, 0),), lambda n: tf.while_loop(lambda i: i < tf.minimum(n, 100), lambda i: i + 1, [tf.constant(0)])),
}
