"""Reads a checkpoint's `variables.index`: the least size in bytes of each data shard with whole tensors.

The file is a LevelDB-style table (TF: tsl/lib/io/table, util/tensor_bundle): blocks of sorted, prefix-compressed
entries, an index block, and a footer. The footer ends in a magic number, so every truncation is detected. The module
reads no tensor and opens no shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedserve.tensors.wire_format import read_varint

__all__ = ["TornIndexError", "shard_sizes"]

# Two block handles of at most 20 bytes each, and the magic number of 8 bytes.
_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_TRAILER_BYTES = 5  # Compression type and checksum of a block.
_UNCOMPRESSED = 0
_HEADER_KEY = b""


class TornIndexError(Exception):
    """The bytes are not a whole table; the message names the broken place."""


class _CompressedError(Exception):
    """A block is compressed; only TensorFlow 1.1 and older wrote compressed blocks."""


def shard_sizes(index: bytes) -> Sequence[int] | None:
    """Least size in bytes of each data shard, by shard number.

    Args:
        index: Contents of `variables.index`.

    Returns:
        A size per shard, 0 for a shard without tensors. None for a whole but compressed table: only TensorFlow can read
        a compressed table.

    Raises:
        TornIndexError: The table is truncated or damaged.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import tensor_bundle_pb2

    try:
        entries = _entries(index)
        key, value = next(entries, (None, b""))
        if key != _HEADER_KEY:
            raise TornIndexError("it has no header entry")
        sizes = [0] * tensor_bundle_pb2.BundleHeaderProto.FromString(value).num_shards
        if not sizes:
            raise TornIndexError("its header counts no shards")
        for name, value in entries:
            entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            if not 0 <= entry.shard_id < len(sizes):
                raise TornIndexError(f"{name!r} is in shard {entry.shard_id} of {len(sizes)}")
            sizes[entry.shard_id] = max(sizes[entry.shard_id], entry.offset + entry.size)
    except _CompressedError:
        return None
    except (IndexError, DecodeError) as error:
        raise TornIndexError(f"an entry of it cannot be read ({error})") from None
    return sizes


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of the table, in key order."""
    if len(table) < _FOOTER_BYTES or table[-8:] != _MAGIC:
        raise TornIndexError(f"its {len(table)} bytes do not end as a checkpoint index does")
    footer = table[-_FOOTER_BYTES:]
    _, at = _handle(footer, 0)  # The meta index; TensorFlow leaves the meta index empty.
    index_block, _ = _handle(footer, at)
    last: bytes | None = None
    for _, value in _block(table, *index_block):
        data_block, _ = _handle(value, 0)
        for key, entry in _block(table, *data_block):
            if last is not None and key <= last:
                raise TornIndexError(f"its keys are out of order at {key!r}")
            last = key
            yield key, entry


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = table[offset : offset + size]
    if size < 4 or offset + size + _TRAILER_BYTES > len(table):
        raise TornIndexError(f"a block of {size} bytes at {offset} does not fit in {len(table)} bytes")
    if table[offset + size] != _UNCOMPRESSED:
        raise _CompressedError
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(block, at)
        unshared, at = read_varint(block, at)
        length, at = read_varint(block, at)
        if shared > len(key) or at + unshared + length > end:
            raise TornIndexError("an entry of it reaches past its block")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _handle(buffer: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the start of the next handle."""
    offset, at = read_varint(buffer, at)
    size, at = read_varint(buffer, at)
    return (offset, size), at
