"""The container image, without a container engine: its entrypoint serves, and its Dockerfile names what is there."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support import saved_models
from tests.support.programs import ROOT, answers, fetch, free_port, program

DOCKER = ROOT / "examples" / "docker"

# The image's shell starts the entrypoint; here a Python that becomes that shell does.
BECOME = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


@pytest.mark.timeout(200)
def test_the_entrypoint_serves_what_the_environment_names_and_later_arguments_win(tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "half_plus_two" / "1")
    grpc, rest = free_port(), free_port()
    entrypoint = ("-c", BECOME, str(DOCKER / "tf_serving_entrypoint.sh"), f"--port={grpc}", f"--rest_api_port={rest}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    models = str(tmp_path)
    url = f"http://localhost:{rest}/v1/models/half_plus_two"
    with program(*entrypoint, until=answers(url), MODEL_NAME="half_plus_two", MODEL_BASE_PATH=models, PATH=path):
        assert fetch(f"{url}:predict", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [2.5, 3.0, 4.5]})


def test_the_dockerfile_copies_what_exists_and_follows_the_conventions() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        sources = [word for word in line.split() if not word.startswith("--")][:-1]
        assert all((ROOT / source).exists() for source in sources), line
    assert "MODEL_NAME=model" in text
    assert "MODEL_BASE_PATH=/models" in text
    assert "EXPOSE 8500 8501" in text
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE)
    assert os.access(DOCKER / "tf_serving_entrypoint.sh", os.X_OK)
