from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from embedserve.saved_model.files.bundle_index import TornIndexError, _block, _handle, shard_sizes


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three shards whose index has blocks with shared key prefixes and a sliced tensor."""
    directory = tmp_path_factory.mktemp("bundle")
    parts = [str(directory / f"part{number}") for number in range(3)]
    for number, part in enumerate(parts):
        names = [f"layer{number}/weights_{i:03}" for i in range(200)]
        tensors = [tf.constant(np.full(i + 1, number, np.float32)) for i in range(200)]
        if number == 1:
            names.append("strings")
            tensors.append(tf.constant([b"a", b"bc" * 100]))
        tf.raw_ops.SaveV2(prefix=part, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(directory / "variables"))
    return directory / "variables"


def index(prefix: Path) -> bytes:
    return prefix.with_name("variables.index").read_bytes()


def written_sizes(prefix: Path) -> Sequence[int]:
    return [shard.stat().st_size for shard in sorted(prefix.parent.glob("variables.data-*"))]


def test_sizes_are_those_that_tensorflow_wrote(prefix: Path) -> None:
    assert len(written_sizes(prefix)) == 3
    assert shard_sizes(index(prefix)) == written_sizes(prefix)


def test_every_truncation_is_seen(prefix: Path) -> None:
    whole = index(prefix)
    for length in range(len(whole)):
        with pytest.raises(TornIndexError):
            shard_sizes(whole[:length])


@pytest.mark.parametrize("begin", [0, 1, 100, 1000])
def test_a_hole_is_seen(prefix: Path, begin: int) -> None:
    whole = index(prefix)
    with pytest.raises(TornIndexError):
        shard_sizes(whole[:begin] + bytes(512) + whole[begin + 512 :])


@pytest.mark.parametrize("begin", [0, 1, 7, 64, 500])
def test_garbage_before_a_good_end_is_seen(prefix: Path, begin: int) -> None:
    whole = index(prefix)
    garbage = np.random.default_rng(begin).integers(0, 256, 600, np.uint8).tobytes()
    with pytest.raises(TornIndexError):
        shard_sizes(whole[:begin] + garbage + whole[begin + 600 :])


def test_a_hole_of_exactly_some_entries_is_seen(prefix: Path) -> None:
    table = bytearray(index(prefix))
    footer = bytes(table[-48:])
    _, at = _handle(footer, 0)
    index_block, _ = _handle(footer, at)
    _, first = next(_block(bytes(table), *index_block))
    (offset, size), _ = _handle(first, 0)
    block = bytes(table[offset : offset + size])
    count = int.from_bytes(block[-4:], "little")
    # Entries at a restart point share no key with the one before, so zeros between two of them read as empty entries.
    restarts = [int.from_bytes(block[size - 4 * (count + 1) + 4 * i :][:4], "little") for i in range(count)]
    begin, end = next((a, b) for a, b in combinations(restarts[1:], 2) if (b - a) % 3 == 0)  # Three bytes an entry.
    table[offset + begin : offset + end] = bytes(end - begin)
    with pytest.raises(TornIndexError, match="keys are out of order"):
        shard_sizes(bytes(table))


def test_a_compressed_table_gives_no_sizes(prefix: Path) -> None:
    table = bytearray(index(prefix))
    footer = bytes(table[-48:])
    _, at = _handle(footer, 0)
    (offset, size), _ = _handle(footer, at)  # Of the index block; the byte after a block is its compression type.
    table[offset + size] = 1
    assert shard_sizes(bytes(table)) is None
