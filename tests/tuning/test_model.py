"""Which version a directory stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedserve.errors import ConfigError
from embedserve.tuning.model import find


def make(*versions: Path) -> None:
    for version in versions:
        version.mkdir(parents=True)
        (version / "saved_model.pb").touch()


def test_a_models_directory_stands_for_its_newest_version(tmp_path: Path) -> None:
    make(tmp_path / "m" / "2", tmp_path / "m" / "10")
    (tmp_path / "m" / "11").mkdir()  # A version that is not there yet.
    (tmp_path / "m" / "notes").mkdir()
    place = find(tmp_path / "m")
    assert (place.base_path, place.version, place.path, place.newest) == (tmp_path / "m", 10, tmp_path / "m" / "10", 10)


def test_a_versions_directory_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "m" / "002", tmp_path / "m" / "10")
    monkeypatch.chdir(tmp_path / "m")
    place = find("002")
    assert (place.base_path, place.version, place.path, place.newest) == (
        tmp_path / "m",
        2,
        tmp_path / "m" / "002",
        10,
    )


def test_what_is_no_model_is_refused_with_what_it_is(tmp_path: Path) -> None:
    make(tmp_path / "models" / "a" / "1", tmp_path / "models" / "b" / "1", tmp_path / "export")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("s3://bucket/m", "s3://bucket/m is a URL: only a local directory can be measured"),
        ("none", f"there is no directory {tmp_path / 'none'}"),
        ("empty", f"{tmp_path / 'empty'} is no model: it holds neither saved_model.pb nor"),
        ("models", f"{tmp_path / 'models'} holds models (a, b), not versions of one: name one of them"),
        ("export", "is a model, but its name is no version number: a server finds it as export/1"),
    ):
        with pytest.raises(ConfigError) as caught:
            find(path if ":" in path else tmp_path / path)
        assert message in caught.value.message
