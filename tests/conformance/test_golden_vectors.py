"""The golden vectors of the JSON codec (tables of tests/rest and tests/tensors) end to end: over HTTP and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from embedserve.rest import create_app
from embedserve.servable import Array, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
from tests.rest.conftest import Server, _serve
from tests.rest.test_payload import ACCEPTED, REFUSED
from tests.tensors.test_json_parser import ERRORS

pytestmark = pytest.mark.asyncio(loop_scope="module")

DTYPES = sorted({str(vector[0]) for vector in (*ACCEPTED, *REFUSED)})


def same(version: int, inputs: Tensors) -> dict[str, Array]:
    return {"y": inputs["x"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    """One model per dtype, which answers what it is given."""
    found = {
        dtype: {
            1: FakeLoader(same, signatures=[fake_signature(inputs={"x": (dtype, None)}, outputs={"y": (dtype, None)})])
        }
        for dtype in DTYPES
    }
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(FakeRegistry(found, batching=False))
        yield await stack.enter_async_context(_serve(create_app(registry)))


async def ask(server: Server, dtype: str, body: str) -> tuple[int, Any]:
    response = await server.client.post(f"/v1/models/{dtype}:predict", content=body.encode())
    return response.status_code, json.loads(response.content)


async def test_what_is_accepted_comes_back(server: Server) -> None:
    for dtype, body, _, values in ACCEPTED:
        status, document = await ask(server, dtype, body)
        if values is None:
            assert (status, list(document)) == (400, ["error"]), body
        else:
            text = json.loads(json.dumps(values, default=bytes.decode))
            assert (status, document) == (200, {"predictions" if "instances" in body else "outputs": text}), body


async def test_what_is_refused_says_why(server: Server) -> None:
    for dtype, body, message in REFUSED:
        assert await ask(server, dtype, body) == (400, {"error": message}), body


async def test_what_does_not_parse_says_where(server: Server) -> None:
    for body, message in ERRORS:
        assert await ask(server, "float", body) == (400, {"error": f"JSON Parse error: {message}"}), body
    print(f"{len(ACCEPTED) + len(REFUSED) + len(ERRORS)} golden vectors came over HTTP")
