from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from embedserve.request_log.__main__ import main
from embedserve.request_log.records import Exchange, predict_exchange, record_of
from embedserve.saved_model.load.warmup import read_logs
from embedserve.testing import fake_signature

pytestmark = pytest.mark.slow

Write = Callable[..., Path]


def record(value: float = 0.0, name: str = "m") -> bytes:
    inputs, outputs = {"x": np.array([value], np.float32)}, {"y": np.array([value], np.float32)}
    return record_of(predict_exchange(name, 1, fake_signature(), inputs, outputs), 1.0, ("serve",), 0)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, *records: bytes) -> Path:
        path = tmp_path / name
        with tf.io.TFRecordWriter(str(path)) as writer:
            for each in records:
                writer.write(each)
        return path

    return write


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "m" / "1" / "assets.extra" / "tf_serving_warmup_requests"


def values(output: Path) -> list[float]:
    tensors = [log.predict_log.request.inputs["x"] for log in read_logs(output)]
    return [float(np.frombuffer(tensor.tensor_content, np.float32)[0]) for tensor in tensors]


def run(*arguments: object) -> int:
    return main(["to-warmup", *map(str, arguments)])


def test_requests_are_kept_without_their_answers(write: Write, output: Path) -> None:
    assert run(write("a", record(1), record(2)), write("b", record(3)), f"--output={output}") == 0
    assert values(output) == [1, 2, 3]
    for log in read_logs(output):
        assert not log.HasField("log_metadata")
        assert not log.predict_log.HasField("response")
    assert [path.name for path in output.parent.iterdir()] == [output.name], "nothing is left beside it"


def test_the_limit_is_kept_and_what_is_left_out_is_told(
    write: Write, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = PredictionLog()
    broken.predict_log.request.inputs["x"].dtype = 1
    broken.predict_log.request.inputs["x"].tensor_shape.dim.add(size=-3)
    broken.log_metadata.model_spec.name = "m"
    session = record_of(Exchange("session_run_log", "m", 1, "", b"", b"", 0), 1.0, (), 0)
    empty = record_of(Exchange("classify_log", "m", 1, "", b"", b"", 0), 1.0, (), 0)
    log = write("a", record(1), session, record(1), broken.SerializeToString(), empty, record(2), record(3), record(4))
    assert run(log, f"--output={output}", "--limit=2") == 0
    assert values(output) == [1, 2]
    assert capsys.readouterr().out == (
        f"2 records in {output}; left out: 1 of a kind that is not replayed (session_run_log), 2 over the limit, "
        "1 repeated, 1 with a broken tensor, 1 without examples\n"
    )


def test_a_log_of_several_models_needs_a_choice(write: Write, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write("a", record(1, "m"), record(2, "n"), record(3, "m"))
    assert run(log, f"--output={output}") == 1
    assert capsys.readouterr().err == "the logs hold requests of several models (m, n): add --model=NAME\n"
    assert not output.exists()
    assert run(log, f"--output={output}", "--model=m") == 0
    assert values(output) == [1, 3]


def test_a_torn_end_is_told_and_the_rest_is_kept(
    write: Write, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = write("a", record(1), record(2))
    torn.write_bytes(torn.read_bytes()[:-5])
    assert run(torn, write("b", record(3)), f"--output={output}") == 0
    assert values(output) == [1, 3]
    assert f"1 after what could not be read of {torn}" in capsys.readouterr().out


def test_an_existing_file_is_replaced_only_when_asked(
    write: Write, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write("a", record(1)), f"--output={output}") == 0
    other = write("b", record(2))
    assert run(other, f"--output={output}") == 1
    assert capsys.readouterr().err == f"{output} exists; --force replaces it\n"
    assert values(output) == [1]
    assert run(other, f"--output={output}", "--force") == 0
    assert values(output) == [2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        (b"", "there is nothing to replay in 1 log(s)"),
        (b"no records at all", "1 after what could not be read of"),
    ],
)
def test_without_records_there_is_no_file(
    tmp_path: Path, output: Path, content: bytes | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    if content is not None:
        log.write_bytes(content)
    assert run(log, f"--output={output}") == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments", [[], ["to-warmup"], ["to-warmup", "a"], ["to-warmup", "a", "--output=b", "--limit=1001"]]
)
def test_what_is_not_understood_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m embedserve.request_log" in capsys.readouterr().err


def test_it_runs_as_a_module(write: Write, output: Path) -> None:
    command: list[Any] = [sys.executable, "-W", "error", "-m", "embedserve.request_log", "to-warmup"]
    done = subprocess.run(
        [*command, write("a", record(1)), "--output", output], capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stdout) == (0, f"1 records in {output}\n"), done.stderr
    assert values(output) == [1]
