"""The cache directory: whole versions or nothing, a bound, and several users of one directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve.remote import cache as cache_module
from embedserve.remote.cache import Cache, Part, cache_key
from embedserve.remote.contents import RemoteFile, RemoteVersion, version_of
from embedserve.remote.errors import BusyError, NoRoomError, StoreError
from embedserve.remote.lock import Lock
from embedserve.saved_model.files.completeness import fingerprint
from embedserve.store_url import StoreUrl
from tests.remote.stores import files_of

URL = StoreUrl("s3://bucket/models/m")
KEY = cache_key(URL, {})


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "cache", None)
    made.open()
    return made


Store = dict[str, bytes]


def listed(store: Store, tag: str = "") -> RemoteVersion:
    return version_of((path, len(data), f"{tag}{hash(data)}", path) for path, data in store.items())


def bring(cache: Cache, part: Part, store: Store, *paths: str) -> None:
    for file in part.missing:
        if not paths or file.path in paths:
            fetched = part.path / ".fetched"
            fetched.write_bytes(store[file.path])
            cache.place(part, file, fetched)


Fetch = Callable[..., Path]


@pytest.fixture
def fetch(cache: Cache, lines: dict[int, Path]) -> Fetch:
    """Puts a whole version into the cache."""

    def fetch_(version: int = 1, key: str = KEY, into: Cache | None = None, used: int | None = None) -> Path:
        into = into or cache
        store = files_of(lines[version])
        contents = listed(store)
        part = into.begin(key, URL, version, contents, None)
        assert part is not None
        bring(into, part, store)
        assert into.finish(part) is None
        part.lock.release()
        path = into.path(key, version, contents.digest)
        if used is not None:
            os.utime(path, ns=(used, used))
        return path

    return fetch_


def names(cache: Cache, key: str = KEY) -> list[str]:
    return sorted(path.name for path in (cache.root / key).iterdir() if path.name != "url")


def test_a_version_is_whole_or_not_there(cache: Cache, lines: dict[int, Path]) -> None:
    store = files_of(lines[1])
    contents = listed(store)
    part = cache.begin(KEY, URL, 1, contents, None)
    assert part is not None
    assert {file.path for file in part.missing} == set(store)
    bring(cache, part, store, *store.keys() - {"fingerprint.pb"})
    with pytest.raises(StoreError, match=r"fingerprint\.pb has gone from the cache"):
        cache.finish(part)  # Though it could be loaded.
    assert cache.whole(KEY) == ()
    bring(cache, part, store)
    assert cache.finish(part) is None
    assert not Cache(cache.root, None).remove(cache.path(KEY, 1, contents.digest)), "the part's lock keeps it"
    (found,) = cache.whole(KEY)
    assert (found.version, found.digest, found.path) == (1, contents.digest, cache.path(KEY, 1, contents.digest))
    assert files_of(found.path) == store
    assert cache.size(KEY) == contents.size
    assert cache.begin(KEY, URL, 1, contents, None) is None, "it is there already"
    assert (cache.root / KEY / "url").read_text() == str(URL)
    assert cache.root.stat().st_mode & 0o077 == 0


def test_a_file_of_another_length_than_listed_is_not_taken(cache: Cache) -> None:
    part = cache.begin(KEY, URL, 1, listed({"saved_model.pb": b"12345"}), None)
    assert part is not None
    for torn in (b"1234", b"123456"):
        with pytest.raises(StoreError, match="instead of the 5 that were listed"):
            bring(cache, part, {"saved_model.pb": torn})
    assert files_of(part.path) == {".fetched": b"123456", ".reserved": bytes(5)}


def test_a_version_that_cannot_be_loaded_does_not_become_whole(cache: Cache, lines: dict[int, Path]) -> None:
    store = {"saved_model.pb": files_of(lines[1])["saved_model.pb"]}
    part = cache.begin(KEY, URL, 1, listed(store), None)
    assert part is not None
    bring(cache, part, store)
    assert (cache.finish(part) or "").startswith(f"{part.path}/variables/")
    assert cache.whole(KEY) == ()


def test_equal_files_of_earlier_contents_are_taken_over_and_others_are_not(cache: Cache) -> None:
    before = {"saved_model.pb": b"graph", "assets/a": b"old", "assets/gone": b"x"}
    part = cache.begin(KEY, URL, 1, listed(before), None)
    assert part is not None
    bring(cache, part, before)
    after = {"saved_model.pb": b"graph", "assets/a": b"new", "assets/b": b"more"}
    following = cache.begin(KEY, URL, 1, listed(after), part)
    assert following is not None
    assert [file.path for file in following.missing] == ["assets/a", "assets/b"]
    assert set(files_of(following.path)) == {"saved_model.pb", ".reserved"}
    assert names(cache) == [following.path.name]


def test_what_was_a_directory_may_become_a_file_and_the_other_way_round(cache: Cache) -> None:
    before = {"saved_model.pb": b"graph", "a/b/c": b"x", "d": b"y"}
    part = cache.begin(KEY, URL, 1, listed(before), None)
    assert part is not None
    bring(cache, part, before)
    after = {"saved_model.pb": b"graph", "a": b"x", "d/e": b"y"}
    following = cache.begin(KEY, URL, 1, listed(after), part)
    assert following is not None
    bring(cache, following, after)
    assert {key: data for key, data in files_of(following.path).items() if key[0] != "."} == after


def test_a_part_of_a_process_that_died_is_gone_on_with(cache: Cache) -> None:
    store = {"saved_model.pb": b"graph", "assets/a": b"asset"}
    part = cache.begin(KEY, URL, 1, listed(store), None)
    assert part is not None
    bring(cache, part, store, "saved_model.pb")
    (part.path / ".half").write_bytes(b"gra")
    part.lock.release()
    again = Cache(cache.root, None).begin(KEY, URL, 1, listed(store), None)
    assert again is not None
    assert [file.path for file in again.missing] == ["assets/a"]
    assert not (again.path / ".half").exists()


def test_parts_of_other_contents_that_nobody_fetches_are_swept(cache: Cache) -> None:
    dead = cache.begin(KEY, URL, 1, listed({"saved_model.pb": b"old"}), None)
    alive = cache.begin(KEY, URL, 1, listed({"saved_model.pb": b"other"}), None)
    assert dead is not None
    assert alive is not None
    dead.lock.release()
    new = cache.begin(KEY, URL, 1, listed({"saved_model.pb": b"new"}), None)
    assert new is not None
    assert names(cache) == sorted([alive.path.name, new.path.name])


def test_two_processes_do_not_fetch_the_same(cache: Cache) -> None:
    contents = listed({"saved_model.pb": b"graph"})
    part = cache.begin(KEY, URL, 1, contents, None)
    with pytest.raises(BusyError):
        Cache(cache.root, None).begin(KEY, URL, 1, contents, None)
    assert part is not None
    part.lock.release()
    assert Cache(cache.root, None).begin(KEY, URL, 1, contents, None) is not None


def test_what_one_process_uses_another_cannot_remove(cache: Cache, fetch: Fetch) -> None:
    path = fetch()
    taken = cache.take(path)
    assert taken is not None
    lock, contents = taken
    assert contents == fingerprint(path)
    other = Cache(cache.root, None)
    also = other.take(path)
    assert also is not None
    assert not other.remove(path)
    lock.release()
    assert not other.remove(path)
    also[0].release()
    assert other.remove(path)
    assert other.remove(path), "it is gone"
    assert cache.take(path) is None
    assert names(cache) == []


def test_a_lock_on_a_directory_that_was_replaced_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    opened = os.open

    def open_and_replace(path: Path, flags: int) -> int:
        descriptor = opened(path, flags)
        (tmp_path / "a").rmdir()
        (tmp_path / "b").rename(tmp_path / "a")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    with pytest.raises(FileNotFoundError):
        Lock.take(tmp_path / "a", exclusive=False)


def test_a_link_in_the_place_of_a_version_is_not_followed(cache: Cache, fetch: Fetch, tmp_path: Path) -> None:
    path = fetch()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.whole(KEY) == ()
    assert cache.take(path) is None
    assert not cache.remove(path)
    assert (tmp_path / "elsewhere").is_dir()


def test_a_version_that_a_crash_left_torn_is_removed_when_it_is_taken(cache: Cache, fetch: Fetch) -> None:
    path = fetch()
    os.truncate(path / "variables" / "variables.data-00000-of-00001", 1)
    assert cache.take(path) is None
    assert names(cache) == []


def test_taking_a_version_into_use_makes_it_the_last_used(cache: Cache, fetch: Fetch) -> None:
    path = fetch(used=1)
    assert cache.whole(KEY)[0].used == 1
    assert cache.take(path) is not None
    assert cache.whole(KEY)[0].used > 1


def test_what_was_being_removed_when_its_process_died_is_removed_at_the_next_start(cache: Cache, fetch: Fetch) -> None:
    path = fetch()
    path.rename(path.with_name(".gone-0123456789abcdef"))
    Cache(cache.root, None).open()
    assert names(cache) == []


# The bound.


def bounded(cache: Cache, max_bytes: int) -> Cache:
    return Cache(cache.root, max_bytes)


def content_of(size: int, name: str = "saved_model.pb") -> RemoteVersion:
    return RemoteVersion((RemoteFile(name, size),))


def test_the_least_recently_used_versions_of_any_store_make_room(cache: Cache, fetch: Fetch) -> None:
    other = cache_key(URL / "other", {})
    oldest, newer, newest = fetch(1, used=1), fetch(2, other, used=2), fetch(3, used=3)
    size = cache.size(KEY) + cache.size(other)
    part = bounded(cache, size).begin(KEY, URL, 9, content_of(1000), None)
    assert part is not None
    assert (oldest.exists(), newer.exists(), newest.exists()) == (False, True, True)


def test_what_is_in_use_makes_no_room_and_then_nothing_goes(cache: Cache, fetch: Fetch) -> None:
    used, unused = fetch(1), fetch(2)
    taken = cache.take(used)
    small = bounded(cache, cache.size(KEY) + 100)
    with pytest.raises(NoRoomError, match=r"remote_cache_max_bytes") as caught:
        small.begin(KEY, URL, 9, content_of(10**6), None)
    assert "it needs 1.0 MB" in str(caught.value)
    assert (used.exists(), unused.exists()) == (True, True)
    assert small.begin(KEY, URL, 9, content_of(10_000), None) is not None
    assert (taken is not None, used.exists(), unused.exists()) == (True, True, False)


def test_what_is_on_its_way_counts_as_large_as_it_will_be(cache: Cache) -> None:
    small = bounded(cache, 1000)
    first = small.begin(KEY, URL, 1, content_of(700), None)
    assert first is not None
    with pytest.raises(NoRoomError):
        bounded(cache, 1000).begin(KEY, URL, 2, content_of(400), None)
    assert small.begin(KEY, URL, 1, content_of(900), first) is not None, "its own place does not count against it"


def test_a_part_that_nobody_fetches_makes_room_first(cache: Cache, fetch: Fetch) -> None:
    whole = fetch(1, used=1)
    dead = cache.begin(KEY, URL, 2, content_of(5000), None)
    assert dead is not None
    dead.lock.release()
    assert bounded(cache, cache.size(KEY) + 5000).begin(KEY, URL, 9, content_of(100), None) is not None
    assert (whole.exists(), dead.path.exists()) == (True, False)


def test_the_disk_is_never_filled_to_its_last_byte(cache: Cache, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch()
    monkeypatch.setattr(cache_module, "SPARE_BYTES", 0)
    usage = type("Usage", (), {"free": 500})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoRoomError):
        cache.begin(KEY, URL, 9, content_of(10**6), None)
    assert path.exists()
    part = cache.begin(KEY, URL, 9, content_of(501), None)
    assert part is not None
    assert not path.exists(), "what nobody uses makes room"
    with pytest.raises(NoRoomError):
        cache.begin(KEY, URL, 8, content_of(1), None)
    part.lock.release()
    assert cache.begin(KEY, URL, 8, content_of(1), None) is not None
    assert not part.path.exists(), "what another one had still to write counts as long as it is fetched"


# Which store a directory caches.


def test_a_key_is_another_for_another_store_and_the_same_for_another_credential() -> None:
    here, there = {"endpoint_url": "http://here", "key": "a"}, {"endpoint_url": "http://there", "key": "a"}
    keys = {cache_key(URL, here), cache_key(URL, there), cache_key(URL / "x", here)}
    assert len(keys) == 3
    assert cache_key(URL, {**here, "key": "rotated"}) == cache_key(URL, here)
    assert cache_key(URL, {}).startswith("bucket-models-m-")
    web = cache_key(StoreUrl("http://me:secret@host/../a b/m"), {})
    assert "secret" not in web
    assert "/" not in web


def test_models_of_a_root_are_known_by_what_is_cached(cache: Cache, fetch: Fetch) -> None:
    root = StoreUrl("s3://bucket/models")
    assert cache.names_below(root, {}) == []
    fetch()
    assert cache.names_below(root, {}) == ["m"]
    assert cache.names_below(root, {"endpoint_url": "http://elsewhere"}) == []
    assert cache.names_below(StoreUrl("s3://bucket"), {}) == []


def test_a_directory_that_cannot_be_used_is_named_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/cache cannot be used \(Not a directory\); remote_cache_dir names"):
        Cache(tmp_path / "file" / "cache", None).open()
