"""SageMaker's clients find the endpoint of its TensorFlow Serving container."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from embedserve.rest import create_app
from embedserve.rest.sagemaker import SageMakerApp
from embedserve.servable import Array, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
from tests.rest.conftest import Server, _serve

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


def plus(version: int, inputs: Tensors) -> dict[str, Array]:
    return {"y": inputs["x"] + np.float32(version)}


def loader() -> FakeLoader:
    rows = fake_signature("serving_default", {"x": ("float", (None, 3))}, {"y": ("float", (None, 3))})
    return FakeLoader(signatures=[rows], model=plus)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    models = {name: {version: loader() for version in (1, 2)} for name in ("a", "b")}
    async with FakeRegistry(models, max_request_bytes=10_000) as registry:
        async with _serve(SageMakerApp(create_app(registry), "a")) as server:
            yield server
        assert registry.inflight.reserved == 0


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def invoke(
    server: Server, body: str | bytes, content: str = "application/json", attributes: str = "", accept: str = ""
) -> httpx.Response:
    headers = {"content-type": content} if content else {}
    headers |= {ATTRIBUTES: attributes} if attributes else {}
    headers |= {"accept": accept} if accept else {}
    return await server.client.post("/invocations", content=body, headers=headers)


ONE = {"predictions": [[3.0, 4.0, 5.0]]}
TWO = {"predictions": [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]}


@pytest.mark.parametrize(
    ("content", "body", "answer"),
    [
        ("application/json", '{"instances": [[1, 2, 3]]}', ONE),
        ("application/json", '{"inputs": [[1, 2, 3]]}', {"outputs": [[3.0, 4.0, 5.0]]}),
        ("application/json", "[[1, 2, 3], [4, 5, 6]]", TWO),
        ("application/json", " [1, 2, 3] ", ONE),
        ("application/json", '{"x": [1, 2, 3]}', ONE),
        ("application/json", "[1, 2, 3]\n[4, 5, 6]\n", TWO),
        ("application/json", '{"x": [1, 2, 3]}\r\n{"x": [4, 5, 6]}', TWO),
        ("application/jsonlines", "[1, 2, 3]\n[4, 5, 6]", TWO),
        ("application/jsons", "[1, 2, 3]\n[4, 5, 6]", TWO),
        ("text/csv", "1,2,3\n4.0,5e0,6", TWO),
        ("text/csv; charset=utf-8", "1,2,3\n", ONE),
    ],
)
async def test_bodies_are_read_as_the_container_reads_them(
    content: str, body: str, answer: Any, server: Server
) -> None:
    response = await invoke(server, body, content)
    assert (response.status_code, response.json()) == (200, answer)


@pytest.mark.parametrize(
    ("attributes", "status", "answer"),
    [
        ("", 200, ONE),
        ("tfs-model-name=b", 200, ONE),
        ("other=1,tfs-model-name=b,tfs-model-version=2", 200, ONE),
        ("tfs-method=predict", 200, ONE),
        ("tfs-model-version=7", 404, "7"),
        ("tfs-model-name=c", 404, "c"),
        ("tfs-model-name=../a", 404, "Latest(../a)"),
        ("tfs-model-version=x", 400, "Malformed request"),
        ("tfs-method=explain", 400, "predict, classify, regress"),
        ("tfs-method=classify", 400, "examples"),
    ],
)
async def test_the_custom_attributes_name_model_version_and_method(
    attributes: str, status: int, answer: Any, server: Server
) -> None:
    response = await invoke(server, '{"instances": [[1, 2, 3]]}', attributes=attributes)
    assert response.status_code == status, response.text
    if status == 200:
        assert response.json() == answer
    else:
        assert answer in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "body", "status", "says"),
    [
        ("text/plain", "1", 415, "Unsupported Media Type: text/plain"),
        ("", b"1", 415, "Unsupported Media Type: Unknown"),
        ("application/json", "", 400, "instances"),
        ("application/json", "nonsense", 400, "JSON Parse error"),
        ("application/json", "[1, 2]", 400, "expected [?,3]"),
        ("text/csv", "1,2", 400, "expected [?,3]"),
        ("text/csv", "1," * 6000, 429, "max_request_bytes"),
    ],
)
async def test_bad_requests_get_the_reason_as_json(
    content: str, body: str | bytes, status: int, says: str, server: Server
) -> None:
    response = await invoke(server, body, content)
    assert response.status_code == status, response.text
    assert says in response.json()["error"]


async def test_the_answer_may_be_in_another_form(server: Server) -> None:
    answer = await invoke(server, "1,2,3", "text/csv", accept="text/csv")
    assert answer.text == "3.0,4.0,5.0\n"
    lines = await invoke(server, "[1, 2, 3]", accept="application/jsonlines")
    assert lines.json() == ONE


async def test_ping_tells_whether_the_endpoint_may_be_asked(server: Server) -> None:
    assert (await server.client.get("/ping")).status_code == 200
    assert (await server.client.get("/invocations")).status_code == 405
    quickstart = await server.client.post("/v1/models/a:predict", json={"instances": [[1, 2, 3]]})
    assert quickstart.json() == ONE, "TensorFlow Serving's own paths stay"


async def test_ping_names_a_default_model_that_is_not_there() -> None:
    async with (
        FakeRegistry({"a": {1: loader()}, "b": {1: loader()}}) as registry,
        _serve(SageMakerApp(create_app(registry), "none")) as lost,
        _serve(SageMakerApp(create_app(registry))) as several,
    ):
        response = await lost.client.get("/ping")
        assert (response.status_code, response.json()) == (503, {"error": "could not find model none"})
        unnamed = await invoke(several, "[1, 2, 3]")
        assert unnamed.status_code == 400
        assert "the models are a, b" in unnamed.json()["error"]
