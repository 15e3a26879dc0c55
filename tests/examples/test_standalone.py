"""The standalone server in two lives: following an edited config file, and in a container's environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import answers, fetch, free_port, program, run_program

pytestmark = pytest.mark.timeout(400)  # Several programs that import TensorFlow, one after the other.


def test_editing_the_config_updates_and_rolls_back_without_a_lost_request(tmp_path: Path) -> None:
    printed = run_program("-m", "examples.config_rollback", tmp_path)
    assert re.findall(r"(updated|rolled back) to version (\d)", printed) == [("updated", "2"), ("rolled back", "1")]
    answered, lost = re.findall(r"(\d+) requests answered meanwhile, (\d+) lost", printed)[0]
    assert int(answered) > 0
    assert lost == "0"
    assert "server ended with 0" in printed


@pytest.mark.parametrize("batching", [False, True])
def test_resnet_serves_under_the_container_variables(batching: bool, resnet: Path) -> None:
    grpc, rest = free_port(), free_port()
    server = ["-m", "embedserve", f"--port={grpc}", f"--rest_api_port={rest}", f"--enable_batching={batching}"]
    ready = answers(f"http://localhost:{rest}/v1/models/resnet")
    with program(*server, until=ready, MODEL_NAME="resnet", MODEL_BASE_PATH=str(resnet)):
        printed = run_program("-m", "examples.resnet.client", f"localhost:{grpc}", "--images", 8, "--at-once", 4)
        assert re.search(r"8 images, 4 at once: [\d.]+ images/s, class \d+$", printed.strip())
        metadata = fetch(f"http://localhost:{rest}/v1/models/resnet/metadata")[1]["metadata"]["signature_def"]
        assert "image" in metadata["signature_def"]["serving_default"]["inputs"]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    run_program("-m", "examples.resnet.export", models / "resnet" / "1")
    return models
