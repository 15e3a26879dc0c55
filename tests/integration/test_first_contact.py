"""A directory that holds no version is answered at once, with what to do about it; an empty one may be filled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve import ModelRegistry, ServingError, StartError
from embedserve.lifecycle import source


def bare(path: Path) -> None:
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").touch()


def file_of(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir(parents=True)
        (path / name).touch()

    return make


# How a model's directory is found, and what is said of it; `{path}` is the directory.
MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bare": (bare, "`mkdir -p {path}/1 && mv {path}/saved_model.pb {path}/variables {path}/1`"),
    "named": (lambda path: bare(path / "v1"), "`mv {path}/v1 {path}/1`"),
    "keras": (file_of("net.keras"), """keras.models.load_model("{path}/net.keras").export("{path}/1")'`"""),
    "within": (lambda path: file_of("net.h5")(path / "1"), """load_model("{path}/1/net.h5").export("{path}/1")'`"""),
    "nested": (lambda path: bare(path / "1" / "export"), "`mv {path}/1/export/* {path}/1`"),
    "zipped": (file_of("net.zip"), "`mkdir -p {path}/1 && unzip {path}/net.zip -d {path}/1`"),
    "lite": (file_of("net.tflite"), "`mkdir -p {path}/1 && mv {path}/net.tflite {path}/1/model.tflite`"),
    "onnx": (file_of("net.onnx"), "onnx2tf -i {path}/net.onnx -o {path}/1 -osd`"),
    "7": (bare, "models=['{path.parent}'] to ModelRegistry, or --model_name={path.parent.name} --model_base_path="),
    "models": (lambda path: bare(path / "inner" / "1"), "models=['{path}/inner'] to ModelRegistry"),
    "file.pt": (Path.touch, "`pip install onnx2tf && onnx2tf -i {path.parent}/file.onnx -o {path.parent}/file/1 -osd`"),
}


async def test_no_start_waits_for_what_has_to_be_moved_or_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOVE_PATIENCE", 0.0)
    for name, (make, _) in MISTAKES.items():
        make(tmp_path / name)
    registry = ModelRegistry(models=[tmp_path / name for name in MISTAKES], settle=0.01, start_timeout=100)
    with pytest.raises(StartError, match=f"{len(MISTAKES)} of {len(MISTAKES)} model") as caught:
        await registry.start()
    for name, (_, cure) in MISTAKES.items():
        assert cure.format(path=tmp_path / name) in caught.value.message


@pytest.mark.parametrize("name", ["bare", "keras", "models", "7", "file.pt"])
async def test_a_root_that_holds_no_models_ends_the_start(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    MISTAKES[name][0](root)
    if name == "models":
        root = root / "inner"
    with pytest.raises(StartError, match=r"Run `|Pass /.*models=\['/"):
        await ModelRegistry(root).start()


async def test_an_empty_root_is_entered_and_filled_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with ModelRegistry(tmp_path) as registry:
        assert registry.unready() == "no model has been found yet"
    assert f"tf.saved_model.save(model, '{tmp_path}/my_model/1') makes it" in caplog.text


async def test_a_missing_root_is_answered_with_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(StartError, match=f"{tmp_path}/modles does not exist, did you mean {tmp_path}/models?"):
        await ModelRegistry(tmp_path / "modles").start()


async def test_an_added_model_that_has_to_be_moved_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOVE_PATIENCE", 0.0)
    bare(tmp_path / "added" / "v1")
    async with ModelRegistry(models=[], settle=0.01) as registry:
        with pytest.raises(ServingError, match=f"mv {tmp_path}/added/v1 {tmp_path}/added/1"):
            await registry.reconfigure([tmp_path / "added"])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["{path}"], ["--model_name=net", "--model_base_path={path}"]])
def test_the_command_line_says_the_same(tmp_path: Path, flags: list[str]) -> None:
    file = tmp_path / "net.keras"
    file.touch()
    command = [sys.executable, "-m", "embedserve", *(flag.format(path=file) for flag in flags)]
    done = subprocess.run([*command, "--port=1", "--rest_api_port=0"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 255, done.stderr
    assert "Failed to start server." in done.stdout
    assert f"""keras.models.load_model("{file}").export("{tmp_path}/net/1")'`""" in done.stdout
