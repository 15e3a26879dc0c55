"""What is told to Serve: deployments and their options; and what is refused before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from embedserve import BatchingOptions, ConfigError, ModelConfig
from embedserve.config import RegistryOptions
from embedserve.ray import app, build_app
from embedserve.ray.application import deployment_options
from embedserve.ray.settings import ReplicaSettings
from embedserve.store_url import StoreUrl
from tests.test_architecture import run_python

MODELS = [ModelConfig(name=name, base_path=f"/models/{name}") for name in ("a", "b")]


def bound(application: Any) -> Any:
    return application._bound_deployment


def settings_of(application: Any) -> ReplicaSettings:
    return ReplicaSettings.model_validate_json(bound(application).init_args[0])


def test_a_replica_takes_two_full_batches_and_scales_at_one() -> None:
    made = deployment_options(RegistryOptions(), [])
    assert made["max_ongoing_requests"] == 2 * RegistryOptions().batching_options.max_batch_size
    assert made["autoscaling_config"]["target_ongoing_requests"] == RegistryOptions().batching_options.max_batch_size
    larger = ModelConfig(name="m", base_path="/m", batching_options=BatchingOptions(max_batch_size=500))
    assert deployment_options(RegistryOptions(), [larger])["max_ongoing_requests"] == 1000


def test_what_the_user_gives_wins_and_the_rest_stays() -> None:
    made = deployment_options(RegistryOptions(), [], {"autoscaling_config": {"max_replicas": 4}})
    assert made["autoscaling_config"]["max_replicas"] == 4
    assert made["autoscaling_config"]["target_ongoing_requests"] == 128
    assert "autoscaling_config" not in deployment_options(RegistryOptions(), [], {"num_replicas": 2})


def test_the_drain_has_the_time_that_the_registry_takes() -> None:
    assert deployment_options(RegistryOptions(drain_timeout=50), [])["graceful_shutdown_timeout_s"] == 60


def test_one_deployment_has_all_models() -> None:
    application = build_app("/models", batching_options={"max_batch_size": 8}, timeout=5, settle=0.5)
    deployment = bound(application)
    assert (deployment.name, deployment.max_ongoing_requests, deployment.user_config) == ("embedserve", 16, {})
    settings = settings_of(application)
    assert (settings.root, settings.models, settings.timeout) == (Path("/models"), (), 5)
    assert settings.registry_options == RegistryOptions(batching_options=BatchingOptions(max_batch_size=8), settle=0.5)
    assert set(settings.options) == {"batching_options", "settle"}, "other defaults are the replica's machine's"


def test_models_may_be_in_a_remote_store() -> None:
    settings = settings_of(build_app("https://key@example.com/models", remote_poll_interval=60))
    assert settings.root == StoreUrl("https://key@example.com/models")
    pinned = settings.configured({"models": {"m": {"version_policy": {"specific": {"versions": [3]}}}}})
    assert [model.base_path for model in pinned] == [StoreUrl("https://key@example.com/models/m")]
    one_by_one = build_app([{"name": "m", "base_path": "http://example.com/m", "storage_options": {"a": "b"}}])
    (model,) = settings_of(one_by_one).models
    assert (model.base_path, model.storage_options) == (StoreUrl("http://example.com/m"), {"a": "b"})


def test_each_model_has_a_deployment_behind_the_ingress() -> None:
    application = build_app(MODELS, per_model=True, deployment={"num_replicas": 2}, drain_timeout=50)
    assert bound(application).name == "embedserve"
    assert bound(application)._deployment_config.graceful_shutdown_timeout_s == 60
    models, *_ = bound(application).init_args
    assert {name: bound(model).name for name, model in models.items()} == {"a": "a", "b": "b"}
    assert [settings_of(model).models for model in models.values()] == [(MODELS[0],), (MODELS[1],)]
    assert {bound(model).num_replicas for model in models.values()} == {2}


def test_a_config_file_gives_the_same_arguments() -> None:
    args: dict[str, Any] = {"models": [{"name": "a", "base_path": "/models/a"}], "settle": 0.5, "cors": True}
    settings = settings_of(app(args))
    assert (settings.models, settings.cors) == ((MODELS[0],), True)
    assert args["models"], "the arguments are Serve's"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "need `models`"),
        ({"models": []}, "each name once"),
        ({"models": [*MODELS, MODELS[0]]}, "each name once"),
        ({"models": [{"name": "a"}]}, "base_path"),
        ({"models": "/models", "nope": 1}, "nope"),
        ({"models": "/models", "settle": -1}, "settle"),
        ({"models": "/models", "per_model": True}, "one by one"),
        ({"models": [{"name": "embedserve", "base_path": "/m"}], "per_model": True}, "named 'embedserve'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        app(arguments)


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedserve\[ray\]'"):
        build_app("/models")


def test_importing_it_imports_neither_ray_nor_tensorflow() -> None:
    """The proxies import it for the names of the RPCs, and the ingress for the rest."""
    code = "import sys, embedserve.ray; print(sorted({'ray', 'tensorflow', 'grpc', 'starlette'} & set(sys.modules)))"
    assert run_python(code) == "[]"
