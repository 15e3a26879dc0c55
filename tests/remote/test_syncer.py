"""Remote models followed in real stores: what is told, what is fetched, what is removed, and what an outage changes."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from embedserve.config import AllVersions, LatestVersions, ModelConfig, RegistryOptions, SpecificVersions
from embedserve.errors import StartError
from embedserve.remote import follower as follower_module
from embedserve.remote import leases as leases_module
from embedserve.remote import root as root_module
from embedserve.remote.syncer import Syncer, default_cache_dir
from embedserve.store_url import StoreUrl
from tests.remote.recorder import Recorder
from tests.remote.stores import FAST, Answer, ObjectStore, WebStore, files_of, page, page_of, scripted_web

pytestmark = pytest.mark.slow

Lines = dict[int, Path]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LOOK_AGAIN", 0.05)


@pytest.fixture
def listener() -> Recorder:
    return Recorder()


Open = Callable[..., Any]


@pytest.fixture
async def open_syncer(listener: Recorder, tmp_path: Path) -> AsyncIterator[Open]:
    """Starts syncers over one cache directory."""
    opened: list[Syncer] = []

    async def open_(
        *models: ModelConfig, to: Recorder | None = None, root: str | None = None, **options: Any
    ) -> Syncer:
        to = to or listener
        url = None if root is None else StoreUrl(root)
        syncer = Syncer(RegistryOptions(**{**FAST, **options}), url, tmp_path / "cache", to, to.directories_in_use)
        opened.append(syncer)
        syncer.set_models(models)
        await syncer.start()
        return syncer

    yield open_
    for syncer in opened:
        await syncer.aclose()
        syncer.release()


async def close(syncer: Syncer) -> None:
    await syncer.aclose()
    syncer.release()


def model(url: str, name: str = "m", **options: Any) -> ModelConfig:
    return ModelConfig(name=name, base_path=url, **options)


def cached(tmp_path: Path) -> set[str]:
    """Names of what is in the cache, without digests: `3` is whole, `3.part` on its way."""
    found = (tmp_path / "cache").glob("*/*-*")
    return {path.name.partition("-")[0] + path.suffix for path in found if not path.name.startswith(".")}


# Publish and update.


async def test_a_version_is_fetched_and_its_successor_too(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    web.publish(lines[1], "m/1")
    syncer = await open_syncer(model(web.url("m")))
    await listener.until_versions(1)
    directory = listener.aspired["m"][1]
    assert files_of(directory.path) == files_of(lines[1])
    assert directory.path.is_relative_to(tmp_path / "cache")
    web.publish(lines[2], "m/2")
    await listener.until_versions(2)
    await listener.until(lambda: cached(tmp_path) == {"2"})
    assert [versions for _, versions in listener.history if versions] == [(1,), (2,)]
    await listener.until(lambda: not listener.waiting["m"])
    size = sum(map(len, files_of(lines[2]).values()))
    await listener.until(lambda: syncer.stores()["m"].cached_bytes == size)
    statistics = syncer.stores()["m"]
    assert (statistics.url, statistics.last_error, statistics.failures) == (web.url("m"), None, 0)
    assert statistics.fetching is None
    assert statistics.fetched_bytes > size
    assert statistics.last_sync is not None
    assert syncer.problem("m") is None


async def test_what_is_overwritten_in_place_is_fetched_again_and_told_as_other_contents(
    bucket: ObjectStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    bucket.publish(lines[1], "models/m/1")
    await open_syncer(model(bucket.url("models/m")), **bucket.registry_options)
    await listener.until_versions(1)
    before = listener.aspired["m"][1]
    bucket.publish(lines[2], "models/m/1")
    await listener.until(lambda: listener.aspired["m"][1] != before)
    await listener.until(lambda: files_of(listener.aspired["m"][1].path) == files_of(lines[2]))
    assert all(versions == (1,) for _, versions in listener.history[1:])
    await listener.until(lambda: len(list((tmp_path / "cache").glob("*/1-*"))) == 1)


async def test_policies_choose_what_is_fetched(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        web.publish(lines[number], f"m/{number}")
    url = web.url("m")
    await open_syncer(
        model(url, "latest"),
        model(url, "two", version_policy=LatestVersions(num_versions=2)),
        model(url, "some", version_policy=SpecificVersions(versions=(1, 9))),
    )
    await listener.until_versions(3, name="latest")
    await listener.until_versions(2, 3, name="two")
    await listener.until_versions(1, name="some")
    assert cached(tmp_path) == {"1", "2", "3"}, "models of one store share what is cached"


async def test_another_policy_is_settled_when_its_versions_have_been_fetched(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    for number in (1, 2):
        web.publish(lines[number], f"m/{number}")
    syncer: Syncer = await open_syncer(model(web.url("m")), remote_poll_interval=1000.0)
    await listener.until_versions(2)
    syncer.set_policy("m", SpecificVersions(versions=(1,)))
    await syncer.settled(["m"])
    assert listener.versions() == {1}
    await listener.until(lambda: cached(tmp_path) == {"1", "2"})
    syncer.set_policy("m", LatestVersions())
    web.kill()
    await syncer.settled(["m"])
    assert listener.versions() == {2}, "what the model's own policy wants stays in the cache, so it needs no store"


async def test_a_store_is_asked_once_where_it_is_not_polled_and_until_it_answers(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    web.publish(lines[1], "m/1")
    web.kill()
    syncer: Syncer = await open_syncer(model(web.url("m")), remote_poll_interval=float("inf"))
    await listener.until(lambda: syncer.stores()["m"].failures > 0)
    web.start()
    await listener.until_versions(1)


# What is not whole.


@pytest.mark.parametrize("order", list(permutations(range(3)))[::2])
async def test_uploaded_file_by_file_a_version_is_told_only_when_it_is_whole(
    order: tuple[int, ...], bucket: ObjectStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    bucket.publish(lines[1], "m/1")
    await open_syncer(model(bucket.url("m")), **bucket.registry_options)
    await listener.until_versions(1)
    files = {key: data for key, data in files_of(lines[2]).items() if key != "fingerprint.pb"}
    keys = [sorted(files)[index] for index in order]
    for key in keys[:-1]:
        bucket.put(f"m/2/{key}", files[key])
        await listener.until(lambda: "is missing" in listener.reason(2))
        assert listener.versions() == {1}
    assert bucket.url("m/2") in listener.reason(2) or listener.reason(2) == "saved_model.pb is missing"
    bucket.put(f"m/2/{keys[-1]}", files[keys[-1]])
    await listener.until_versions(2)
    assert files_of(listener.aspired["m"][2].path) == files


async def test_while_the_newest_version_is_not_whole_the_one_before_is_fetched(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    web.publish(lines[1], "m/1")
    (web.directory / "m" / "2").mkdir()
    (web.directory / "m" / "2" / "saved_model.pb").write_bytes(b"half a mod")
    await open_syncer(model(web.url("m")))
    await listener.until_versions(1)
    assert f"{web.url('m/2')}/saved_model.pb is torn or still being written" in listener.reason(2)


async def test_what_changes_while_it_is_fetched_is_not_taken(
    lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    files, revision, asked = files_of(lines[1]), ["1"], threading.Event()

    def answer(method: str, path: str) -> Answer:
        name = path.removeprefix("/m/1/")
        if path == "/m/":
            return page("1/")
        if name in ("", "variables/"):
            return page_of(files, name)
        if method == "GET" and revision[0] == "1" and name == "saved_model.pb":
            revision[0] = "2"  # The store changes in the middle of the first fetch.
            asked.set()
        return 200, {"ETag": f'"{revision[0]}"'}, files[name]

    with scripted_web(answer) as url:
        syncer: Syncer = await open_syncer(model(f"{url}/m"))
        await listener.until_versions(1)
        assert asked.is_set()
        digest = listener.aspired["m"][1].path.name
        assert syncer.stores()["m"].fetched_bytes == 2 * sum(map(len, files.values()))
        await listener.until(lambda: not listener.waiting["m"])
        assert listener.aspired["m"][1].path.name == digest


# Outages.


async def test_a_store_that_is_down_unloads_nothing_and_goes_on_when_it_is_back(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    web.publish(lines[1], "m/1")
    syncer: Syncer = await open_syncer(model(web.url("m")))
    await listener.until_versions(1)
    told = list(listener.history)
    web.kill()
    await listener.until(lambda: syncer.stores()["m"].failures >= 3)
    assert listener.history == told
    assert cached(tmp_path) == {"1"}
    assert "Cannot connect" in (syncer.stores()["m"].last_error or "")
    web.publish(lines[2], "m/2")
    web.start()
    await listener.until_versions(2)
    assert syncer.stores()["m"].last_error is None


async def test_a_restart_during_an_outage_serves_from_the_cache(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    for number in (1, 2):
        web.publish(lines[number], f"m/{number}")
    config = model(web.url("m"), version_policy=AllVersions())
    await close(await open_syncer(config))
    web.kill()
    first = Recorder()
    unreached: Syncer = await open_syncer(config, model(web.url("other"), "other"), to=first)
    await first.until(lambda: unreached.stores()["m"].failures > 0)
    if first.versions() != {1, 2}:  # It was left before both had come.
        web.start()
        await first.until_versions(1, 2)
        web.kill()
    await close(unreached)
    again = Recorder()
    syncer: Syncer = await open_syncer(config, to=again)
    await again.until_versions(1, 2)
    assert syncer.stores()["m"].last_sync is None
    syncer.set_policy("m", LatestVersions())
    await syncer.settled(["m"])
    assert again.versions() == {2}, "the policy chooses among what is cached, too"


async def test_a_store_that_hangs_at_the_start_is_not_waited_for_where_there_is_a_cache(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.publish(lines[1], "m/1")
    first: Syncer = await open_syncer(model(web.url("m")))
    await listener.until_versions(1)
    await close(first)
    web.kill()
    monkeypatch.setattr(follower_module, "FIRST_ANSWER", 0.1)
    release = threading.Event()

    def hang(method: str, path: str) -> Answer:
        release.wait(60)
        return 404, {}, b""

    with scripted_web(hang) as url:
        folder = next((tmp_path / "cache").glob("127*"))
        config = model(f"{url}/m")
        from embedserve.remote.cache import cache_key

        folder.rename(folder.with_name(cache_key(StoreUrl(f"{url}/m"), {})))
        again = Recorder()
        syncer: Syncer = await open_syncer(config, to=again, remote_timeout=60.0)
        await again.until_versions(1)
        assert syncer.stores()["m"].failures == 0
        await close(syncer)
        release.set()


async def test_one_store_that_hangs_does_not_hold_up_another(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    web.publish(lines[1], "m/1")
    release = threading.Event()

    def hang(method: str, path: str) -> Answer:
        release.wait(60)
        return 404, {}, b""

    with scripted_web(hang) as url:
        hung = [model(f"{url}/{number}", f"hung-{number}") for number in range(20)]
        await open_syncer(*hung, model(web.url("m")), remote_timeout=60.0)
        await listener.until_versions(1)
        assert set(listener.aspired) == {"m"}
        release.set()


async def test_files_that_take_long_keep_no_other_model_of_their_store_from_coming(
    lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    files, release = files_of(lines[1]), threading.Event()

    def answer(method: str, path: str) -> Answer:
        if path in ("/slow/", "/m/"):
            return page("1/")
        if path == "/slow/1/":
            return page("saved_model.pb", *(f"large-{number}" for number in range(50)))
        if path.startswith("/slow/"):
            if method == "GET":
                release.wait(60)
            return 200, {}, b"x"
        name = path.removeprefix("/m/1/")
        return (200, {}, files[name]) if name in files else page_of(files, name)

    with scripted_web(answer) as url:
        syncer: Syncer = await open_syncer(model(f"{url}/slow", "slow"))
        await listener.until(lambda: syncer.stores()["slow"].fetching == 1)
        syncer.set_models([model(f"{url}/slow", "slow"), model(f"{url}/m")])
        await listener.until_versions(1)
        assert not listener.aspired["slow"]
        await syncer.aclose()
        release.set()


@pytest.mark.parametrize("answer", [page("help/", "../"), (200, {}, b"we are under maintenance"), (302, {}, b"")])
async def test_a_page_without_versions_is_an_error_and_not_an_empty_base_path(
    answer: Answer, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    files, ill = files_of(lines[1]), threading.Event()

    def say(method: str, path: str) -> Answer:
        if ill.is_set():
            return answer
        name = path.removeprefix("/m/1/")
        if path == "/m/":
            return page("1/")
        if name == "":
            return page(*files)
        return 200, {}, files[name]

    with scripted_web(say) as url:
        syncer: Syncer = await open_syncer(model(f"{url}/m"))
        await listener.until_versions(1)
        ill.set()
        await listener.until(lambda: syncer.stores()["m"].failures >= 2)
        assert listener.versions() == {1}
        assert cached(tmp_path) == {"1"}


async def test_an_object_store_that_says_empty_is_believed_and_one_that_says_missing_is_not(
    bucket: ObjectStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    bucket.publish(lines[1], "models/m/1")
    syncer: Syncer = await open_syncer(model(bucket.url("models/m")), **bucket.registry_options)
    await listener.until_versions(1)
    bucket.remove("models/m/")
    await listener.until(lambda: syncer.stores()["m"].failures >= 2)
    assert listener.versions() == {1}, "as a local base path that is gone"
    bucket.put("models/m/README", b"no version here")
    await listener.until_versions()
    assert "No versions of servable m found under base path s3://" in (syncer.problem("m") or "")
    await listener.until(lambda: cached(tmp_path) == set())


async def test_with_last_what_is_deleted_from_a_store_serves_on(
    bucket: ObjectStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    bucket.publish(lines[1], "models/m/1")
    bucket.publish(lines[1], "models/other/1")
    syncer: Syncer = await open_syncer(root=bucket.url("models"), absent_versions="last", **bucket.registry_options)
    for name in ("m", "other"):
        await listener.until_versions(1, name=name)
    files = cached(tmp_path)
    bucket.put("models/m/README", b"no version here")
    bucket.remove("models/m/1/")
    bucket.remove("models/other/")
    await listener.until(lambda: "No versions of servable m found" in (syncer.problem("m") or ""))
    await listener.until(lambda: syncer.stores()["other"].failures >= 3)
    assert set(listener.models) == {"m", "other"}
    assert [listener.versions(name) for name in ("m", "other")] == [{1}, {1}]
    assert cached(tmp_path) == files
    syncer.set_policy("m", SpecificVersions())
    await listener.until_versions()
    syncer.set_policy("m", LatestVersions())
    bucket.publish(lines[2], "models/m/2")
    await listener.until_versions(2)


# What goes.


async def test_what_is_still_read_is_not_removed(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    web.publish(lines[1], "m/1")
    await open_syncer(model(web.url("m")))
    await listener.until_versions(1)
    path = listener.aspired["m"][1].path
    listener.in_use.add(str(path))
    web.publish(lines[2], "m/2")
    await listener.until_versions(2)
    shutil.rmtree(web.directory / "m" / "1")
    web.publish(lines[3], "m/3")
    await listener.until_versions(3)
    await listener.until(lambda: cached(tmp_path) == {"1", "3"})
    assert files_of(path) == files_of(lines[1])
    listener.in_use.clear()
    await listener.until(lambda: cached(tmp_path) == {"3"})


async def test_a_version_that_is_gone_from_the_store_goes(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    for number in (1, 2):
        web.publish(lines[number], f"m/{number}")
    await open_syncer(model(web.url("m")))
    await listener.until_versions(2)
    shutil.rmtree(web.directory / "m" / "2")
    await listener.until_versions(1)
    assert () not in [versions for _, versions in listener.history[1:]], "not dark while the other one is fetched"
    await listener.until(lambda: cached(tmp_path) == {"1"})


async def test_a_model_that_is_left_out_goes_and_one_at_another_url_takes_over(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    web.publish(lines[1], "m/1")
    web.publish(lines[2], "elsewhere/2")
    syncer: Syncer = await open_syncer(model(web.url("m")), model(web.url("m"), "n"))
    await listener.until_versions(1)
    await listener.until_versions(1, name="n")
    del listener.history[:]
    syncer.set_models([model(web.url("elsewhere"))])
    await listener.until_versions(2)
    assert ("m", ()) not in listener.history
    await listener.until(lambda: cached(tmp_path) == {"2"})
    assert set(syncer.stores()) == {"m"}


async def test_a_cache_that_is_wiped_while_it_is_used_is_filled_again(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    web.publish(lines[1], "m/1")
    await open_syncer(model(web.url("m")))
    await listener.until_versions(1)
    before = listener.aspired["m"][1]
    shutil.rmtree(before.path)
    await listener.until(lambda: listener.aspired["m"][1] != before)
    assert files_of(before.path) == files_of(lines[1])
    assert all(versions == (1,) for _, versions in listener.history[1:])


# The bound.


async def test_a_version_that_does_not_fit_is_refused_and_the_served_one_stays(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    web.publish(lines[1], "m/1")
    size = sum(map(len, files_of(lines[1]).values()))
    syncer: Syncer = await open_syncer(model(web.url("m")), remote_cache_max_bytes=int(size * 1.5))
    await listener.until_versions(1)
    listener.in_use.add(str(listener.aspired["m"][1].path))
    web.publish(lines[2], "m/2")
    await listener.until(lambda: "remote_cache_max_bytes" in listener.reason(2))
    assert (listener.versions(), cached(tmp_path)) == ({1}, {"1"})
    assert syncer.stores()["m"].failures == 0, "the store is well"
    shutil.rmtree(web.directory / "m" / "1")
    assert listener.versions() == {1}
    listener.in_use.clear()
    await listener.until_versions(2)
    assert cached(tmp_path) == {"2"}


async def test_a_bounded_cache_keeps_what_it_has_room_for(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    size = sum(map(len, files_of(lines[1]).values()))
    await open_syncer(model(web.url("m")), remote_cache_max_bytes=int(size * 2.5))
    for number in (1, 2, 3):
        web.publish(lines[number], f"m/{number}")
        await listener.until_versions(number)
    await listener.until(lambda: cached(tmp_path) == {"2", "3"})


# Several processes.


async def test_two_users_of_a_cache_fetch_once_and_take_nothing_from_each_other(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, tmp_path: Path
) -> None:
    for number in (1, 2):
        web.publish(lines[number], f"m/{number}")
    other = Recorder()
    both = [
        await open_syncer(model(web.url("m"))),
        await open_syncer(model(web.url("m"), version_policy=AllVersions()), to=other),
    ]
    await listener.until_versions(2)
    await other.until_versions(1, 2)
    sizes = [sum(map(len, files_of(lines[number]).values())) for number in (1, 2)]
    assert sum(syncer.stores()["m"].fetched_bytes for syncer in both) == sum(sizes)
    await both[0].settled(["m"])
    assert cached(tmp_path) == {"1", "2"}, "the first does not want version 1, the second uses it"
    await close(both[1])
    await listener.until(lambda: cached(tmp_path) == {"2"})


# Roots.


async def test_models_under_a_root_are_found_and_dropped(
    bucket: ObjectStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    for key in ("models/a/1", "models/b/007"):
        bucket.publish(lines[1], key)
    bucket.put("models/notes/readme.txt", b"x")
    bucket.put("models/.hidden/1/saved_model.pb", b"x")
    syncer: Syncer = await open_syncer(root=bucket.url("models"), **bucket.registry_options)
    assert set(listener.models) == {"a", "b"}, "told when start returns"
    await listener.until_versions(1, name="a")
    await listener.until_versions(7, name="b")
    bucket.publish(lines[2], "models/late/2")
    await listener.until(lambda: set(listener.models) == {"a", "b", "late"})
    bucket.remove("models/a/")
    await listener.until(lambda: set(listener.models) == {"b", "late"})
    assert (syncer.diagnosis, syncer.misused) == (None, False)


async def test_a_directory_without_directories_under_a_web_root_is_no_model_and_hides_none(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open
) -> None:
    web.publish(lines[1], "models/a/1")
    (web.directory / "models" / "notes").mkdir()
    (web.directory / "models" / "notes" / "readme.txt").write_text("x")
    syncer: Syncer = await open_syncer(root=web.url("models"))
    assert (set(listener.models), syncer.diagnosis) == ({"a"}, None)


async def test_a_root_that_does_not_answer_is_remembered_by_the_cache(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.publish(lines[1], "models/a/1")
    first: Syncer = await open_syncer(root=web.url("models"))
    await listener.until_versions(1, name="a")
    web.kill()
    await listener.until(lambda: first.stores()["a"].failures > 0)
    assert set(listener.models) == {"a"}
    await close(first)
    again = Recorder()
    syncer: Syncer = await open_syncer(to=again, root=web.url("models"))
    assert set(again.models) == {"a"}
    assert not syncer.misused
    await again.until_versions(1, name="a")
    other: Syncer = await open_syncer(to=Recorder(), root=web.url("elsewhere"))
    assert (other.unread, other.misused) == (True, False), "it may answer yet"
    assert "Cannot connect" in (other.diagnosis or "")


async def test_a_base_path_given_as_a_root_is_explained(web: WebStore, lines: Lines, open_syncer: Open) -> None:
    web.publish(lines[1], "models/m/1")
    syncer: Syncer = await open_syncer(root=web.url("models/m").replace("//", "//me:secret@", 1))
    assert syncer.misused
    assert f"Pass http://***@127.0.0.1:{web.port}/models to find every model in it" in (syncer.diagnosis or "")


async def test_a_root_that_hangs_is_not_waited_for(open_syncer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_module, "FIRST_ANSWER", 0.1)
    release = threading.Event()

    def hang(method: str, path: str) -> Answer:
        release.wait(60)
        return 404, {}, b""

    with scripted_web(hang) as url:
        syncer: Syncer = await open_syncer(root=url, remote_timeout=60.0)
        assert (syncer.unread, syncer.misused, syncer.diagnosis) == (True, False, f"{url} has not answered yet")
        await close(syncer)
        release.set()


# The rest.


async def test_a_cache_directory_that_cannot_be_used_ends_the_start(
    web: WebStore, open_syncer: Open, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(StartError, match="remote_cache_dir names another one"):
        await open_syncer(model(web.url("m")))


async def test_no_log_line_or_status_holds_a_credential(
    web: WebStore, lines: Lines, listener: Recorder, open_syncer: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "embedserve")
    web.publish(lines[1], "m/1")
    (web.directory / "m" / "2").mkdir()
    url = web.url("m").replace("//", "//me:hush-hush@")
    syncer: Syncer = await open_syncer(model(url))
    await listener.until_versions(1)
    web.kill()
    await listener.until(lambda: syncer.stores()["m"].failures > 1)
    shown = f"{syncer.stores()} {syncer!r} {syncer.problem('m')} {listener.waiting} {caplog.text}"
    assert "m cannot be synced, what is served stays" in caplog.text
    assert caplog.text.count("cannot be synced") == 1, "once for an outage, not once for each attempt"
    assert "hush-hush" not in shown
    assert "hush-hush" not in " ".join(str(path) for path in listener.aspired["m"][1].path.parents)


def test_the_default_cache_is_the_user_s() -> None:
    assert default_cache_dir({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/embedserve")
    assert default_cache_dir({}) == Path(os.path.expanduser("~/.cache/embedserve"))
