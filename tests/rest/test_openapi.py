"""The OpenAPI document of real models: valid, exact, and kept by a running server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from embedserve import ModelRegistry
from embedserve.rest import create_app, openapi
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
from tests.rest.conftest import Serve, Server
from tests.support import saved_models
from tests.support.programs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BUILDERS = (
    *(saved_models.half_plus_two, saved_models.several, saved_models.strings, saved_models.examples),
    *(saved_models.tf1_examples, saved_models.identities, saved_models.without_inputs, saved_models.counter),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("documented")
    for build in BUILDERS:
        build(root / build.__name__ / "1")
    saved_models.dense(root / "odd name%" / "1", inputs=3000)
    saved_models.set_default(saved_models.several(root / "defaults" / "7"), "serving_default", "right", [[1, 1, 1]])
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(root: Path) -> AsyncIterator[ModelRegistry]:
    async with ModelRegistry(root) as registry:
        await registry.set_label("defaults", "stable/1", 7)
        yield registry


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(registry: ModelRegistry) -> AsyncIterator[Server]:
    from tests.rest.conftest import _serve

    async with _serve(create_app(registry)) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(server: Server) -> dict[str, Any]:
    answer = await server.client.get("/v1/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def calls(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((path, found["post"]) for path, found in document["paths"].items() if "post" in found)


def body_of(part: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = part["content"]["application/json"]
    return found


def valid(document: dict[str, Any], part: dict[str, Any], value: Any) -> bool:
    return bool(Draft202012Validator(body_of(part)["schema"] | {"components": document["components"]}).is_valid(value))


@pytest.mark.asyncio(loop_scope="module")
async def test_the_document_is_valid_and_names_every_path(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "/"}]
    paths = set(document["paths"])
    assert {
        "/v1/models",
        "/v1/models/half_plus_two",
        "/v1/models/half_plus_two/metadata",
        "/v1/models/half_plus_two:predict",
        "/v1/models/half_plus_two/versions/1",
        "/v1/models/half_plus_two/versions/1:predict",
        "/v1/models/odd%20name%25:predict",
        "/v1/models/defaults/labels/stable%2F1:predict",
        "/v1/models/examples:classify",
        "/v1/models/examples:regress",
        "/v1/models/tf1_examples/versions/1:regress",
    } <= paths
    assert "/v1/models/half_plus_two:classify" not in paths
    signatures = document["paths"]["/v1/models/several:predict"]["post"]["x-signatures"]
    assert list(signatures) == ["serving_default", "free", "scalars"]
    assert signatures["serving_default"]["inputs"]["left"] == {"dtype": "DT_FLOAT", "shape": [None, 3]}
    assert "complex64" not in document["paths"]["/v1/models/identities:predict"]["post"]["x-signatures"]


@pytest.mark.asyncio(loop_scope="module")
async def test_every_example_fits_its_schema_and_is_answered_as_documented(
    server: Server, document: dict[str, Any]
) -> None:
    seen = 0
    for path, call in calls(document):
        for name, example in body_of(call["requestBody"]).get("examples", {}).items():
            assert valid(document, call["requestBody"], example["value"]), (path, name)
            answer = await server.client.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text)
            assert valid(document, call["responses"]["200"], answer.json()), (path, name, answer.text)
            seen += 1
        assert ("examples" in body_of(call["requestBody"])) == ("odd" not in path), "large examples are left out"
    assert seen > 50


@pytest.mark.parametrize(
    ("path", "body", "fits"),
    [
        ("half_plus_two:predict", {"instances": [1.0, 2.0]}, True),
        ("half_plus_two:predict", {"inputs": {"x": [[1.0]]}, "output_filter": "y"}, True),
        ("half_plus_two:predict", {"instances": ["x"]}, False),
        ("half_plus_two:predict", {"instances": [1.0], "inputs": [1.0]}, False),
        ("several:predict", {"instances": [{"left": [1, 2, 3], "right": [1, 2, 3]}]}, True),
        ("several:predict", {"instances": [{"left": [1, 2, 3]}]}, False),
        ("several:predict", {"instances": [{"left": [1, 2], "right": [1, 2, 3]}]}, False),
        ("several:predict", {"signature_name": "scalars", "inputs": {"a": 1, "b": 2}}, True),
        ("several:predict", {"signature_name": "scalars", "instances": [{"a": 1, "b": 2}]}, False),
        ("several:predict", {"signature_name": "absent", "inputs": {"a": 1, "b": 2}}, False),
        ("defaults:predict", {"instances": [{"left": [1, 2, 3]}]}, True),
        ("strings:predict", {"instances": ["text", {"b64": "AA=="}]}, True),
        ("strings:predict", {"instances": [{"b64": "A"}]}, False),
        ("identities:predict", {"signature_name": "bool", "instances": [True]}, True),
        ("identities:predict", {"signature_name": "bool", "instances": [1]}, False),
        ("identities:predict", {"signature_name": "int64", "inputs": 2**62}, True),
        ("identities:predict", {"signature_name": "int64", "inputs": 2**63}, False),
        ("tf1_examples:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}]}, True),
        ("tf1_examples:regress", {"signature_name": "regress_x_to_y", "examples": []}, False),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_the_schema_and_the_server_agree_on_a_body(
    server: Server, document: dict[str, Any], path: str, body: dict[str, Any], fits: bool
) -> None:
    call = document["paths"][f"/v1/models/{path}"]["post"]
    answer = await server.client.post(f"/v1/models/{path}", json=body)
    part = call["responses"][str(answer.status_code)]
    assert (valid(document, call["requestBody"], body), answer.status_code == 200) == (fits, fits), answer.text
    assert valid(document, part, answer.json())


@pytest.mark.asyncio(loop_scope="module")
async def test_a_fuzzer_made_for_the_document_finds_no_broken_promise(server: Server, tmp_path: Path) -> None:
    checks = "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance"
    place = ROOT / "tests" / "rest"
    fuzzer = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("schemathesis"), "--config-file", place / "schemathesis.toml", "run"),
        *(f"http://127.0.0.1:{server.port}/v1/openapi.json", "--checks", checks, "--max-examples=5", "--seed=1"),
        *("--no-color", "--exclude-path-regex", "versions|labels"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(place / "openapi_hooks.py")},
    )
    said = (await fuzzer.communicate())[0].decode()
    assert fuzzer.returncode == 0, said[-6000:]
    made = re.search(r"(\d+) generated", said)
    assert made is not None, said
    assert int(made[1]) > 100


@pytest.mark.asyncio(loop_scope="module")
async def test_a_mounted_application_names_its_mount_point(registry: ModelRegistry, serve: Serve) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    async with serve(Starlette(routes=[Mount("/a/ml", create_app(registry))])) as server:
        answer = await server.client.get("/a/ml/v1/openapi.json")
        assert answer.json()["servers"] == [{"url": "/a/ml"}]
        assert (await server.client.get("/a/ml/-/docs")).status_code == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_a_fastapi_host_shows_the_models_in_its_own_document(registry: ModelRegistry) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    app.mount("/ml", create_app(registry))

    @app.get("/visits")
    async def visits() -> int:
        return 1

    own = app.openapi
    before = dict(own()["paths"])
    app.openapi = lambda: openapi(registry, prefix="/ml", into=own())  # type: ignore[method-assign]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client:
        found = (await client.get("/openapi.json")).json()
        validate(found)
        assert {"/visits", "/ml/v1/models/half_plus_two:predict"} <= set(found["paths"])
        call = found["paths"]["/ml/v1/models/half_plus_two:predict"]["post"]
        for example in body_of(call["requestBody"])["examples"].values():
            answer = await client.post("/ml/v1/models/half_plus_two:predict", json=example["value"])
            assert valid(found, call["responses"]["200"], answer.json())
    assert own()["paths"] == before, "the host's document is left as it is"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_shows_the_document_without_another_host(server: Server, tmp_path: Path) -> None:
    answer = await server.client.get("/-/docs")
    assert answer.status_code == 200
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    shown = await asyncio.create_subprocess_exec(
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=30000", "--dump-dom"),
        f"http://127.0.0.1:{server.port}/-/docs",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    page = re.sub(r"<script>.*?</script>", "", (await shown.communicate())[0].decode(), flags=re.DOTALL)
    assert "cannot be shown" not in page
    assert "POST /v1/models/half_plus_two:predict" in page
    assert "curl 'http://127.0.0.1" in page


async def test_what_does_not_serve_is_not_in_the_document() -> None:
    signature = fake_signature(inputs={"x": ("float", (None, 2))})
    registry = FakeRegistry({"m": {1: FakeLoader(signatures=[signature]), 2: FakeLoader(signatures=[signature])}})
    assert list(openapi(registry)["paths"]) == ["/v1/models"]
    async with registry:
        found = openapi(registry)
        validate(found)
        assert [path for path in found["paths"] if path.endswith(":predict")] == [
            "/v1/models/m:predict",
            "/v1/models/m/versions/2:predict",
        ]
        (rows, _) = body_of(found["paths"]["/v1/models/m:predict"]["post"]["requestBody"])["examples"].items()
        assert rows[0] == "serving_default, rows, not tried"
        assert len(rows[1]["value"]["instances"][0]) == 2
        from_a_thread = await asyncio.to_thread(openapi, registry)
        assert from_a_thread == found
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(registry, docs=False)), base_url="http://host"
        ) as client:
            refused = await client.get("/v1/openapi.json")
            assert (refused.status_code, refused.json()) == (400, {"error": "Malformed request: GET /v1/openapi.json"})
            assert (await client.get("/-/docs")).status_code == 404
