"""The header by which a REST client says how urgent its request is."""

from __future__ import annotations

import asyncio
import json

import pytest

from embedserve.rest import create_app
from tests.rest.conftest import Answer, Serve
from tests.support.recorder import Recorder

TARGET = "/v1/models/m:predict"


async def test_requests_run_in_the_order_of_their_priority_header(serve: Serve) -> None:
    recorder = Recorder()
    async with recorder.registry as registry, serve(create_app(registry)) as server:
        asks: list[asyncio.Task[Answer]] = []
        for number, priority in enumerate(("normal", "low", None, "HIGH")):
            headers = {} if priority is None else {"X_Embedserve_Priority": priority}
            request = (await server.connect()).request("POST", TARGET, b'{"instances": [%d]}' % number, **headers)
            asks.append(asyncio.create_task(request))
            await (recorder.waiting(number) if number else recorder.running())
        recorder.gate.open()
        answers = await asyncio.gather(*asks)
        assert [json.loads(answer.body) for answer in answers] == [{"predictions": [float(i)]} for i in range(4)]
        assert recorder.ran == [0, 3, 2, 1]


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
async def test_a_header_that_names_no_priority_is_a_bad_request(serve: Serve, verb: str) -> None:
    recorder = Recorder()
    async with recorder.registry as registry, serve(create_app(registry)) as server:
        connection = await server.connect()
        answer = await connection.request("POST", f"/v1/models/m:{verb}", b"{}", X_Embedserve_Priority="urgent")
        assert answer.status == 400
        assert json.loads(answer.body) == {
            "error": "x-embedserve-priority: priority 'urgent' is none of high, normal, low"
        }
