"""A model that calls Python functions is refused when it is loaded, wherever it calls them from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedserve import ModelRegistry
from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import Code, LoadError
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.servable import ServableId, State
from tests.integration.waiting import status_of, until
from tests.saved_model.conftest import Load
from tests.support import saved_models

pytestmark = pytest.mark.slow


def refusal(path: Path) -> LoadError:
    made = SavedModelLoader(ServableId("m", 1), path, ModelConfig(name="m", base_path=path.parent), RegistryOptions())
    with pytest.raises(LoadError) as raised:
        made.load()
    assert raised.value.code is Code.NOT_FOUND
    return raised.value


@pytest.mark.parametrize("op", ["EagerPyFunc", "PyFunc", "PyFuncStateless"])
def test_each_operation_that_calls_python_is_refused_in_tensorflow_servings_words(tmp_path: Path, op: str) -> None:
    message = refusal(saved_models.python_call(tmp_path / "m" / "1", op=op)).message
    assert message.startswith(f"Op type not registered '{op}' in binary running on ")
    assert "The signature 'serving_default' calls a Python function through it" in message


@pytest.mark.parametrize("where", ["branch", "dataset"])
def test_a_python_call_in_a_nested_function_is_found(tmp_path: Path, where: str) -> None:
    refusal(saved_models.python_call(tmp_path / "m" / "1", where))


def test_a_python_call_that_a_load_would_make_is_found(tmp_path: Path) -> None:
    for path in (
        saved_models.python_call(tmp_path / "tf2" / "1", "initializer"),
        saved_models.tf1_python_call(tmp_path / "tf1" / "1", init=True),
    ):
        assert "The initialisation of the model calls a Python function" in refusal(path).message


def test_a_python_call_in_a_tf1_graph_is_found(tmp_path: Path) -> None:
    assert "'PyFunc'" in refusal(saved_models.tf1_python_call(tmp_path / "m" / "1")).message


def test_a_python_call_that_nothing_served_reaches_does_no_harm(load: Load, tmp_path: Path) -> None:
    servable = load(saved_models.python_call(tmp_path / "m" / "1", "unused"))
    assert servable.run("serving_default", {"x": np.ones(1, np.float32)})["y"].tolist() == [2.0]


async def test_a_version_that_calls_python_leaves_the_good_one_serving(tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "m" / "1")
    async with ModelRegistry(tmp_path) as registry:
        saved_models.python_call(tmp_path / "m" / "2")
        await until(registry, lambda: bool((status := status_of(registry, "m", 2)) and status.message))
        assert (await registry.predict("m", [[1.0]]))["y"].tolist() == [[2.5]]
        states = {status.version: status.state for status in registry.status("m")["m"]}
        assert states[1] is State.AVAILABLE
