"""The Serve config file that is shipped, as `serve run` takes it; and the Kubernetes resource around it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
from tensorflow_serving.apis import get_model_metadata_pb2

from tests.ray.clients import Clients
from tests.support import saved_models
from tests.support.programs import ROOT, answers, free_port, wait_until

CONFIG = ROOT / "examples" / "ray" / "config.yaml"


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_serve_run_serves_the_shipped_config_to_tensorflow_serving_clients(cluster: Cluster, tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "models" / "half_plus_two" / "1")
    rest, grpc = free_port(), free_port()
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["proxy_location"] = "HeadOnly"
    config["http_options"] |= {"host": "127.0.0.1", "port": rest}
    config["grpc_options"] |= {"port": grpc}
    config["applications"][0]["args"]["models"] = str(tmp_path / "models")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    # `serve run` stops Serve when it is interrupted.
    code = "from ray.serve.scripts import cli; cli()"
    command = [sys.executable, "-c", code, "run", "--address", cluster.address, str(tmp_path / "config.yaml")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            ready = answers(f"http://127.0.0.1:{rest}/-/ready")
            wait_until(lambda: process.poll() is not None or ready(), within=200)
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            clients = Clients(rest, grpc)
            assert clients.over_rest("half_plus_two").value == clients.over_grpc("half_plus_two").value == 2.5
            request = get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec={"name": "half_plus_two"}, metadata_field=["signature_def"]
            )
            assert "signature_def" in clients.prediction.GetModelMetadata(request).metadata
            clients.channel.close()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_the_shipped_config_is_a_serve_config_that_lets_batches_form() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    (deployment,) = application.deployments
    batch = application.args["batching_options"]["max_batch_size"]
    assert deployment.max_ongoing_requests >= 2 * batch


def test_the_ray_service_manifest_has_a_serve_config() -> None:
    resource = yaml.safe_load((ROOT / "examples" / "kubernetes" / "rayservice.yaml").read_text())
    config = ServeDeploySchema.model_validate(yaml.safe_load(resource["spec"]["serveConfigV2"]))
    assert [application.import_path for application in config.applications] == ["embedserve.ray:app"]
