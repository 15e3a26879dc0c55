"""Models of TensorFlow 1: a CNN in version directory 0, and a search over two asset files behind a Flask front end."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from examples.digits.train import as_mnist, load_digits
from tests.support.programs import ROOT, answers, fetch, free_port, program, run_program

pytestmark = pytest.mark.timeout(400)  # Several programs that import TensorFlow, one after the other.


def test_cnn_answers_both_outputs_to_a_columnar_request(tmp_path: Path) -> None:
    run_program("-m", "examples.tf1_cnn.export", tmp_path / "cnn" / "0")
    digits, rest = load_digits(), free_port()
    url = f"http://localhost:{rest}/v1/models/default"
    server = ("-m", "embedserve", f"--port={free_port()}", f"--model_base_path={tmp_path}/cnn")
    # The REST port is named only because another server on this machine may have the default one.
    with program(*server, f"--rest_api_port={rest}", until=answers(url)):
        assert fetch(url)[1]["model_version_status"][0]["version"] == "0"
        status, answer = fetch(f"{url}:predict", {"inputs": {"image": as_mnist(digits.held_out_images).tolist()}})
        assert status == 200
    assert set(answer["outputs"]) == {"softmax", "prediction"}
    assert np.shape(answer["outputs"]["softmax"]) == (360, 10)
    assert np.mean(answer["outputs"]["prediction"] == digits.held_out_labels) > 0.8


def test_search_reads_its_assets_and_answers_a_flask_front_end(digit_models: Path, tmp_path: Path) -> None:
    for module, name in (("tf1_cnn", "cnn/0"), ("neighbours", "neighbours/1")):
        run_program("-m", f"examples.{module}.export", tmp_path / name)
    os.symlink(digit_models / "digits", tmp_path / "digits")
    os.symlink(digit_models / "digits", tmp_path / "mnist")
    config = tmp_path / "models.config"
    config.write_text((ROOT / "examples/neighbours/models.config").read_text().replace("/models/", f"{tmp_path}/"))

    grpc, rest, front = free_port(), free_port(), free_port()
    server = ("-m", "embedserve", f"--model_config_file={config}", f"--port={grpc}", f"--rest_api_port={rest}")
    flask = ("-m", "flask", "--app", "examples.neighbours.flask_front", "run", "--port", front)
    latent = np.random.default_rng(1).normal(size=(200, 16)).astype(np.float32)[42]
    with (
        program(*server, until=answers(f"http://localhost:{rest}/-/ready")),
        program(*flask, until=lambda: up(front), GRPC=f"localhost:{grpc}"),
    ):
        status, found = fetch(f"http://localhost:{front}/similar", {"latent": latent.tolist(), "k": 3})
        assert status == 200
        assert found["filenames"][0] == "face_042.jpg"
        assert found["indices"][0] == 42
        assert found["distances"] == sorted(found["distances"])
        assert len(found["distances"]) == 3
        status, refused = fetch(f"http://localhost:{front}/similar", {"latent": [1.0], "k": 3})
        assert status == 400
        assert "target_latent" in refused["error"]


def up(port: int) -> bool:
    try:
        fetch(f"http://localhost:{port}/")
    except ValueError:  # Flask's 404 page is no JSON.
        return True
    except OSError:
        return False
    return True
