"""Options as keyword arguments: type checkers know each, and models may be written in the usual short ways."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedserve import BatchingOptions, Code, ConfigError, ModelConfig, ModelRegistry
from embedserve.testing import FakeLoader, FakeRegistry

GOOD = """
from pathlib import Path
from embedserve import ModelConfig, ModelRegistry, StoreUrl

ModelConfig(name="a", base_path="models/a")
ModelConfig(name="a", base_path=Path("models/a"), batching="adaptive", saved_model_tags=["serve"])
ModelConfig(name="a", base_path=StoreUrl("s3://bucket/a"))
ModelRegistry("models", batching=True, num_batch_threads=2, remote_cache_dir="cache")
ModelRegistry(models=["models/a", Path("models/b"), {"name": "c", "base_path": "models/c", "warmup": "none"}])

def ask(registry: ModelRegistry) -> list[float]:
    registry.pin_sync("a", 1, 2)
    registry.reconfigure_sync(["models/a"], wait=False)
    with registry.acquire_sync("a") as handle:
        pairs = handle.classify_sync([b""], signature_name="classify", timeout=1.0)
        return [score for _, score in pairs[0]] + [float(handle.predict_sync({"x": [1.0]}, cast=False)["y"][0])]
"""

BAD = {
    'ModelRegistry("m", batchin=1)': "batchin",
    'ModelRegistry("m", num_batch_threads="two")': "num_batch_threads",
    'ModelRegistry("m", transition="swift")': "transition",
    'ModelConfig(name="a")': "base_path",
    'ModelConfig(name="a", base_path="b", batching="never")': "batching",
    'ModelRegistry(models=[{"name": "a", "base_pth": "b"}])': "ModelOptions",
    'ModelRegistry("m").predict_sync("a", {}, timout=1.0)': '"timout"',
    'ModelRegistry("m").predict_sync("a", {}, timeout="1")': '"timeout"',
    'ModelRegistry("m").predict_sync("a")': "Too few arguments",
    'ModelRegistry("m").predict_sync("a", {}).shape': '"dict[str, ',
    'ModelRegistry("m").pin_sync("a", "1")': '"str"',
    'ModelRegistry("m").acquire_sync("a").classify_sync([], contxt=1)': '"contxt"',
}


@pytest.mark.slow
def test_mypy_knows_every_option_without_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    lines = ["from embedserve import ModelConfig, ModelRegistry", *BAD]
    (tmp_path / "bad.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", "good.py", "bad.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(Path(__file__).parents[2]), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert "good.py" not in done.stdout, done.stdout
    for number, (code, name) in enumerate(BAD.items(), 2):
        found = [line for line in done.stdout.splitlines() if line.startswith(f"bad.py:{number}: error")]
        assert any(name in line for line in found), f"{code}\n{done.stdout}"


def names(*models: Any) -> list[tuple[str, str]]:
    return [(model.name, str(model.base_path)) for model in ModelRegistry(models=models)._models]


def test_models_may_be_configurations_dictionaries_and_paths(tmp_path: Path) -> None:
    digits = str(tmp_path / "digits")
    found = names(
        ModelConfig(name="a", base_path=digits), {"name": "b", "base_path": digits}, digits, tmp_path / "faces"
    )
    assert found == [("a", digits), ("b", digits), ("digits", digits), ("faces", str(tmp_path / "faces"))]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("models/foo", "models is a list"),
        ({"name": "a", "base_path": "b"}, "models is a list"),
        (7, "models is a list"),
        ([7], "a model is a ModelConfig, a dictionary of its options or a path; got 7"),
        ([{"name": "a"}], "base_path: Field required"),
        ([{"name": "a", "base_path": "b", "colour": 1}], "colour"),
        (["models/a", "other/a"], "Illegal to list model a multiple times"),
        (["/"], "name"),
    ],
)
def test_other_models_are_refused_with_what_is_expected(models: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelRegistry(models=models)


NO_SUCH = "RegistryOptions has no such option"
NOT_OF_MODEL = "ModelConfig has no such option"


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (ModelRegistry, {"root": "m", "batchin": 1}, f"batchin: {NO_SUCH}, did you mean 'batching'?"),
        (ModelRegistry, {"root": "m", "max_batch_size": 4}, f"max_batch_size: {NO_SUCH}; BatchingOptions has it"),
        (ModelRegistry, {"root": 5}, "5 is neither a path nor a URL"),
        (ModelRegistry, {"root": "m", "num_batch_threads": 0}, "num_batch_threads: Input should be greater than"),
        (
            ModelRegistry,
            {"root": "m", "batching_options": {"max_batchsize": 3}},
            "batching_options: max_batchsize: BatchingOptions has no such option, did you mean 'max_batch_size'?",
        ),
        (
            ModelRegistry,
            {"models": [{"name": "a", "base_path": "a", "retry": 1}]},
            f"retry: {NOT_OF_MODEL}; RegistryOptions has it",
        ),
        (ModelConfig, {"name": "x", "base_pth": "d"}, f"base_pth: {NOT_OF_MODEL}, did you mean 'base_path'?"),
        (ModelConfig, {"name": "a/../b", "base_path": "d"}, "cannot be a model's name"),
        (ModelConfig, {"name": "x", "base_path": 5}, "base_path: 5 is neither a path nor a URL"),
        (BatchingOptions, {"max_batch_size": 0}, "max_batch_size: Input should be greater than or equal to 1"),
    ],
)
def test_a_bad_configuration_is_one_error_that_says_what_was_meant(
    make: Callable[..., object], options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        make(**options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.code is Code.INVALID_ARGUMENT


async def test_a_new_configuration_is_taken_in_the_same_ways() -> None:
    async with FakeRegistry({"a": {1: FakeLoader()}}) as registry:
        with pytest.raises(ConfigError, match="a model is a ModelConfig, a dictionary of its options or a path; got 5"):
            await registry.reconfigure([5])  # type: ignore[list-item]
        await registry.reconfigure(["/fake/a"])
        assert registry.models() == ("a",)
