"""The page about workers, and the REST API beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from embedserve.rest import create_app
from embedserve.server.workers.hands import Suspect
from embedserve.server.workers.messages import Status, WorkerStatus
from embedserve.server.workers.worker_app import WorkerApp
from embedserve.testing import FakeLoader, FakeRegistry

pytestmark = pytest.mark.slow


async def test_any_worker_shows_all_and_says_which_it_is() -> None:
    suspects = ((Suspect("m", 3, "serving_default", "x float32[?]"), 2),)
    workers = (WorkerStatus(0, 11, "serving", 0), WorkerStatus(1, None, "restarting", 2, "was ended by SIGKILL"))
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        whole: Any = SimpleNamespace(whole=Status({}, {}, None, False, workers, suspects))
        app: Any = WorkerApp(create_app(registry), whole, 1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            assert (await client.get("/-/workers")).json() == {
                "answered_by": 1,
                "workers": [
                    {"index": 0, "pid": 11, "state": "serving", "restarts": 0, "ended": ""},
                    {"index": 1, "pid": None, "state": "restarting", "restarts": 2, "ended": "was ended by SIGKILL"},
                ],
                "suspects": [
                    {
                        "model": "m",
                        "version": 3,
                        "signature": "serving_default",
                        "inputs": "x float32[?]",
                        "deaths": 2,
                    }
                ],
            }
            head = await client.head("/-/workers")
            assert (head.status_code, head.content) == (200, b"")
            assert (await client.post("/-/workers")).status_code == 404
            assert (await client.get("/v1/models/m")).status_code == 200
