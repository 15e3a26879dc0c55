"""Liveness and readiness, before the first load has ended, while models fail, and while the registry drains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from embedserve import ModelRegistry, State
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate


def client_of(registry: ModelRegistry) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(registry)), base_url="http://x")


async def get(client: httpx.AsyncClient, path: str) -> tuple[int, Any]:
    response = await client.get(path)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    return response.status_code, response.json()


async def test_ready_once_every_model_has_an_available_version() -> None:
    gate = Gate()
    registry = FakeRegistry({"a/b": {1: FakeLoader(load_gate=gate)}, "c": {1: FakeLoader()}})
    async with client_of(registry) as client:
        assert await get(client, "/-/live") == (200, {"status": "live"})
        status, document = await get(client, "/-/ready")
        assert status == 503
        assert "has not been entered" in document["reason"]
        await registry.start(wait=False)
        try:
            status, document = await get(client, "/-/ready")
            assert (status, document["status"]) == (503, "not ready")
            assert document["reason"].startswith("the start waits for a/b")
            assert document["models"]["a/b"].startswith("version 1 is ")
            assert (await get(client, "/-/ready/a%2Fb"))[0] == 503
            gate.open()
            await registry.wait_until_ready(20)
            assert await get(client, "/-/ready") == (
                200,
                {"status": "ready", "models": {"a/b": "ready", "c": "ready"}},
            )
            assert await get(client, "/-/ready/a%2Fb") == (200, {"status": "ready", "models": {"a/b": "ready"}})
            registry.begin_drain()
            status, document = await get(client, "/-/ready")
            assert status == 503
            assert "draining" in document["reason"]
            assert (await get(client, "/-/ready/c"))[0] == 503
            assert (await get(client, "/-/live"))[0] == 200
            response = await client.post("/v1/models/c:predict", content=b'{"instances": [1]}')
            assert response.status_code == 200
        finally:
            await registry.aclose()


async def test_a_failed_model_is_named_with_its_reason() -> None:
    registry = FakeRegistry({"bad": {1: FakeLoader(failures=-1)}, "good": {1: FakeLoader()}}, retry={"max_retries": 0})
    await registry.start(wait=False)
    try:
        assert registry._runtime is not None
        reached = await registry._runtime.monitor.wait_until(
            lambda: "told to fail" in (registry.readiness()["bad"] or "") and registry.readiness()["good"] is None, 20
        )
        assert reached
        async with client_of(registry) as client:
            status, document = await get(client, "/-/ready")
            assert status == 503
            assert "DATA_LOSS: the fake loader was told to fail" in document["models"]["bad"]
            assert document["models"]["good"] == "ready"
            assert (await get(client, "/-/ready/bad"))[0] == 503
            assert (await get(client, "/-/ready/good"))[0] == 200
    finally:
        await registry.aclose()


async def test_an_empty_root_is_not_ready_and_an_unknown_model_is_not_found(tmp_path: Path) -> None:
    async with ModelRegistry(tmp_path) as registry, client_of(registry) as client:
        status, document = await get(client, "/-/ready")
        assert (status, document["reason"]) == (503, "no model has been found yet")
        assert await get(client, "/-/ready/q") == (404, {"status": "unknown", "error": "Could not find model q"})


async def test_an_explicitly_empty_list_of_models_is_ready() -> None:
    async with FakeRegistry({}) as registry, client_of(registry) as client:
        assert await get(client, "/-/ready") == (200, {"status": "ready", "models": {}})


async def test_a_version_that_fails_and_one_that_goes_do_not_take_the_process_down() -> None:
    found = {"m": {1: FakeLoader()}, "n": {1: FakeLoader()}}
    async with FakeRegistry(found, retry={"max_retries": 0}) as registry, client_of(registry) as client:
        await registry.put("m", 2, FakeLoader(failures=-1))
        await registry.remove("n", 1)
        assert registry._runtime is not None
        assert await registry._runtime.monitor.wait_until(
            lambda: registry.status()["m"][0].state is State.END and registry.readiness()["n"] is not None, 20
        )
        status, document = await get(client, "/-/ready")
        assert (status, document["status"]) == (200, "ready")
        assert document["models"]["m"] == "ready"
        status, document = await get(client, "/-/ready/n")
        assert (status, document["status"]) == (503, "not ready")
        assert "No versions of servable n found" in document["models"]["n"]


@pytest.mark.parametrize("path", ["/-/live", "/-/ready", "/-/ready/m"])
async def test_health_is_read_only(path: str) -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry, client_of(registry) as client:
        assert (await client.head(path)).status_code == 200
        assert (await client.head(path)).content == b""
        response = await client.post(path)
        assert response.status_code == 405
        assert response.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/-/", "/-/ready/", "/-/liveness", "/-"])
async def test_other_paths_are_not_health(path: str) -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry, client_of(registry) as client:
        assert (await client.get(path)).status_code == 404
