"""A signature that declares a fixed number of rows takes any, where that is safe; else its errors say why it is not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import grpc.aio
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

import embedserve.grpc
from embedserve import ModelRegistry
from embedserve.config import BatchingOptions, ModelConfig, RegistryOptions
from embedserve.errors import InvalidInputError, ServingError
from embedserve.rest import create_app
from embedserve.saved_model.judge import free_batch
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.servable import Array, ServableId
from tests.saved_model import fixed_rows
from tests.saved_model.fixed_rows import export
from tests.support import saved_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KINDS: tuple[Literal["function", "session"], ...] = ("function", "session")
FLOATS = tf.TensorSpec([4, 3], tf.float32, "x")


def loader_of(path: Path, **config: Any) -> SavedModelLoader:
    return SavedModelLoader(
        ServableId("m", 1), path, ModelConfig(name="m", base_path=path.parent, **config), RegistryOptions()
    )


@pytest.fixture
def load() -> Iterator[Callable[..., Any]]:
    """Load a version; the servable and its loader, whose note the status shows."""
    loaded: list[tuple[SavedModelLoader, Any]] = []

    def one(path: Path, **config: Any) -> tuple[Any, SavedModelLoader]:
        loader = loader_of(path, **config)
        servable = loader.load()
        loaded.append((loader, servable))
        return servable, loader

    yield one
    for loader, servable in loaded:
        loader.unload(servable)


def images(count: int) -> Array:
    return np.random.default_rng(count).normal(size=(count, 8, 8, 3)).astype(np.float32)


def by_tensorflow(path: Path, inputs: Array, declared: int) -> dict[str, Array]:
    """Plain TensorFlow's answers to any number of rows, asked for as many at a time as are declared."""
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        meta_graph = v1.saved_model.loader.load(session, ["serve"], str(path))
        definition = meta_graph.signature_def["serving_default"]
        (fed,) = (info.name for info in definition.inputs.values())
        fetched = {name: info.name for name, info in definition.outputs.items()}
        found = []
        for start in range(0, len(inputs), declared):
            rows = inputs[start : start + declared]
            padding = np.zeros((declared - len(rows), *rows.shape[1:]), rows.dtype)
            found.append(session.run(fetched, {fed: np.concatenate([rows, padding])}))
    return {name: np.concatenate([one[name] for one in found])[: len(inputs)] for name in fetched}


def check_answers(servable: Any, path: Path, alias: str, declared: int, inputs: Array) -> None:
    signature = servable.signatures["serving_default"]
    answer = servable.run("serving_default", signature.bind({alias: inputs}))
    expected = by_tensorflow(path, inputs, declared)
    assert answer.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(answer[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [fixed_rows.like_resnet, fixed_rows.sized, fixed_rows.keras_model])
def test_any_number_of_rows_is_answered_as_tensorflow_answers_the_declared_number(
    tmp_path: Path, load: Any, build: Any, kind: Literal["function", "session"]
) -> None:
    path = build(tmp_path / "1")
    servable, loader = load(path, servable=kind)
    assert servable.kind == kind
    signature = servable.signatures["serving_default"]
    (spec,) = signature.inputs.values()
    declared = {"input": 64}.get(spec.name) or {3: 4, 6: 2}[spec.shape[1]]
    assert spec.shape[0] is None
    assert (signature.batching.batchable, signature.batching.by) == (True, "proof")
    assert f"signature 'serving_default': dimension 0 freed, {declared} is declared" in loader.note
    for rows in (1, 3, declared, declared + 5):
        inputs = np.random.default_rng(rows).normal(size=(rows, *spec.shape[1:])).astype(np.float32)
        check_answers(servable, path, spec.name, declared, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_declared_one_is_freed_too(tmp_path: Path, load: Any, kind: Literal["function", "session"]) -> None:
    path = fixed_rows.sized(tmp_path / "1", rows=1)
    servable, _ = load(path, servable=kind)
    assert servable.signatures["serving_default"].batching.batchable
    check_answers(servable, path, "x", 1, np.arange(15, dtype=np.float32).reshape(5, 3))


def test_the_signature_as_stored_is_what_metadata_shows(tmp_path: Path, load: Any) -> None:
    servable, _ = load(fixed_rows.sized(tmp_path / "1"))
    stored = servable.signature_defs["serving_default"].inputs["x"].tensor_shape
    assert [dimension.size for dimension in stored.dim] == [4, 3]


def variable_counter(path: Path) -> Path:
    module = tf.Module()
    module.count = tf.Variable(0.0)

    @tf.function(input_signature=[FLOATS])
    def serve(x: Any) -> Any:
        return {"y": x + module.count.assign_add(1.0)}

    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})
    return path


TIED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "constant shape": (lambda p: export(p, lambda x: {"y": tf.reshape(x, [4, -1]) * 2.0}, FLOATS), "Reshape '"),
    "statically known size": (
        lambda p: export(p, lambda x: {"y": tf.reshape(x * 2.0, [x.shape[0], 1, 3])}, FLOATS),
        "Reshape '",
    ),
    "filled": (lambda p: export(p, lambda x: {"y": tf.concat([x, tf.fill([4, 1], 1.0)], 1)}, FLOATS), "ConcatV2 '"),
    "constant rows": (
        lambda p: export(p, lambda x: {"y": x + tf.constant([[1.0], [2.0], [3.0], [4.0]])}, FLOATS),
        "AddV2 '",
    ),
    "broadcast": (
        lambda p: export(p, lambda x: {"y": tf.broadcast_to(tf.exp(x[:, :1]), [4, 5])}, FLOATS),
        "BroadcastTo '",
    ),
    "tiled": (lambda p: export(p, lambda x: {"y": tf.tile(x[:1], [4, 1])}, FLOATS), "StridedSlice '"),
    "row picked": (lambda p: export(p, lambda x: {"y": x - x[3]}, FLOATS), "StridedSlice '"),
    "mean": (lambda p: export(p, lambda x: {"y": x - tf.reduce_mean(x, 0)}, FLOATS), "Mean '"),
    "squeezed": (
        lambda p: export(p, lambda x: {"y": tf.squeeze(x)[None]}, tf.TensorSpec([1, 3], tf.float32, "x")),
        "Squeeze '",
    ),
    "random": (lambda p: export(p, lambda x: {"y": x + tf.random.normal([])}, FLOATS), "RandomStandardNormal draws"),
    "stateful": (variable_counter, "AssignAddVariableOp writes state"),
    "different sizes": (
        lambda p: export(p, lambda x, z: {"y": x * 2.0, "z": z}, FLOATS, tf.TensorSpec([2, 3], tf.float32, "z")),
        "input 'z' is float [2,3], dimension 0 of an input is 4",
    ),
    "other output": (
        lambda p: export(p, lambda x: {"y": tf.reduce_sum(x)}, FLOATS),
        "output 'y' is float [], dimension 0 of the inputs is 4",
    ),
    "size asserted": (
        lambda p: export(p, lambda x: {"y": tf.raw_ops.EnsureShape(input=x * 2.0, shape=[4, 3])}, FLOATS),
        "one row fails: ",
    ),
    "unknown operation": (
        lambda p: export(p, lambda x: {"y": tf.linalg.qr(tf.reshape(x, [-1, 3, 1]))[0]}, FLOATS),
        "Qr '",
    ),
}


@pytest.mark.parametrize("name", TIED)
def test_what_ties_rows_keeps_the_declared_number_and_is_named(
    tmp_path: Path, load: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedserve")
    build, why = TIED[name]
    path = build(tmp_path / "1")
    servable, loader = load(path)
    signature = servable.signatures["serving_default"]
    assert "freed" not in loader.note
    assert "takes the declared number of rows: free_batch could not be used: " + why in caplog.text
    given = {spec.name: np.ones((7, 3), np.float32) for spec in signature.inputs.values()}
    with pytest.raises(InvalidInputError) as raised:
        signature.bind(given)
    assert ": free_batch could not be used: " + why in raised.value.message
    declared = {spec.name: np.ones(spec.shape, np.float32) for spec in signature.inputs.values()}
    lifted = tf.saved_model.load(str(path)).signatures["serving_default"]
    expected = lifted(**{alias: tf.constant(array) for alias, array in declared.items()})
    answer = servable.run("serving_default", signature.bind(declared))
    if signature.stateless:
        for alias, array in answer.items():
            np.testing.assert_allclose(array, expected[alias], rtol=1e-5)


def test_a_declared_size_that_is_wrong_beyond_the_rows_says_nothing_of_them(tmp_path: Path, load: Any) -> None:
    servable, _ = load(fixed_rows.sized(tmp_path / "1"), free_batch=False)
    with pytest.raises(InvalidInputError) as raised:
        servable.signatures["serving_default"].bind({"x": np.ones((4, 2), np.float32)})
    assert raised.value.message.endswith("has shape [4,2], expected [4,3]")


def test_false_serves_as_declared(tmp_path: Path, load: Any) -> None:
    servable, loader = load(fixed_rows.sized(tmp_path / "1"), free_batch=False)
    signature = servable.signatures["serving_default"]
    assert signature.inputs["x"].shape == (4, 3)
    assert not loader.note
    with pytest.raises(InvalidInputError) as raised:
        signature.bind({"x": np.ones((1, 3), np.float32)})
    assert raised.value.message == (
        "input 'x' of signature 'serving_default' has shape [1,3], expected [4,3]: "
        "free_batch could not be used: it is False"
    )


def test_true_overrides_the_judgement_and_the_graph_decides(tmp_path: Path, load: Any) -> None:
    centred, _ = load(TIED["mean"][0](tmp_path / "a" / "1"), free_batch=True)
    signature = centred.signatures["serving_default"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(centred.run("serving_default", signature.bind({"x": x}))["y"], x - x.mean(0))
    assert not signature.batching.batchable
    tied, _ = load(TIED["constant rows"][0](tmp_path / "b" / "1"), free_batch=True)
    with pytest.raises(ServingError, match="Incompatible shapes"):
        tied.run("serving_default", tied.signatures["serving_default"].bind({"x": x}))


def test_true_that_cannot_be_had_is_a_warning_and_a_note(
    tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, loader = load(TIED["different sizes"][0](tmp_path / "1"), free_batch=True)
    assert "free_batch could not be used: input 'z' is float [2,3]" in loader.note
    assert any("free_batch" in record.message for record in caplog.records if record.levelno == logging.WARNING)


def test_a_probe_that_disagrees_keeps_the_declared_number(
    tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule of the table that is wrong frees nothing as long as a run shows it."""
    monkeypatch.setattr(free_batch, "obstacle", lambda *args: "")
    servable, _ = load(TIED["mean"][0](tmp_path / "1"))
    signature = servable.signatures["serving_default"]
    assert signature.inputs["x"].shape == (4, 3)
    with pytest.raises(InvalidInputError, match=r"output 'y' of a row depends on the other rows of its batch"):
        signature.bind({"x": np.ones((1, 3), np.float32)})


def test_a_model_that_does_not_load_with_unknown_rows_is_served_as_declared(
    tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        free_batch, "forget_rows", lambda meta_graph, signatures: meta_graph.graph_def.ClearField("library")
    )
    servable, loader = load(fixed_rows.sized(tmp_path / "1"))
    signature = servable.signatures["serving_default"]
    assert "freed" not in loader.note
    with pytest.raises(InvalidInputError, match="it does not load with dimension 0 unknown"):
        signature.bind({"x": np.ones((1, 3), np.float32)})
    assert servable.run("serving_default", {"x": np.ones((4, 3), np.float32)})["y"].shape == (4, 2)


def test_recorded_requests_of_any_number_of_rows_are_replayed(tmp_path: Path, load: Any) -> None:
    path = fixed_rows.like_resnet(tmp_path / "1")
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["input"].CopyFrom(tf.make_tensor_proto(images(3)))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    saved_models.add_warmup_requests(path, [log])
    servable, loader = load(path)
    loader.warm_up(servable)
    assert loader.warmup_records == 1
    assert "dimension 0 freed" in loader.note


@pytest.mark.parametrize("optimize", ["freeze", "xla"])
def test_an_optimised_version_takes_any_number_of_rows(
    tmp_path: Path, load: Any, optimize: Literal["freeze", "xla"]
) -> None:
    path = fixed_rows.like_resnet(tmp_path / "1")
    servable, loader = load(path, optimize=optimize)
    assert "cannot be had" not in loader.note
    check_answers(servable, path, "input", 64, images(3))


@pytest.mark.asyncio
async def test_single_rows_share_a_run_on_every_way_in(tmp_path: Path) -> None:
    path = fixed_rows.like_resnet(tmp_path / "resnet" / "1")
    model = ModelConfig(
        name="resnet",
        base_path=tmp_path / "resnet",
        batching_options=BatchingOptions(max_batch_size=16, batch_timeout_micros=200_000),
    )
    inputs = images(7)
    expected = by_tensorflow(path, inputs, 64)
    async with ModelRegistry(models=[model], num_batch_threads=1) as registry:
        answers = await asyncio.gather(*(registry.predict("resnet", {"input": row[None]}) for row in inputs))
        for row, answer in enumerate(answers):
            np.testing.assert_allclose(answer["probabilities"][0], expected["probabilities"][row], rtol=1e-5)
            assert answer["classes"] == expected["classes"][row]
        queue = registry.statistics().queues["resnet", 1]
        assert (queue.requests, queue.rows) == (7, 7)
        assert queue.runs < 7
        transport = httpx.ASGITransport(create_app(registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for count in (1, 3):
                response = await client.post("/v1/models/resnet:predict", json={"instances": inputs[:count].tolist()})
                found = response.json()["predictions"]
                assert [one["classes"] for one in found] == expected["classes"][:count].tolist()
                np.testing.assert_allclose(
                    [one["probabilities"] for one in found], expected["probabilities"][:count], rtol=1e-5
                )
            metadata = (await client.get("/v1/models/resnet/metadata")).json()["metadata"]["signature_def"]
            shape = metadata["signature_def"]["serving_default"]["inputs"]["input"]["tensor_shape"]
            assert [dimension["size"] for dimension in shape["dim"]] == ["64", "8", "8", "3"]
        async with (
            embedserve.grpc.serve(registry, host="127.0.0.1", port=0) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "resnet"
            request.inputs["input"].CopyFrom(tf.make_tensor_proto(inputs[:3]))
            answered = await prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)
            probabilities = tf.make_ndarray(answered.outputs["probabilities"])
            np.testing.assert_allclose(probabilities, expected["probabilities"][:3], rtol=1e-5)


@pytest.mark.asyncio
async def test_the_status_says_that_dimension_0_is_freed(tmp_path: Path) -> None:
    fixed_rows.sized(tmp_path / "m" / "1")
    async with ModelRegistry(models=[ModelConfig(name="m", base_path=tmp_path / "m")]) as registry:
        (version,) = registry.status()["m"]
        assert "dimension 0 freed, 4 is declared" in version.note
    async with ModelRegistry(models=[ModelConfig(name="m", base_path=tmp_path / "m")], free_batch=False) as registry:
        with pytest.raises(InvalidInputError, match="free_batch could not be used: it is False"):
            await registry.predict("m", {"x": np.ones((1, 3), np.float32)})
