from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tensorflow as tf

from embedserve.request_log.files import FRAME_BYTES, RecordTooLargeError, RotatingFiles


def records(path: Path) -> list[bytes]:
    return [bytes(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]


def everything(prefix: Path) -> list[bytes]:
    return [record for path in sorted(prefix.parent.iterdir()) for record in records(path)]


def total(prefix: Path) -> int:
    return sum(path.stat().st_size for path in prefix.parent.iterdir())


def test_records_are_read_back_in_order(prefix: Path) -> None:
    files = RotatingFiles(prefix, 10_000, 100_000)
    given = [b"", b"a" * 100, bytes(range(256))]
    for record in given:
        files.write(record)
    files.flush()
    assert everything(prefix) == given, "readable while it is written"
    files.close()
    (path,) = prefix.parent.iterdir()
    assert re.fullmatch(rf"requests-\d{{8}}T\d{{6}}\.\d{{6}}Z-{os.getpid()}-\d{{6}}\.tfrecord", path.name)


def test_a_full_file_is_followed_by_another(prefix: Path) -> None:
    files = RotatingFiles(prefix, 3 * (100 + FRAME_BYTES), 10**6)
    given = [bytes([number]) * 100 for number in range(7)]
    for record in given:
        files.write(record)
    files.close()
    assert [len(records(path)) for path in sorted(prefix.parent.iterdir())] == [3, 3, 1]
    assert everything(prefix) == given


def test_the_disk_is_bounded_and_the_oldest_go_first(prefix: Path) -> None:
    bound = 1000
    files = RotatingFiles(prefix, 300, bound)
    for number in range(100):
        files.write(bytes([number]) * 100)
        files.flush()
        assert total(prefix) <= bound
    files.close()
    kept = [record[0] for record in everything(prefix)]
    assert kept == list(range(100 - len(kept), 100))
    assert len(kept) >= 4


def test_the_bound_holds_over_runs_and_leaves_other_files_alone(prefix: Path) -> None:
    prefix.parent.mkdir()
    others = [
        prefix.parent / name for name in ("requests-old.tfrecord", "other-20260101T000000.000000Z-1-000001.tfrecord")
    ]
    for path in others:
        path.write_bytes(bytes(5000))
    for _ in range(5):
        files = RotatingFiles(prefix, 300, 600)
        files.write(bytes(250))
        files.close()
    assert total(prefix) - 10_000 <= 600
    assert all(path.exists() for path in others)


def test_a_file_is_never_larger_than_all_may_be(prefix: Path) -> None:
    files = RotatingFiles(prefix, 10_000, 200)
    with pytest.raises(RecordTooLargeError, match="250 bytes does not fit a file of 200"):
        files.write(bytes(250))
    files.write(bytes(150))
    files.write(bytes(160))
    files.close()
    assert [len(record) for record in everything(prefix)] == [160]


def test_a_directory_that_cannot_be_made_is_said_and_tried_again(prefix: Path) -> None:
    prefix.parent.write_text("a file")
    files = RotatingFiles(prefix, 1000, 1000)
    with pytest.raises(OSError, match="File exists"):
        files.prepare()
    with pytest.raises(OSError, match="File exists"):
        files.write(b"lost")
    prefix.parent.unlink()
    files.write(b"kept")
    files.close()
    assert everything(prefix) == [b"kept"]


@contextmanager
def full_disk() -> Iterator[None]:
    """The system refuses every byte, as on a full disk: no file may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fails(call: Callable[[], None]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


@pytest.mark.parametrize("size", [100, 5_000_000], ids=["buffered", "written through"])
@pytest.mark.parametrize("end", ["flush", "close"])
def test_a_full_disk_leaves_no_file_without_a_record(prefix: Path, size: int, end: str) -> None:
    files = RotatingFiles(prefix, 10**7, 10**8)
    files.write(b"before")
    files.flush()
    for _ in range(3):
        with full_disk():
            failures = [fails(call) for call in (lambda: files.write(bytes(size)), getattr(files, end))]
        assert any(failures)
    assert len(list(prefix.parent.iterdir())) == 1, "the one with a record"
    files.write(b"after")
    files.close()
    assert everything(prefix)[-1] == b"after"
    assert len(list(prefix.parent.iterdir())) == 2
