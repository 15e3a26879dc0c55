"""The standard health service says what is true, and goes down while draining."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.grpc.conftest import Client, Start, failure

Status = health_pb2.HealthCheckResponse

OVERALL = [
    "",
    "ModelService",
    "PredictionService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
]


async def check(client: Client, service: str) -> str:
    response = await health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(service=service))
    return str(Status.ServingStatus.Name(response.status))


def watch(client: Client, service: str) -> Any:
    return health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(service=service))


async def said(call: Any) -> str:
    return str(Status.ServingStatus.Name((await call.read()).status))


async def loading(start: Start) -> tuple[FakeRegistry, Gate, Client]:
    """Model `a` serves, model `b` is still loading."""
    gate = Gate()
    registry = FakeRegistry({"a": {1: FakeLoader()}, "b": {1: FakeLoader(load_gate=gate)}})
    await registry.start(wait=False)
    client = await start(registry)
    while await check(client, "a") != "SERVING":
        await asyncio.sleep(0.001)
    return registry, gate, client


@pytest.mark.parametrize("service", [*OVERALL, "a"])
async def test_everything_serves_when_every_model_does(start: Start, service: str) -> None:
    client = await start(FakeRegistry({"a": {1: FakeLoader()}}))
    assert await check(client, service) == "SERVING"


async def test_a_model_that_loads_is_not_serving_and_so_is_the_server(start: Start) -> None:
    registry, gate, client = await loading(start)
    watched = watch(client, "b")
    assert await said(watched) == "NOT_SERVING"
    assert [await check(client, service) for service in ("a", "b", *OVERALL)] == ["SERVING"] + ["NOT_SERVING"] * 6
    gate.open()
    assert await said(watched) == "SERVING"
    assert [await check(client, service) for service in ("b", *OVERALL)] == ["SERVING"] * 6
    watched.cancel()
    await client.server.aclose()
    await registry.aclose()


async def test_a_model_that_fails_after_the_start_is_its_own_business(start: Start) -> None:
    registry = FakeRegistry({"a": {1: FakeLoader()}, "b": {1: FakeLoader()}}, retry={"max_retries": 0})
    client = await start(registry)
    await registry.remove("b", 1)
    watched = watch(client, "b")
    while await said(watched) != "NOT_SERVING":
        pass
    assert [await check(client, service) for service in ("a", "b", *OVERALL)] == ["SERVING", "NOT_SERVING"] + [
        "SERVING"
    ] * 5
    watched.cancel()


async def test_a_server_that_was_told_to_serve_no_model_serves(start: Start) -> None:
    client = await start(FakeRegistry({}))
    assert [await check(client, service) for service in OVERALL] == ["SERVING"] * 5


async def test_unknown_services(start: Start) -> None:
    client = await start(FakeRegistry({"a": {1: FakeLoader()}}))
    code, _ = await failure(
        health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(service="none"))
    )
    assert code is grpc.StatusCode.NOT_FOUND
    watched = watch(client, "none")
    assert await said(watched) == "SERVICE_UNKNOWN"
    watched.cancel()


async def test_health_goes_down_when_draining_begins(start: Start) -> None:
    registry = FakeRegistry({"a": {1: FakeLoader()}})
    client = await start(registry)
    watched = watch(client, "")
    assert await said(watched) == "SERVING"
    registry.begin_drain()
    assert await said(watched) == "NOT_SERVING"
    assert await check(client, "a") == "NOT_SERVING"
    watched.cancel()


@pytest.mark.parametrize("transport", ["embedserve", "grpcio"])
async def test_a_stopping_server_ends_its_watches_after_a_last_word(start: Start) -> None:
    client = await start(FakeRegistry({"a": {1: FakeLoader()}}))
    watched = watch(client, "a")
    assert await said(watched) == "SERVING"
    async with asyncio.timeout(30):
        stop = asyncio.create_task(client.server.aclose(60))
        assert await said(watched) == "NOT_SERVING"
        assert await watched.read() is grpc.aio.EOF
        await stop
