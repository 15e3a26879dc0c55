"""The command on real models: what it prints, recommends and refuses."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import embedserve
from embedserve import ModelRegistry
from embedserve.__main__ import main
from embedserve.request_log.records import classify_exchange, predict_exchange, record_of
from embedserve.server.cli import server_config
from embedserve.server.flags import parse
from embedserve.signature import Signature
from embedserve.testing import fake_signature
from embedserve.tuning import sweep as sweep_module
from embedserve.tuning.measure import Ask, Measurement, measure
from embedserve.tuning.model import batching_options
from embedserve.tuning.plan import Setting
from tests.support.programs import answers, fetch, free_port, program, run_program
from tests.support.saved_models import half_plus_two
from tests.tuning.conftest import ModelPath

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]

# A grid of milliseconds, and the process is the tests'.
QUICK = ("--seconds-per-cell=0.01", "--concurrency=2", "--batch-limits=4", "--run-threads=1", "--gc_freeze=false")
GRID = (*QUICK, "--concurrency=1,2", "--batch-limits=1,4")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; its exit status, and what it printed on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["tune", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def document(run: Run, *arguments: object) -> dict[str, Any]:
    status, out, err = run(*arguments, "--json=-")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def log_of(path: Path, signature: Signature, *inputs: dict[str, Any]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in inputs:
            writer.write(record_of(predict_exchange("any", 1, signature, each, {}), 1.0, ("serve",), 0))
    return path


def dense_log(path: Path, *rows: int) -> Path:
    signature = fake_signature(inputs={"features": ("float", (None, 4))})
    return log_of(path, signature, *({"features": np.ones((count, 4), np.float32)} for count in rows))


# What is measured and told.


def test_the_report_has_every_cell_a_plot_and_what_to_serve_with(run: Run, model: ModelPath, tmp_path: Path) -> None:
    status, out, _ = run(
        model("dense"), *GRID, f"--json={tmp_path / 'r.json'}", f"--plot={tmp_path / 'r.png'}", "--rows=2"
    )
    assert status == 0
    assert "Model dense, version 1, signature serving_default" in out
    assert "Requests: made up from the signature: features float [2, 4]" in out
    assert out.count("\n|") == 2 + 4
    assert "*  recommended" in out
    assert f"python -m embedserve --model_name=dense --model_base_path={model('dense')}" in out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    cells = json.loads((tmp_path / "r.json").read_text())["cells"]
    assert [(cell["run_threads"], cell["batch_limit"], cell["concurrency"]) for cell in cells] == [
        *((1, 1, 1), (1, 1, 2), (1, 4, 1), (1, 4, 2))
    ]
    for cell in cells:
        assert cell["failed"] == {}
        assert cell["answered"] >= cell["concurrency"]
        assert cell["rows_per_second"] == 2 * cell["requests_per_second"]
        assert 0 < cell["p50"] <= cell["p95"] <= cell["p99"]


@pytest.mark.parametrize("limits", ["1", "4"])
def test_the_flags_and_the_code_mean_what_was_measured(
    run: Run, model: ModelPath, limits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = document(run, model("dense"), *QUICK, f"--batch-limits={limits}", "--servable=session")["recommendation"]
    monkeypatch.chdir(tmp_path)
    if found["batching_parameters"] is not None:
        Path("batching.pbtxt").write_text(found["batching_parameters"])
    config = server_config(parse(found["flags"]), {})
    assert config.models is not None
    (served,) = config.models
    assert (served.name, served.base_path, config.options.servable) == ("dense", model("dense"), "session")
    assert config.options.num_batch_threads == 1
    assert served.batching is (limits == "4")

    registry = eval(found["python"], {name: getattr(embedserve, name) for name in embedserve.__all__})
    (embedded,) = registry._models
    assert (embedded.name, embedded.base_path) == ("dense", model("dense"))
    assert (registry.options.num_batch_threads, registry.options.servable) == (1, "session")
    if limits == "1":
        assert embedded.batching is False
        return
    measured = batching_options(Setting(1, 4), 2)
    assert embedded.batching_options == measured
    # Larger requests are cut either way, so what else becomes of them says nothing.
    assert served.batching_options == measured.model_copy(update={"oversize": "reject"})


def test_a_version_that_is_not_the_newest_is_measured_and_the_flags_said_to_serve_another(
    run: Run, tmp_path: Path
) -> None:
    half_plus_two(tmp_path / "half" / "1")
    shutil.copytree(tmp_path / "half" / "1", tmp_path / "half" / "3")
    found = document(run, tmp_path / "half" / "1", *QUICK)
    assert found["model"]["version"] == 1
    assert "The flags serve version 3, the newest; measured was 1." in found["notes"]


def test_a_signature_with_state_is_measured_without_batching(run: Run, model: ModelPath) -> None:
    found = document(run, model("counter"), *QUICK)
    assert {cell["batch_limit"] for cell in found["cells"]} == {1}
    assert found["notes"] == ["Not batched, so only measured without: AssignAddVariableOp writes state."]


def test_flags_that_batch_what_is_not_known_to_be_safe_say_so(run: Run, model: ModelPath) -> None:
    found = document(run, model("counter"), *QUICK, "--signature=read", "--batch-limits=4")
    (note,) = found["notes"]
    assert "--enable_batching batches every signature, also these, which are not known to be safe: serving_def" in note


def test_failed_requests_are_counted_told_and_not_recommended(run: Run, model: ModelPath) -> None:
    few = ("--batch-limits=1", "--concurrency=8", "--max_pending_requests=1")
    status, out, _ = run(model("dense"), *QUICK, *few)
    assert status == 0
    assert "Failed requests:" in out
    assert "UNAVAILABLE: The queue of servable" in out
    assert "No setting is recommended: none was measured without a failed request." in out
    (cell,) = document(run, model("dense"), *QUICK, *few)["cells"]
    assert sum(cell["failed"].values()) >= 1
    assert cell["answered"] >= 1


def test_a_target_latency_that_nothing_holds_is_said(run: Run, model: ModelPath) -> None:
    found = document(run, model("dense"), *QUICK, "--target_latency=0.0000001")["recommendation"]
    assert found["holds_target"] is False
    assert found["reason"].startswith("No cell holds a p99 of 0.0001 ms")


# Requests.


def test_recorded_requests_are_put_in_turn(
    run: Run, model: ModelPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    predict = ModelRegistry.predict

    async def seen_predict(self: ModelRegistry, name: str, inputs: Any, **options: Any) -> Any:
        seen.add(len(inputs["features"]))
        return await predict(self, name, inputs, **options)

    monkeypatch.setattr(ModelRegistry, "predict", seen_predict)
    log = dense_log(tmp_path / "log", 1, 3, 8)
    found = document(run, model("dense"), *QUICK, "--concurrency=3", f"--requests={log}")
    assert found["requests"] == {"origin": f"3 recorded in {log}", "count": 3, "mean_rows": 4.0}
    assert seen == {1, 3, 8}, "requests larger than a batch too"
    assert all(not cell["failed"] for cell in found["cells"])


def test_a_versions_own_warm_up_file_is_used_unless_a_made_up_request_is_asked_for(run: Run, tmp_path: Path) -> None:
    half_plus_two(tmp_path / "half" / "1")
    extra = tmp_path / "half" / "1" / "assets.extra"
    extra.mkdir()
    signature = fake_signature(inputs={"x": ("float", (None, 1))})
    log_of(extra / "tf_serving_warmup_requests", signature, {"x": np.ones((2, 1), np.float32)})
    assert document(run, tmp_path / "half", *QUICK)["requests"]["mean_rows"] == 2
    assert document(run, tmp_path / "half", *QUICK, "--rows=1")["requests"]["origin"] == "made up from the signature"


def test_recorded_examples_and_made_up_ones_are_asked(run: Run, model: ModelPath, tmp_path: Path) -> None:
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(2.0)
    spec = ("any", 1, "classify_x_to_y")
    with tf.io.TFRecordWriter(str(tmp_path / "log")) as writer:
        exchange = classify_exchange(spec, [example.SerializeToString()] * 2, None, [])
        writer.write(record_of(exchange, 1.0, ("serve",), 0))
    asked = (model("examples"), *QUICK, "--signature=classify_x_to_y")
    assert document(run, *asked, f"--requests={tmp_path / 'log'}")["requests"]["mean_rows"] == 2
    assert document(run, *asked)["requests"]["origin"] == "made up from the signature"


def test_what_of_a_log_does_not_fit_is_left_out_and_told(run: Run, model: ModelPath, tmp_path: Path) -> None:
    log, other = dense_log(tmp_path / "log", 1), tmp_path / "other"
    log_of(other, fake_signature(), {"x": np.ones(1, np.float32)})
    origin = document(run, model("dense"), *QUICK, f"--requests={log}", f"--requests={other}")["requests"]["origin"]
    assert origin.startswith(f"1 recorded in {log}, {other} (left out: 1 ")


# What cannot be.


def refused(run: Run, *arguments: object) -> str:
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert "Traceback" not in err
    return err


def test_what_cannot_be_measured_is_refused_in_a_line(run: Run, model: ModelPath, tmp_path: Path) -> None:
    dense, other = model("dense"), tmp_path / "other"
    log_of(other, fake_signature(), {"x": np.ones(1, np.float32)})
    (tmp_path / "text").write_text("no records, and long enough to see it")
    for arguments, message in (
        ((tmp_path / "none",), f"there is no directory {tmp_path / 'none'}"),
        ((dense, "--signature=nope"), "the model has no signature 'nope'; its signatures: serving_default"),
        ((dense, f"--requests={tmp_path / 'gone'}"), f"there is no file {tmp_path / 'gone'}"),
        ((dense, f"--requests={tmp_path / 'text'}"), f"{tmp_path / 'text'} cannot be read: "),
        ((dense, f"--requests={other}"), f"nothing in {other} is a request for signature 'serving_default' of this"),
        ((dense, f"--json={tmp_path / 'no' / 'r.json'}"), f"there is no directory {tmp_path / 'no'}"),
        ((dense, "--budget=0.000001"), "Nothing was measured. 1 of 1 cells were not measured: the budget of 1e-06 s"),
        ((dense, "--servable=neither"), "servable: Input should be 'auto', 'function' or 'session'"),
    ):
        err = refused(run, *arguments, *QUICK)
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_a_model_that_cannot_be_loaded_or_asked_is_refused(run: Run, model: ModelPath, tmp_path: Path) -> None:
    broken = shutil.copytree(model("dense"), tmp_path / "broken")
    (broken / "1" / "saved_model.pb").write_bytes(b"not a model")
    assert "bytes do not parse as a SavedModel" in refused(run, broken, *QUICK)
    partial = shutil.copytree(model("dense"), tmp_path / "partial")
    shutil.rmtree(partial / "1" / "variables")
    assert "is not whole" in refused(run, partial, *QUICK)
    assert "no request can be made up that the model answers" in refused(run, model("conv2d_unknown_rank"), *QUICK)


def test_requests_that_all_fail_are_told_with_their_reason(run: Run, model: ModelPath, tmp_path: Path) -> None:
    signature = fake_signature(inputs={"x": ("float", (None,))})
    log = log_of(tmp_path / "log", signature, {"x": np.array([-1.0], np.float32)})
    assert "every request fails: " in refused(run, model("positive_only"), *QUICK, f"--requests={log}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: MODEL_DIR"),
        (("m", "n"), "unexpected argument 'n'"),
        (("m", "--nope=1"), "unknown argument: --nope=1"),
        (("m", "--num_batch_threads=2"), "--num_batch_threads=2: this is what the command finds out"),
        (("m", "--concurrency=0"), "0 is less than 1"),
        (("m", "--concurrency=a"), "argument --concurrency: invalid"),
        (("m", "--target-latency=-1"), "-1 is no number of seconds above 0"),
        (("m", "--rows=2", "--requests=f"), "--rows is for made-up requests"),
    ],
)
def test_bad_usage_ends_as_other_commands_do(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").touch()
    with pytest.raises(SystemExit) as ended:
        main(["tune", *(str(tmp_path / "m") if argument == "m" else argument for argument in arguments)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# Interruption and budget.


def test_an_interruption_prints_what_was_measured(run: Run, model: ModelPath, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0

    async def measure_three(ask: Ask, concurrency: int, seconds: float, warmup: float) -> Measurement:
        nonlocal begun
        begun += 1
        if begun == 3:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        return await measure(ask, concurrency, seconds, warmup)

    monkeypatch.setattr(sweep_module, "measure", measure_three)
    status, out, _ = run(model("dense"), *GRID)
    assert status == 130
    assert "Interrupted: this is what was measured until then." in out
    assert out.count("\n|") == 2 + 2
    assert "Recommended: 1 run thread, no batching." in out


def test_the_budget_shortens_cells_and_then_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("embedserve.tuning.sweep.time.perf_counter", lambda: now)
    pace = sweep_module.Pace(2.0, budget=10.0)
    assert pace.seconds(cells_left=2) == 2.0
    assert pace.seconds(cells_left=8) == 1.0, "a quarter of its time is warm-up"
    now = 110.0
    assert pace.seconds(cells_left=1) is None


@pytest.mark.timeout(300)
def test_a_server_starts_with_what_a_process_printed(model: ModelPath, tmp_path: Path) -> None:
    command = ("-m", "embedserve", "tune", model("dense") / "1", *QUICK, "--batch-limits=8")
    found = json.loads(run_program(*command, "--json=-", cwd=tmp_path))["recommendation"]
    assert (found["run_threads"], found["batch_limit"]) == (1, 8)
    (tmp_path / "batching.pbtxt").write_text(found["batching_parameters"])
    rest = free_port()
    url = f"http://127.0.0.1:{rest}"
    ports = (f"--port={free_port()}", f"--rest_api_port={rest}")
    with program("-m", "embedserve", *found["flags"], *ports, until=answers(f"{url}/-/ready"), cwd=tmp_path):
        status, answer = fetch(f"{url}/v1/models/dense:predict", {"instances": [[0.0] * 4] * 20})
        assert status == 200
        assert len(answer["predictions"]) == 20, "more rows than a run takes"
