"""The commands on a real server and on real directories: what they print, and how they exit."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from embedserve import Metrics, ModelRegistry
from embedserve.__main__ import main
from embedserve.commands.top import rates, samples
from embedserve.rest import create_app
from embedserve.server.hangups import SUB_COMMANDS
from tests.support import saved_models
from tests.support.programs import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commanded")
    for build in (saved_models.dense, saved_models.several, saved_models.strings):
        build(root / build.__name__ / "1")
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    """A server of the models; `broken` never loads."""
    port = free_port()
    shutil.copytree(root / "dense" / "1", root / "broken" / "1")
    (root / "broken" / "1" / "saved_model.pb").write_bytes(b"no model")
    with ModelRegistry(root) as registry:
        app = create_app(registry, metrics=Metrics())
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
    shutil.rmtree(root / "broken")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; its exit status, and what it printed on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([*map(str, arguments)])
        except SystemExit as error:
            status = int(error.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_status_shows_each_version_and_exits_with_1_for_a_model_that_is_not_ready(run: Run, url: str) -> None:
    status, out, err = run("status", url)
    assert (status, err) == (1, "")
    lines = [line.split()[:3] for line in out.splitlines()]
    assert lines[0] == ["model", "version", "state"]
    assert ["dense", "1", "AVAILABLE"] in lines
    assert "broken is not ready" in out
    status, out, _ = run("status", url, "--json")
    found = json.loads(out)
    assert (status, found["ready"], found["not_ready"]) == (1, False, ["broken"])
    assert [model["name"] for model in found["models"] if model["ready"]] == ["dense", "several", "strings"]


@pytest.mark.parametrize("command", [("status",), ("top",), ("inspect",), ("predict", "m", "-")])
def test_no_server_is_3_and_bad_usage_is_2(run: Run, command: tuple[str, ...]) -> None:
    name, *rest = command
    status, out, err = run(name, f"http://127.0.0.1:{free_port()}", *rest)
    assert (status, out) == (3, "")
    assert "no server answers at" in err
    assert run(name, "--no-such-option")[0] == 2


# predict


def test_predict_takes_each_kind_of_file_and_gives_the_same_answer(
    run: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]]
    array = np.array(rows, np.float32)
    np.save(tmp_path / "in.npy", array)
    np.savez(tmp_path / "in.npz", features=array)
    (tmp_path / "in.json").write_text(json.dumps({"inputs": {"features": rows}}))
    (tmp_path / "in.csv").write_text("1,2,3,4\n0,0,0,1\n")
    (tmp_path / "named.csv").write_text("a,b,c,d\n1,2,3,4\n0,0,0,1\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(rows)))
    answers = []
    for name in ("-", "in.json", "in.npy", "in.npz", "in.csv", "named.csv"):
        status, out, err = run("predict", url, "dense", name if name == "-" else tmp_path / name, "--output=json")
        assert status == 0, err
        document = json.loads(out)
        answers.append(document["predictions" if name == "-" else "outputs"])
    assert all(answer == answers[0] for answer in answers)
    status, out, _ = run("predict", url, "dense", tmp_path / "in.npy")
    assert (status, out.splitlines()[0].split()) == (0, ["row", "scores"])
    assert len(out.splitlines()) == 3
    assert run("predict", url, "dense", tmp_path / "in.npy", f"--output={tmp_path / 'out.npz'}")[0] == 0
    with np.load(tmp_path / "out.npz") as written:
        assert written["scores"].tolist() == answers[0]


def test_predict_takes_columns_by_name_and_strings(run: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("text\nab\nc\n")
    status, out, err = run("predict", url, "strings", tmp_path / "text.csv", "--output=json", "--version=1")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"outputs": {"length": [2, 1], "upper": ["AB", "C"]}}
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    status, out, _ = run("predict", url, "strings", tmp_path / "picture.png", "--output=json")
    assert (status, json.loads(out)["outputs"]["length"]) == (0, [4])


@pytest.mark.parametrize(
    ("model", "text", "status", "message"),
    [
        ("dense", "[[1, 2]]", 1, "400: input 'features'"),
        ("absent", "[[1, 2]]", 1, "its models are dense, several, strings"),
        ("dense", "{", 2, "cannot be read"),
    ],
)
def test_predict_names_what_is_wrong(
    run: Run, url: str, tmp_path: Path, model: str, text: str, status: int, message: str
) -> None:
    (tmp_path / "in.json").write_text(text)
    found, out, err = run("predict", url, model, tmp_path / "in.json")
    assert (found, out) == (status, "")
    assert message in err


def test_predict_refuses_a_file_of_another_kind_and_an_unknown_signature(run: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("1")
    assert run("predict", url, "dense", tmp_path / "in.txt")[0] == 2
    assert run("predict", url, "dense", tmp_path / "absent.npy")[0] == 2
    status, _, err = run("predict", url, "several", tmp_path / "in.txt", "--signature=nope")
    assert (status, "serving_default, free, scalars" in err) == (1, True)


# top


def test_top_counts_what_happens_between_two_pages(run: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("[[1, 2, 3, 4]]")
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            main(["predict", url, "dense", str(tmp_path / "in.json"), f"--output={tmp_path / 'out.npz'}"])

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        status, out, err = run("top", url, "--count=1", "--interval=3", "--json")
    finally:
        stop.set()
        asking.join()
    assert (status, err) == (0, "")
    found = json.loads(out)["models"]["dense"]
    assert found["requests"] > 0
    assert found["errors"] == 0
    assert found["mean_ms"] > 0
    assert run("top", url, "--count=1", "--metrics-path=/none")[0] == 1


def test_rates_are_differences_of_sums() -> None:
    page = """\
# HELP x y
:tensorflow:serving:request_count{model_name="m",status="OK"} %d
:tensorflow:serving:request_count{model_name="m",status="INTERNAL"} %d
:tensorflow:serving:request_latency_sum{model_name="m",API="predict",entrypoint="REST"} %d
:tensorflow:serving:request_latency_count{model_name="m",API="predict",entrypoint="REST"} %d
"""
    (found,) = rates(samples(page % (10, 1, 5000, 10)), samples(page % (30, 2, 45000, 30)), 2.0)
    assert (found.model, found.requests, found.errors, found.mean_ms, found.rows) == ("m", 10.5, 0.5, 2.0, None)


# inspect


def test_inspect_of_a_server_and_of_a_directory_agree(run: Run, url: str, root: Path) -> None:
    status, out, err = run("inspect", url, "--name=several", "--json")
    assert (status, err) == (0, "")
    (served,) = json.loads(out)
    status, out, err = run("inspect", root / "several", "--json", "--gc_freeze=false")
    assert status == 0, err
    (local,) = json.loads(out)
    assert served["signatures"] == local["signatures"]
    assert served["requests"] == local["requests"]
    assert local["warmup_records"] is None
    assert local["files"]["saved_model.pb"] == (root / "several" / "1" / "saved_model.pb").stat().st_size
    assert run("inspect", url, "--name=absent")[0] == 1


def test_inspect_shows_requests_that_work_and_what_optimising_brings(run: Run, root: Path) -> None:
    status, out, err = run("inspect", root / "dense" / "1", "--compare-optimized", "--gc_freeze=false")
    assert status == 0, err
    assert "features  float  [?, 4]" in out
    assert "batched by proof: each operation keeps the rows apart" in out
    assert 'curl http://localhost:8501/v1/models/dense/versions/1:predict -d \'{"instances": ' in out
    times = [line.split()[0] for line in out.splitlines() if line.endswith("µs")]
    assert "freeze" in times
    (call,) = (line for line in out.splitlines() if "predict_sync" in line)
    with ModelRegistry(models=[{"name": "dense", "base_path": root / "dense"}]) as registry:
        answer: Any = eval(call, {"registry": registry})
    assert answer["scores"].shape == (1, 3)


def test_inspect_of_what_is_no_model_is_1(run: Run, tmp_path: Path) -> None:
    status, out, err = run("inspect", tmp_path)
    assert (status, out) == (1, "")
    assert "is no model" in err


# completion


def completed(words: str) -> list[str]:
    """What bash proposes for the last of the words."""
    script = subprocess.run(
        [sys.executable, "-m", "embedserve", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    ask = f'{script}\nCOMP_WORDS=({words} ""); COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n'
    ask += 'compopt() { :; }; _embedserve; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    assert completed("embedserve ins") == ["inspect", "install-command"]
    assert "--rest_api_port=" in completed("embedserve --rest")
    (tmp_path / "models").mkdir()
    assert completed("embedserve mod") == ["models"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_read_by_the_shell(run: Run, tmp_path: Path, shell: str) -> None:
    status, out, _ = run("completion", shell)
    assert status == 0
    assert all(name in out for name in SUB_COMMANDS)
    script = tmp_path / "script"
    script.write_text(out)
    subprocess.run([shell, "-n", str(script)], check=True, timeout=60)
