"""The gRPC API over real SavedModels: dtypes, tf.Example signatures, metadata, sessions, shapes that would abort."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    regression_pb2,
    session_service_pb2,
)

from embedserve.config import Access, ModelConfig
from embedserve.registry import ModelRegistry
from embedserve.tensors import dtypes, proto
from tests.grpc.conftest import Client, Start, failure, predict_request
from tests.saved_model import fixed_rows
from tests.support import saved_models

pytestmark = pytest.mark.slow

C = grpc.StatusCode

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "half_plus_two": saved_models.half_plus_two,
    "identities": saved_models.identities,
    "strings": saved_models.strings,
    "conv2d": saved_models.conv2d,
    "to_number": saved_models.to_number,
    "to_number_session": saved_models.to_number,
    "examples": saved_models.examples,
    "tf1_examples": saved_models.tf1_examples,
    "session": saved_models.half_plus_two,
    "endless": saved_models.endless,
    "tf1_dangerous": saved_models.tf1_dangerous,
    "tf1_composites": saved_models.tf1_composites,
    "fixed": fixed_rows.sized,
}
KINDS = {
    "to_number": "function",
    "to_number_session": "session",
    "session": "session",
    "endless": "session",
    "tf1_dangerous": "session",
    "half_plus_two": "function",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelConfig]:
    root = tmp_path_factory.mktemp("grpc_models")
    configs = []
    for name, build in BUILDERS.items():
        build(root / name / "3")
        servable: Any = KINDS.get(name)
        configs.append(ModelConfig(name=name, base_path=root / name, servable=servable))
    return configs


@pytest.fixture
def real(models: list[ModelConfig], start: Start) -> Callable[..., Any]:
    """Serve some of the models."""

    async def run(*names: str, threads: int = 2, **options: Any) -> Client:
        chosen = [model for model in models if model.name in names]
        registry = ModelRegistry(models=chosen, settle=0.0, watch=False, num_batch_threads=threads)
        return await start(registry, **{"access": Access(session_run="local")} | options)

    return run


@pytest.mark.parametrize("rows", [1, 4, 6])
async def test_a_model_of_fixed_rows_takes_any_number_of_them(real: Any, rows: int) -> None:
    client = await real("fixed")
    response = await client.prediction.Predict(predict_request("fixed", x=np.ones((rows, 3), np.float32)))
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [rows, 2]


async def test_half_plus_two(real: Any) -> None:
    client = await real("half_plus_two")
    response = await client.prediction.Predict(predict_request("half_plus_two", x=[1.0, 2.0, 5.0]))
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert response.model_spec.version.value == 3


@pytest.mark.parametrize("tensor_content", [False, True])
async def test_every_dtype_goes_in_and_comes_back(real: Any, tensor_content: bool) -> None:
    client = await real("identities", tensor_content=tensor_content)
    for name, enum in saved_models.DTYPES.items():
        dtype = dtypes.by_number(enum.as_datatype_enum)
        values: dict[str, list[Any]] = {"bool": [True, False], "string": [b"a", b""]}
        given = dtype.convert(values.get(name, [0, 1]))
        request = predict_request("identities", x=given)
        request.model_spec.signature_name = name
        response = await client.prediction.Predict(request)
        tensor = response.outputs["y"]
        assert tensor.dtype == dtype.number, name
        assert np.array_equal(proto.decode(tensor), given), name
        assert bool(tensor.tensor_content) == (tensor_content and name != "string"), name


async def test_strings(real: Any) -> None:
    client = await real("strings")
    given = np.array([b"ab\xff", b""], object)
    response = await client.prediction.Predict(predict_request("strings", text=given))
    assert list(response.outputs["upper"].string_val) == [b"AB\xff", b""]
    assert list(response.outputs["length"].int_val) == [3, 0]


@pytest.mark.parametrize("name", ["to_number", "to_number_session"])
async def test_an_error_that_quotes_bytes_of_the_request_is_an_invalid_argument(real: Any, name: str) -> None:
    client = await real(name)
    code, message = await failure(
        client.prediction.Predict(predict_request(name, text=np.array([b"a\xff\xfeb"], object)))
    )
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("StringToNumberOp could not correctly convert string: a\ufffd\ufffdb")


async def test_composite_outputs_are_answered_in_parts_and_sparse_inputs_are_explained(real: Any) -> None:
    client = await real("tf1_composites")
    request = predict_request("tf1_composites", text=np.array([b"a b", b"c"], object))
    whole = (await client.prediction.Predict(request)).outputs
    assert len(whole) == 4
    request.output_filter.append("count")
    filtered = (await client.prediction.Predict(request)).outputs
    assert (list(filtered), list(filtered["count"].int64_val)) == (["count"], [2, 1])
    request.output_filter[0] = "words"
    code, message = await failure(client.prediction.Predict(request))
    assert code is C.INVALID_ARGUMENT
    assert "'words' is a sparse tensor, which no answer can carry; its parts are the outputs indices" in message
    request.model_spec.signature_name = "sparse_input"
    code, message = await failure(client.prediction.Predict(request))
    assert code is C.FAILED_PRECONDITION
    assert message.startswith(
        'Serving signature key "sparse_input" not found. The model has it, and it cannot be called'
    )


@pytest.mark.parametrize("shape", [(1,), (1, 2, 2), (1, 2, 2, 2), (1, 1, 1, 1, 1)])
async def test_a_shape_that_would_abort_the_process_is_an_invalid_argument(real: Any, shape: tuple[int, ...]) -> None:
    client = await real("conv2d")
    image = np.zeros(shape, np.float32)
    code, message = await failure(client.prediction.Predict(predict_request("conv2d", image=image)))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith(f"input 'image' of signature 'serving_default' has shape [{','.join(map(str, shape))}]")
    fine = await client.prediction.Predict(predict_request("conv2d", image=np.zeros((1, 2, 2, 1), np.float32)))
    assert set(fine.outputs) == {"map", "score"}


def with_x(request: Any, name: str, signature_name: str, *values: float) -> Any:
    request.model_spec.name = name
    request.model_spec.signature_name = signature_name
    for value in values:
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(value)
    return request


@pytest.mark.parametrize("name", ["examples", "tf1_examples"])
async def test_classify_regress_and_multi_inference(real: Any, name: str) -> None:
    client = await real(name)
    classified = await client.prediction.Classify(
        with_x(classification_pb2.ClassificationRequest(), name, "classify_x_to_y", 2.0)
    )
    (only,) = classified.result.classifications
    assert [(c.label, c.score) for c in only.classes] == [("", 3.0)]
    assert (classified.model_spec.name, classified.model_spec.signature_name) == (name, "classify_x_to_y")
    regressed = await client.prediction.Regress(
        with_x(regression_pb2.RegressionRequest(), name, "regress_x_to_y", 2.0, 4.0)
    )
    assert [regression.value for regression in regressed.result.regressions] == [3.0, 4.0]
    request = inference_pb2.MultiInferenceRequest()
    for signature_name, method in (("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = name
        task.model_spec.signature_name = signature_name
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    first, second = (await client.prediction.MultiInference(request)).results
    assert first.regression_result.regressions[0].value == 3.0
    assert second.classification_result.classifications[0].classes[0].score == 3.0


async def test_labels_and_scores(real: Any) -> None:
    client = await real("examples")
    request = with_x(classification_pb2.ClassificationRequest(), "examples", "classify_labels", 1.5)
    (only,) = (await client.prediction.Classify(request)).result.classifications
    assert [(c.label, c.score) for c in only.classes] == [("1.5", 1.5), ("-1.5", -1.5)]


async def test_an_example_without_its_feature_is_tensorflows_error(real: Any) -> None:
    client = await real("examples")
    request = with_x(regression_pb2.RegressionRequest(), "examples", "regress_x_to_y")
    request.input.example_list.examples.add()
    code, message = await failure(client.prediction.Regress(request))
    assert code is C.INVALID_ARGUMENT
    assert "x" in message


async def test_a_predict_signature_cannot_classify(real: Any) -> None:
    client = await real("examples")
    request = with_x(classification_pb2.ClassificationRequest(), "examples", "", 1.0)
    code, message = await failure(client.prediction.Classify(request))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("No classification inputs found in SignatureDef: ")


async def test_metadata_lists_every_signature_as_stored(real: Any) -> None:
    client = await real("half_plus_two")
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half_plus_two"
    response = await client.prediction.GetModelMetadata(request)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half_plus_two", 3, "")
    packed = response.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = get_model_metadata_pb2.SignatureDefMap.FromString(packed.value).signature_def
    assert set(signatures) == {"serving_default", "__saved_model_init_op"}
    info = signatures["serving_default"].inputs["x"]
    assert (info.dtype, [dim.size for dim in info.tensor_shape.dim]) == (1, [-1, 1])
    assert signatures["serving_default"].method_name == "tensorflow/serving/predict"


async def test_status(real: Any) -> None:
    client = await real("half_plus_two")
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half_plus_two"
    (status,) = (await client.model.GetModelStatus(request)).model_version_status
    assert (status.version, status.state, status.status.error_code) == (3, 30, 0)


# SessionService.


def session_request(name: str, feeds: dict[str, Any], *fetches: str, alias: bool = False) -> Any:
    request = session_service_pb2.SessionRunRequest(fetch=fetches, tensor_name_is_alias=alias)
    request.model_spec.name = name
    for feed, value in feeds.items():
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        proto.encode_into(request.feed.add(name=feed).tensor, array, dtypes.by_numpy(array.dtype))
    return request


async def session_run(client: Client, request: Any, timeout: float | None = None) -> Any:
    call = client.channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")
    body = await call(request.SerializeToString(), timeout=timeout)
    return session_service_pb2.SessionRunResponse.FromString(body)


async def test_session_run_by_tensor_name_and_by_alias(real: Any) -> None:
    client = await real("tf1_examples", "session")
    response = await session_run(client, session_request("tf1_examples", {"x:0": [[2.0]]}, "y:0", "x:0"))
    assert [(named.name, list(named.tensor.float_val)) for named in response.tensor] == [("y:0", [3.0]), ("x:0", [2.0])]
    assert (response.model_spec.name, response.model_spec.version.value) == ("tf1_examples", 3)
    response = await session_run(client, session_request("tf1_examples", {"x": [[2.0]]}, "y"))
    assert [(named.name, list(named.tensor.float_val)) for named in response.tensor] == [("y", [3.0])]
    response = await session_run(client, session_request("session", {"x": [[2.0]]}, "y", alias=True))
    assert [(named.name, list(named.tensor.float_val)) for named in response.tensor] == [("y", [3.0])]


async def test_session_run_errors(real: Any) -> None:
    client = await real("tf1_examples", "half_plus_two")

    async def fails(request: Any) -> tuple[grpc.StatusCode, str]:
        return await failure(session_run(client, request))

    code, message = await fails(session_request("half_plus_two", {"x": [[1.0]]}, "y", alias=True))
    assert code is C.UNIMPLEMENTED
    assert message.startswith(
        "version 3 of half_plus_two runs as 'function'; only a model that runs in a graph session"
    )
    assert await fails(session_service_pb2.SessionRunRequest()) == (C.INVALID_ARGUMENT, "Missing ModelSpec")
    assert (await fails(session_request("none", {})))[0] is C.NOT_FOUND
    assert (await fails(session_request("tf1_examples", {}, "no/such:0")))[0] is C.INVALID_ARGUMENT
    assert (await fails(session_request("tf1_examples", {"none": [1.0]}, "y", alias=True)))[0] is C.INVALID_ARGUMENT
    twice = session_request("tf1_examples", {"x:0": [[1.0]]}, "y:0")
    twice.feed.add().CopyFrom(twice.feed[0])
    assert await fails(twice) == (C.INVALID_ARGUMENT, "duplicate feed: x:0")
    both = session_request("tf1_examples", {"x:0": [[1.0]], "x": [[1.0]]}, "y:0")
    assert await fails(both) == (C.INVALID_ARGUMENT, "duplicate feed: x:0")
    broken = session_request("tf1_examples", {"x:0": [[1.0]]}, "y:0")
    broken.feed[0].tensor.tensor_shape.dim[0].size = -1
    assert (await fails(broken))[1].startswith("tensor parsing error: x:0")


async def test_feeds_are_checked_against_the_graph_before_they_are_decoded(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await real("tf1_dangerous")
    decoded: list[str] = []
    decode = proto.decode

    def recorded(tensor: Any, what: str = "") -> Any:
        decoded.append(what)
        return decode(tensor, what)

    monkeypatch.setattr(proto, "decode", recorded)
    for feeds, fetch in (({"none:0": [[1.0]]}, "y:0"), ({"x:0": [[[1.0]]]}, "y:0"), ({"name:0": [1.0]}, "y:0")):
        code, _ = await failure(session_run(client, session_request("tf1_dangerous", feeds, fetch)))
        assert code is C.INVALID_ARGUMENT
    unsafe = session_request("tf1_dangerous", {"name:0": np.array(b"/etc/passwd", object)}, "read:0")
    code, message = await failure(session_run(client, unsafe))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("SessionRun may not run the graph's ReadFile operation")
    assert decoded == []
    await session_run(client, session_request("tf1_dangerous", {"x:0": [[1.0, 1.0]]}, "y:0"))
    assert decoded == ["x:0"]


async def test_weights_cannot_be_replaced_from_a_path_that_a_client_names(real: Any) -> None:
    client = await real("tf1_dangerous")
    request = session_request("tf1_dangerous", {"save/Const:0": np.array(b"/tmp/other", object)})
    request.target.append("save/restore_all")
    code, _ = await failure(session_run(client, request))
    assert code is C.INVALID_ARGUMENT


def endless_request(steps: int) -> Any:
    return session_request("endless", {"steps": np.array([steps])}, "done", alias=True)


async def test_an_endless_graph_gives_its_thread_back_when_its_time_is_over(real: Any) -> None:
    client = await real("endless", threads=1)
    limited = endless_request(2**62)
    limited.options.timeout_in_ms = 100
    assert (await failure(session_run(client, limited)))[0] is C.DEADLINE_EXCEEDED
    assert (await failure(session_run(client, endless_request(2**62), timeout=0.2)))[0] is C.DEADLINE_EXCEEDED
    response = await session_run(client, endless_request(3), timeout=60)
    assert list(response.tensor[0].tensor.int64_val) == [12]


async def test_graph_runs_go_on_beside_each_other(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedserve.saved_model.run.session import SessionServable

    together = threading.Barrier(2, timeout=60)
    run_graph = SessionServable.run_graph

    def meeting(self: Any, *args: Any, **options: Any) -> Any:
        together.wait()
        return run_graph(self, *args, **options)

    monkeypatch.setattr(SessionServable, "run_graph", meeting)
    client = await real("session")
    request = session_request("session", {"x": [[2.0]]}, "y", alias=True)
    for response in await asyncio.gather(session_run(client, request), session_run(client, request)):
        assert list(response.tensor[0].tensor.float_val) == [3.0]


async def test_a_session_run_keeps_its_version_until_its_thread_ends(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedserve.saved_model.run.session import SessionServable

    started, go, closed = threading.Event(), threading.Event(), threading.Event()
    run_graph, close = SessionServable.run_graph, SessionServable.close

    def slow(self: Any, *args: Any, **options: Any) -> Any:
        started.set()
        assert go.wait(60)
        assert not closed.is_set(), "the session was closed under the run"
        return run_graph(self, *args, **options)

    def seen_close(self: Any) -> None:
        closed.set()
        close(self)

    monkeypatch.setattr(SessionServable, "run_graph", slow)
    monkeypatch.setattr(SessionServable, "close", seen_close)
    client = await real("session")
    call = client.channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")(
        session_request("session", {"x": [[2.0]]}, "y", alias=True).SerializeToString()
    )
    assert await asyncio.to_thread(started.wait, 60)
    call.cancel()
    registry: ModelRegistry = client.registry
    changed = asyncio.create_task(registry.reconfigure([]))
    while registry.readiness():
        await asyncio.sleep(0.001)
    assert not closed.is_set()
    go.set()
    await changed
    assert await asyncio.to_thread(closed.wait, 60)
