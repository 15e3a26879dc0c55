"""The command on real models: what it compares, prints and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from embedserve.__main__ import main
from embedserve.request_log.records import predict_exchange, record_of
from embedserve.signature import Signature
from embedserve.testing import fake_signature
from embedserve.verify.plain import PlainModel
from tests.saved_model import fixed_rows
from tests.support.programs import run_program
from tests.verify.conftest import ModelPath

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]

QUICK = ("--pairs=6", "--gc_freeze=false")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; its exit status, and what it printed on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main(["verify", *map(str, arguments)])
        except SystemExit as error:
            status = int(error.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def document(run: Run, *arguments: object, status: int = 0) -> dict[str, Any]:
    ended, out, err = run(*arguments, *QUICK, "--json=-")
    assert ended == status, err
    found: dict[str, Any] = json.loads(out)
    return found


def log_of(path: Path, signature: Signature, *inputs: dict[str, Any]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in inputs:
            writer.write(record_of(predict_exchange("any", 1, signature, each, {}), 1.0, ("serve",), 0))
    return path


# What is compared.


def test_a_batched_model_is_compared_in_every_way(run: Run, model: ModelPath, tmp_path: Path) -> None:
    status, out, err = run(model("dense"), *QUICK, f"--json={tmp_path / 'found.json'}")
    assert (status, err) == (0, "")
    assert "Model dense, version 1; tolerance 1e-05" in out
    assert "serving_default: batched by proof: " in out
    assert "largest difference of  alone" in out
    assert out.rstrip().endswith("No difference.")
    found = json.loads((tmp_path / "found.json").read_text())["signatures"]["serving_default"]
    assert (found["batched"], found["by"], found["operation"]) == (True, "proof", None)
    assert found["requests"] == "12 made up"
    assert list(found["ways"]) == ["alone", "beside neighbours", "padded"]
    for name, way in found["ways"].items():
        shared = 0 if name == "alone" else 6
        assert (way["shared_runs"], way["groups_that_shared_none"]) == (shared, 0)
        scores = way["outputs"]["scores"]
        assert scores["answers"] >= 12
        assert scores["largest_difference"] <= 1e-5
        assert scores["over_tolerance"] == 0


@pytest.mark.parametrize(
    "name", ["mean_of_clicks", "split_words", "text_of_any_length", "branch_on_the_batch", "similarities"]
)
def test_neighbours_are_seen_to_change_answers_where_the_owner_overrides_the_verdict(
    run: Run, model: ModelPath, name: str
) -> None:
    status, out, _ = run(model(name), *QUICK, "--batching=true")
    assert status == 1
    assert "serving_default: batched: batching=True" in out
    assert "beside neighbours, output" in out
    assert "DIFFERENT: serving_default" in out
    found = document(run, model(name), "--batching=true", status=1)["signatures"]["serving_default"]
    (beside,) = found["ways"]["beside neighbours"]["outputs"].values()
    assert beside["over_tolerance"] > 0
    (alone,) = found["ways"]["alone"]["outputs"].values()
    assert alone["over_tolerance"] == 0


@pytest.mark.parametrize(
    "name", ["mean_of_clicks", "split_words", "text_of_any_length", "branch_on_the_batch", "similarities"]
)
def test_the_same_models_answer_right_by_default(run: Run, model: ModelPath, name: str) -> None:
    found = document(run, model(name))["signatures"]["serving_default"]
    assert (found["batched"], found["by"]) == (False, "graph")
    assert found["operation"] in found["reason"]
    assert found["node"] in found["reason"]
    assert list(found["ways"]) == ["alone"]


def test_state_and_random_numbers_are_said_and_not_compared(run: Run, model: ModelPath) -> None:
    status, out, _ = run(model("counter"), *QUICK)
    assert status == 0
    assert "not batched: AssignAddVariableOp writes state\n  not compared: it writes state" in out
    found = document(run, model("random_noise"))
    assert found["signatures"]["serving_default"]["ways"] == {}
    assert "Nothing was compared." in run(model("random_noise"), *QUICK)[1]


def test_a_model_of_tensorflow_1_is_compared_with_a_session(run: Run, model: ModelPath) -> None:
    found = document(run, model("tf1_ref_variables"))["signatures"]["serving_default"]
    assert found["ways"]["beside neighbours"]["outputs"]["y"]["largest_difference"] <= 1e-5


@pytest.mark.parametrize("build", [fixed_rows.sized, fixed_rows.like_resnet])
def test_a_freed_signature_is_compared_with_tensorflow_on_the_declared_number_of_rows(
    run: Run, tmp_path: Path, build: Callable[[Path], Path]
) -> None:
    build(tmp_path / "m" / "1")
    found = document(run, tmp_path / "m")["signatures"]["serving_default"]
    assert (found["batched"], found["by"]) == (True, "proof")
    assert found["ways"]["beside neighbours"]["outputs"]


@pytest.mark.parametrize("name", ["composite_outputs", "tf1_composites", "without_inputs"])
def test_parts_of_composite_outputs_and_signatures_without_inputs_are_compared(
    run: Run, model: ModelPath, name: str
) -> None:
    (found,) = document(run, model(name))["signatures"].values()
    assert all(not each["over_tolerance"] for each in found["ways"]["alone"]["outputs"].values())


@pytest.mark.parametrize("mode", ["freeze", "xla"])
def test_optimised_execution_is_compared_where_it_is_asked_for(run: Run, model: ModelPath, mode: str) -> None:
    ways = document(run, model("dense"), f"--optimize={mode}")["signatures"]["serving_default"]["ways"]
    found = ways[f"optimize={mode}"]
    assert mode == "xla" or found["note"] is None  # XLA may turn out to be slower, and is then not served.
    assert found["shared_runs"] == 6
    assert found["outputs"]["scores"]["largest_difference"] <= 1e-5


def test_an_optimisation_that_cannot_be_had_is_said(run: Run, model: ModelPath) -> None:
    status, out, _ = run(model("reads_asset_at_run_time"), *QUICK, "--optimize=freeze")
    assert status == 0
    assert 'optimize=freeze: optimize="freeze" cannot be had, it runs as it is: ' in out


def test_lengths_are_padded_where_it_is_asked_for(run: Run, model: ModelPath) -> None:
    found = document(run, model("text_cnn"), "--pad_variable_length_inputs", status=1)
    ways = found["signatures"]["serving_default"]["ways"]
    assert [name for name, way in ways.items() if way["outputs"]["score"]["over_tolerance"]] == ["padded lengths"]


def test_the_tolerance_is_of_the_caller(run: Run, model: ModelPath) -> None:
    assert run(model("branch_on_the_batch"), *QUICK, "--batching=true", "--tolerance=1e30")[0] == 0


def test_an_answer_alone_that_is_not_plain_tensorflows_is_a_difference(
    run: Run, model: ModelPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = PlainModel.answer
    monkeypatch.setattr(
        PlainModel,
        "answer",
        lambda self, *given: {name: array * np.float32(1.001) for name, array in answer(self, *given).items()},
    )
    found = document(run, model("dense"), status=1)["signatures"]["serving_default"]["ways"]
    assert found["alone"]["outputs"]["scores"]["over_tolerance"] > 0


def test_a_model_that_answers_everything_alike_is_said_to(run: Run, model: ModelPath, tmp_path: Path) -> None:
    module = tf.Module()
    serve = tf.function(lambda x: {"y": tf.ones_like(x)}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path / "ones" / "1"), signatures=serve)
    said = "all of them get the same answer"
    assert said in document(run, tmp_path / "ones")["signatures"]["serving_default"]["requests"]
    assert said not in document(run, model("dense"))["signatures"]["serving_default"]["requests"]


def test_another_seed_makes_up_other_requests(run: Run, model: ModelPath) -> None:
    def example(seed: int) -> Any:
        found = document(run, model("branch_on_the_batch"), "--batching=true", f"--seed={seed}", status=1)
        return found["signatures"]["serving_default"]["ways"]["beside neighbours"]["outputs"]["y"]["example"]

    assert example(1) == example(1) != example(2)


# Recorded requests.


def test_recorded_requests_are_asked_in_place_of_made_up_ones(run: Run, model: ModelPath, tmp_path: Path) -> None:
    signature = fake_signature(inputs={"features": ("float", (None, 4))})
    inputs = [{"features": np.full((rows, 4), rows, np.float32)} for rows in (1, 2, 3)]
    file = log_of(tmp_path / "log", signature, *inputs)
    found = document(run, model("dense"), f"--requests={file}")["signatures"]["serving_default"]
    assert found["requests"] == f"3 recorded in {file}"
    assert found["ways"]["alone"]["outputs"]["scores"]["answers"] == 3
    assert found["ways"]["beside neighbours"]["shared_runs"] == 6


def test_recorded_requests_of_several_lengths_share_runs_with_their_like(
    run: Run, model: ModelPath, tmp_path: Path
) -> None:
    signature = fake_signature(inputs={"tokens": ("int32", (None, None))})
    inputs = [{"tokens": np.full((1, 3 + number % 2), number, np.int32)} for number in range(6)]
    file = log_of(tmp_path / "log", signature, *inputs)
    found = document(run, model("text_cnn"), f"--requests={file}")["signatures"]["serving_default"]
    assert found["ways"]["beside neighbours"]["groups_that_shared_none"] == 0


@pytest.mark.parametrize("content", [b"", b"no records"])
def test_a_file_without_requests_for_the_model_is_refused(
    run: Run, model: ModelPath, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "log").write_bytes(content)
    status, out, err = run(model("dense"), f"--requests={tmp_path / 'log'}", *QUICK)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert str(tmp_path / "log") in err


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: MODEL_DIR"),
        (("nowhere",), "there is no directory "),
        (("{dense}", "--requests=nowhere"), "there is no file nowhere"),
        (("{dense}", "--pairs=0"), "argument --pairs: 0 is less than 1"),
        (("{dense}", "--tolerance=-1"), "argument --tolerance: -1 is no number from 0 on"),
        (("{dense}", "--batching=perhaps"), "argument --batching: invalid choice: 'perhaps'"),
        (("{dense}", "--optimize=fast"), "argument --optimize: invalid choice: 'fast'"),
        (("{dense}", "--no_such_flag=1"), "no_such_flag"),
        (("{dense}", "--enable_batching"), "--enable_batching: this is what the command decides"),
        (("{dense}", "more"), "unexpected argument 'more'"),
        (("{dense}", "--signature=none"), "the model has no signature 'none'; its signatures: serving_default"),
        (("{dense}", "--json=/no/such/directory/file"), "/no/such/directory/file cannot be written: there is no dir"),
        (("{models}",), "holds models (dense), not versions of one"),
    ],
)
def test_bad_arguments_end_with_one_line_and_status_2(
    run: Run, model: ModelPath, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "dense").symlink_to(model("dense"))
    status, out, err = run(*(each.format(dense=model("dense"), models=models) for each in arguments))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_model_that_cannot_load_is_no_difference(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"\xff\xff")
    status, out, err = run(tmp_path / "broken")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1


def test_the_program_ends_with_the_commands_status(model: ModelPath) -> None:
    printed = run_program("-m", "embedserve", "verify", model("half_plus_two"), "--pairs=3")
    assert printed.startswith("Model half_plus_two, version 1; tolerance 1e-05\n\nserving_default: batched by proof: ")


def test_outputs_that_are_one_string_are_compared(run: Run, tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": 2.0 * x, "label": tf.constant("v7")},
        input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
    )
    module.info = tf.function(lambda: {"version": tf.constant("v7")}, input_signature=[])
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), {"serving_default": module.f, "info": module.info})
    status, text = run(tmp_path / "m", *QUICK)[:2]
    assert status == 0, text
