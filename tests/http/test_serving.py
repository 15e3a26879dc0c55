"""A registry's REST, gRPC and gRPC-Web on one port of uvicorn with the protocol, for clients of other makers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from starlette.applications import Starlette
from starlette.routing import Mount
from tensorflow_serving.apis import prediction_service_pb2_grpc

from embedserve.grpc import GrpcMiddleware
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.grpc.conftest import UNLIMITED, failure, predict_request, until_given_back, until_idle, until_running
from tests.grpc.fabricated import PREDICT
from tests.grpc.framing import framed
from tests.grpc.test_asgi_mounting import web_predict
from tests.rest.conftest import _serve

PROTOCOL = "embedserve.http:HttpProtocol"
LARGE = 1 << 21
"""Values of a large tensor: 8 MiB, over every window of HTTP/2."""

Make: TypeAlias = Callable[..., Any]


def all_in_one(registry: FakeRegistry, **options: Any) -> Any:
    return create_app(registry, grpc=True, **options)


def before_a_host(registry: FakeRegistry, **options: Any) -> Any:
    host = Starlette(routes=[Mount("/", create_app(registry))], lifespan=registry.lifespan)
    return GrpcMiddleware(host, registry, **options)


@dataclass
class Site:
    """A served registry whose runs wait for `gate`."""

    port: int
    registry: FakeRegistry
    gate: Gate

    @asynccontextmanager
    async def stub(self, **options: Any) -> AsyncIterator[Any]:
        async with self.channel(**options) as channel:
            yield prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def channel(self, **options: Any) -> Any:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=UNLIMITED, **options)

    def web(self, http2: bool = False) -> httpx.AsyncClient:
        address = f"http://127.0.0.1:{self.port}"
        return httpx.AsyncClient(base_url=address, http1=not http2, http2=http2, timeout=60)


@pytest.fixture(params=[all_in_one, before_a_host])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes the application: of models only, or a host's with the middleware before the host."""
    found: Make = request.param
    return found


@asynccontextmanager
async def served(make: Make, *, http: Any = PROTOCOL, **options: Any) -> AsyncIterator[Site]:
    """Serve the application; at the end no call may hold bytes in flight."""
    gate = Gate(opened=True)
    registry = FakeRegistry({"m": {1: FakeLoader(gate=gate)}})
    async with _serve(make(registry, **options), lifespan="on", http=http) as server:
        yield Site(server.port, registry, gate)
        await until_given_back(registry)
    assert not registry.started


def outputs(response: Any) -> list[float]:
    return list(response.outputs["y"].float_val)


versions = pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])


# gRPC.


async def test_unary_calls_of_both_kinds_of_stubs(make: Make) -> None:
    async with served(make) as site:
        async with site.stub() as stub:
            assert outputs(await stub.Predict(predict_request(x=[1, 2]))) == [11, 21]

        def blocking() -> list[float]:
            with grpc.insecure_channel(f"127.0.0.1:{site.port}", options=UNLIMITED) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                futures = [stub.Predict.future(predict_request(x=[number])) for number in range(50)]
                return [outputs(future.result(timeout=60))[0] for future in futures]

        assert await asyncio.to_thread(blocking) == [number * 10 + 1 for number in range(50)]


async def test_errors_have_their_codes_and_words(make: Make) -> None:
    async with served(make) as site, site.stub() as stub:
        code, words = await failure(stub.Predict(predict_request("other", x=[1])))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "other" in words
        code, words = await failure(stub.Predict(predict_request(wrong=[1])))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "wrong" in words
        call = stub.Predict(predict_request("ünknown\n", x=[1]))
        code, words = await failure(call)
        assert code is grpc.StatusCode.NOT_FOUND
        assert "ünknown" in words
        async with site.channel() as channel:
            code, _ = await failure(channel.unary_unary("/tensorflow.serving.PredictionService/Other")(b""))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert outputs(await stub.Predict(predict_request(x=[1]))) == [11]


async def test_a_deadline_ends_a_call_and_its_run(make: Make) -> None:
    async with served(make) as site, site.stub() as stub:
        site.gate.close()
        call = stub.Predict(predict_request(x=[1]), timeout=0.3)
        await until_running(site.gate)
        assert (await failure(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await until_idle(site.gate)
        await until_given_back(site.registry)
        site.gate.open()
        assert outputs(await stub.Predict(predict_request(x=[1]), timeout=60)) == [11]


async def test_a_cancelled_call_ends_its_run_and_no_other_call(make: Make) -> None:
    async with served(make) as site, site.stub() as stub:
        site.gate.close()
        call = stub.Predict(predict_request(x=[1]))
        await until_running(site.gate)
        call.cancel()
        await until_idle(site.gate)
        await until_given_back(site.registry)
        other = stub.Predict(predict_request(x=[2]))
        await until_running(site.gate)
        site.gate.open()
        assert outputs(await other) == [21]


async def test_a_channel_that_closes_ends_its_calls(make: Make) -> None:
    async with served(make) as site:
        site.gate.close()
        async with site.stub() as stub:
            calls = [asyncio.ensure_future(stub.Predict(predict_request(x=[number]))) for number in range(20)]
            await until_running(site.gate)
        await asyncio.gather(*calls, return_exceptions=True)
        await until_idle(site.gate)
        site.gate.open()


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_gzip_either_way(compression: str) -> None:
    async with (
        served(before_a_host, compression=compression) as site,
        site.stub(compression=grpc.Compression.Gzip) as stub,
    ):
        values = np.ones(LARGE, np.float32)
        response = await stub.Predict(predict_request(x=values))
        assert np.array_equal(np.asarray(response.outputs["y"].float_val, np.float32), values * 10 + 1)


@pytest.mark.slow
async def test_large_messages_at_once(make: Make) -> None:
    async with served(make) as site, site.stub() as stub:
        values = [np.arange(LARGE, dtype=np.float32) % 1000 + number for number in range(3)]
        found = await asyncio.gather(*[stub.Predict(predict_request(x=each)) for each in values])
        for each, response in zip(values, found, strict=True):
            assert np.array_equal(np.asarray(response.outputs["y"].float_val, np.float32), each * 10 + 1)


async def test_a_refused_message_leaves_the_other_calls_of_its_connection() -> None:
    async with served(before_a_host, max_message_bytes=10_000) as site, site.stub() as stub:
        for size in (3000, LARGE):
            large = stub.Predict(predict_request(x=np.zeros(size, np.float32)))
            waiting = stub.Predict(predict_request(x=[1]))
            code, words = await failure(large)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert words.startswith("Received message larger than max (")
            assert outputs(await waiting) == [11]


async def test_watch_streams_the_health_until_the_client_leaves(make: Make) -> None:
    async with served(make) as site, site.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="m"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await site.registry.remove("m", 1)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        another = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=0.3)
        await another.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await another.read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_reflection_answers_in_both_directions(make: Make) -> None:
    async with served(make) as site, site.channel() as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        for _ in range(3):
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            names = {service.name for service in answer.list_services_response.service}
            assert "tensorflow.serving.PredictionService" in names
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


# REST and gRPC-Web.


@versions
async def test_rest_predicts_and_refuses(make: Make, http2: bool) -> None:
    async with served(make) as site, site.web(http2) as web:
        answer = await web.post("/v1/models/m:predict", json={"instances": [1, 2]})
        assert (answer.http_version, answer.json()) == (
            "HTTP/2" if http2 else "HTTP/1.1",
            {"predictions": [11.0, 21.0]},
        )
        assert (await web.post("/v1/models/other:predict", json={"instances": [1]})).status_code == 404
        bad = await web.post("/v1/models/m:predict", content=b"{")
        assert bad.status_code == 400
        assert "error" in bad.json()
        assert (await web.get("/v1/models/m")).json()["model_version_status"][0]["state"] == "AVAILABLE"
        assert (await web.post("/v1/models/m:predict", json={"instances": [1, 2]})).status_code == 200


@pytest.mark.slow
@versions
async def test_large_bodies_with_a_length_and_in_chunks(make: Make, http2: bool) -> None:
    async with served(make) as site, site.web(http2) as web:
        values = np.arange(300_000) % 1000
        body = json.dumps({"instances": values.tolist()}).encode()

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 50_000):
                yield body[at : at + 50_000]

        for content in (body, chunks()):
            answer = await web.post("/v1/models/m:predict", content=content)
            assert np.array_equal(answer.json()["predictions"], values * 10 + 1)


@versions
async def test_a_rest_client_that_leaves_ends_its_run(make: Make, http2: bool) -> None:
    async with served(make) as site:
        site.gate.close()
        async with site.web(http2) as web:
            asking = asyncio.create_task(web.post("/v1/models/m:predict", json={"instances": [1]}))
            await until_running(site.gate)
            asking.cancel()
        await until_idle(site.gate)
        site.gate.open()


@versions
async def test_grpc_web_over_both_versions(make: Make, http2: bool) -> None:
    async with served(make) as site, site.web(http2) as web:
        for text in (False, True):
            assert await web_predict(web, text=text) == [11, 21]
        asks = {"content-type": "application/grpc-web"}
        wrong = await web.post(PREDICT, headers=asks, content=framed(b"\xff"))
        assert wrong.status_code == 200
        assert b"grpc-status:3" in wrong.content.replace(b" ", b"")


async def test_grpc_over_http_1_is_refused_with_the_reason(make: Make) -> None:
    async with served(make) as site, site.web() as web:
        refused = await web.post(PREDICT, headers={"content-type": "application/grpc"}, content=framed(b""))
        assert refused.headers["grpc-status"] == "12"
        assert "needs HTTP/2" in refused.headers["grpc-message"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2", "--http2-prior-knowledge"])
async def test_curl(version: str, make: Make, tmp_path: Path) -> None:
    """In chunks where the version knows chunks, with `Expect`, and with `Upgrade: h2c`, which is ignored."""
    values = list(range(100_000))
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"instances": values}))
    kinds = [[], ["-H", "Expect: 100-continue"]]
    kinds += [["-H", "Transfer-Encoding: chunked"]] if version == "--http1.1" else []
    async with served(make) as site:
        for kind in kinds:
            command = ["curl", "-sS", version, *kind, "--data-binary", f"@{body}"]
            process = await asyncio.create_subprocess_exec(
                *command, f"http://127.0.0.1:{site.port}/v1/models/m:predict", stdout=asyncio.subprocess.PIPE
            )
            answer, _ = await process.communicate()
            assert json.loads(answer)["predictions"][-1] == values[-1] * 10 + 1


# Together.


@pytest.mark.slow
async def test_all_clients_at_once_on_one_port(make: Make) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(served(make))
        stub = await stack.enter_async_context(site.stub())
        webs = [await stack.enter_async_context(site.web(http2)) for http2 in (False, True)]

        async def rest(web: httpx.AsyncClient, number: int) -> float:
            answer = await web.post("/v1/models/m:predict", json={"instances": [number]})
            found: float = answer.json()["predictions"][0]
            return found

        async def rpc(number: int) -> float:
            return outputs(await stub.Predict(predict_request(x=[number])))[0]

        numbers = range(40)
        answers = await asyncio.gather(
            *[rest(web, number) for web in webs for number in numbers], *[rpc(number) for number in numbers]
        )
        pages = await asyncio.gather(*[web_predict(web) for web in webs for _ in range(20)])
    assert answers == [number * 10 + 1.0 for number in numbers] * 3
    assert pages == [[11, 21]] * 40


async def test_requests_in_flight_are_answered_while_the_server_stops() -> None:
    gate = Gate(opened=False)
    registry = FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, batching=False, num_batch_threads=2)
    async with AsyncExitStack() as clients:
        async with _serve(all_in_one(registry), lifespan="on", http=PROTOCOL) as server:
            site = Site(server.port, registry, gate)
            stub = await clients.enter_async_context(site.stub())
            call = stub.Predict(predict_request(x=[1]))
            # httpx takes a GOAWAY for the end of its connection; HTTP/2's part is grpcio's.
            web = await clients.enter_async_context(site.web(False))
            asked = asyncio.create_task(web.post("/v1/models/m:predict", json={"instances": [2]}))
            while gate.waiting < 2:
                await asyncio.sleep(0.001)
            account = registry.inflight
            asyncio.get_running_loop().call_soon(gate.open)  # After the listener has closed.
        assert outputs(await call) == [11]
        assert (await asked).json() == {"predictions": [21.0]}
    assert account.reserved == 0
