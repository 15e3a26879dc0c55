"""Which listings become versions, and which names no version may have."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from embedserve.remote import contents
from embedserve.remote.contents import RemoteFile, RemoteVersion, tag_of, version_of

GRAPH = ("saved_model.pb", 10, "a", "bucket/m/1/saved_model.pb")


def test_a_listing_becomes_a_version_with_a_digest_of_names_sizes_and_tags() -> None:
    index = ("variables/variables.index", 3, "b", "x")
    version = version_of([index, GRAPH])
    assert version == RemoteVersion(
        (RemoteFile("saved_model.pb", 10, "a"), RemoteFile("variables/variables.index", 3, "b"))
    )
    assert (version.size, version.lacking, len(version.digest)) == (13, None, 16)
    assert version_of([GRAPH, index]).digest == version.digest
    changed = [(*index[:1], 4, *index[2:]), (*index[:2], "c", "x"), ("variables/other", *index[1:])]
    assert len({version_of([GRAPH, other]).digest for other in [index, *changed]}) == 4


@pytest.mark.parametrize(
    "key",
    [
        "../evil",
        "../../../../etc/cron.d/evil",
        "variables/../../evil",
        "/etc/passwd",
        "variables//x",
        "variables/./x",
        "..",
        "variables/",
        "nul\0byte",
        "lone\udcffsurrogate",
        "n" * 201,
        "/".join(["d"] * 33),
        "/".join(["d" * 199] * 6),
    ],
)
def test_one_hostile_key_refuses_the_whole_version(key: str) -> None:
    version = version_of([GRAPH, (key, 1, "", key)])
    assert version.files == ()
    assert (version.lacking or "").startswith("it is refused: the key ")


@pytest.mark.parametrize("keys", [["a", "a/b"], ["a/b/c", "a/b"], ["a", "a/b/c"]])
def test_a_name_that_is_a_file_and_a_directory_refuses_the_version(keys: list[str]) -> None:
    version = version_of([GRAPH, *((key, 1, "", key) for key in keys)])
    assert (version.files, "is a file and a directory" in (version.lacking or "")) == ((), True)


def test_a_name_listed_twice_refuses_the_version() -> None:
    assert "is listed twice" in (version_of([GRAPH, GRAPH]).lacking or "")


def test_hidden_files_are_left_out() -> None:
    hidden = [(".saved_model.pb.swp", 1, "", ""), (".git/config", 1, "", ""), ("variables/.x", 1, "", "")]
    assert version_of([GRAPH, *hidden]) == version_of([GRAPH])


def test_a_file_without_a_size_cannot_be_told_from_a_torn_one() -> None:
    assert (version_of([GRAPH, ("x", None, "t", "x")]).lacking or "").startswith("the store tells no size of x")


def test_a_version_without_a_graph_lacks_it_and_keeps_its_files() -> None:
    version = version_of([("variables/variables.index", 3, "", "")])
    assert (version.lacking, len(version.files)) == ("saved_model.pb is missing", 1)
    assert version_of([]).lacking == "it holds no file"
    assert version_of([("model.tflite", 3, "", "")]).lacking is None


def test_a_version_of_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_FILES", 5)
    listed = [GRAPH, *((f"assets/{n}", 1, "", "") for n in range(10))]
    assert version_of(listed).lacking == "it holds more than 5 files"
    assert version_of(listed).files == ()


def test_the_tag_is_what_changes_with_the_contents_else_the_time() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert tag_of({"ETag": '"x"', "LastModified": now}) == '"x"'
    assert tag_of({"etag": "y", "updated": "z"}) == "y"
    assert tag_of({"LastModified": now, "size": 3}) == str(now)
    assert tag_of({"Last-Modified": "Fri"}) == "Fri"
    assert tag_of({"size": 3}) == ""
