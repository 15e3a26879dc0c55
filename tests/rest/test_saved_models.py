"""REST over real SavedModels: the answers and documents of TF Serving's own integration tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from embedserve import ModelRegistry
from embedserve.metrics import Metrics
from embedserve.rest import create_app
from tests.rest.conftest import Serve, Server
from tests.support import saved_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

METRICS = "/monitoring/prometheus/metrics"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rest-models")
    builders = {
        "half": saved_models.tf1_examples,
        "half_tf2": saved_models.examples,
        "half_plus_two": saved_models.half_plus_two,
        "several": saved_models.several,
        "strings": saved_models.strings,
        "to_number": saved_models.to_number,
        "conv2d": saved_models.conv2d,
        "endless": saved_models.endless,
        "composites": saved_models.composite_outputs,
        "tf1_composites": saved_models.tf1_composites,
        "without_inputs": saved_models.without_inputs,
        "narrow": saved_models.narrow,
    }
    for name, build in builders.items():
        build(root / name / "00000123")
    saved_models.set_default(saved_models.several(root / "defaults" / "1"), "serving_default", "right", [[1, 1, 1]])
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(root: Path) -> AsyncIterator[Server]:
    from tests.rest.conftest import _serve

    metrics = Metrics()
    registry = ModelRegistry(root, warmup="none", observers=[metrics])
    async with registry, _serve(create_app(registry, metrics=metrics, timeout=0.5)) as server:
        yield server


async def ask(server: Server, name: str, verb: str, document: Any) -> Any:
    response = await server.client.post(f"/v1/models/{name}:{verb}", json=document)
    return response.json() if response.status_code == 200 else (response.status_code, response.json()["error"])


@pytest.mark.asyncio(loop_scope="module")
class TestAnswers:
    """One server for all of them."""

    async def test_the_quickstart(self, server: Server) -> None:
        answer = await ask(server, "half_plus_two", "predict", {"instances": [1.0, 2.0, 5.0]})
        assert answer == {"predictions": [2.5, 3.0, 4.5]}

    @pytest.mark.parametrize("name", ["half", "half_tf2"])
    async def test_predict_classify_and_regress(self, name: str, server: Server) -> None:
        assert await ask(server, name, "predict", {"instances": [[2.0], [3.0], [4.0]]}) == {
            "predictions": [[3.0], [3.5], [4.0]]
        }
        assert await ask(server, name, "predict", {"inputs": [[2.0], [3.0], [4.0]]}) == {
            "outputs": [[3.0], [3.5], [4.0]]
        }
        classify = {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}
        assert await ask(server, name, "classify", classify) == {"results": [[["", 3.0]]]}
        regress = {"signature_name": "regress_x_to_y", "examples": [{"x": [2.0]}, {}], "context": {"x": 4.0}}
        assert await ask(server, name, "regress", regress) == {"results": [3.0, 4.0]}

    async def test_labels_and_scores(self, server: Server) -> None:
        request = {"signature_name": "classify_labels", "examples": [{"x": 2.0}, {"x": 0.5}]}
        assert await ask(server, "half_tf2", "classify", request) == {
            "results": [[["2.0", 2.0], ["-2.0", -2.0]], [["0.5", 0.5], ["-0.5", -0.5]]]
        }

    async def test_many_examples_leave_the_loop(self, server: Server) -> None:
        request = {"signature_name": "regress_x_to_y", "examples": [{"x": float(i)} for i in range(6000)]}
        assert len(json.dumps(request)) > 64 * 1024
        assert await ask(server, "half_tf2", "regress", request) == {"results": [i * 0.5 + 2 for i in range(6000)]}

    async def test_strings(self, server: Server) -> None:
        answer = await ask(server, "strings", "predict", {"instances": ["abc", {"b64": "w6k="}]})
        assert answer == {"predictions": [{"length": 3, "upper": "ABC"}, {"length": 2, "upper": "é"}]}

    async def test_an_error_that_quotes_bytes_of_the_request_is_json_of_status_400(self, server: Server) -> None:
        status, message = await ask(server, "to_number", "predict", {"instances": [{"b64": "Yf/+Yg=="}]})
        assert status == 400
        assert message.startswith("StringToNumberOp could not correctly convert string: a\ufffd\ufffdb")

    async def test_an_output_filter_chooses_what_is_answered(self, server: Server) -> None:
        request: dict[str, Any] = {"instances": ["abc", "d"], "output_filter": ["length"]}
        assert await ask(server, "strings", "predict", request) == {"predictions": [3, 1]}
        request = {"instances": ["abc"], "output_filter": "upper"}
        assert await ask(server, "strings", "predict", request) == {"predictions": ["ABC"]}
        status, message = await ask(server, "strings", "predict", {"instances": ["a"], "output_filter": ["lower"]})
        assert (status, message.partition(" Outputs")[0]) == (400, "output tensor alias not found in signature: lower")

    async def test_an_input_with_a_default_may_be_left_out(self, server: Server) -> None:
        left = [[1.0, 2.0, 3.0]]
        expected = {"doubled": [[2, 2, 2]], "row_sum": [9.0], "total": [[2.0, 3.0, 4.0]]}
        assert await ask(server, "defaults", "predict", {"inputs": {"left": left}}) == {"outputs": expected}
        answer = await ask(server, "defaults", "predict", {"instances": [{"left": left[0]}]})
        assert answer == {"predictions": [{"doubled": [2, 2, 2], "row_sum": 9.0, "total": [2.0, 3.0, 4.0]}]}

    async def test_a_signature_without_inputs(self, server: Server) -> None:
        assert await ask(server, "without_inputs", "predict", {"inputs": {}}) == {"outputs": [1.0, 2.0]}
        assert await ask(server, "without_inputs", "predict", {"instances": [{}]}) == {"predictions": [1.0, 2.0]}

    async def test_narrow_dtypes_have_a_json_form(self, server: Server) -> None:
        answer = await ask(server, "narrow", "predict", {"instances": [0.5, 3.0]})
        assert answer == {
            "predictions": [{"bfloat16": 0.5, "half": 0.5, "uint16": 0}, {"bfloat16": 3.0, "half": 3.0, "uint16": 3}]
        }

    async def test_the_parts_of_composite_outputs_are_answered(self, server: Server) -> None:
        document = (await server.client.get("/v1/models/tf1_composites/metadata")).json()
        outputs = document["metadata"]["signature_def"]["signature_def"]["serving_default"]["outputs"]
        parts = {what: outputs["words"]["coo_sparse"][f"{what}_tensor_name"] for what in ("indices", "values")}
        answer = (await ask(server, "tf1_composites", "predict", {"inputs": ["a b", "c"]}))["outputs"]
        assert answer["count"] == [2, 1]
        assert answer[parts["indices"]] == [[0, 0], [0, 1], [1, 0]]
        assert answer[parts["values"]] == ["a", "b", "c"]

    @pytest.mark.parametrize("name", ["composites", "tf1_composites"])
    async def test_dense_outputs_beside_composite_ones_are_rows(self, name: str, server: Server) -> None:
        request = {"instances": ["a b", "c"], "output_filter": ["count"]}
        assert await ask(server, name, "predict", request) == {"predictions": [2, 1]}
        status, message = await ask(server, name, "predict", {"instances": ["a b", "c"]})
        assert status == 400
        assert "whose parts are no rows; name the outputs that are in 'output_filter'" in message

    async def test_who_asks_for_a_composite_output_is_told_its_parts(self, server: Server) -> None:
        request = {"instances": ["a b", "c"], "output_filter": "sparse"}
        status, message = await ask(server, "composites", "predict", request)
        assert status == 400
        assert message.startswith("output tensor alias not found in signature: sparse Outputs expected")
        assert "'sparse' is a sparse tensor, which no answer can carry; its parts are the outputs indices " in message

    async def test_a_signature_that_cannot_be_called_says_why(self, server: Server) -> None:
        request: dict[str, Any] = {"instances": [1.0], "signature_name": "sparse_input"}
        status, message = await ask(server, "tf1_composites", "predict", request)
        assert status == 400
        assert message.startswith('Serving signature name: "sparse_input" not found in signature def.')
        assert "input 'words' is a sparse tensor, and only dense tensors can be sent" in message
        for verb in ("classify", "regress"):
            request = {"examples": [{"x": 1.0}], "signature_name": "sparse_input"}
            assert "'words' is a sparse tensor" in (await ask(server, "tf1_composites", verb, request))[1]

    async def test_a_bad_shape_never_reaches_a_kernel(self, server: Server) -> None:
        status, message = await ask(server, "conv2d", "predict", {"instances": [[1.0]]})
        assert status == 400
        assert message.startswith("input 'image' of signature 'serving_default' has shape [1,1], expected [?,?,?,1]")

    async def test_an_endless_run_is_504_and_its_thread_is_free_again(self, server: Server) -> None:
        status, message = await ask(server, "endless", "predict", {"instances": [10**12]})
        assert (status, message) == (504, "Timed out waiting for notification")
        assert (await ask(server, "endless", "predict", {"instances": [3]})).keys() == {"predictions"}

    async def test_status(self, server: Server) -> None:
        response = await server.client.get("/v1/models/half")
        assert response.text == (
            '{\n "model_version_status": [\n  {\n   "version": "123",\n   "state": "AVAILABLE",\n   "status": {\n'
            '    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ],\n "ready": true\n}\n'
        )

    async def test_metadata(self, server: Server) -> None:
        document = (await server.client.get("/v1/models/half/metadata")).json()
        assert document["model_spec"] == {"name": "half", "version": "123", "signature_name": ""}
        signatures = document["metadata"]["signature_def"]["signature_def"]
        assert set(signatures) >= {"serving_default", "classify_x_to_y", "regress_x_to_y"}
        classify = signatures["classify_x_to_y"]
        assert classify["method_name"] == "tensorflow/serving/classify"
        assert classify["defaults"] == {}
        serialized = classify["inputs"]["inputs"]
        assert serialized["name"] == "tf_example:0"
        assert serialized["dtype"] == "DT_STRING"
        shape = signatures["serving_default"]["outputs"]["y"]["tensor_shape"]
        assert shape == {"dim": [], "unknown_rank": True}

    async def test_metadata_of_known_shapes(self, server: Server) -> None:
        document = (await server.client.get("/v1/models/half_tf2/metadata")).json()
        signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
        shape = signature["inputs"]["x"]["tensor_shape"]
        assert shape == {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False}

    async def test_metadata_of_a_tf2_model_lists_its_init_op(self, server: Server) -> None:
        document = (await server.client.get("/v1/models/half_plus_two/versions/123/metadata")).json()
        init = document["metadata"]["signature_def"]["signature_def"]["__saved_model_init_op"]
        assert init["method_name"] == ""
        assert init["outputs"]["__saved_model_init_op"]["dtype"] == "DT_INVALID"

    async def test_runs_are_timed_by_api(self, server: Server) -> None:
        await ask(server, "half", "classify", {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]})
        await ask(server, "half", "predict", {"instances": [[2.0]]})
        page = (await server.client.get(METRICS)).text
        for api in ("Classify", "Predict"):
            labels = f'model_name="half",API="{api}",runtime="TF1"'
            assert f":tensorflow:serving:runtime_latency_count{{{labels}}}" in page
        assert ':tensorflow:cc:saved_model:load_attempt_count{model_path="' in page


async def test_a_model_that_appears_is_served(root: Path, tmp_path: Path, serve: Serve) -> None:
    """Discovery, seen over REST: a new directory answers without a restart."""
    (tmp_path / "first").symlink_to(root / "half_plus_two")
    registry = ModelRegistry(tmp_path, warmup="none", settle=0, poll_interval=0.05)
    async with registry, serve(create_app(registry)) as server:
        assert (await server.client.get("/v1/models/second")).status_code == 404
        (tmp_path / "second").symlink_to(root / "half")
        assert registry._runtime is not None
        ready = await registry._runtime.monitor.wait_until(
            lambda: any(status.state.name == "AVAILABLE" for status in registry.status("second").get("second", ())), 60
        )
        assert ready, registry.status()
        assert await ask(server, "second", "predict", {"instances": [[2.0]]}) == {"predictions": [[3.0]]}
