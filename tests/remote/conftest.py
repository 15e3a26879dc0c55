"""Real stores on loopback: a web server over a directory, and an object store; both can be killed and started again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.stores import ObjectStore, WebStore
from tests.support import saved_models


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """SavedModels by number; each answers its number to whatever it is asked."""
    directory = tmp_path_factory.mktemp("lines")
    return {number: saved_models.half_plus_two(directory / str(number), 0.0, float(number)) for number in (1, 2, 3)}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebStore]:
    """A web server of this test's own."""
    with WebStore(tmp_path / "store") as store:
        yield store


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectStore]:
    """One object store for all tests; each has a bucket of its own."""
    with ObjectStore() as store:
        yield store


@pytest.fixture
def bucket(object_server: ObjectStore, request: pytest.FixtureRequest) -> ObjectStore:
    """The object store, with an empty bucket."""
    object_server.new_bucket()
    return object_server
