"""The fakes say what is wrong with them, and a host's test needs no TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from embedserve import ConfigError, InferenceError
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature

SIGNATURE = fake_signature(outputs={"y": ("float", (None,)), "z": ("int64", (None, 2))})
GOOD = {"y": [1.0], "z": [[1, 2]]}


@pytest.mark.parametrize(
    ("name", "short"), [("float", "float"), ("float32", "float"), ("float16", "half"), ("O", "string")]
)
def test_a_dtype_has_tensorflows_name_or_numpys(name: str, short: str) -> None:
    assert fake_signature(inputs={"x": (name, None)}).inputs["x"].dtype.name == short


@pytest.mark.parametrize(
    ("name", "said"),
    [("flaot32", "did you mean 'float32'"), ("strin", "did you mean 'string'"), ("datetime64", "there are")],
)
def test_a_dtype_that_is_none_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no dtype '{name}'.*{said}"):
        fake_signature(outputs={"y": (name, (None,))})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("float", ("a",)), "not 'a'"),
        (("float", (1.5, 1)), "not 1.5"),
        (("float", (-2, 1)), "not -2"),
        (("float", (True, 1)), "not True"),
        (("float", 5), "the shape of 'x' must be a tuple of sizes, or None for any rank, and is 5"),
        (("float", "12"), "and is '12'"),
        ((None, (1,)), "there is no dtype None"),
        ("float", r"'x' must be a pair \(dtype, shape\), .* and is 'float'"),
    ],
)
def test_a_shape_or_a_pair_that_cannot_be_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fake_signature(inputs={"x": given})
    with pytest.raises(ConfigError, match=said):
        fake_signature(outputs={"x": given})


def test_a_size_of_minus_one_is_any_size_as_saved_models_write_it() -> None:
    shape: Any = (-1, 0, np.int64(3))
    assert fake_signature(inputs={"x": ("float", shape)}).inputs["x"].shape == (None, 0, 3)


async def test_a_version_without_a_fake_loader_is_refused() -> None:
    given: Any
    for given, said in (
        ({"m": {1: 5}}, "model 'm', version 1 needs a FakeLoader, and has 5"),
        ({"m": {1: FakeLoader}}, "needs a FakeLoader"),
        ({"m": {"1": FakeLoader()}}, "a version is a number of 0 or more, not '1'"),
        ({"m": FakeLoader()}, "model 'm' needs {version: FakeLoader()}"),
    ):
        with pytest.raises(ConfigError) as refused:
            FakeRegistry(given)
        assert said in refused.value.message
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        given = None
        with pytest.raises(ConfigError, match="has None"):
            await registry.put("m", 2, given)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"y": [1.0]}, r"gave no output 'z', which is int64 \[\?,2\]; it gave y"),
        ({}, "gave no output 'y', .*; it gave none"),
        (GOOD | {"y": [[1.0]]}, r"gave for output 'y', which is float \[\?\], the shape \[1, 1\]"),
        (GOOD | {"z": [[1, 2, 3]]}, r"gave for output 'z', which is int64 \[\?,2\], the shape \[1, 3\]"),
        (GOOD | {"y": ["text"]}, "gave for output 'y', .*, values of another kind: string"),
        ([1.0], "must return a mapping by output name, and gave list"),
    ],
)
async def test_a_fake_that_gives_something_else_is_told_by_name(outputs: Any, said: str) -> None:
    loader = FakeLoader(lambda version, inputs: outputs, signatures=[SIGNATURE])
    async with FakeRegistry({"m": {1: loader}}, batching=False) as registry:
        with pytest.raises(InferenceError, match=f"the function of the fake signature 'serving_default' {said}"):
            await registry.predict("m", {"x": [1.0]})


async def test_a_fake_may_give_lists_and_is_asked_for_what_is_filtered() -> None:
    loader = FakeLoader(lambda version, inputs: GOOD, signatures=[SIGNATURE])  # type: ignore[arg-type, return-value]
    async with FakeRegistry({"m": {1: loader}}, batching=False) as registry:
        outputs = await registry.predict("m", {"x": [1.0]})
        assert {name: (array.dtype, array.tolist()) for name, array in outputs.items()} == {
            "y": (np.dtype(np.float32), [1.0]),
            "z": (np.dtype(np.int64), [[1, 2]]),
        }
        assert set(await registry.predict("m", {"x": [1.0]}, output_filter=["z"])) == {"z"}


def test_an_open_gate_holds_nothing_back() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader(gate=Gate(opened=True))}})
    with registry:
        assert registry.predict_sync("m", {"x": [1.0]})["y"].tolist() == [11.0]


@pytest.mark.slow
def test_a_hosts_test_with_fakes_imports_no_tensorflow() -> None:
    code = """
import sys
from fastapi import FastAPI
from starlette.testclient import TestClient
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry

registry = FakeRegistry({"m": {1: FakeLoader()}})
app = FastAPI(lifespan=registry.lifespan)
app.mount("/ml", create_app(registry))

@app.get("/y")
async def y(x: float) -> float:
    return float((await registry.predict("m", {"x": [x]}))["y"][0])

with TestClient(app) as client:
    assert client.get("/y?x=2").json() == 21.0
    assert client.post("/ml/v1/models/m:predict", json={"instances": [1.0]}).json() == {"predictions": [11.0]}
    assert client.get("/ml/v1/models/m").status_code == 200
    assert client.get("/ml/-/ready").status_code == 200
print(sorted({"tensorflow", "tensorflow_serving", "grpc"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
