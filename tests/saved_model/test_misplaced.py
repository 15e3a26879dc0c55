"""What stands where a model is expected is named, and the command in the message puts it right."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from embedserve.saved_model.files.misplaced import (
    Child,
    in_base_path,
    in_root,
    in_version,
    instead_of_directory,
    nearly,
)


def listing(path: Path) -> Sequence[Child]:
    return [Child(child.name, child.is_dir()) for child in path.iterdir()] if path.is_dir() else []


def export(path: Path) -> None:
    (path / "variables").mkdir(parents=True)
    (path / "variables" / "variables.index").touch()
    (path / "saved_model.pb").write_text("graph")


def of_root(path: Path) -> str | None:
    inner = [in_base_path(child, listing(child), listing) for child in path.iterdir() if child.is_dir()]
    return in_root(path, listing(path), [text for text in inner if text is not None])


def run_the_command_of(text: str | None) -> None:
    assert text is not None
    (command,) = re.findall("`(.*)`", text)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory of models, of a name that a shell must not split."""
    path = tmp_path / "my models"
    path.mkdir()
    return path


@pytest.mark.parametrize("where", ["", "digits"])
def test_a_bare_export_gets_a_version_directory(models: Path, where: str) -> None:
    export(models / where)
    found = of_root(models)
    assert found is not None
    assert f"{models / where} holds a SavedModel itself" in found
    run_the_command_of(found)
    version = models / (where or models.name) / "1"
    assert (version / "saved_model.pb").read_text() == "graph"
    assert (version / "variables" / "variables.index").exists()
    assert in_base_path(version.parent, listing(version.parent), listing) is None


@pytest.mark.parametrize(
    ("names", "versions"),
    [
        (["v1"], [1]),
        (["1.0"], [1]),
        (["model_v2", "model_v3"], [2, 3]),
        (["latest"], [1]),
        (["latest", "v7"], [7]),
        (["v1", "version 1"], [1, 2]),
        ([f"run{2**63}"], [1]),
    ],
)
def test_directories_of_other_names_are_renamed_to_numbers(models: Path, names: list[str], versions: list[int]) -> None:
    base = models / "digits"
    for name in names:
        export(base / name)
    found = in_base_path(base, listing(base), listing)
    assert of_root(models) == f"{models} holds no models: {found}"
    run_the_command_of(found)
    assert sorted(int(child.name) for child in base.iterdir() if child.name.isdecimal()) == versions


def test_a_version_given_as_root_or_base_path_names_its_parent(models: Path) -> None:
    base = models / "digits"
    export(base / "1")
    said = f"models=['{base}'] to ModelRegistry, or --model_name=digits --model_base_path='{base}' on the command"
    for found in (
        of_root(base / "1"),
        in_base_path(base / "1", listing(base / "1"), listing),
        of_root(base),
        in_base_path(models, listing(models), listing),
        instead_of_directory(base / "1" / "saved_model.pb"),
    ):
        assert found is not None
        assert said in found


@pytest.mark.parametrize("name", ["digits.zip", "digits.tar.gz", "digits.TGZ"])
def test_an_archive_is_unpacked_wherever_it_lies(models: Path, name: str) -> None:
    export(models / "there")
    packed = models / name
    if name.endswith("zip"):
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(models / "there" / "saved_model.pb", "saved_model.pb")
    else:
        with tarfile.open(packed, "w:gz") as tar:
            tar.add(models / "there" / "saved_model.pb", "saved_model.pb")
    base = models / "digits"
    told = instead_of_directory(packed)
    assert told is not None
    assert f"models=['{base}']" in told
    only_it = [Child(name, False)]
    commands = {
        text.partition("Run ")[2] for text in (told.partition(", and pass")[0], in_root(models, only_it, []) or "")
    }
    assert len(commands) == 1
    if name.endswith("zip") and subprocess.run(["which", "unzip"], capture_output=True).returncode:
        assert commands == {f"`mkdir -p '{base}/1' && unzip '{packed}' -d '{base}/1'`"}
        return
    run_the_command_of(commands.pop())
    assert (base / "1" / "saved_model.pb").read_text() == "graph"


@pytest.mark.parametrize("name", ["digits.zip", "digits.tar", "digits.tar.gz", "digits.tar.bz2", "digits.tar.xz"])
@pytest.mark.parametrize("above", ["3", "my digits", "my digits/3", "a/b", "."])
@pytest.mark.parametrize("large", [False, True])
def test_an_archive_of_directories_is_unpacked_to_versions(models: Path, name: str, above: str, large: bool) -> None:
    export(models / "packed" / above)
    if large:  # In a tar file the graph comes after the variables, too far away to be read.
        (models / "packed" / above / "variables" / "data").write_bytes(bytes(2 << 20))
    packed = models / name
    made = models / "packed"
    # Mac's Finder adds a directory, and `tar -C directory .` writes names below `.`.
    (made / "__MACOSX" / above).mkdir(parents=True)
    (made / "__MACOSX" / above / "saved_model.pb").write_text("no graph")
    entries = sorted(sorted(made.rglob("*")), key=lambda path: path.name == "saved_model.pb")
    if name.endswith("zip"):
        with zipfile.ZipFile(packed, "w") as archive:
            for entry in entries:
                archive.write(entry, entry.relative_to(made))
    else:
        mode: Any = f"w:{packed.suffix[1:].replace('tar', '')}"
        with tarfile.open(packed, mode) as tar:
            for entry in entries:
                tar.add(entry, f"./{entry.relative_to(made)}", recursive=False)
    told = instead_of_directory(packed)
    assert told is not None
    if name.endswith("zip") and shutil.which("unzip") is None:
        pytest.skip("unzip is not installed")
    run_the_command_of(told)
    version = models / "digits" / ("3" if above.endswith("3") else "1")
    assert (version / "saved_model.pb").read_text() == "graph"
    assert (version / "variables" / "variables.index").exists()


def test_an_archive_that_is_none_is_still_named(models: Path) -> None:
    for name in ("digits.zip", "digits.tgz", "digits.tar", "digits.tar.xz", "digits.tar.bz2"):
        (models / name).write_bytes(b"no archive")
        told = instead_of_directory(models / name)
        assert told is not None
        assert f"mkdir -p '{models / 'digits' / '1'}'" in told


def test_a_tflite_file_gets_the_name_it_is_found_by(models: Path) -> None:
    base = models / "digits"
    base.mkdir()
    (base / "digits.tflite").write_text("flat")
    run_the_command_of(in_base_path(base, listing(base), listing))
    assert (base / "1" / "model.tflite").read_text() == "flat"
    (base / "1" / "model.tflite").rename(base / "1" / "quantised.tflite")
    run_the_command_of(in_version(base / "1", listing(base / "1"), listing))
    assert (base / "1" / "model.tflite").read_text() == "flat"


@pytest.mark.parametrize(
    ("name", "what", "command"),
    [
        (
            "net.keras",
            "a Keras model",
            """python -c 'import keras; keras.models.load_model("{file}").export("{target}")'""",
        ),
        (
            "net.h5",
            "a Keras model",
            """python -c 'import keras; keras.models.load_model("{file}").export("{target}")'""",
        ),
        ("net.onnx", "an ONNX model", "pip install onnx2tf && onnx2tf -i '{file}' -o '{target}' -osd"),
        ("net.pt", "a PyTorch model", "pip install onnx2tf && onnx2tf -i '{models}/net.onnx' -o '{target}' -osd"),
    ],
)
def test_a_model_of_another_kind_is_named_with_its_conversion(models: Path, name: str, what: str, command: str) -> None:
    children = [Child(name, False), Child("README.md", False)]
    for found, target in (
        (instead_of_directory(models / name), models / "net" / "1"),
        (in_root(models, children, []), models / "net" / "1"),
        (in_base_path(models, children, listing), models / "1"),
        (in_version(models, children, listing), models),
    ):
        assert found is not None
        assert f"{models / name} is {what}" in found
        assert f"`{command.format(file=models / name, target=target, models=models)}`" in found


def test_a_directory_within_a_version_is_moved_out(models: Path) -> None:
    export(models / "digits" / "1" / "saved_model")
    version = models / "digits" / "1"
    run_the_command_of(in_version(version, listing(version), listing))
    assert (version / "saved_model.pb").read_text() == "graph"
    assert in_version(version, listing(version), listing) is None


def test_nothing_is_said_of_what_may_be_filled_or_is_no_model(models: Path) -> None:
    (models / "notes.txt").touch()
    (models / "digits" / "1").mkdir(parents=True)
    for look in (in_base_path, in_version):
        assert look(models / "none", [], listing) is None
    assert of_root(models) is None
    assert in_base_path(models / "digits", listing(models / "digits"), listing) is None
    assert instead_of_directory(models / "notes.txt") is None


def test_no_more_directories_are_listed_than_a_slow_mount_bears(models: Path) -> None:
    looked: list[Path] = []

    def slow(path: Path) -> Sequence[Child]:
        looked.append(path)
        return [Child(f"sub{i}", True) for i in range(100)]

    assert in_base_path(models, slow(models), slow) is None
    assert in_version(models, slow(models), slow) is None
    assert len(looked) <= 40


def test_a_missing_directory_is_answered_with_the_one_beside_it(models: Path) -> None:
    assert nearly(models / "digit", ["digits", "other"]) == f", did you mean {models / 'digits'}?"
    assert nearly(models / "digits", ["other"]) == ""
