"""The Kubernetes manifests: valid, consistent with each other and with the server, and their probes answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from embedserve.config import RegistryOptions
from embedserve.server.standalone import UNLOAD_GRACE
from tests.support import saved_models
from tests.support.programs import ROOT, answers, fetch, free_port, program

KUBERNETES = ROOT / "examples" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    pod = documents("deployment.yaml")[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return dict(container)


def assert_valid(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("resource", documents("deployment.yaml"), ids=lambda resource: resource["kind"])
def test_a_resource_is_what_kubernetes_takes(resource: dict[str, Any]) -> None:
    assert_valid(resource)


def test_the_grace_period_covers_pre_stop_drain_and_unload(container: dict[str, Any]) -> None:
    pod = documents("deployment.yaml")[0]["spec"]["template"]["spec"]
    _, pre_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    (drain,) = (word.split("=")[1] for word in container["args"] if word.startswith("--drain_timeout="))
    assert pod["terminationGracePeriodSeconds"] >= float(pre_stop) + float(drain) + UNLOAD_GRACE
    readiness = container["readinessProbe"]
    assert float(pre_stop) >= readiness["periodSeconds"], "endpoints have had the time to change"


def test_probes_ask_what_they_are_for_and_the_root_file_system_is_read_only(container: dict[str, Any]) -> None:
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/-/live", "liveness": "/-/live", "readiness": "/-/ready"}
    assert "--rest_early" in container["args"], "else nothing answers the probes while the models load"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    (temporary,) = (variable["value"] for variable in container["env"] if variable["name"] == "TMPDIR")
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == [temporary]


def test_the_services_name_ports_that_the_pods_have(container: dict[str, Any]) -> None:
    _, *services, _ = documents("deployment.yaml")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for service in services:
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


@pytest.mark.timeout(200)
def test_the_container_command_serves_and_the_probes_are_answered(container: dict[str, Any], tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "models" / "half_plus_two" / "1")
    ports = {"--port": free_port(), "--rest_api_port": free_port()}
    url = f"http://127.0.0.1:{ports['--rest_api_port']}"
    given = [word.replace("/models", str(tmp_path / "models")) for word in container["args"]]
    words = [f"{flag}={ports[flag]}" if (flag := word.partition("=")[0]) in ports else word for word in given]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["port"] for probe in probes} == {"rest"}
    with program(*container["command"][1:], *words, until=answers(f"{url}/-/ready")):
        assert [fetch(url + probe["path"])[0] for probe in probes] == [200, 200, 200]
        assert fetch(f"{url}/v1/models/half_plus_two:predict", {"instances": [1.0]})[0] == 200


def ray_groups() -> list[dict[str, Any]]:
    cluster = documents("rayservice.yaml")[0]["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("group", ray_groups(), ids=["head", "worker"])
def test_the_pods_of_the_ray_service_are_what_kubernetes_takes(group: dict[str, Any]) -> None:
    assert_valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]})


def test_the_ray_service_is_what_kubernetes_takes_and_its_ports_are_the_pods() -> None:
    (resource,) = documents("rayservice.yaml")
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayService")
    service = resource["spec"]["serveService"]
    assert_valid({"apiVersion": "v1", "kind": "Service", **service})
    for group in ray_groups():
        (container,) = group["template"]["spec"]["containers"]
        names = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {names[port["targetPort"]] for port in service["spec"]["ports"]} == {8500, 8501}


def test_the_ray_service_serves_the_shipped_serve_config() -> None:
    (resource,) = documents("rayservice.yaml")
    config = yaml.safe_load(resource["spec"]["serveConfigV2"])
    assert config == yaml.safe_load((ROOT / "examples" / "ray" / "config.yaml").read_text())
    grace = ray_groups()[1]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= RegistryOptions().drain_timeout + UNLOAD_GRACE
