"""The manifests of KServe fit each other and the server, and the runtime's command answers both protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support import saved_models
from tests.support.programs import ROOT, answers, fetch, free_port, program

KSERVE = ROOT / "examples" / "kserve"


def document(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((KSERVE / name).read_text()))


RUNTIME = document("serving-runtime.yaml")
(CONTAINER,) = RUNTIME["spec"]["containers"]


def test_the_service_asks_for_what_the_runtime_offers() -> None:
    model = document("inference-service.yaml")["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    formats = [{"name": f["name"], "version": f["version"]} for f in RUNTIME["spec"]["supportedModelFormats"]]
    assert model["modelFormat"] in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


def test_the_container_is_one_of_kubernetes() -> None:
    # KServe's schema of a runtime is that of a pod's containers; the name of the model is filled in later.
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [CONTAINER]}}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.timeout(200)
def test_the_runtimes_command_answers_v1_v2_and_the_probes(tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "1")
    rest, grpc = free_port(), free_port()
    filled = {
        "--model_name={{.Name}}": "--model_name=half",
        "--model_base_path=/mnt/models": f"--model_base_path={tmp_path}",
        "--rest_api_port=8080": f"--rest_api_port={rest}",
        "--port=9000": f"--port={grpc}",
    }
    arguments = [filled.pop(word, word) for word in CONTAINER["args"]]
    assert not filled, "every placeholder stands in the manifest"
    url = f"http://127.0.0.1:{rest}"
    with program(*CONTAINER["command"][1:], *arguments, until=answers(f"{url}/v2/models/half/ready")):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert fetch(url + CONTAINER[probe]["httpGet"]["path"])[0] == 200
        assert fetch(f"{url}/v1/models/half")[1]["ready"] is True
        assert fetch(f"{url}/v1/models/half:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
        tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
        status, answer = fetch(f"{url}/v2/models/half/infer", {"inputs": [tensor]})
        assert (status, answer["outputs"][0]["data"]) == (200, [2.5])
        metrics = RUNTIME["spec"]["annotations"]["prometheus.kserve.io/path"]
        assert answers_text(url + metrics)


def answers_text(url: str) -> bool:
    import urllib.request

    with urllib.request.urlopen(url, timeout=60) as response:
        return b"request_count" in response.read()
