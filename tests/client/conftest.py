"""A registry over real models and a port with REST and gRPC for each module; tests elsewhere count threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedserve import AllVersions, ModelConfig, ModelRegistry
from embedserve_client import AsyncClient, Client
from tests.client.serving import identities, served
from tests.support import saved_models

Connect = Callable[..., Client]
TARGETS = ("grpc", "http", "registry")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("client") / "models"
    identities(models / "same" / "1")
    saved_models.examples(models / "examples" / "1")
    saved_models.half_plus_two(models / "half" / "1")
    saved_models.half_plus_two(models / "half" / "2", b=3.0)
    saved_models.several(models / "several" / "1")
    saved_models.strings(models / "strings" / "1")
    return models


@pytest.fixture(scope="module")
def registry(models: Path) -> Iterator[ModelRegistry]:
    half = ModelConfig(name="half", base_path=models / "half", version_policy=AllVersions(), version_labels={"old": 1})
    with ModelRegistry(models, models=[half], watch=False) as entered:
        yield entered


@pytest.fixture(scope="module")
def port(registry: ModelRegistry) -> Iterator[int]:
    with served(registry) as port:
        yield port


@pytest.fixture(scope="module")
def target(registry: ModelRegistry, port: int) -> Callable[[str], Any]:
    """What a client of the name is given: a URL, or the registry."""
    return lambda name: registry if name == "registry" else f"{name}://127.0.0.1:{port}"


@pytest.fixture(params=TARGETS)
def client(request: pytest.FixtureRequest, target: Callable[[str], Any]) -> Iterator[Client]:
    """A client of the same models over each protocol, and in process."""
    with Client(target(request.param)) as found:
        yield found


@pytest.fixture(params=["grpc", "http"])
def remote(request: pytest.FixtureRequest, target: Callable[[str], Any]) -> Iterator[Client]:
    with Client(target(request.param)) as found:
        yield found


@pytest.fixture(params=TARGETS)
async def awaited(request: pytest.FixtureRequest, target: Callable[[str], Any]) -> Any:
    async with AsyncClient(target(request.param)) as found:
        yield found
