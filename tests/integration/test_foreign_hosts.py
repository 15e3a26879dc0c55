"""Hosts without asyncio or without threads: a clear error at once, wherever they come in, and the remedy works."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import hypercorn
import hypercorn.trio
import pytest
import trio
from starlette.applications import Starlette
from starlette.routing import Mount

from embedserve import RegistryStateError
from embedserve.errors import Code
from embedserve.grpc import GrpcApp, GrpcMiddleware, serve
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.fabricated import PREDICT, predict_body
from tests.grpc.framing import web_answer
from tests.support.programs import answers, fetch, free_port, run_program, wait_until

# A message of the kind "trio runs this coroutine ... trio.to_thread.run_sync".
TRIO = r"^trio runs this coroutine.*with registry.*trio\.to_thread\.run_sync"


def registry() -> FakeRegistry:
    return FakeRegistry({"m": {1: FakeLoader()}})


async def by_async_with(reg: FakeRegistry) -> None:
    async with reg:
        pass


async def by_lifespan(reg: FakeRegistry) -> None:
    async with reg.lifespan():
        pass


async def by_serving(reg: FakeRegistry) -> None:
    async with serve(reg, port=0):
        pass


ENTRIES = [by_async_with, by_lifespan, by_serving, FakeRegistry.start, FakeRegistry.ensure_started]


@pytest.mark.parametrize("enter", ENTRIES)
def test_trio_cannot_enter_and_is_told_what_can(enter: Callable[[FakeRegistry], Awaitable[None]]) -> None:
    reg = registry()
    with pytest.raises(RegistryStateError, match=TRIO):
        trio.run(enter, reg)
    assert not reg.started
    with reg:  # The refused entry has left nothing behind.
        assert reg.started


@pytest.mark.may_block
def test_trio_cannot_await_a_call_but_has_threads_for_it() -> None:
    async def main() -> None:
        with registry() as reg, reg.acquire_sync("m") as handle:
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: reg.predict("m", [1.0]),
                lambda: handle.predict([1.0]),
                lambda: reg.acquire("m").__aenter__(),
                lambda: reg.wait_until_ready(),
                lambda: reg.pin("m", 1),
                lambda: reg.reconfigure([]),
                lambda: reg.run_on_loop(trio.sleep, 0),
                lambda: reg.aclose(),
            ]
            for call in calls:
                with pytest.raises(RegistryStateError, match=TRIO):
                    await call()
            found = await trio.to_thread.run_sync(reg.predict_sync, "m", [1.0])
            assert found["y"].tolist() == [11.0]

    trio.run(main)


def test_a_coroutine_that_nothing_runs_is_told_so() -> None:
    with pytest.raises(RegistryStateError, match="no asyncio event loop runs this coroutine"):
        registry().start().send(None)


class OnTrio:
    """An application on hypercorn's trio worker, in a thread of its own."""

    def __init__(self, app: Any) -> None:
        self.port = free_port()
        self._app = app
        self._stop = threading.Event()
        self.failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> OnTrio:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        config = hypercorn.Config()
        config.bind = [f"127.0.0.1:{self.port}"]
        config.errorlog = None
        try:
            trio.run(partial(hypercorn.trio.serve, self._app, config, shutdown_trigger=self._told))
        except BaseException as error:
            self.failed.append(error)

    async def _told(self) -> None:
        await trio.to_thread.run_sync(self._stop.wait, abandon_on_cancel=True)

    def wait_failed(self) -> str:
        self._thread.join(30)
        return "".join(traceback.format_exception(self.failed[0]))


@pytest.mark.parametrize("kind", [create_app, GrpcApp])
def test_hypercorn_on_trio_does_not_start_and_says_why(kind: Callable[[FakeRegistry], Any]) -> None:
    with OnTrio(kind(registry())) as host:
        assert re.search(TRIO.strip("^"), host.wait_failed())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # What hypercorn's trio worker does not close.
def test_hypercorn_on_trio_answers_with_the_reason_where_it_does_not_run_the_lifespan() -> None:
    reg = registry()
    host = GrpcMiddleware(Starlette(routes=[Mount("/", create_app(reg))]), reg)
    with reg, OnTrio(host) as server:
        url = f"http://127.0.0.1:{server.port}"
        wait_until(answers(f"{url}/-/live"))
        for path, body in (("predict", {"instances": [1]}), ("", None)):
            status, document = fetch(f"{url}/v1/models/m" + (f":{path}" if path else ""), body)
            assert status == 503
            assert re.search(TRIO, document["error"])
        headers = {"content-type": "application/grpc-web"}
        answer = httpx.post(f"{url}{PREDICT}", headers=headers, content=predict_body(), timeout=30)
        code, message, _ = web_answer(answer.content)
        assert code is Code.FAILED_PRECONDITION
        assert message.startswith("trio runs this coroutine")


# gevent, which replaces threads, in processes of their own.

ENTER = """
import {package}
{patch}
import asyncio, time
from embedserve.testing import FakeLoader, FakeRegistry
reg = FakeRegistry({{"m": {{1: FakeLoader()}}}})

async def by_async_with():
    async with reg:
        pass

async def by_lifespan():
    async with reg.lifespan():
        pass

for enter in (
    reg.__enter__,
    reg.ensure_started_sync,
    lambda: asyncio.run(by_async_with()),
    lambda: asyncio.run(by_lifespan()),
    lambda: asyncio.run(reg.ensure_started()),
    lambda: reg.predict_sync("m", [1.0]),
    lambda: reg.acquire_sync("m"),
):
    began = time.monotonic()
    try:
        enter()
    except Exception as error:
        assert time.monotonic() - began < 1, "that took long"
        print(type(error).__name__, error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "patch", "module"),
    [
        ("gevent.monkey", "gevent.monkey.patch_all()", "_thread"),
        ("gevent.monkey", "gevent.monkey.patch_all(thread=False)", "queue"),
        ("gevent.monkey", "gevent.monkey.patch_selectors()", "selectors"),
        ("gevent.monkey", "gevent.monkey.patch_socket()", "socket"),
    ],
)
def test_a_patched_process_is_refused_at_every_entry(package: str, patch: str, module: str) -> None:
    said = run_program("-c", ENTER.format(package=package, patch=patch), timeout=60, cold=True).splitlines()
    assert len(said) == 7
    for line in said:
        assert line.startswith(f"RegistryStateError gevent has patched the module {module} here"), line
        assert "gunicorn -k gthread" in line
        assert "embedserve MODELS" in line


LATE = """
from embedserve.testing import FakeLoader, FakeRegistry
with FakeRegistry({"m": {1: FakeLoader()}}) as reg:
    print(reg.predict_sync("m", [1.0])["y"])
    import gevent.monkey
    gevent.monkey.patch_socket()
    try:
        reg.predict_sync("m", [1.0])
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    import os
    os._exit(0)
"""


@pytest.mark.slow
def test_a_process_that_is_patched_after_the_entry_is_refused_too() -> None:
    first, second = run_program("-c", LATE, timeout=60, cold=True).splitlines()
    assert first == "[11.]"
    assert second.startswith("RegistryStateError gevent has patched the module socket here")


@pytest.mark.slow
def test_gevent_that_patches_nothing_asks_from_its_thread_pool() -> None:
    code = """
import gevent
from embedserve.testing import FakeLoader, FakeRegistry
with FakeRegistry({"m": {1: FakeLoader()}}) as reg:
    ask = lambda: gevent.get_hub().threadpool.apply(reg.predict_sync, ("m", [1.0]))["y"].item()
    print([job.get(timeout=30) for job in [gevent.spawn(ask) for _ in range(20)]])
"""
    assert run_program("-c", code, timeout=60, cold=True) == f"{[11.0] * 20}\n"
