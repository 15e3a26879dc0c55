"""MobileNet bare, then with preprocessing and labels: what a client sees before and after the new version."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import answers, fetch, free_port, program, run_program, wait_until

pytestmark = pytest.mark.timeout(400)  # Several programs that import TensorFlow, one after the other.


def test_version_2_takes_any_image_and_answers_with_a_label(tmp_path: Path) -> None:
    base, rest, grpc = tmp_path / "mobilenet", free_port(), free_port()
    url = f"http://localhost:{rest}"
    where = ("--rest", f"localhost:{rest}", "--grpc", f"localhost:{grpc}")
    run_program("-m", "examples.mobilenet.export", base, 1)
    server = ("-m", "embedserve", f"--port={grpc}", f"--rest_api_port={rest}", "--model_name=mobilenet")
    with program(*server, f"--model_base_path={base}", until=answers(f"{url}/-/ready")):
        assert "of 1000" in run_program("-m", "examples.mobilenet.client", "numbers", *where)

        run_program("-m", "examples.mobilenet.export", base, 2)
        wait_until(lambda: fetch(f"{url}/v1/models/mobilenet/versions/2")[1] == available(2))
        labels = run_program("-m", "examples.mobilenet.client", "labels", *where).splitlines()

    answered = [line for line in labels if line.startswith(("REST", "gRPC"))]
    assert len(answered) == 4
    label = answered[0].split(": ", 1)[1]
    assert label.startswith("['class ")
    assert all(line.endswith(label) for line in answered)
    assert labels.count("answered by version 2") == 2


def available(version: int) -> object:
    status = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": str(version), "state": "AVAILABLE", "status": status}]}
