"""Values that end or hang TensorFlow's kernels are refused, and all others get TensorFlow's answer."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from embedserve import ModelConfig, ModelRegistry
from embedserve.config import RegistryOptions
from embedserve.errors import LoadError
from embedserve.saved_model.files.graph import GraphReader
from embedserve.saved_model.files.meta_graph import read_meta_graph, read_signatures
from embedserve.saved_model.judge import guards
from embedserve.saved_model.load import loader as loading
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.saved_model.run.function import FunctionServable
from embedserve.saved_model.run.session import SessionServable
from embedserve.servable import ServableId
from tests.saved_model.judge.hostile_models import MODELS, SERVED
from tests.support.programs import run_program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of all models, by mode."""
    printed = run_program("-m", "tests.saved_model.judge.hostile_models", tmp_path_factory.mktemp("hostile"))
    found: dict[str, dict[str, Any]] = json.loads(printed.splitlines()[-1])
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", SERVED)
@pytest.mark.parametrize("name", MODELS)
def test_a_value_that_would_end_or_hang_the_process_is_an_invalid_argument(
    outcomes: dict[str, dict[str, Any]], name: str, mode: str
) -> None:
    outcome = outcomes[mode][name]
    assert isinstance(outcome, dict), outcome
    assert outcome["code"] == "INVALID_ARGUMENT"
    guard = guards.GUARDS[MODELS[name].op]
    assert f"{guard.operands[0]} of {MODELS[name].op} (node " in outcome["message"]
    assert guard.rule in outcome["message"]
    assert outcome["same"], "a good value gets TensorFlow's own answer"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", MODELS)
def test_tensorflow_alone_does_not_survive_these_values(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    outcome = outcomes["bare"][name]
    if tf.__version__.startswith("2.21."):  # A row that a later version does not need may go.
        assert outcome in ("death", "hang")
        assert (outcome == "hang") == (guards.GUARDS[MODELS[name].op].harm == "never ends")


def test_each_row_of_the_table_has_a_model_that_needs_it() -> None:
    alike = {"RFFT2D", "RFFT3D", "IRFFT2D", "IRFFT3D", "RandomPoisson", "UniformQuantizedConvolution"}
    alike |= {"TensorScatterAdd", "TensorScatterSub", "TensorScatterMin"}
    alike |= {"UnsortedSegmentSum", "UnsortedSegmentProd", "UnsortedSegmentMin"}
    assert {model.op for model in MODELS.values()} | alike == set(guards.GUARDS)


def found(path: Path) -> list[guards.Found]:
    meta_graph = read_meta_graph(path, ["serve"])
    signature = read_signatures(meta_graph)["serving_default"]
    inputs = {spec.tensor_name: name for name, spec in signature.inputs.items()}
    return guards.find(GraphReader(meta_graph), inputs, [spec.tensor_name for spec in signature.outputs.values()])


def save(path: Path, function: Any, *specs: Any) -> Path:
    serve = tf.function(lambda *given: {"y": function(*given)}, input_signature=specs)
    tf.saved_model.save(tf.Module(), str(path), signatures=serve)
    return path


TEXT = tf.TensorSpec([None], tf.string, "text")
WAVE = tf.TensorSpec([None, 8], tf.float32, "wave")
IMAGE = tf.TensorSpec([None, 4, 4, 1], tf.float32, "image")


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (lambda text: tf.strings.split(text).to_tensor(), TEXT),
        (lambda text: tf.strings.unicode_decode(text, "UTF-8").to_tensor(), TEXT),
        (lambda text: tf.strings.ngrams(tf.strings.split(text), 2).to_tensor(), TEXT),
        (lambda wave: tf.abs(tf.signal.rfft(wave)), WAVE),
        (lambda wave: tf.abs(tf.signal.stft(wave, 4, 2)), WAVE),
        (lambda image: tf.image.adjust_hue(tf.repeat(image, 3, -1), 0.1), IMAGE),
        (lambda wave: tf.gather(wave, [0, 1], axis=1), WAVE),
        (lambda wave: wave + tf.random.poisson([], 2.0), WAVE),
    ],
)
def test_what_the_model_chooses_itself_needs_no_guard(tmp_path: Path, function: Any, spec: Any) -> None:
    assert not found(save(tmp_path / "1", function, spec))


def test_the_input_at_fault_is_named_through_casts_and_calls(tmp_path: Path) -> None:
    inner = tf.function(lambda x, n: tf.abs(tf.signal.rfft(x, tf.cast(n, tf.int32))))
    length = tf.TensorSpec([1], tf.int64, "length")
    path = save(tmp_path / "1", lambda wave, length: inner(wave, tf.reshape(length, [-1])), WAVE, length)
    assert [one.inputs for one in found(path)] == [["length"]]


def loader_of(path: Path) -> SavedModelLoader:
    return SavedModelLoader(
        ServableId("m", 1), path, ModelConfig(name="m", base_path=str(path.parent)), RegistryOptions()
    )


def test_a_hazard_that_no_check_keeps_out_is_named_in_log_and_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = tf.TensorSpec([3, 3], tf.complex64, "matrix")
    loader = loader_of(save(tmp_path / "1", lambda matrix: tf.linalg.logm(matrix + 5), matrix))
    loader.unload(loader.load())
    assert re.search("cannot be guarded: MatrixLogarithm '.*': it never ends for a singular matrix", loader.note)
    assert "cannot be guarded: MatrixLogarithm" in caplog.text


def test_no_made_up_input_is_run_where_it_could_end_the_process(tmp_path: Path) -> None:
    def decode(text: Any) -> Any:  # With splits of int32, every run aborts.
        found = tf.raw_ops.UnicodeDecodeWithOffsets(input=text, input_encoding="UTF-8", Tsplits=tf.int32)
        return tf.ensure_shape(tf.strings.length(text) + found.row_splits[1:], [None])

    loader = loader_of(save(tmp_path / "1", decode, TEXT))
    servable = loader.load()
    assert "UnicodeDecodeWithOffsets': it ends the process if Tsplits is int32" in loader.note
    assert not servable.signatures["serving_default"].batching.batchable
    loader.unload(servable)


def test_an_operation_that_only_some_attributes_make_a_hazard_is_named_for_these(tmp_path: Path) -> None:
    loader = loader_of(
        save(tmp_path / "1", lambda text: tf.strings.unicode_decode_with_offsets(text, "UTF-8")[0].to_tensor(), TEXT)
    )
    loader.unload(loader.load())
    assert not loader.note


def test_a_model_that_does_not_load_with_checks_is_served_without_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(meta_graph: Any, found: Any) -> None:
        meta_graph.graph_def.ClearField("library")

    monkeypatch.setattr(loading, "add_checks", broken)
    MODELS["rfft"].save(tmp_path / "1")
    loader = loader_of(tmp_path / "1")
    servable = loader.load()
    assert "cannot be guarded: it does not load with checks (" in loader.note
    answer = servable.run("serving_default", MODELS["rfft"].arrays(MODELS["rfft"].good))["y"]
    np.testing.assert_array_equal(answer, [[4, 0, 0], [4, 0, 0]])
    loader.unload(servable)


def test_no_made_up_input_is_run_on_a_model_that_had_to_be_loaded_without_its_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation is one that checks would guard: without them it is as dangerous as one that nothing guards."""

    def broken(meta_graph: Any, found: Any) -> None:
        meta_graph.graph_def.ClearField("library")

    def transformed(wave: Any, length: Any) -> Any:
        # Not in the table of the judgement, so that a probe is wanted.
        return tf.linalg.inv(tf.abs(tf.signal.rfft(wave, length[:1]))[:, :1, None])

    lengths = tf.TensorSpec([None], tf.int32, "length")
    path = save(tmp_path / "1", transformed, WAVE, lengths)
    loader = loader_of(path)
    servable = loader.load()
    assert loader._samples  # What follows would show nothing otherwise.
    loader.unload(servable)
    monkeypatch.setattr(loading, "add_checks", broken)
    ran: list[Any] = []
    monkeypatch.setattr(SessionServable, "run", lambda self, *given, **more: ran.append(given))
    monkeypatch.setattr(FunctionServable, "run", lambda self, *given, **more: ran.append(given))
    loader = loader_of(path)
    servable = loader.load()
    loader.warm_up(servable)
    loader.warm_up_thread(servable)
    assert not ran
    batching = servable.signatures["serving_default"].batching
    assert not batching.batchable
    loader.unload(servable)


def test_no_copy_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    MODELS["rfft"].save(tmp_path / "m" / "1")
    loader = loader_of(tmp_path / "m" / "1")
    servable = loader.load()
    assert not os.listdir(tmp_path / "temporary")
    loader.unload(servable)
    (tmp_path / "m" / "1" / "variables" / "variables.index").write_bytes(b"?")
    with pytest.raises(LoadError):
        loader_of(tmp_path / "m" / "1").load()
    assert not os.listdir(tmp_path / "temporary")


async def test_a_batch_that_breaks_a_rule_only_as_a_whole_is_answered_request_by_request(tmp_path: Path) -> None:
    MODELS["row_splits"].save(tmp_path / "m" / "1")
    config = ModelConfig(name="m", base_path=str(tmp_path / "m"), batching=True)
    good, bad = {"splits": [0, 2, 3], "values": [1, 2, 3]}, {"splits": [0, 3, 2], "values": [1, 2, 3]}
    async with ModelRegistry(models=[config]) as registry:
        answers = await asyncio.gather(
            *(registry.predict("m", inputs) for inputs in (good, good, bad, good)), return_exceptions=True
        )
    assert "must start at 0, never decrease and end within the values" in str(answers.pop(2))
    for answer in answers:
        np.testing.assert_array_equal(answer["y"], [[1, 2], [3, 0]])  # type: ignore[index]
