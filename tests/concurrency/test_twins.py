"""The `_sync` twins of coroutine methods: parameters, help and overriding classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from embedserve import ModelHandle, ModelRegistry
from embedserve.servable import Array
from embedserve.testing import FakeLoader, FakeRegistry

TWINS = [
    (owner, name)
    for owner in (ModelRegistry, ModelHandle)
    for name, value in vars(owner).items()
    if name.endswith("_sync") and not name.startswith("_") and hasattr(value, "__wrapped__")
]


def test_each_request_and_each_change_has_a_twin() -> None:
    of_registry = {"predict_sync", "reconfigure_sync", "pin_sync", "unpin_sync", "set_label_sync"}
    of_handle = {"predict_sync", "classify_sync", "regress_sync", "multi_inference_sync", "run_graph_sync"}
    assert set(TWINS) == {(ModelRegistry, name) for name in of_registry} | {(ModelHandle, name) for name in of_handle}


@pytest.mark.parametrize(("owner", "name"), TWINS, ids=[f"{owner.__name__}.{name}" for owner, name in TWINS])
def test_help_shows_the_parameters_and_the_errors_of_the_method(owner: type, name: str) -> None:
    method: Callable[..., object] = getattr(owner, name.removesuffix("_sync"))
    twin: Callable[..., object] = getattr(owner, name)
    assert inspect.signature(twin) == inspect.signature(method)
    assert not inspect.iscoroutinefunction(twin)
    assert twin.__qualname__ == f"{owner.__name__}.{name}"
    said = inspect.getdoc(twin)
    assert said is not None
    assert said.startswith(f"As `{name.removesuffix('_sync')}`, from any thread but the registry's loop")
    assert said.endswith(inspect.getdoc(method) or "-")


def test_a_class_that_overrides_a_method_changes_the_twin() -> None:
    class Doubled(FakeRegistry):
        async def predict(self, *args: Any, **options: Any) -> dict[str, Array]:
            return {name: 2 * value for name, value in (await super().predict(*args, **options)).items()}

    with Doubled({"m": {1: FakeLoader()}}) as registry:
        assert registry.predict_sync("m", {"x": [1.0]})["y"].tolist() == [22.0]
        with pytest.raises(TypeError, match="timout"):
            registry.predict_sync("m", {"x": [1.0]}, timout=1.0)  # type: ignore[call-arg]
