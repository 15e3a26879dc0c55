"""Recorded warm-up requests are replayed through the signatures, with TensorFlow Serving's limits and words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import Code, LoadError
from embedserve.saved_model.files.meta_graph import read_meta_graph, read_signatures
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.saved_model.load.warmup import recorded_inputs, replay
from embedserve.servable import ServableId
from tests.saved_model.conftest import Load, ModelPath
from tests.support import saved_models

Record = Callable[..., Path]


@pytest.fixture
def record(model: ModelPath, tmp_path: Path) -> Record:
    """A copy of a model with recorded requests."""

    def make(name: str, *logs: PredictionLog | bytes) -> Path:
        path = Path(shutil.copytree(model(name), tmp_path / name / "1"))
        return saved_models.add_warmup_requests(path, logs)

    return make


def predict(signature_name: str = "", **inputs: Any) -> PredictionLog:
    log = PredictionLog()
    log.predict_log.request.model_spec.name = "any"
    log.predict_log.request.model_spec.signature_name = signature_name
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


def example(**features: float) -> Any:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def inference(kind: str, signature_name: str, *examples: Any, context: Any = None) -> PredictionLog:
    log = PredictionLog()
    request = getattr(log, kind).request
    request.model_spec.signature_name = signature_name
    given = request.input
    if context is None:
        given.example_list.examples.extend(examples)
    else:
        given.example_list_with_context.examples.extend(examples)
        given.example_list_with_context.context.CopyFrom(context)
    return log


def count(servable: Any) -> float:
    """How often the counter has run."""
    return float(servable.run("read", {"x": np.zeros(1, np.float32)})["y"][0])


def test_predict_requests_run_once_per_iteration(load: Load, record: Record) -> None:
    path = record("counter", predict(x=[1.0]), predict("serving_default", x=[2.0, 3.0]))
    servable = load(path)
    assert replay(path, servable) == 2
    assert count(servable) == 2
    assert replay(path, servable, iterations=3) == 2
    assert count(servable) == 8


def test_the_loader_replays_as_its_options_say(record: Record) -> None:
    path = record("counter", predict(x=[1.0]))
    for options, runs, records in (
        (RegistryOptions(), 1.0, 1),
        (RegistryOptions(num_warmup_iterations=4), 4.0, 1),
        (RegistryOptions(warmup="none"), 0.0, None),
    ):
        loader = SavedModelLoader(ServableId("m", 1), path, ModelConfig(name="m", base_path=path.parent), options)
        servable = loader.load()
        loader.warm_up(servable)
        loader.warm_up_thread(servable)
        assert count(servable) == runs
        assert loader.warmup_records == records
        loader.unload(servable)


def test_no_file_is_no_warm_up(load: Load, model: ModelPath) -> None:
    assert replay(model("dense"), load("dense")) is None


def test_an_empty_file_is_fine(load: Load, record: Record) -> None:
    path = record("dense")
    assert replay(path, load(path)) == 0


def test_a_record_without_a_request_is_counted_and_skipped(load: Load, record: Record) -> None:
    path = record("dense", PredictionLog())
    assert replay(path, load(path)) == 1


@pytest.mark.parametrize("name", ["examples", "tf1_examples"])
def test_requests_over_examples_are_replayed(load: Load, record: Record, name: str) -> None:
    multi = PredictionLog()
    request = multi.multi_inference_log.request
    for signature_name in ("classify_x_to_y", "regress_x_to_y"):
        request.tasks.add().model_spec.signature_name = signature_name
    request.input.example_list.examples.append(example(x=1.0))
    path = record(
        name,
        inference("classify_log", "classify_x_to_y", example(x=1.0)),
        inference("regress_log", "regress_x_to_y", example(x=1.0), example(x=2.0)),
        inference("regress_log", "regress_x_to_y", example(), context=example(x=5.0)),
        multi,
    )
    assert replay(path, load(path)) == 4


def test_session_runs_are_replayed_on_sessions_only(load: Load, record: Record) -> None:
    by_name, by_alias = PredictionLog(), PredictionLog()
    for log, names in ((by_name, ("x:0", "y:0")), (by_alias, ("x", "y"))):
        feed = log.session_run_log.request.feed.add(name=names[0])
        feed.tensor.CopyFrom(tf.make_tensor_proto(np.ones((1, 2), np.float32)))
        log.session_run_log.request.fetch.append(names[1])
    by_alias.session_run_log.request.tensor_name_is_alias = True
    path = record("tf1_ref_variables", by_name, by_alias)
    assert replay(path, load(path)) == 2
    with pytest.raises(LoadError, match=r"^Unsupported log_type for warmup: 5 \(warm-up record 1 of") as raised:
        replay(path, load(path, servable="function"))
    assert raised.value.code is Code.UNIMPLEMENTED


def streamed() -> PredictionLog:
    log = PredictionLog()
    log.predict_streamed_log.request.add()
    return log


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [
        (predict("nope", x=[1.0]), Code.FAILED_PRECONDITION, 'Serving signature key "nope" not found.'),
        (predict(y=[1.0]), Code.INVALID_ARGUMENT, "Signature input alias: x"),
        (predict(x=[-1.0]), Code.INVALID_ARGUMENT, "assertion failed"),
        (
            inference("classify_log", "nope", example()),
            Code.INVALID_ARGUMENT,
            "No signature was found with the name: nope",
        ),
        (inference("classify_log", ""), Code.INVALID_ARGUMENT, r"Input is empty\."),
        (b"\xff\xff", Code.INVALID_ARGUMENT, "Failed to parse warmup record: "),
        (streamed(), Code.UNIMPLEMENTED, "Unsupported log_type for warmup: 7"),
    ],
)
def test_a_request_that_fails_fails_the_load(
    load: Load, record: Record, log: PredictionLog | bytes, code: Code, words: str
) -> None:
    path = record("positive_only", log)
    with pytest.raises(LoadError, match=f"^{words}") as raised:
        replay(path, load(path))
    assert raised.value.code is code


def test_more_than_a_thousand_records_fail_the_load(
    load: Load, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.saved_model.load.warmup.MAX_WARMUP_RECORDS", 2)
    path = record("counter", *[predict(x=[1.0])] * 5)
    servable = load(path)
    with pytest.raises(LoadError, match=r"^Number of warmup records exceeds the maximum \(2\)") as raised:
        replay(path, servable)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert count(servable) == 3


def test_a_file_that_is_no_tfrecord_is_data_loss(load: Load, record: Record) -> None:
    path = record("dense")
    (path / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no TFRecord at all, for sure")
    servable = load(path)
    with pytest.raises(LoadError, match="Please verify your warmup data is in TFRecord format") as raised:
        replay(path, servable)
    assert raised.value.code is Code.DATA_LOSS


def test_recorded_ranks_guard_an_unknown_rank(load: Load, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    path = record("conv2d_unknown_rank", predict(image=np.ones((1, 5, 5, 1), np.float32)))
    servable = load(path)
    assert servable.signatures["serving_default"].input_ranks == {"image": 4}
    assert "cannot be guarded" not in caplog.text


def test_contradicting_records_set_no_rank(record: Record) -> None:
    path = record("several", predict("free", x=[1.0]), predict("free", x=2.0), predict("nope", x=1.0))
    found = recorded_inputs(path, read_signatures(read_meta_graph(path, ["serve"])))
    assert found.ranks == {}
    assert [request["x"].ndim for request in found.inputs["free"]] == [1, 0]


def test_an_unreadable_record_ends_the_search_for_ranks(record: Record) -> None:
    path = record("several", predict("free", x=[1.0]), b"\xff\xff")
    assert recorded_inputs(path, read_signatures(read_meta_graph(path, ["serve"]))).ranks == {"x": 1}
