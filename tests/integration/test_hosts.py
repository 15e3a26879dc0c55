"""Real models inside other programs: web applications with lifespans of their own, scripts, threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from embedserve import ModelRegistry, NotReadyError, RegistryStateError, StartError, State
from embedserve.rest import create_app
from tests.integration.conftest import QUICK, deploy
from tests.integration.waiting import until_state

pytestmark = pytest.mark.slow

Line = Callable[[int], Path]


@pytest.fixture
def client_of(recwarn: pytest.WarningsRecorder) -> Callable[[Any], Any]:
    """Starlette's test client: the application and its lifespan run on a loop in another thread."""
    from starlette.testclient import TestClient  # Warns of a package that is not needed.

    return TestClient


@pytest.fixture
def registry(models: Path, line: Line) -> ModelRegistry:
    deploy(line(1), models / "m" / "1")
    return ModelRegistry(models, **QUICK)


def test_a_fastapi_application_composes_its_lifespan_with_the_registrys(
    registry: ModelRegistry, client_of: Callable[[Any], Any]
) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        told.append("host up")
        async with registry.lifespan(app):
            assert registry.readiness() == {"m": None}
            yield {"own": "state"}
        assert not registry.started
        told.append("host down")

    app = FastAPI(lifespan=lifespan)
    app.mount("/ml", create_app(registry))

    @app.get("/async")
    async def awaited(request: Request) -> dict[str, Any]:
        with pytest.raises(RegistryStateError, match="would wait for itself"):
            registry.predict_sync("m", [[0.0]])
        out = await registry.predict("m", [[0.0]])
        return {"y": out["y"].item(), "own": request.state.own}

    @app.get("/sync")
    def plain() -> dict[str, Any]:
        with registry.acquire_sync("m") as handle:
            return {"y": handle.predict_sync([[0.0]])["y"].item(), "version": handle.version}

    for _ in range(2):
        with client_of(app) as client:
            assert client.get("/async").json() == {"y": 1.0, "own": "state"}
            with ThreadPoolExecutor(4) as threads:
                answers = list(threads.map(lambda _: client.get("/sync").json(), range(12)))
            assert answers == [{"y": 1.0, "version": 1}] * 12
            predictions = client.post("/ml/v1/models/m:predict", json={"instances": [[5.0]]}).json()
            assert predictions == {"predictions": [[1.0]]}
    assert told == ["host up", "host down"] * 2


def test_a_starlette_application_takes_the_lifespan_as_it_is(
    registry: ModelRegistry, client_of: Callable[[Any], Any]
) -> None:
    async def own(request: Request) -> JSONResponse:
        return JSONResponse((await registry.predict("m", [[0.0]]))["y"].tolist())

    app = Starlette(routes=[Route("/own", own), Mount("/ml", create_app(registry))], lifespan=registry.lifespan)
    with client_of(app) as client:
        assert client.get("/own").json() == [[1.0]]
        assert client.get("/ml/v1/models/m").json()["model_version_status"][0]["state"] == "AVAILABLE"
    with pytest.raises(NotReadyError, match=r"lifespan=registry\.lifespan"):
        registry.predict_sync("m", [[0.0]])


def test_a_script_with_threads_swaps_and_leaves_nothing_behind(
    registry: ModelRegistry, models: Path, line: Line
) -> None:
    for _ in range(2):
        with registry, ThreadPoolExecutor(8) as threads:
            first = threads.map(lambda _: registry.predict_sync("m", [[0.0]])["y"].item(), range(100))
            assert set(first) <= {1.0, 2.0}
            if not (models / "m" / "2").exists():
                deploy(line(2), models / "m" / "2")

            async def swapped() -> None:
                await until_state(registry, "m", 2, State.AVAILABLE)

            assert registry._runtime is not None
            registry._runtime.call_sync(swapped)
            assert {registry.predict_sync("m", [[0.0]])["y"].item() for _ in range(10)} == {2.0}
    assert registry.status()["m"][0].state is State.END
    for thread in threading.enumerate():
        if thread.name.startswith("embedserve"):
            thread.join(20)
            assert not thread.is_alive(), thread


async def test_a_call_from_another_loop_is_carried_over_and_its_cancellation_too(registry: ModelRegistry) -> None:
    async def elsewhere() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0), registry.acquire("m") as handle:
                await handle.predict([[0.0]])
        return float((await registry.predict("m", [[0.0]]))["y"].item())

    async with registry:
        assert await asyncio.to_thread(asyncio.run, elsewhere()) == 1.0
        assert await asyncio.to_thread(lambda: registry.predict_sync("m", [[0.0]])["y"].item()) == 1.0
    with pytest.raises(NotReadyError, match="has not been entered"):
        await asyncio.to_thread(asyncio.run, elsewhere())


@pytest.mark.parametrize("host", [create_app, lambda registry: Starlette(lifespan=registry.lifespan)])
def test_a_test_client_raises_what_kept_the_registry_from_starting(
    host: Callable[[ModelRegistry], Any], models: Path, client_of: Callable[[Any], Any]
) -> None:
    (models / "m" / "1").mkdir(parents=True)
    registry = ModelRegistry(models, **QUICK | {"start_timeout": 0.3})
    with pytest.raises(StartError, match="m"), client_of(host(registry)):
        pass


async def test_uvicorn_ends_with_the_reason_for_a_failed_start(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    import uvicorn

    (models / "m" / "1").mkdir(parents=True)
    registry = ModelRegistry(models, **QUICK | {"start_timeout": 0.3})
    server = uvicorn.Server(uvicorn.Config(create_app(registry), port=0, log_config=None))
    with caplog.at_level("ERROR", "uvicorn.error"):
        with pytest.raises(SystemExit) as ended:
            await server.serve()
        assert ended.value.code == 3
    assert "model(s) did not become available: m" in caplog.text
