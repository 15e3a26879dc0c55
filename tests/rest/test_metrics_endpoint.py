"""The metrics page over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from embedserve.metrics import Metrics
from embedserve.rest import create_app, routes
from embedserve.testing import FakeLoader, FakeRegistry
from tests.rest.conftest import Serve

PATH = "/monitoring/prometheus/metrics"
BODY = b'{"instances": [1, 2]}'


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        yield registry


async def test_counts_and_times_what_the_api_answers(registry: FakeRegistry, serve: Serve) -> None:
    async with serve(create_app(registry, metrics=Metrics())) as server:
        await server.client.post("/v1/models/m:predict", content=BODY)
        await server.client.post("/v1/models/m:predict", content=b"{")
        await server.client.get("/v1/models/m")
        await server.client.get("/v1/nonsense")
        await server.client.get("/-/ready")
        response = await server.client.get(PATH)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain"
        lines = response.text.splitlines()
    assert [line for line in lines if line.startswith(":tensorflow:serving:request_count{")] == [
        ':tensorflow:serving:request_count{model_name="",status="INVALID_ARGUMENT"} 1',
        ':tensorflow:serving:request_count{model_name="m",status="INVALID_ARGUMENT"} 1',
        ':tensorflow:serving:request_count{model_name="m",status="OK"} 2',
    ]
    assert [line for line in lines if line.startswith(":tensorflow:serving:request_latency_count{")] == [
        ':tensorflow:serving:request_latency_count{model_name="m",API="",entrypoint="REST"} 1',
        ':tensorflow:serving:request_latency_count{model_name="m",API="predict",entrypoint="REST"} 1',
    ]
    assert any(line.startswith("embedserve_queue_wait_seconds_count{") for line in lines)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "PATCH"])
async def test_any_method_gets_the_page(method: str, registry: FakeRegistry, serve: Serve) -> None:
    async with serve(create_app(registry, metrics=Metrics())) as server:
        response = await server.client.request(method, PATH)
        assert response.status_code == 200
        assert ("# TYPE" in response.text) is (method != "HEAD")
        # A scraper may add parameters.
        assert (await server.client.request(method, f"{PATH}?collect=all")).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics", "/v1/models/m"])
async def test_another_path(path: str, registry: FakeRegistry, serve: Serve) -> None:
    async with serve(create_app(registry, metrics=Metrics(), metrics_path=path)) as server:
        assert (await server.client.get(path)).status_code == 200
        assert (await server.client.get(PATH)).status_code == 404


async def test_mounted_as_app_and_as_routes(registry: FakeRegistry, serve: Serve) -> None:
    metrics = Metrics()
    app = Starlette(
        routes=[
            Mount("/app", create_app(registry, metrics=metrics)),
            Mount("/routes", routes=routes(registry, metrics=metrics)),
        ]
    )
    async with serve(app) as server:
        await server.client.post("/app/v1/models/m:predict", content=BODY)
        await server.client.post("/routes/v1/models/m:predict", content=BODY)
        pages = [(await server.client.get(f"/{prefix}{PATH}")).text for prefix in ("app", "routes")]
    assert pages[0] == pages[1]
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 2' in pages[0]


async def test_an_observer_that_is_there_already_is_not_added_twice(registry: FakeRegistry) -> None:
    metrics = Metrics()
    registry.observers.add(metrics)
    create_app(registry, metrics=metrics)
    await registry.predict("m", [1.0])
    assert ':tensorflow:serving:runtime_latency_count{model_name="m",API="Predict",runtime="TF1"} 1' in (
        metrics.exposition().decode()
    )


async def test_a_reload_over_grpc_on_the_same_port_reads_the_metrics(registry: FakeRegistry, serve: Serve) -> None:
    from tensorflow_serving.apis import model_management_pb2

    request = model_management_pb2.ReloadConfigRequest(metric_names=["/tensorflow/serving/request_count"])
    request.config.model_config_list.config.add(name="m", base_path="/m", model_platform="tensorflow")
    message = request.SerializeToString()
    async with serve(create_app(registry, grpc=True, metrics=Metrics())) as server:
        response = await server.client.post(
            "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
            content=len(message).to_bytes(5, "big") + message,
            headers={"content-type": "application/grpc-web"},
        )
    size = int.from_bytes(response.content[1:5], "big")
    answer = model_management_pb2.ReloadConfigResponse.FromString(response.content[5 : 5 + size])
    assert [(metric.name, metric.int64_value_increase) for metric in answer.metric] == [
        ("/tensorflow/serving/request_count", 0)
    ]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3", "application/openmetrics-text"),
        ("text/plain", "text/plain"),
        ("*/*", "text/plain"),
    ],
)
async def test_a_scraper_chooses_the_format(accept: str, kind: str, registry: FakeRegistry, serve: Serve) -> None:
    async with serve(create_app(registry, metrics=Metrics())) as server:
        await server.client.post("/v1/models/m:predict", content=BODY)
        response = await server.client.get(PATH, headers={"accept": accept})
    assert response.headers["content-type"].partition(";")[0] == kind
    assert response.text.endswith("# EOF\n") is (kind != "text/plain")
    assert 'embedserve_predict_seconds_count{model="m"' in response.text
