"""What is a URL of a store, what is missing to read it, and that no text shows a credential."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.config import model_server_config_pb2

from embedserve import Code, ConfigError, ModelConfig, ModelRegistry
from embedserve.config import RegistryOptions, location
from embedserve.store_url import StoreUrl, redacted
from embedserve.tfs.config import models_from_proto


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("s3://bucket/models/m", "s3://bucket/models/m"),
        ("s3://bucket/models/m//", "s3://bucket/models/m"),
        ("s3://bucket/", "s3://bucket"),
        ("https://host:8443/models", "https://host:8443/models"),
        ("memory://models", "memory://models"),
    ],
)
def test_the_url_of_a_store_is_a_location(text: str, full: str) -> None:
    url = location(text)
    assert isinstance(url, StoreUrl)
    assert url.full == full
    assert location(url) == url


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/models/m", "/models/m"),
        ("file:///models/a%20b/", "/models/a b"),
        ("file://localhost/m", "/m"),
        (Path("/m/../n"), "/n"),
    ],
)
def test_paths_and_files_are_local(text: str | Path, path: str) -> None:
    assert location(text) == Path(path)


def test_parts_of_a_url_are_had_without_its_credentials() -> None:
    url = StoreUrl("HTTPS://me:secret@host:1/models/m")
    assert (url.scheme, url.host, url.name, url.is_web) == ("https", "host:1", "m", True)
    assert str(url / "3") == "HTTPS://***@host:1/models/m/3"
    assert (url / "3").full == "HTTPS://me:secret@host:1/models/m/3"
    assert "secret" not in f"{url!r} {url} {ModelConfig(name='m', base_path='http://me:secret@host/m')!r}"
    assert pickle.loads(pickle.dumps(url)) == url


def test_a_text_is_shown_without_what_stands_before_a_host() -> None:
    assert redacted("GET http://u:p@h/x from s3://b/k, sftp://me@h") == "GET http://***@h/x from s3://b/k, sftp://***@h"
    assert redacted("sftp://me:p@ss@h/x") == "sftp://***@h/x"
    assert redacted("403, url='https://h/x?X-Signature=abc&d=1') not read") == "403, url='https://h/x?***') not read"


@pytest.mark.parametrize("password", ["se/cret", "se@cret", "se?cret", "se#cret", "/secret/", "a@b/se:cret"])
@pytest.mark.parametrize("scheme", ["s3", "https", "sftp", "file", "nonsense"])
def test_a_password_of_any_characters_is_never_shown(scheme: str, password: str, tmp_path: Path) -> None:
    url = f"{scheme}://me:{password}@host/models/m"
    shown = [redacted(f"cannot read {url}: no answer")]
    for configure in (location, lambda text: ModelConfig(name="m", base_path=text), ModelRegistry):
        try:
            made = configure(url)
        except ConfigError as error:
            shown += [str(error), repr(error)]
        else:
            shown += [str(made), repr(made)]
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name="m", base_path=url, model_platform="tensorflow")
    try:
        shown += map(repr, models_from_proto(config))
    except ConfigError as error:
        shown.append(str(error))
    for text in shown:
        assert "cret" not in text, text
        assert "me:" not in text, text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://me:pass/secret@bucket/m", r"s3://\*\*\*@bucket/m: the password before the host holds a `/`.*%2F"),
        ("s3://", "names no bucket or host"),
        ("s3:///models/m", "names no bucket or host"),
        ("http://me:secret@/m", "names no bucket or host"),
        ("http://me:secret@host/m?token=secret", "has no query; credentials go to storage_options"),
        ("s3://bucket/m::zip://x", "chained URLs are not read"),
        ("s3://bucket/\nm", "is not the URL of one store"),
        ("file://elsewhere/models/m", "is a file of another host"),
    ],
)
def test_a_url_that_cannot_be_a_base_path_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig(name="m", base_path=url)
    assert "secret" not in caught.value.message


def test_a_url_that_went_through_pathlib_is_explained() -> None:
    with pytest.raises(ConfigError, match="has lost a slash of its URL to pathlib"):
        ModelConfig(name="m", base_path=Path("s3://bucket/m"))


def test_what_is_no_path_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="neither a path nor a URL"):
        ModelConfig(name="m", base_path=3)  # type: ignore[arg-type]


def without(*packages: str) -> Any:
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name.partition(".")[0] in packages else find(name, package)

    return find_spec


@pytest.mark.parametrize(
    ("missing", "url", "message"),
    [
        ("fsspec", "s3://bucket/m", r"s3://bucket/m: remote stores .* with fsspec: pip install 'embedserve\[s3\]'"),
        ("fsspec", "http://host/m", r"pip install 'embedserve\[http\]'"),
        ("fsspec", "sftp://host/m", r"pip install 'embedserve\[remote\]'"),
        ("aiohttp", "https://me:secret@host/m", r"https:// is read with aiohttp: pip install 'embedserve\[http\]'"),
        ("gcsfs", "gs://bucket/m", r"gs:// is read with gcsfs: pip install 'embedserve\[gcs\]'"),
        ("adlfs", "abfs://container/m", r"abfs:// is read with adlfs: Install adlfs"),
        ("", "nonsense://x/m", r"fsspec knows no file system for nonsense://"),
    ],
)
def test_a_missing_package_is_named_when_the_model_is_configured(
    missing: str, url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without(missing))
    for configure in (lambda: ModelConfig(name="m", base_path=url), lambda: ModelRegistry(url)):
        with pytest.raises(ConfigError, match=message) as caught:
            configure()
        assert caught.value.code is Code.UNIMPLEMENTED
        assert "secret" not in caught.value.message


def test_a_remote_model_survives_json_and_shows_no_option() -> None:
    config = ModelConfig(name="m", base_path="http://me:secret@h/m", storage_options={"token": "secret"})
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    options = RegistryOptions(remote_storage_options={"s3": {"key": "secret"}})
    assert "secret" not in f"{config!r} {options!r}"
