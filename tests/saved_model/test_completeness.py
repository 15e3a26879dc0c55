from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2

from embedserve.saved_model.files import completeness
from embedserve.saved_model.files.completeness import check, fingerprint, look, missing

v1 = tf.compat.v1

OPTIONAL = {"fingerprint.pb"}  # Nothing in a SavedModel says whether it has one.


def save_with_shards_and_asset(path: Path, vocabulary: Path) -> Path:
    module = tf.Module()
    for number in range(5):
        setattr(module, f"v{number}", tf.Variable(np.full(50, number, np.float32)))
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        -1,
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def serve(word: Any) -> Any:
        return {"y": tf.cast(module.table.lookup(word), tf.float32) + module.v1[0]}

    options = tf.saved_model.SaveOptions(
        experimental_sharding_callback=tf.train.experimental.MaxShardSizePolicy(max_shard_size=500)
    )
    tf.saved_model.save(module, str(path), signatures=serve, options=options)
    return path


def save_tf1(path: Path, vocabulary: Path, variable: bool) -> Path:
    """What `SavedModelBuilder` writes: assets in a collection, and an empty `variables` if there is nothing in it."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None])
        y = x * v1.Variable(2.0, use_resource=False) if variable else x * 2.0
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, tf.constant(str(vocabulary)))
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        signature = v1.saved_model.signature_def_utils.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={"serving_default": signature},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        )
        builder.save()
    return path


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "words.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """A SavedModel with three shards or more, an index and an asset."""
    return save_with_shards_and_asset(tmp_path_factory.mktemp("saved") / "1", vocabulary)


@pytest.fixture(scope="session")
def saved_tf1(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    return save_tf1(tmp_path_factory.mktemp("saved_tf1") / "1", vocabulary, variable=True)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def files(path: Path) -> list[str]:
    """Files that have to be there, relative to the version directory."""
    found = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
    return [name for name in found if name not in OPTIONAL]


def place(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def cuts(size: int, count: int = 40) -> Iterator[int]:
    """Lengths to truncate to: both ends byte by byte, and some of what is between."""
    near = range(min(12, size))
    yield from sorted(
        {*near, *(size - 1 - n for n in near), *(size * n // count for n in range(count))} & {*range(size)}
    )


def test_a_saved_model_is_whole(saved: Path, saved_tf1: Path) -> None:
    assert sum("variables.data" in name for name in files(saved)) >= 2
    assert any(name.startswith("assets/") for name in files(saved))
    assert missing(saved) is None
    assert missing(saved_tf1) is None


@pytest.mark.parametrize("model", ["saved", "saved_tf1"])
def test_copied_file_by_file_it_is_whole_only_with_the_last_one(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # Whatever the order, a copy in progress is one of the subsets of the files: so all subsets are all orders.
    source = request.getfixturevalue(model)
    names = files(source)
    for size in range(len(names)):
        for subset in combinations(names, size):
            target = tmp_path / "copy"
            target.mkdir()
            place(source, target, subset)
            text = missing(target)
            assert text is not None, f"whole with only {subset}"
            assert str(target) in text
            shutil.rmtree(target)
    place(source, tmp_path / "copy", names)
    assert missing(tmp_path / "copy") is None


def judged_by_content(path: Path) -> list[str]:
    return [name for name in files(path) if not name.startswith("assets/")]


def test_a_file_cut_short_is_seen_at_every_length(saved: Path, copy: Path) -> None:
    for name in judged_by_content(saved):
        contents = (saved / name).read_bytes()
        for length in cuts(len(contents)):
            (copy / name).write_bytes(contents[:length])
            text = missing(copy)
            assert text is not None, f"whole with {length} of {len(contents)} bytes of {name}"
            assert name in text
        (copy / name).write_bytes(contents)
        assert missing(copy) is None


def test_saved_model_pb_is_never_whole_before_its_last_byte(saved: Path, copy: Path) -> None:
    contents = (saved / "saved_model.pb").read_bytes()
    for length in range(0, len(contents), 61):
        (copy / "saved_model.pb").write_bytes(contents[:length])
        assert missing(copy) is not None


def test_a_text_graph_counts_and_is_seen_cut_short(saved: Path, copy: Path) -> None:
    graph = saved_model_pb2.SavedModel.FromString((saved / "saved_model.pb").read_bytes())
    (copy / "saved_model.pb").unlink()
    text = text_format.MessageToString(graph).rstrip()
    (copy / "saved_model.pbtxt").write_text(text)
    assert missing(copy) is None
    for length in (0, 1, 10, len(text) // 2, len(text) - 1):
        (copy / "saved_model.pbtxt").write_text(text[:length])
        assert "saved_model.pbtxt is torn" in (missing(copy) or "")


def test_a_model_without_variables_needs_no_variables(vocabulary: Path, tmp_path: Path) -> None:
    path = save_tf1(tmp_path / "1", vocabulary, variable=False)
    assert list((path / "variables").iterdir()) == []
    assert missing(path) is None
    (path / "variables").rmdir()
    assert missing(path) is None


@pytest.mark.parametrize("name", ["variables.data-00000-of-00001", "variables.data-00001-of-00002"])
def test_a_shard_without_index_is_a_copy_in_progress(vocabulary: Path, tmp_path: Path, name: str) -> None:
    path = save_tf1(tmp_path / "1", vocabulary, variable=False)
    (path / "variables" / name).write_bytes(b"1234")
    assert missing(path) == f"{path}/variables/variables.index is missing"


def test_shards_of_another_count_must_be_complete_too(copy: Path) -> None:
    # Half of the next contents' shards: those of the old contents are still there, and so is their index.
    (copy / "variables" / "variables.data-00001-of-00007").write_bytes(b"")
    assert missing(copy) == f"{copy}/variables/variables.data-00000-of-00007 is missing"


def become_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"x")


def become_empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (shutil.rmtree, "{path} is not there"),
        (
            become_a_file,
            "{path} is a regular file; a version is a directory that holds saved_model.pb",
        ),
        (
            become_empty,
            "{path}/saved_model.pb is missing (the directory is empty)",
        ),
        (
            lambda path: (path / "saved_model.pb").unlink(),
            "{path}/saved_model.pb is missing (found assets, fingerprint.pb, variables)",
        ),
        (lambda path: shutil.rmtree(path / "variables"), "{path}/variables/variables.index is missing"),
        (lambda path: shutil.rmtree(path / "assets"), "{path}/assets/words.txt is missing"),
        (
            lambda path: (path / "saved_model.pb").write_bytes(b""),
            "{path}/saved_model.pb is torn or still being written: its 0 bytes hold no meta graph",
        ),
        (
            lambda path: (path / "variables" / "variables.index").write_bytes(b"x" * 60),
            "{path}/variables/variables.index is torn or still being written: "
            "its 60 bytes do not end as a checkpoint index does",
        ),
    ],
)
def test_the_text_names_what_is_missing(damage: Callable[[Path], object], expected: str, copy: Path) -> None:
    damage(copy)
    assert missing(copy) == expected.format(path=copy)


def test_a_version_directory_nested_too_deep_is_pointed_out(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "1" / "1")
    assert missing(tmp_path / "1") == (
        f"{tmp_path}/1/saved_model.pb is missing (found 1): {tmp_path}/1/1 holds the SavedModel. "
        f"Run `mv {tmp_path}/1/1/* {tmp_path}/1`"
    )


def test_an_unreadable_file_is_no_verdict(copy: Path) -> None:
    (copy / "saved_model.pb").unlink()
    (copy / "saved_model.pb").mkdir()
    with pytest.raises(IsADirectoryError):
        check(copy)
    assert missing(copy) == f"{copy}/saved_model.pb cannot be read: Is a directory"


def test_a_dangling_link_is_a_missing_file(copy: Path) -> None:
    for name in ("saved_model.pb", "variables/variables.index"):
        contents = (copy / name).read_bytes()
        (copy / name).unlink()
        (copy / name).symlink_to(copy / "nowhere")
        assert missing(copy) == f"{copy / name} is missing"
        (copy / name).unlink()
        (copy / name).write_bytes(contents)
    assert missing(copy) is None


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index", "assets/words.txt", "model.tflite"])
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(name: str, copy: Path) -> None:
    file = copy / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    assert str(file) in (missing(copy) or "")
    assert "regular file" in (missing(copy) or "")
    assert {stamp.path: stamp.digest for stamp in look(copy).fingerprint}[name] == ""


class TestTFLite:
    def test_a_tflite_file_alone_is_a_version(self, tmp_path: Path, saved: Path) -> None:
        (tmp_path / "model.tflite").write_bytes(minimal_tflite())
        assert missing(tmp_path) is None

    def test_with_other_parts_of_a_saved_model_the_graph_is_still_to_come(self, tmp_path: Path, saved: Path) -> None:
        place(saved, tmp_path, [name for name in files(saved) if name != "saved_model.pb"])
        (tmp_path / "model.tflite").write_bytes(minimal_tflite())
        assert "saved_model.pb is missing" in (missing(tmp_path) or "")

    def test_a_torn_one_beside_a_graph_is_seen(self, copy: Path) -> None:
        (copy / "model.tflite").write_bytes(minimal_tflite()[:-1])
        assert "model.tflite is torn" in (missing(copy) or "")


def minimal_tflite() -> bytes:
    """The smallest flatbuffer with TFLite's identifier: a root table without fields."""
    return bytes.fromhex("0c000000") + b"TFL3" + bytes.fromhex("04000400") + bytes.fromhex("04000000")


def replace_by_an_equal_file(path: Path) -> None:
    shutil.copy2(path / "saved_model.pb", path / "new")
    os.replace(path / "new", path / "saved_model.pb")


def replace_by_other_contents_of_equal_size_and_time(path: Path) -> None:
    file = path / "saved_model.pb"
    status = file.stat()
    data = file.read_bytes()
    (path / "new").write_bytes(data.replace(b"serving_default", b"serving_another"))
    os.utime(path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(path / "new", file)


class TestFingerprint:
    def test_it_lists_every_file_with_size_time_and_contents(self, saved: Path) -> None:
        stamps = fingerprint(saved)
        assert [stamp.path for stamp in stamps] == sorted([*files(saved), *OPTIONAL])
        for stamp in stamps:
            status = (saved / stamp.path).stat()
            assert (stamp.size, stamp.mtime_ns) == (status.st_size, status.st_mtime_ns)
            assert len(stamp.digest) == (32 if stamp.size else 0)
        assert hash(stamps) == hash(fingerprint(saved))

    @pytest.mark.parametrize(
        "change",
        [
            lambda path: (path / "variables" / "variables.index").write_bytes(b"x"),
            lambda path: os.utime(path / "saved_model.pb", ns=(1, 1)),
            lambda path: (path / "assets" / "words.txt").unlink(),
            lambda path: (path / "assets" / "more.txt").write_text(""),
            replace_by_other_contents_of_equal_size_and_time,
        ],
        ids=["contents", "time", "removed", "added", "replaced by other contents of equal size and time"],
    )
    def test_any_change_changes_it(self, change: Callable[[Path], object], copy: Path) -> None:
        before = fingerprint(copy)
        change(copy)
        assert fingerprint(copy) != before

    def test_equal_files_with_other_inodes_have_the_same(self, copy: Path) -> None:
        """As on rclone, goofys and mergerfs, which give a file another inode at any time."""
        before = fingerprint(copy)
        inode = (copy / "saved_model.pb").stat().st_ino
        replace_by_an_equal_file(copy)
        assert (copy / "saved_model.pb").stat().st_ino != inode
        assert fingerprint(copy) == before

    def test_reading_does_not_change_it(self, copy: Path) -> None:
        before = look(copy)
        missing(copy)
        assert look(copy) == before

    def test_hidden_files_show_activity_and_no_new_contents(self, copy: Path) -> None:
        before = look(copy)
        (copy / "variables" / ".variables.index.Xy12Zq").write_bytes(b"half")
        (copy / ".nfs0001").write_bytes(b"")
        after = look(copy)
        assert after.fingerprint == before.fingerprint
        assert after.activity != before.activity

    def test_a_change_that_restores_the_time_shows_as_activity(self, copy: Path) -> None:
        before = look(copy)
        status = (copy / "saved_model.pb").stat()
        (copy / "saved_model.pb").write_bytes((copy / "saved_model.pb").read_bytes())
        os.utime(copy / "saved_model.pb", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert look(copy).activity != before.activity

    def test_of_nothing_it_is_empty(self, tmp_path: Path) -> None:
        assert fingerprint(tmp_path / "nowhere") == ()
        assert fingerprint(tmp_path) == ()

    def test_a_walk_without_end_is_given_up(self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As through a link to `/`."""
        before = fingerprint(copy)
        deep = copy.joinpath(*["d"] * 40)
        deep.mkdir(parents=True)
        (deep / "too deep").write_text("x")
        assert fingerprint(copy) == before
        monkeypatch.setattr(completeness, "MAX_FILES", len(before) + 1)
        (tmp_path / "many").mkdir()
        for number in range(10):
            (tmp_path / "many" / str(number)).write_text("x")
        (copy / "assets" / "out").symlink_to(tmp_path / "many")
        with pytest.raises(OSError, match="more than"):
            look(copy)
        assert fingerprint(copy) == ()

    @pytest.mark.parametrize("target", ["/", "..", "../..", ".", "../../.."])
    def test_a_link_that_leads_back_is_not_followed(self, copy: Path, target: str) -> None:
        before, activity = fingerprint(copy), look(copy).activity
        (copy / "assets" / "loop").symlink_to(target)
        assert fingerprint(copy) == before
        assert len(look(copy).activity) == len(activity) + 1

    def test_links_out_of_the_version_are_followed_once(self, copy: Path, tmp_path: Path) -> None:
        """As far as a store of files that versions link to; not into whatever is linked from there."""
        for name, link in (("store", "further"), ("further", "back"), ("elsewhere", None)):
            (tmp_path / name / "own").mkdir(parents=True)
            (tmp_path / name / "own" / "file").write_text("x")
            if link is not None:
                (tmp_path / name / "out").symlink_to(tmp_path / link)
        (tmp_path / "store" / "near").symlink_to("own")
        (tmp_path / "store" / "home").symlink_to(copy)
        (tmp_path / "back").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "chain").symlink_to(tmp_path / "store")
        (copy / "assets" / "out").symlink_to(tmp_path / "chain")
        linked = [stamp.path for stamp in fingerprint(copy) if stamp.path.startswith("assets/out")]
        assert linked == ["assets/out/near/file", "assets/out/own/file"]

    def test_two_links_to_each_other_end(self, copy: Path) -> None:
        for name, other in (("a", "b"), ("b", "a")):
            (copy / "assets" / name).mkdir()
            (copy / "assets" / name / "other").symlink_to(f"../{other}")
            (copy / "assets" / name / "file").write_text("x")
        linked = {stamp.path for stamp in fingerprint(copy) if stamp.path.startswith(("assets/a/", "assets/b/"))}
        assert linked == {f"assets/{way}/file" for way in ("a", "b", "a/other", "b/other")}

    def test_a_version_that_links_to_what_holds_it_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        for target in ("/", "..", "."):
            (tmp_path / "m" / "1").symlink_to(target)
            with pytest.raises(OSError, match="link to a directory that holds it"):
                look(tmp_path / "m" / "1")
            (tmp_path / "m" / "1").unlink()

    def test_a_version_may_be_a_link_and_have_links_in_it(self, saved: Path, tmp_path: Path) -> None:
        shutil.copytree(saved, tmp_path / "store" / "abc")
        shutil.move(tmp_path / "store" / "abc" / "variables", tmp_path / "shards")
        (tmp_path / "store" / "abc" / "variables").symlink_to(tmp_path / "shards")
        (tmp_path / "1").symlink_to(tmp_path / "store" / "abc")
        assert missing(tmp_path / "1") is None
        assert [stamp.path for stamp in fingerprint(tmp_path / "1")] == [stamp.path for stamp in fingerprint(saved)]


def test_a_configmap_style_swap_of_links_is_followed(saved: Path, tmp_path: Path) -> None:
    """Kubernetes: the files are links into `..data`, itself a link that is swapped for another directory."""
    version = tmp_path / "1"
    version.mkdir()
    shutil.copytree(saved, version / "..2024_01")
    (version / "..data").symlink_to("..2024_01")
    for child in saved.iterdir():
        (version / child.name).symlink_to(Path("..data") / child.name)
    assert missing(version) is None
    first = fingerprint(version)
    assert [stamp.path for stamp in first] == sorted([*files(saved), *OPTIONAL])

    shutil.copytree(saved, version / "..2024_02")
    replace_by_other_contents_of_equal_size_and_time(version / "..2024_02")
    (version / "..new").symlink_to("..2024_02")
    os.replace(version / "..new", version / "..data")
    assert missing(version) is None
    assert fingerprint(version) != first
